//! Marks of frames that netfilter holds: how a stamp fits into `skb->mark`, and comes out of it whole.
//!
//! ```text
//!  31      24 23  22 21                    0
//! ┌──────────┬──────┬───────────────────────┐
//! │ tag      │ term │ epoch                 │   the low bits of both
//! └──────────┴──────┴───────────────────────┘
//! ```
//!
//! The tag cannot be set by any guest. The low bits are enough because a frame is never of an epoch after the open one:
//! among all epochs with these bits it was the last that had begun. An epoch that is 2^22 behind the open one (a day at
//! 40 checkpoints a second) would be taken for a later one, still not for one after the open epoch; no queue holds a
//! frame for so long. Of a frame of an earlier term it only matters whether that term was kept, so two bits tell four
//! terms in a row apart. A frame that was kept through four terms would be taken for one of the open term: it may then
//! leave later than it could, and not before the open term's first commit.

use crate::{Epoch, Kept, Stamp, Term};

/// Top 8 bits of the mark of a frame that the engine `nfqueue` has stamped; another than
/// [`gate::MARK_TAG`](crate::gate::MARK_TAG), so that no path takes the other's marks.
pub const QUEUE_TAG: u32 = 0x5d << 24;
pub const QUEUE_TAG_MASK: u32 = 0xff << 24;
/// Bits of an epoch that a mark carries.
pub const QUEUE_EPOCH_BITS: u32 = 22;

const EPOCH_MASK: u64 = (1 << QUEUE_EPOCH_BITS) - 1;
const TERM_MASK: u32 = 3;

/// The mark of a frame that the guest sends now, in the epoch that is open.
#[inline(always)]
pub const fn mark(open: Stamp) -> u32 {
    QUEUE_TAG
        | (open.term().get() & TERM_MASK) << QUEUE_EPOCH_BITS
        | (open.epoch().get() & EPOCH_MASK) as u32
}

/// The stamp that a frame with `mark` counts as, given the open epoch and what is kept of earlier terms. `None` when the
/// mark is not of this engine, its epoch would lie before the first, or its term was not kept.
#[inline(always)]
pub const fn stamp(mark: u32, open: Stamp, kept: Kept) -> Option<Stamp> {
    if mark & QUEUE_TAG_MASK != QUEUE_TAG {
        return None;
    }
    let terms_ago = open.term().get().wrapping_sub(mark >> QUEUE_EPOCH_BITS) & TERM_MASK;
    if terms_ago != 0 {
        let Some(term) = open.term().get().checked_sub(terms_ago) else { return None };
        let Some(term) = Term::new(term) else { return None };
        let counts_as = kept.counts_as_earlier(term, open.term());
        return if counts_as.bits() == 0 { None } else { Some(counts_as) };
    }
    let open_epoch = open.epoch().get();
    let behind = open_epoch.wrapping_sub(mark as u64) & EPOCH_MASK;
    if behind >= open_epoch {
        return None;
    }
    match Epoch::new(open_epoch - behind) {
        Some(epoch) => Some(Stamp::new(open.term(), epoch)),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::MARK_TAG;

    fn at(term: u32, epoch: u64) -> Stamp {
        Stamp::new(Term::new(term).unwrap(), Epoch::new(epoch).unwrap())
    }

    fn open(epoch: u64) -> Stamp {
        at(7, epoch)
    }

    fn term_7() -> u32 {
        3 << QUEUE_EPOCH_BITS
    }

    #[test]
    fn a_mark_gives_back_every_epoch_of_the_last_2_to_the_22() {
        for now in [1, 2, 0x3f_ffff, 0x40_0000, 0x40_0001, 0x12_3456_789a, (1 << 40) - 1] {
            for behind in [0, 1, 2, 1000, 0x3f_fffe, 0x3f_ffff] {
                if behind < now {
                    let then = open(now - behind);
                    let found = stamp(mark(then), open(now), Kept::NONE);
                    assert_eq!(found, Some(then), "{now} - {behind}");
                }
            }
        }
    }

    #[test]
    fn no_mark_is_of_an_epoch_after_the_open_one_or_before_the_first() {
        for now in [1u64, 5, 0x40_0000, 0x40_0005] {
            for low in [0, 1, 4, 5, 6, 0x20_0000, 0x3f_ffff] {
                if let Some(of) = stamp(QUEUE_TAG | term_7() | low, open(now), Kept::NONE) {
                    assert!(of <= open(now) && of >= open(1), "{low:#x} at {now} is {of}");
                }
            }
        }
        assert_eq!(stamp(QUEUE_TAG | term_7(), open(5), Kept::NONE), None, "epoch 0 is none");
        assert_eq!(stamp(QUEUE_TAG | term_7() | 6, open(5), Kept::NONE), None, "still to come");
    }

    #[test]
    fn a_frame_of_an_earlier_term_counts_only_if_that_term_was_kept() {
        let first = Epoch::FIRST;
        let kept = Kept::NONE.and(Term::new(6).unwrap(), first);
        let chain = Kept::NONE.and(Term::new(5).unwrap(), first).and(Term::new(6).unwrap(), first);
        for epoch in [1, 5, 57, 0x40_0001] {
            let (five, six) = (mark(at(5, epoch)), mark(at(6, epoch)));
            assert_eq!(stamp(six, open(3), Kept::NONE), None);
            assert_eq!(stamp(six, open(3), kept), Some(open(1)));
            assert_eq!(stamp(five, open(3), kept), None);
            assert_eq!(stamp(five, open(3), chain), Some(open(1)));
        }
        assert_eq!(stamp(mark(at(8, 1)), open(3), kept), None, "a term to come, or four ago");
        assert_eq!(stamp(mark(at(3, 1)), at(1, 3), Kept::NONE), None, "before the first term");
    }

    #[test]
    fn marks_of_others_mean_nothing_here() {
        for other in [0, 5, MARK_TAG, MARK_TAG | 5, 0x5f << 24, u32::MAX] {
            assert_eq!(stamp(other, open(5), Kept::NONE), None, "{other:#x}");
        }
    }

    #[test]
    fn the_tags_of_the_engines_differ() {
        assert_ne!(QUEUE_TAG, MARK_TAG);
    }
}
