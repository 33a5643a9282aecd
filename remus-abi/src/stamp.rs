//! Term, epoch, and the one word that carries both.

use core::fmt;

/// A fencing token: one more at every change of who speaks for the guest.
///
/// 24 bits, so that it shares a word with an [`Epoch`] in [`Stamp`]. Term 0 means "none".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Term(u32);

/// An interval of guest execution, and the checkpoint that ends it. Counted from 1 within a term.
///
/// 40 bits: at a thousand checkpoints a second it lasts 34 years. Epoch 0 means "none".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Epoch(u64);

/// `(term, epoch)` in one 64-bit word, so that a reader on another CPU sees both or neither.
///
/// The term is in the high 24 bits: stamps order as the pair does. A zero stamp is no stamp.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Stamp(u64);

impl Term {
    pub const NONE: Self = Self(0);
    pub const FIRST: Self = Self(1);
    pub const MAX: Self = Self((1 << 24) - 1);

    /// A term read from outside; `None` when it does not fit.
    pub const fn new(n: u32) -> Option<Self> {
        if n <= Self::MAX.0 { Some(Self(n)) } else { None }
    }

    pub const fn get(self) -> u32 {
        self.0
    }

    /// The term after this one.
    ///
    /// # Panics
    /// After 16,777,215 changes of who speaks: going on would reuse a fencing token.
    pub const fn next(self) -> Self {
        assert!(self.0 < Self::MAX.0, "terms are used up");
        Self(self.0 + 1)
    }

    /// The term before this one; [`Term::NONE`] stays.
    pub const fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl Epoch {
    pub const NONE: Self = Self(0);
    pub const FIRST: Self = Self(1);
    pub const MAX: Self = Self((1 << 40) - 1);

    /// An epoch read from outside; `None` when it does not fit.
    pub const fn new(n: u64) -> Option<Self> {
        if n <= Self::MAX.0 { Some(Self(n)) } else { None }
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// The epoch after this one.
    ///
    /// # Panics
    /// After 2^40 - 1 epochs of one term.
    pub const fn next(self) -> Self {
        assert!(self.0 < Self::MAX.0, "epochs of this term are used up");
        Self(self.0 + 1)
    }

    /// The epoch before this one; [`Epoch::NONE`] stays.
    pub const fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl Stamp {
    pub const NONE: Self = Self(0);

    pub const fn new(term: Term, epoch: Epoch) -> Self {
        Self((term.0 as u64) << 40 | epoch.0)
    }

    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub const fn bits(self) -> u64 {
        self.0
    }

    pub const fn term(self) -> Term {
        // 24 bits remain after the shift, so the cast keeps all of them.
        Term((self.0 >> 40) as u32 & Term::MAX.0)
    }

    pub const fn epoch(self) -> Epoch {
        Epoch(self.0 & Epoch::MAX.0)
    }

    /// Whether output with this stamp may leave, given what is committed: the same term, and an epoch
    /// that is not later. The rule of output commit within a term; [`may_leave`](crate::may_leave) is the whole of it.
    #[inline(always)]
    pub const fn is_covered_by(self, committed: Stamp) -> bool {
        self.0 != 0 && self.0 >> 40 == committed.0 >> 40 && self.0 <= committed.0
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term(), self.epoch())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(term: u32, epoch: u64) -> Stamp {
        Stamp::new(Term::new(term).unwrap(), Epoch::new(epoch).unwrap())
    }

    #[test]
    fn stamp_keeps_both_parts_at_their_limits() {
        let s = Stamp::new(Term::MAX, Epoch::MAX);
        assert_eq!((s.term(), s.epoch()), (Term::MAX, Epoch::MAX));
        assert_eq!(s.bits(), u64::MAX);
    }

    #[test]
    fn only_the_same_term_and_no_later_epoch_is_covered() {
        let committed = stamp(3, 10);
        assert!(stamp(3, 10).is_covered_by(committed));
        assert!(stamp(3, 1).is_covered_by(committed));
        assert!(!stamp(3, 11).is_covered_by(committed));
        assert!(!stamp(2, 1).is_covered_by(committed), "an abandoned term");
        assert!(!stamp(4, 1).is_covered_by(committed), "a term to come");
        assert!(!Stamp::NONE.is_covered_by(committed));
        assert!(!Stamp::NONE.is_covered_by(Stamp::NONE));
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        assert_eq!(Term::new(1 << 24), None);
        assert_eq!(Epoch::new(1 << 40), None);
    }
}
