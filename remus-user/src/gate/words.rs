//! The controller's words, and what every change of the gate writes into them, in which order. Pure.
//!
//! [`Gate`](super::Gate) performs the writes by stores into the shared map, the simulator on an array; both change nothing
//! by any other way. The rule by which the kernel reads the words is [`remus_abi::may_leave`].
//!
//! Order, and why:
//! - *seal* that begins to hold: netfilter's queue takes frames, then the new epoch is stamped, then frames are held.
//!   A frame that passes in between was sent by a guest that is paused, so it is of the sealed epoch.
//! - *begin_term*: releases stop first ([`NewTerm::shut`]): the gate holds, if it was open, and has no lease. Then
//!   whoever performs this disarms the trigger and runs `turn` under the flush lock ([`NewTerm::held`]), which waits for
//!   releases that have read the old words, forgets what datagrams have acked, and discards what is to be discarded. Only
//!   then come the words of the new term ([`NewTerm::begin`]): what is kept, since the frames of a term that is neither
//!   kept nor open are thrown away; the open epoch, since a committed one must be below it; the turns, by which a mark is
//!   known to be of the new term; the committed epoch, by which everybody knows the term of what may leave. A controller
//!   that dies at any point leaves a gate that lets nothing out.
//! - A closed gate stays closed until it is told to hold or to open.

use std::{array, iter};

use remus_abi::{
    Kept, Stamp, Term, Turns,
    gate::{Control, Mode},
};

use crate::replication::{Committed, Fenced, LeaseUntil, NextEpoch};

/// What becomes of held frames when a term ends.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Held {
    /// They leave in the new term, before what is sent in it: when the gate opens, or with the term's first commit.
    Keep,
    /// They never leave.
    Discard,
}

/// What the controller's words say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControlWords {
    pub mode: Mode,
    /// The epoch that frames are stamped with now; [`Stamp::NONE`] before the first term.
    pub open: Stamp,
    /// The newest committed epoch.
    pub committed: Stamp,
    /// CLOCK_BOOTTIME ns after which nothing leaves.
    pub lease_until_ns: u64,
    /// Which frames of earlier terms leave in this one.
    pub kept: Kept,
    /// How often a term has begun.
    pub turns: Turns,
    /// Whether netfilter's queue is part of this gate.
    pub has_queue: bool,
}

/// A word, and what to write into it.
pub type Write = (Control, u64);

/// Writes, to be performed in this order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Writes {
    writes: [Write; Self::MOST],
    len: usize,
}

/// What begins a term; see the module for the order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewTerm {
    /// Stops releases in the old term.
    pub shut: Writes,
    /// What to tell `turn`, once the trigger is disarmed.
    pub held: Held,
    /// The words of the new term.
    pub begin: Writes,
}

/// [`Control::Engine`] of the engine `nfqueue`.
pub(super) const NFQUEUE: u64 = 1;

impl ControlWords {
    /// The words as `word` reads them. Anything but a known mode is closed.
    pub fn read(word: impl Fn(Control) -> u64) -> Self {
        Self {
            mode: mode_of(word(Control::Mode)),
            open: Stamp::from_bits(word(Control::Open)),
            committed: Stamp::from_bits(word(Control::Committed)),
            lease_until_ns: word(Control::LeaseUntil),
            kept: Kept::from_bits(word(Control::Kept)),
            turns: Turns::from_bits(word(Control::Turns)),
            has_queue: word(Control::Engine) == NFQUEUE,
        }
    }

    pub fn term(&self) -> Term {
        self.open.term()
    }

    /// Begins the term of `fenced`. The gate then holds, or stays closed if it was.
    ///
    /// # Panics
    /// When that term is not newer than the gate's.
    pub fn begin_term(&self, fenced: &Fenced, held: Held) -> NewTerm {
        let (term, first) = (fenced.term(), fenced.first());
        assert!(term > self.term(), "term {term} begins in a gate of term {}", self.term());
        let keeps = held == Held::Keep && self.term() != Term::NONE;
        let kept = if keeps { self.kept.and(self.term(), term, first) } else { Kept::NONE };
        let no_lease = (Control::LeaseUntil, 0);
        let shut = match self.mode {
            Mode::Open => self.hold().and(no_lease),
            Mode::Hold | Mode::Closed => Writes::of([no_lease]),
        };
        let begin = Writes::of([
            (Control::Kept, kept.bits()),
            (Control::Open, Stamp::new(term, first).bits()),
            (Control::Turns, self.turns.next(keeps).bits()),
            (Control::Committed, Stamp::new(term, first.prev()).bits()),
        ]);
        NewTerm { shut, held, begin }
    }

    /// Frames are held from now on, as output of the open epoch.
    ///
    /// # Panics
    /// Before the first term: what is held in none never leaves.
    pub fn hold(&self) -> Writes {
        assert!(self.term() != Term::NONE, "a gate holds in a term");
        Writes::of([(Control::Queueing, self.has_queue.into()), (Control::Mode, Mode::Hold as u64)])
    }

    /// The open epoch has ended. If its checkpoint is the first of a session, holding begins.
    ///
    /// # Panics
    /// When the next epoch is not of the gate's term, or does not follow the open one: frames would be released too
    /// early or never.
    pub fn seal(&self, next: &NextEpoch) -> Writes {
        let follows = Stamp::new(self.term(), self.open.epoch().next());
        assert_eq!(next.stamp(), follows, "the epoch after the open one is opened");
        let stamp = (Control::Open, next.stamp().bits());
        if !next.is_first() {
            return Writes::of([stamp]);
        }
        let queueing = (Control::Queueing, self.has_queue.into());
        Writes::of([queueing, stamp, (Control::Mode, Mode::Hold as u64)])
    }

    /// Raises the committed epoch.
    ///
    /// # Panics
    /// On a commit of another term, or one that is not below the open epoch: the brain that gave the permission is
    /// broken.
    pub fn commit(&self, committed: &Committed) -> Writes {
        let stamp = committed.stamp();
        assert_eq!(stamp.term(), self.term(), "a commit of this gate's term");
        assert!(stamp < self.open, "a committed epoch is below the open one");
        Writes::if_raised(Control::Committed, self.committed.bits(), stamp.bits())
    }

    /// Allows releases until the end of the lease. A lease never gets shorter by being renewed.
    ///
    /// # Panics
    /// When the lease is of another term.
    pub fn renew_lease(&self, lease: &LeaseUntil) -> Writes {
        assert_eq!(lease.term(), self.term(), "a lease of this gate's term");
        Writes::if_raised(Control::LeaseUntil, self.lease_until_ns, lease.until().0)
    }

    /// Frames pass unheld from now on; what is held leaves first.
    ///
    /// # Panics
    /// When the permission is for another term than the gate's.
    pub fn open(&self, fenced: &Fenced) -> Writes {
        assert_eq!(fenced.term(), self.term(), "permission for this gate's term");
        Writes::of([(Control::Mode, Mode::Open as u64)])
    }

    /// Fresh frames are dropped from now on, and nothing that is held leaves. The only write that anybody may perform at
    /// any time.
    pub fn close() -> Writes {
        Writes::of([(Control::Mode, Mode::Closed as u64)])
    }

    /// What netfilter's queue held before the gate opened is out: what comes next need not line up behind it.
    pub fn queue_is_passed() -> Writes {
        Writes::of([(Control::Queueing, 0)])
    }

    /// The words of a new, closed gate that takes the place of one with these words, in the same term. What the old gate
    /// held is gone.
    pub fn again(&self) -> Writes {
        Writes::of([(Control::Open, self.open.bits()), (Control::Committed, self.committed.bits())])
    }
}

impl Writes {
    const MOST: usize = 4;

    fn of<const N: usize>(these: [Write; N]) -> Self {
        const { assert!(N <= Self::MOST, "more writes than any change has") }
        let mut writes = [(Control::Mode, 0); Self::MOST];
        writes[..N].copy_from_slice(&these);
        Self { writes, len: N }
    }

    fn and(mut self, write: Write) -> Self {
        self.writes[self.len] = write;
        self.len += 1;
        self
    }

    fn if_raised(word: Control, from: u64, to: u64) -> Self {
        if to > from { Self::of([(word, to)]) } else { Self::of([]) }
    }
}

impl IntoIterator for Writes {
    type Item = Write;
    type IntoIter = iter::Take<array::IntoIter<Write, { Writes::MOST }>>;

    fn into_iter(self) -> Self::IntoIter {
        self.writes.into_iter().take(self.len)
    }
}

/// The mode that a word of the map stands for.
fn mode_of(word: u64) -> Mode {
    let known = [Mode::Hold, Mode::Open].into_iter().find(|known| *known as u64 == word);
    known.unwrap_or(Mode::Closed)
}

#[cfg(test)]
mod tests;
