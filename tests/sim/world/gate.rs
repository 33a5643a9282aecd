//! The gate: the controller's words as the real gate writes them ([`ControlWords`]), and a model of the kernel's half, which
//! reads them: `hold`, `flush` with the second lock behind it, and `turn`.

use std::collections::VecDeque;

use remus::{
    gate::{ControlWords, Held, NewTerm, Writes},
    replication::Fenced,
    wire::Moment,
};
use remus_abi::{
    Release, Stamp,
    gate::{CONTROL_WORDS, Control, Mode},
    may_leave, releasable,
};

use super::Fault;

/// The map of words, and the frames in the slots: each a stamp and a number said.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Gate {
    words: [u64; CONTROL_WORDS],
    slots: VecDeque<(Stamp, u8)>,
    /// What the controller has still to do to begin a term. It does nothing else until then.
    turning: VecDeque<Act>,
}

/// One thing that the controller does; anything of the kernel's may come between two of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Act {
    Write(Control, u64),
    Turn(Held),
}

/// What became of a flush.
#[derive(Default)]
pub(crate) struct Flushed {
    pub(crate) lease_is_over: bool,
    /// In the order in which they left.
    pub(crate) out: Vec<u8>,
    pub(crate) thrown_away: Vec<u8>,
}

impl Gate {
    /// Closed and empty, in the term of `fenced`.
    pub(crate) fn in_term(fenced: &Fenced) -> Self {
        let mut gate =
            Self { words: [0; CONTROL_WORDS], slots: VecDeque::new(), turning: VecDeque::new() };
        let NewTerm { shut, held: _, begin } = gate.words().begin_term(fenced, Held::Discard);
        gate.perform(shut);
        gate.perform(begin);
        gate
    }

    pub(crate) fn words(&self) -> ControlWords {
        ControlWords::read(|word| self.words[word as usize])
    }

    pub(crate) fn perform(&mut self, writes: Writes) {
        for (word, to) in writes {
            self.write(word, to);
        }
    }

    pub(crate) fn write(&mut self, word: Control, to: u64) {
        self.words[word as usize] = to;
    }

    /// As the fault [`Fault::ReleaseAtCapture`] and others do, without any permission.
    pub(crate) fn raise(&mut self, word: Control, to: u64) {
        let word = &mut self.words[word as usize];
        *word = to.max(*word);
    }

    /// The guest goes on unprotected in the term of `fenced`, with what is held: [`Gate::turn_on`] does the next thing.
    pub(crate) fn begin_term_and_open(&mut self, fenced: &Fenced, fault: Option<Fault>) {
        let NewTerm { shut, held, begin } = self.words().begin_term(fenced, Held::Keep);
        let write = |(word, to)| Act::Write(word, to);
        let mut acts: Vec<_> = shut.into_iter().map(write).collect();
        acts.push(Act::Turn(held));
        acts.extend(begin.into_iter().map(write));
        match fault {
            Some(Fault::LeaseSurvivesTerm) => {
                acts.retain(|act| !matches!(act, Act::Write(Control::LeaseUntil, _)));
            }
            Some(Fault::TermWordFirst) => {
                let is_late =
                    |act: &Act| !matches!(act, Act::Write(Control::Open | Control::Committed, _));
                acts.sort_by_key(is_late);
            }
            _ => {}
        }
        let mut after = self.clone();
        acts.iter().for_each(|act| after.act(*act));
        acts.extend(after.words().open(fenced).into_iter().map(write));
        self.turning = acts.into();
    }

    pub(crate) fn is_turning(&self) -> bool {
        !self.turning.is_empty()
    }

    /// Does the next thing that a new term takes.
    pub(crate) fn turn_on(&mut self) {
        let act = self.turning.pop_front().expect("a term begins");
        self.act(act);
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Write(word, to) => self.write(word, to),
            Act::Turn(Held::Keep) => {}
            Act::Turn(Held::Discard) => self.slots.clear(),
        }
    }

    /// What the guest says now: kept, dropped, or let through.
    pub(crate) fn hold(&mut self, said: u8) -> Option<u8> {
        match self.words().mode {
            Mode::Closed => None,
            // What was held before the gate opened leaves first.
            Mode::Open if self.slots.is_empty() => Some(said),
            Mode::Hold | Mode::Open => {
                self.slots.push_back((self.words().open, said));
                None
            }
        }
    }

    pub(crate) fn held(&self) -> usize {
        self.slots.len()
    }

    fn releasable(&self) -> Stamp {
        let ControlWords { open, committed, .. } = self.words();
        releasable(self.words[Control::Mode as usize], || open, || committed)
    }

    /// Whether a flush finds anything to do, whatever the lease says.
    pub(crate) fn may_flush(&self) -> bool {
        let (upto, release) = (self.releasable(), self.release());
        self.slots.front().is_some_and(|(stamp, _)| {
            upto != Stamp::NONE && (release.lets_out(*stamp) || !release.knows(*stamp))
        })
    }

    fn release(&self) -> Release {
        Release::new(self.releasable(), self.words().kept)
    }

    /// `flush`, at any moment: the kernel runs it by itself when a datagram comes.
    pub(crate) fn flush(&mut self, now: Moment, ignores_lease: bool) -> Flushed {
        let mut flushed = Flushed::default();
        let upto = self.releasable();
        if self.words().mode == Mode::Hold {
            if !ignores_lease && now.0 > self.words().lease_until_ns {
                flushed.lease_is_over = true;
                return flushed;
            }
            if upto >= self.words().open {
                return flushed;
            }
        }
        let release = self.release();
        while let Some((stamp, said)) = self.slots.front().copied() {
            if !release.knows(stamp) {
                flushed.thrown_away.push(said);
            } else if release.lets_out(stamp) {
                flushed.out.extend(self.proven(stamp).then_some(said));
            } else {
                break;
            }
            self.slots.pop_front();
        }
        flushed
    }

    /// The second lock: reads the words for itself.
    fn proven(&self, stamp: Stamp) -> bool {
        may_leave(stamp, self.releasable(), self.words().kept)
    }
}
