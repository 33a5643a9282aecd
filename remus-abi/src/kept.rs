//! The rule of release: which held frames may be outside, given the words that the controller has written.
//!
//! A frame carries the stamp of the epoch in which the guest sent it, and keeps that stamp for as long as it is held.
//! When a term ends, the controller either discards what is held or keeps it for the next term. A kept frame was sent
//! before the first epoch of the new term began, so the checkpoint that ends this epoch covers the frame: in the new
//! term it counts as output of the first epoch. The word [`Kept`] says from which term on frames count like that. A
//! frame of any other term never leaves.
//!
//! Every judge asks these functions: `flush`, both second locks, the controller's ledger of netfilter's queue, and the
//! simulator.

use crate::{Epoch, Stamp, Term, gate::Mode};

/// Which frames of earlier terms are kept for the term that is open, as the word
/// [`Control::Kept`](crate::gate::Control::Kept) has it. Zero keeps none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Kept(Stamp);

impl Kept {
    pub const NONE: Self = Self(Stamp::NONE);

    pub const fn from_bits(bits: u64) -> Self {
        Self(Stamp::from_bits(bits))
    }

    pub const fn bits(self) -> u64 {
        self.0.bits()
    }

    /// The word of a term that begins with the epoch `first` and keeps the frames of `ended`, the term before it, beside
    /// those that `ended` kept itself.
    pub const fn and(self, ended: Term, first: Epoch) -> Self {
        let oldest = if self.bits() == 0 { ended } else { self.0.term() };
        Self(Stamp::new(oldest, first))
    }

    /// The stamp that a frame with `stamp` counts as in `term`; [`Stamp::NONE`] for a frame that never leaves.
    #[inline(always)]
    pub const fn counts_as(self, stamp: Stamp, term: Term) -> Stamp {
        if stamp.term().get() == term.get() {
            return stamp;
        }
        self.counts_as_earlier(stamp.term(), term)
    }

    /// The stamp that a frame of `earlier`, which is not `term`, counts as in `term`; [`Stamp::NONE`] for a frame that
    /// never leaves.
    #[inline(always)]
    pub const fn counts_as_earlier(self, earlier: Term, term: Term) -> Stamp {
        let is_kept =
            self.bits() != 0 && earlier.get() >= self.0.term().get() && earlier.get() < term.get();
        if is_kept { Stamp::new(term, self.0.epoch()) } else { Stamp::NONE }
    }
}

/// The stamp up to which output may be outside, by the words of the same names; [`Stamp::NONE`] when nothing may. Anything
/// but a known mode is closed.
#[inline(always)]
pub const fn releasable(mode: u64, open: Stamp, committed: Stamp) -> Stamp {
    const HOLD: u64 = Mode::Hold as u64;
    const OPEN: u64 = Mode::Open as u64;
    match mode {
        HOLD => committed,
        OPEN => Stamp::new(open.term(), Epoch::MAX),
        _ => Stamp::NONE,
    }
}

/// Whether a frame with `stamp` may be outside.
#[inline(always)]
pub const fn may_leave(stamp: Stamp, releasable: Stamp, kept: Kept) -> bool {
    kept.counts_as(stamp, releasable.term()).is_covered_by(releasable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(n: u32) -> Term {
        Term::new(n).unwrap()
    }

    fn stamp(term: u32, epoch: u64) -> Stamp {
        Stamp::new(Term::new(term).unwrap(), Epoch::new(epoch).unwrap())
    }

    #[test]
    fn what_is_kept_leaves_with_the_first_commit_of_the_new_term_and_not_before() {
        let kept = Kept::NONE.and(term(3), Epoch::FIRST);
        for held in [stamp(3, 1), stamp(3, 999)] {
            assert!(!may_leave(held, stamp(4, 0), kept), "nothing is committed in the new term");
            assert!(may_leave(held, stamp(4, 1), kept));
            assert!(may_leave(held, releasable(Mode::Open as u64, stamp(4, 1), stamp(4, 0)), kept));
            assert!(!may_leave(
                held,
                releasable(Mode::Closed as u64, stamp(4, 9), stamp(4, 8)),
                kept
            ));
        }
    }

    #[test]
    fn a_term_that_begins_later_keeps_its_frames_until_that_epoch_is_committed() {
        let kept = Kept::NONE.and(term(3), Epoch::new(7).unwrap());
        assert!(!may_leave(stamp(3, 2), stamp(4, 6), kept));
        assert!(may_leave(stamp(3, 2), stamp(4, 7), kept));
    }

    #[test]
    fn frames_of_a_term_that_was_not_kept_never_leave() {
        let kept = Kept::NONE.and(term(3), Epoch::FIRST);
        for never in [stamp(2, 1), stamp(5, 1), Stamp::NONE] {
            assert!(!may_leave(never, stamp(4, 9), kept), "{never}");
            assert!(!may_leave(never, stamp(4, 9), Kept::NONE), "{never}");
        }
        assert!(!may_leave(stamp(3, 1), stamp(4, 9), Kept::NONE), "discarded");
    }

    #[test]
    fn what_was_kept_once_is_kept_again() {
        let kept = Kept::NONE.and(term(3), Epoch::FIRST).and(term(4), Epoch::FIRST);
        assert!(may_leave(stamp(3, 8), stamp(5, 1), kept));
        assert!(may_leave(stamp(4, 8), stamp(5, 1), kept));
        assert!(!may_leave(stamp(2, 8), stamp(5, 1), kept));
    }

    #[test]
    fn within_a_term_the_rule_is_that_of_stamps_whatever_is_kept() {
        for kept in [Kept::NONE, Kept::NONE.and(term(2), Epoch::FIRST)] {
            for epoch in 1..5 {
                let held = stamp(3, epoch);
                assert_eq!(may_leave(held, stamp(3, 3), kept), held.is_covered_by(stamp(3, 3)));
            }
        }
    }

    #[test]
    fn zero_keeps_nothing() {
        assert_eq!(Kept::from_bits(0), Kept::NONE);
        assert_eq!(Kept::NONE.counts_as(stamp(1, 1), term(2)), Stamp::NONE);
    }
}
