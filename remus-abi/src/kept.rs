//! The rule of release: which held frames may be outside, given the words that the controller has written.
//!
//! A frame carries the stamp of the epoch in which the guest sent it, and keeps that stamp for as long as it is held.
//! When a term ends, the controller either discards what is held or keeps it for the next term. A kept frame was sent
//! before the first epoch of the new term began, so the checkpoint that ends this epoch covers the frame: in the new
//! term it counts as output of the first epoch. The word [`Kept`] says from which term on frames count like that. A
//! frame of any other term never leaves.
//!
//! [`Kept::counts_as`] and [`Stamp::is_covered_by`] say the rule; [`Release`] is the same in the form in which it is asked,
//! frame by frame. Every judge asks: `flush`, the second locks, the controller's ledger of netfilter's queue, and the
//! simulator.

use crate::{Epoch, Stamp, Term, gate::Mode};

const TERM_SHIFT: u32 = 40;
const EPOCH_MASK: u64 = Epoch::MAX.get();

/// How many terms before the open one are kept, and the epoch of the open term that their frames count as, in one word:
/// [`Control::Kept`](crate::gate::Control::Kept). Zero keeps none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Kept(u64);

impl Kept {
    pub const NONE: Self = Self(0);

    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The word of `next`, a term that begins with the epoch `first` and keeps the frames of `ended`, the term before it,
    /// beside those that `ended` kept itself.
    ///
    /// # Panics
    /// When `next` is not after `ended`.
    pub const fn and(self, ended: Term, next: Term, first: Epoch) -> Self {
        assert!(next.get() > ended.get(), "a term begins after the one that it follows");
        let terms = self.terms() + (next.get() - ended.get()) as u64;
        Self(terms << TERM_SHIFT | first.get())
    }

    /// How many terms before the open one are kept.
    #[inline(always)]
    const fn terms(self) -> u64 {
        self.0 >> TERM_SHIFT
    }

    /// The epoch of the open term that kept frames count as.
    #[inline(always)]
    pub const fn first(self) -> Epoch {
        Stamp::from_bits(self.0).epoch()
    }

    /// The stamp that a frame with `stamp` counts as in `term`; [`Stamp::NONE`] for a frame that never leaves.
    pub const fn counts_as(self, stamp: Stamp, term: Term) -> Stamp {
        let (of, now) = (stamp.term().get(), term.get());
        if of == now {
            stamp
        } else if of < now && (now - of) as u64 <= self.terms() {
            Stamp::new(term, self.first())
        } else {
            Stamp::NONE
        }
    }
}

/// How often a term has begun on a gate, and how many of the last ones are kept: what a mark of netfilter's queue, which has
/// no room for a term, is compared with ([`queue`](crate::queue)).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Turns(u64);

impl Turns {
    const KEPT_SHIFT: u32 = 32;

    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub const fn bits(self) -> u64 {
        self.0
    }

    /// One more term begins, and keeps the one before it beside those that are kept already, or keeps none.
    pub const fn next(self, keeps: bool) -> Self {
        let kept = if keeps { (self.0 >> Self::KEPT_SHIFT).wrapping_add(1) } else { 0 };
        Self(kept << Self::KEPT_SHIFT | (self.count().wrapping_add(1) as u64))
    }

    /// How often a term has begun. Goes round.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low half")]
    pub const fn count(self) -> u32 {
        self.0 as u32
    }

    /// Whether the term that began so many turns before the last one is kept.
    #[inline(always)]
    pub const fn keeps(self, turns_ago: u32) -> bool {
        turns_ago as u64 <= self.0 >> Self::KEPT_SHIFT
    }
}

/// The stamp up to which output may be outside, by the words of the same names, each of which is only read where it
/// counts; [`Stamp::NONE`] when nothing may. Anything but a known mode is closed.
#[inline(always)]
pub fn releasable(
    mode: u64,
    open: impl FnOnce() -> Stamp,
    committed: impl FnOnce() -> Stamp,
) -> Stamp {
    const HOLD: u64 = Mode::Hold as u64;
    const OPEN: u64 = Mode::Open as u64;
    match mode {
        HOLD => committed(),
        OPEN => Stamp::new(open().term(), Epoch::MAX),
        _ => Stamp::NONE,
    }
}

/// Whether a frame with `stamp` may be outside.
#[inline(always)]
pub const fn may_leave(stamp: Stamp, releasable: Stamp, kept: Kept) -> bool {
    Release::new(releasable, kept).lets_out(stamp)
}

/// The rule, worked out for what is releasable and kept now, so that judging a frame takes two comparisons: stamps are
/// ordered by term and epoch, so the frames that may leave, and those that may leave sometime, are ranges of them.
///
/// All of it is arithmetic without a branch: the verifier walks the loop of `flush` once for each way that leads there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Release {
    leaving: Range,
    known: Range,
}

/// Stamps from one on, so many. No frame is of an epoch 0, so none of these ranges begins with one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Range {
    first: u64,
    count: u64,
}

impl Release {
    #[inline(always)]
    pub const fn new(releasable: Stamp, kept: Kept) -> Self {
        let begins = releasable.bits() & !EPOCH_MASK | Epoch::FIRST.get();
        let earlier = kept.terms() << TERM_SHIFT;
        let known = begins.wrapping_sub(earlier);
        // All ones while what is kept has to wait, else 0.
        let ahead = releasable.epoch().get().wrapping_sub(kept.first().get());
        let waits = core::hint::black_box((ahead.cast_signed() >> 63).cast_unsigned());
        let ends = (releasable.bits() | EPOCH_MASK).wrapping_add(1);
        Self {
            leaving: Range::up_to(
                known.wrapping_add(waits & earlier),
                releasable.bits().wrapping_add(1),
            ),
            known: Range::up_to(known, ends),
        }
    }

    /// Whether a frame with `stamp` may be outside.
    #[inline(always)]
    pub const fn lets_out(self, stamp: Stamp) -> bool {
        self.leaving.has(stamp)
    }

    /// Whether a frame with `stamp` may be outside now, or will be when more is committed. Others never leave.
    #[inline(always)]
    pub const fn knows(self, stamp: Stamp) -> bool {
        self.known.has(stamp)
    }
}

impl Range {
    #[inline(always)]
    const fn up_to(first: u64, end: u64) -> Self {
        Self { first, count: end.wrapping_sub(first) }
    }

    #[inline(always)]
    const fn has(self, stamp: Stamp) -> bool {
        stamp.bits().wrapping_sub(self.first) < self.count
    }
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

    /// What a gate in this mode may let out, with epoch 9 of term 4 open and epoch 8 committed.
    fn in_mode(mode: Mode) -> Stamp {
        releasable(mode as u64, || stamp(4, 9), || stamp(4, 8))
    }

    #[test]
    fn what_is_kept_leaves_with_the_first_commit_of_the_new_term_and_not_before() {
        let kept = Kept::NONE.and(term(3), term(4), Epoch::FIRST);
        for held in [stamp(3, 1), stamp(3, 999)] {
            assert!(!may_leave(held, stamp(4, 0), kept), "nothing is committed in the new term");
            assert!(may_leave(held, stamp(4, 1), kept));
            assert!(may_leave(held, in_mode(Mode::Open), kept));
            assert!(!may_leave(held, in_mode(Mode::Closed), kept));
        }
    }

    #[test]
    fn a_term_that_begins_later_keeps_its_frames_until_that_epoch_is_committed() {
        let kept = Kept::NONE.and(term(3), term(4), Epoch::new(7).unwrap());
        assert!(!may_leave(stamp(3, 2), stamp(4, 6), kept));
        assert!(may_leave(stamp(3, 2), stamp(4, 7), kept));
    }

    #[test]
    fn frames_of_a_term_that_was_not_kept_never_leave() {
        let kept = Kept::NONE.and(term(3), term(4), Epoch::FIRST);
        for never in [stamp(2, 1), stamp(5, 1), Stamp::NONE] {
            assert!(!may_leave(never, stamp(4, 9), kept), "{never}");
            assert!(!may_leave(never, stamp(4, 9), Kept::NONE), "{never}");
        }
        assert!(!may_leave(stamp(3, 1), stamp(4, 9), Kept::NONE), "discarded");
    }

    #[test]
    fn what_was_kept_once_is_kept_again() {
        let kept =
            Kept::NONE.and(term(3), term(4), Epoch::FIRST).and(term(4), term(5), Epoch::FIRST);
        assert!(may_leave(stamp(3, 8), stamp(5, 1), kept));
        assert!(may_leave(stamp(4, 8), stamp(5, 1), kept));
        assert!(!may_leave(stamp(2, 8), stamp(5, 1), kept));
    }

    #[test]
    fn within_a_term_the_rule_is_that_of_stamps_whatever_is_kept() {
        for kept in [Kept::NONE, Kept::NONE.and(term(2), term(3), Epoch::FIRST)] {
            for epoch in 1..5 {
                let held = stamp(3, epoch);
                assert_eq!(may_leave(held, stamp(3, 3), kept), held.is_covered_by(stamp(3, 3)));
            }
        }
    }

    /// The ranges against the rule as it is said: a frame counts as what [`Kept::counts_as`] says, and leaves when that is
    /// covered.
    #[test]
    fn the_ranges_are_the_rule() {
        let mut stamps = [Stamp::NONE; 7 * 6];
        for (at, stamp) in stamps.iter_mut().enumerate() {
            let epochs = [0, 1, 2, 3, Epoch::MAX.get() - 1, Epoch::MAX.get()];
            let terms = [0, 1, 2, 3, 4, Term::MAX.get() - 1, Term::MAX.get()];
            *stamp = self::stamp(terms[at / 6], epochs[at % 6]);
        }
        for releasable in stamps {
            for (terms, first) in [(0, 0), (0, 1), (1, 1), (2, 1), (1, 3), (3, 2)] {
                // No more terms can be kept than there were.
                let terms = terms.min(u64::from(releasable.term().get()));
                let kept = Kept::from_bits(terms << 40 | first);
                let release = Release::new(releasable, kept);
                assert!(!release.lets_out(Stamp::NONE) && !release.knows(Stamp::NONE));
                // No frame is of an epoch 0.
                for held in stamps.into_iter().filter(|held| held.epoch() != Epoch::NONE) {
                    let counts_as = kept.counts_as(held, releasable.term());
                    let why = (held, releasable, kept);
                    assert_eq!(
                        release.lets_out(held),
                        counts_as.is_covered_by(releasable),
                        "{why:?}"
                    );
                    assert_eq!(release.knows(held), counts_as != Stamp::NONE, "{why:?}");
                }
            }
        }
    }

    #[test]
    fn turns_tell_which_of_the_last_terms_are_kept() {
        let first = Turns::default().next(false);
        assert!(!first.keeps(1));
        let second = first.next(true);
        assert!(second.keeps(1) && !second.keeps(2));
        let third = second.next(true);
        assert!(third.keeps(2) && !third.keeps(3));
        assert!(!third.next(false).keeps(1));
        assert_eq!(third.count(), 3);
    }

    #[test]
    fn zero_keeps_nothing() {
        assert_eq!(Kept::from_bits(0), Kept::NONE);
        assert_eq!(Kept::NONE.counts_as(stamp(1, 1), term(2)), Stamp::NONE);
    }
}
