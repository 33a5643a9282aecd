//! When to seal: how long the open epoch lasts.
//!
//! Three wishes pull at it. What the guest says waits for the end of its epoch, so a guest that talks wants short ones.
//! Every seal stops the guest, so one that computes wants long ones. And one that idles wants to be left alone, yet
//! not so long that it could not be held to its pause when it begins to work.
//!
//! ```text
//!            sealed                    due: epoch_max after that; up to idle_max while the guest idles
//!   ───────────┼──────┬──────────┬────────────────┼──────────────►
//!              │ interval_min    │                └─ at the latest
//!              │      │          └─ output began to wait, + output_delay       (mode latency)
//!              └──────┴─ not before this, whatever waits
//! ```
//!
//! - Output brings the seal forward only while no checkpoint is on its way: one that is answers soon, and until then
//!   more output comes together. A guest with one client never notices; one with many is stopped less often.
//! - A guest that says much at once has many clients, or much to say to one: it is stopped for no more than a twelfth
//!   of its time, so that the next seal takes more along.
//! - An epoch in which the guest said nothing, changed next to nothing and used next to no CPU time was quiet: the next
//!   may be twice as long. Any of the three ends that at once; the engine looks for it ([`Cadence::handle_look`]).
//! - An epoch that has dirtied as many pages as a pause may copy is sealed early: the guest is paced by its own writes.
//!
//! Deliberately absent: how many checkpoints may be on their way (the pipeline), and what a pause costs (the engine).

use std::time::Duration;

use crate::wire::{Moment, Timing};

/// What the operator wants the epochs to be good for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Mode {
    /// Output waits as short as can be: it brings the seal forward.
    #[default]
    Latency,
    /// The guest is stopped as rarely as may be: output waits for the end of its epoch.
    Throughput,
    /// Every epoch lasts `epoch_max`, whatever the guest does.
    Fixed,
}

/// The spans that an operator sets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tempo {
    pub mode: Mode,
    /// Longest epoch of a guest that does something.
    pub epoch_max: Duration,
    /// In mode latency: seal this long after output began to wait.
    pub output_delay: Duration,
    /// Shortest time between two seals.
    pub interval_min: Duration,
    /// Longest epoch of a guest that idles; no less than `epoch_max`.
    pub idle_max: Duration,
}

/// A checkpoint of no more changed pages than this is one of an idle guest: its clock, a counter, a stack.
const QUIET_PAGES: usize = 16;
/// Looks into the dirty log within an `epoch_max`.
const LOOKS: u32 = 4;

/// More frames than this in an epoch are much.
const FEW_FRAMES: u64 = 8;
/// A guest that says much is stopped for one part in so many.
const STOPPED_SHARE: u32 = 12;

/// What the engine saw of the epoch that it has just sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Pages that stay reported, written or not.
    pub standing: usize,
    /// Pages that a pause may copy.
    pub pages_max: usize,
    /// The guest was at work.
    pub worked: bool,
    /// Frames that it sent.
    pub frames: u64,
    /// How long the seal stopped it.
    pub pause: Duration,
}

/// What is due at a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    Seal,
    /// See what the guest does, and say so: [`Cadence::handle_look`].
    Look,
    /// Nothing before this.
    At(Moment),
}

/// When the open epoch ends.
///
/// Call order: after each seal [`handle_sealed`](Self::handle_sealed); [`handle_output`](Self::handle_output),
/// [`handle_filling`](Self::handle_filling), [`handle_changed`](Self::handle_changed) as things happen;
/// [`poll`](Self::poll) says what to do, and when to ask again.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Cadence {
    tempo: Tempo,
    sealed: Moment,
    due: Moment,
    /// When the output that waits wants to leave.
    wanted: Option<Moment>,
    look: Moment,
    /// How long the open epoch may last: `epoch_max`, or more while the guest idles.
    span: Duration,
    /// The guest was at work in the epoch that was sealed last.
    worked: bool,
    /// Shortest time to the next seal for what it said in that epoch.
    spacing: Duration,
    /// Pages that the open epoch began with: those that stay writable are always reported.
    standing: usize,
    /// Pages that a pause may copy.
    pages_max: usize,
}

impl Tempo {
    pub fn new(timing: &Timing) -> Self {
        Self {
            mode: Mode::default(),
            epoch_max: timing.epoch_max,
            output_delay: Duration::ZERO,
            interval_min: Duration::from_micros(500),
            idle_max: timing.epoch_max.max(Duration::from_millis(250)),
        }
    }

    /// Every epoch as long as this.
    pub fn fixed(epoch_max: Duration) -> Self {
        Self {
            mode: Mode::Fixed,
            epoch_max,
            output_delay: Duration::ZERO,
            interval_min: Duration::ZERO,
            idle_max: epoch_max,
        }
    }
}

impl Cadence {
    /// The first epoch begins `now`.
    pub(super) fn new(tempo: Tempo, now: Moment) -> Self {
        Self {
            tempo,
            sealed: now,
            due: now + tempo.epoch_max,
            wanted: None,
            look: now + tempo.epoch_max,
            span: tempo.epoch_max,
            worked: false,
            spacing: Duration::ZERO,
            standing: 0,
            pages_max: usize::MAX,
        }
    }

    /// An epoch was sealed `now`.
    ///
    /// Epochs that nothing brought forward keep to a grid, so that late seals do not add up; one later than a whole epoch
    /// begins a new grid.
    pub(super) fn handle_sealed(&mut self, now: Moment) {
        if self.wanted.take().is_some() {
            self.span = self.tempo.epoch_max;
        }
        let on_grid = self.due + self.span;
        let latest = now + self.span;
        self.due = if on_grid > now { on_grid.min(latest) } else { latest };
        self.sealed = now;
        self.look = self.next_look(now);
    }

    /// What was seen of the epoch that was sealed.
    pub(super) fn handle_seen(&mut self, seen: Seen) {
        let Seen { standing, pages_max, worked, frames, pause } = seen;
        self.standing = standing;
        self.pages_max = pages_max;
        self.worked = worked;
        self.spacing = match frames > FEW_FRAMES {
            true => (pause * STOPPED_SHARE).min(self.tempo.epoch_max),
            false => Duration::ZERO,
        };
        self.look = self.next_look(self.sealed);
    }

    /// Output of the open epoch waits in the gate.
    pub(super) fn handle_output(&mut self, now: Moment) {
        let wanted = match self.tempo.mode {
            Mode::Latency => now + self.tempo.output_delay,
            Mode::Throughput => self.sealed + self.tempo.epoch_max,
            Mode::Fixed => return,
        };
        self.wanted.get_or_insert(wanted.max(self.earliest()));
    }

    /// The gate is filling up.
    pub(super) fn handle_filling(&mut self, now: Moment) {
        self.due = self.due.min(now);
    }

    /// The newest checkpoint that was compared with the one before had so many pages that had changed.
    pub(super) fn handle_changed(&mut self, pages: usize) {
        if self.tempo.mode == Mode::Fixed {
            return;
        }
        if pages <= QUIET_PAGES && !self.worked {
            self.span = (self.span * 2).min(self.tempo.idle_max).max(self.tempo.epoch_max);
        } else {
            self.wake();
        }
    }

    /// So many pages are dirty `now`, as [`Due::Look`] asked, and the guest is at work in this epoch, or not.
    pub(super) fn handle_look(&mut self, now: Moment, pages: usize, works: bool) {
        let grown = pages.saturating_sub(self.standing);
        if grown > QUIET_PAGES || works {
            self.wake();
        }
        // What stays writable is copied however early the seal comes.
        if pages >= self.pages_max && grown >= self.pages_max / 8 {
            self.due = self.due.min(now.max(self.earliest()));
        }
        self.look = self.next_look(now);
    }

    /// What is due `now`; `on_the_way`: a checkpoint is.
    pub(super) fn poll(&self, now: Moment, on_the_way: bool) -> Due {
        let due = match self.wanted {
            Some(wanted) if !on_the_way => self.due.min(wanted),
            Some(_) | None => self.due,
        };
        if now >= due {
            Due::Seal
        } else if now >= self.look {
            Due::Look
        } else {
            Due::At(due.min(self.look))
        }
    }

    /// The guest works again: its epoch is as long as any.
    fn wake(&mut self) {
        self.span = self.tempo.epoch_max;
        self.due = self.due.min(self.sealed + self.span);
    }

    fn earliest(&self) -> Moment {
        self.sealed + self.tempo.interval_min.max(self.spacing)
    }

    /// Nothing is to be found where epochs are of one length, nor in a short one with few pages.
    fn next_look(&self, now: Moment) -> Moment {
        match self.tempo.mode {
            Mode::Fixed => self.due,
            Mode::Latency | Mode::Throughput if self.standing >= self.pages_max / 4 => {
                now + self.tempo.epoch_max / LOOKS
            }
            Mode::Latency | Mode::Throughput => now + self.tempo.epoch_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    const WORKED: Seen = Seen {
        standing: 1,
        pages_max: 4000,
        worked: true,
        frames: 1,
        pause: Duration::from_micros(250),
    };

    fn cadence(mode: Mode) -> Cadence {
        Cadence::new(Tempo { mode, ..Tempo::new(&Timing::default()) }, Moment(0))
    }

    fn at(ms: u64) -> Moment {
        Moment(ms * MS)
    }

    /// Polls every millisecond from `from`, finding `dirty` pages at each look, until the seal.
    fn seal(cadence: &mut Cadence, from: u64, dirty: usize) -> u64 {
        let sealed = (from..from + 10_000).find(|ms| match cadence.poll(at(*ms), false) {
            Due::Seal => true,
            Due::Look => {
                cadence.handle_look(at(*ms), dirty, false);
                cadence.poll(at(*ms), false) == Due::Seal
            }
            Due::At(_) => false,
        });
        let sealed = sealed.expect("an epoch ends");
        cadence.handle_sealed(at(sealed));
        sealed
    }

    #[test]
    fn output_brings_the_seal_forward_in_mode_latency_alone() {
        for (mode, due) in [(Mode::Latency, 5), (Mode::Throughput, 25), (Mode::Fixed, 25)] {
            let mut cadence = cadence(mode);
            cadence.handle_output(at(5));
            assert_eq!(seal(&mut cadence, 0, 0), due, "{mode:?}");
        }
    }

    #[test]
    fn seals_keep_their_distance_however_much_the_guest_says() {
        let mut cadence = cadence(Mode::Latency);
        cadence.tempo.interval_min = Duration::from_millis(3);
        cadence.handle_sealed(at(10));
        cadence.handle_output(at(11));
        assert_eq!(cadence.poll(at(11), false), Due::At(at(13)));
        assert_eq!(cadence.poll(at(13), false), Due::Seal);
    }

    #[test]
    fn a_guest_that_idles_is_sealed_ever_more_rarely_and_one_that_speaks_at_once() {
        let mut cadence = cadence(Mode::Latency);
        let mut now = 0;
        let spans: Vec<u64> = (0..6)
            .map(|_| {
                let sealed = seal(&mut cadence, now, 3);
                cadence.handle_changed(2);
                let span = sealed - now;
                now = sealed;
                span
            })
            .collect();
        assert_eq!(spans, [25, 25, 50, 100, 200, 250]);
        cadence.handle_output(at(now + 7));
        assert_eq!(seal(&mut cadence, now, 3), now + 7);
        assert_eq!(seal(&mut cadence, now + 7, 3), now + 32, "and it is not idle any more");
    }

    #[test]
    fn a_guest_that_begins_to_compute_is_found_out_within_an_epoch() {
        let mut cadence = cadence(Mode::Throughput);
        for _ in 0..5 {
            cadence.handle_changed(0);
        }
        cadence.handle_sealed(at(0));
        assert_eq!(seal(&mut cadence, 0, 1000), 25);
    }

    #[test]
    fn output_waits_for_the_checkpoint_on_its_way_but_no_longer_than_an_epoch() {
        let mut cadence = cadence(Mode::Latency);
        cadence.handle_output(at(5));
        assert_eq!(cadence.poll(at(6), true), Due::At(at(25)));
        assert_eq!(cadence.poll(at(6), false), Due::Seal);
        assert_eq!(cadence.poll(at(25), true), Due::Seal);
    }

    #[test]
    fn a_guest_that_says_much_is_stopped_for_a_small_part_of_its_time() {
        let mut cadence = cadence(Mode::Latency);
        cadence.handle_sealed(at(10));
        cadence.handle_seen(Seen { frames: 100, ..WORKED });
        cadence.handle_output(at(11));
        assert_eq!(cadence.poll(at(11), false), Due::At(at(13)));
        assert_eq!(seal(&mut cadence, 11, 1), 13);
        cadence.handle_seen(WORKED);
        cadence.handle_output(at(14));
        assert_eq!(cadence.poll(at(14), false), Due::Seal);
    }

    #[test]
    fn a_guest_that_computes_in_few_pages_is_not_idle() {
        let mut cadence = cadence(Mode::Latency);
        for n in 0..5 {
            assert_eq!(seal(&mut cadence, 25 * n, 1), 25 * (n + 1));
            cadence.handle_seen(WORKED);
            cadence.handle_changed(1);
        }
        // It rests, and is left alone; and works again.
        cadence.handle_seen(Seen { worked: false, ..WORKED });
        (0..5).for_each(|_| cadence.handle_changed(1));
        cadence.handle_sealed(at(200));
        assert_eq!(cadence.poll(at(230), false), Due::Look);
        cadence.handle_look(at(230), 1, true);
        assert_eq!(cadence.poll(at(230), false), Due::Seal);
    }

    #[test]
    fn computing_without_a_word_keeps_to_epoch_max() {
        for mode in [Mode::Latency, Mode::Throughput, Mode::Fixed] {
            let mut cadence = cadence(mode);
            for n in 0..10 {
                assert_eq!(seal(&mut cadence, 25 * n, 1000), 25 * (n + 1), "{mode:?}");
                cadence.handle_changed(900);
            }
        }
    }

    #[test]
    fn an_epoch_that_fills_its_pause_ends_early_but_not_for_pages_that_always_stand_there() {
        let mut cadence = cadence(Mode::Latency);
        cadence.handle_seen(Seen { standing: 3000, pages_max: 4000, ..WORKED });
        assert_eq!(seal(&mut cadence, 0, 4500), 7, "a quarter of an epoch");
        cadence.handle_seen(Seen { standing: 4500, pages_max: 4000, ..WORKED });
        assert_eq!(seal(&mut cadence, 7, 4600), 32, "sealing would not make them fewer");
    }
}
