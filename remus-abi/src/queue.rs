//! Marks of frames that netfilter holds: how an epoch fits into `skb->mark`, and comes out of it whole.
//!
//! A mark has 32 bits: a tag in the top 8, which no guest can set, and the low 24 bits of the epoch. Those
//! are enough because a frame is never of an epoch after the open one: among all epochs with these bits it
//! was the last that had begun. An epoch that is 2^24 behind the open one (a week at 25 checkpoints a
//! second) would be taken for a later one, still not for one after the open epoch; no queue holds a frame
//! for so long.
//!
//! The term is not in the mark. A queue lives as long as its gate's controller, and a gate in one term.

use crate::{Epoch, Stamp};

/// Top 8 bits of the mark of a frame that the engine `nfqueue` has stamped; another than
/// [`gate::MARK_TAG`](crate::gate::MARK_TAG), so that no path takes the other's marks.
pub const QUEUE_TAG: u32 = 0x5d << 24;
pub const QUEUE_TAG_MASK: u32 = 0xff << 24;
/// Bits of an epoch that a mark carries.
pub const QUEUE_EPOCH_BITS: u32 = 24;

const EPOCH_MASK: u64 = (1 << QUEUE_EPOCH_BITS) - 1;

/// The mark of a frame that the guest sends now, in the epoch that is open.
#[inline(always)]
pub const fn mark(open: Stamp) -> u32 {
    QUEUE_TAG | (open.epoch().get() & EPOCH_MASK) as u32
}

/// The stamp of a frame with `mark`, given the open epoch. `None` when the mark is not of this engine, or
/// its epoch would lie before the first.
#[inline(always)]
pub const fn stamp(mark: u32, open: Stamp) -> Option<Stamp> {
    if mark & QUEUE_TAG_MASK != QUEUE_TAG {
        return None;
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

    #[test]
    fn a_mark_gives_back_every_epoch_of_the_last_2_to_the_24() {
        for now in [1, 2, 0xff_ffff, 0x100_0000, 0x100_0001, 0x12_3456_789a, (1 << 40) - 1] {
            for behind in [0, 1, 2, 1000, 0xff_fffe, 0xff_ffff] {
                if behind < now {
                    let then = open(now - behind);
                    assert_eq!(stamp(mark(then), open(now)), Some(then), "{now} - {behind}");
                }
            }
        }
    }

    #[test]
    fn no_mark_is_of_an_epoch_after_the_open_one_or_before_the_first() {
        for now in [1u64, 5, 0x100_0000, 0x100_0005] {
            for low in [0, 1, 4, 5, 6, 0x80_0000, 0xff_ffff] {
                if let Some(of) = stamp(QUEUE_TAG | low, open(now)) {
                    assert!(of <= open(now) && of >= open(1), "{low:#x} at {now} is {of}");
                }
            }
        }
        assert_eq!(stamp(QUEUE_TAG, open(5)), None, "epoch 0 is none");
        assert_eq!(stamp(QUEUE_TAG | 6, open(5)), None, "still to come");
    }

    #[test]
    fn marks_of_others_mean_nothing_here() {
        for other in [0, 5, MARK_TAG, MARK_TAG | 5, 0x5f << 24, u32::MAX] {
            assert_eq!(stamp(other, open(5)), None, "{other:#x}");
        }
    }

    #[test]
    fn the_tags_of_the_engines_differ() {
        assert_ne!(QUEUE_TAG, MARK_TAG);
    }
}
