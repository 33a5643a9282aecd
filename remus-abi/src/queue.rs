//! Marks of frames that netfilter holds: how a stamp fits into `skb->mark`, and comes out of it whole.
//!
//! ```text
//!  31      24 23   22 21                    0
//! ┌──────────┬───────┬───────────────────────┐
//! │ tag      │ turns │ epoch                 │   the low bits of both
//! └──────────┴───────┴───────────────────────┘
//! ```
//!
//! The tag cannot be set by any guest. The low bits of the epoch are enough because a frame is never of an epoch after the
//! open one: among all epochs with these bits it was the last that had begun. An epoch that is 2^22 behind the open one (a
//! day at 40 checkpoints a second) would be taken for a later one, still not for one after the open epoch; no queue holds
//! a frame for so long.
//!
//! A term has no room. A mark says instead how often a term had begun on the gate ([`Turns`]), since of a frame of an
//! earlier term it only matters whether that term was kept. Two bits tell four turns in a row apart. A frame that was kept
//! through four turns would be taken for one of the open term: it is lost, or leaves later than it could.

use crate::{Epoch, Kept, Stamp, Turns};

/// Top 8 bits of the mark of a frame that the engine `nfqueue` has stamped; another than
/// [`gate::MARK_TAG`](crate::gate::MARK_TAG), so that no path takes the other's marks.
pub const QUEUE_TAG: u32 = 0x5d << 24;
pub const QUEUE_TAG_MASK: u32 = 0xff << 24;
/// Bits of an epoch that a mark carries.
pub const QUEUE_EPOCH_BITS: u32 = 22;

const EPOCH_MASK: u64 = (1 << QUEUE_EPOCH_BITS) - 1;
const TURNS_MASK: u32 = 3;

/// The mark of a frame that the guest sends now, in the epoch that is open.
#[inline(always)]
pub const fn mark(open: Stamp, turns: Turns) -> u32 {
    QUEUE_TAG
        | (turns.count() & TURNS_MASK) << QUEUE_EPOCH_BITS
        | (open.epoch().get() & EPOCH_MASK) as u32
}

/// The stamp that a frame with `mark` counts as, given the open epoch, the turns, and what is kept of earlier terms. `None`
/// when the mark is not of this engine, its epoch would lie before the first, or its term was not kept.
#[inline(always)]
pub const fn stamp(mark: u32, open: Stamp, turns: Turns, kept: Kept) -> Option<Stamp> {
    if mark & QUEUE_TAG_MASK != QUEUE_TAG {
        return None;
    }
    let turns_ago = turns.count().wrapping_sub(mark >> QUEUE_EPOCH_BITS) & TURNS_MASK;
    if turns_ago != 0 {
        let counts_as = Stamp::new(open.term(), kept.first());
        return if turns.keeps(turns_ago) { Some(counts_as) } else { None };
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
    use crate::{Term, gate::MARK_TAG};

    fn open(epoch: u64) -> Stamp {
        Stamp::new(Term::new(7).unwrap(), Epoch::new(epoch).unwrap())
    }

    /// As often as a term had begun, none of them kept.
    fn turns(n: u32) -> Turns {
        (0..n).fold(Turns::default(), |turns, _| turns.next(false))
    }

    /// What `mark` is taken for when nothing is kept, after `now` turns.
    fn read(mark: u32, open: Stamp, now: u32) -> Option<Stamp> {
        stamp(mark, open, turns(now), Kept::NONE)
    }

    #[test]
    fn a_mark_gives_back_every_epoch_of_the_last_2_to_the_22() {
        for now in [1, 2, 0x3f_ffff, 0x40_0000, 0x40_0001, 0x12_3456_789a, (1 << 40) - 1] {
            for behind in [0, 1, 2, 1000, 0x3f_fffe, 0x3f_ffff] {
                if behind < now {
                    let then = open(now - behind);
                    let found = read(mark(then, turns(3)), open(now), 3);
                    assert_eq!(found, Some(then), "{now} - {behind}");
                }
            }
        }
    }

    #[test]
    fn no_mark_is_of_an_epoch_after_the_open_one_or_before_the_first() {
        let tag = QUEUE_TAG | 1 << QUEUE_EPOCH_BITS;
        for now in [1u64, 5, 0x40_0000, 0x40_0005] {
            for low in [0, 1, 4, 5, 6, 0x20_0000, 0x3f_ffff] {
                if let Some(of) = read(tag | low, open(now), 1) {
                    assert!(of <= open(now) && of >= open(1), "{low:#x} at {now} is {of}");
                }
            }
        }
        assert_eq!(read(tag, open(5), 1), None, "epoch 0 is none");
        assert_eq!(read(tag | 6, open(5), 1), None, "still to come");
    }

    #[test]
    fn a_frame_of_an_earlier_term_counts_only_if_that_term_was_kept() {
        let kept = Kept::NONE.and(Term::new(6).unwrap(), Term::new(7).unwrap(), Epoch::FIRST);
        let (first, second) = (turns(5), turns(5).next(true));
        let third = second.next(true);
        for epoch in [1, 5, 57, 0x40_0001] {
            let (of_first, of_second) = (mark(open(epoch), first), mark(open(epoch), second));
            assert_eq!(stamp(of_first, open(3), first.next(false), kept), None, "discarded");
            assert_eq!(stamp(of_first, open(3), second, kept), Some(open(1)));
            assert_eq!(stamp(of_first, open(3), third, kept), Some(open(1)));
            let only_second = turns(6).next(true);
            assert_eq!(stamp(of_first, open(3), only_second, kept), None);
            assert_eq!(stamp(of_second, open(3), only_second, kept), Some(open(1)));
        }
    }

    #[test]
    fn marks_of_others_mean_nothing_here() {
        for other in [0, 5, MARK_TAG, MARK_TAG | 5, 0x5f << 24, u32::MAX] {
            assert_eq!(read(other, open(5), 0), None, "{other:#x}");
        }
    }

    #[test]
    fn the_tags_of_the_engines_differ() {
        assert_ne!(QUEUE_TAG, MARK_TAG);
    }
}
