//! Which frames wait in the queue, and of which epoch: runs of one stamp each, in the order of the queue.
//!
//! Invariants:
//! - Runs are in the queue's order; what leaves is always the front. So a frame that is not covered keeps all
//!   that came after it, whatever their stamps: a late release is the safe side.
//! - A release names the last id that may leave. It is never beyond the last frame of a covered run.
//!
//! The kernel may drop frames of its own accord (a link goes down). The ledger then counts frames that are
//! gone until a verdict has passed over them; a verdict on a frame that is gone does nothing.
//!
//! Pure.

use std::collections::VecDeque;

use remus_abi::{Kept, Stamp, may_leave};

use super::message::FrameId;

#[derive(Default)]
pub(super) struct Ledger {
    runs: VecDeque<Run>,
    frames: u64,
}

/// Frames next to each other in the queue, of one stamp.
struct Run {
    stamp: Stamp,
    first: FrameId,
    last: FrameId,
    frames: u32,
}

impl Ledger {
    /// A frame has joined the end of the queue.
    pub(super) fn handle_waits(&mut self, id: FrameId, stamp: Stamp) {
        self.frames += 1;
        match self.runs.back_mut() {
            Some(run) if run.stamp == stamp && run.frames < u32::MAX => {
                run.last = id;
                run.frames += 1;
            }
            _ => self.runs.push_back(Run { stamp, first: id, last: id, frames: 1 }),
        }
    }

    /// Takes some frames, no more than about `most`, off the front, if they may leave; returns the id up to which all
    /// may.
    pub(super) fn poll_release(
        &mut self,
        releasable: Stamp,
        kept: Kept,
        most: u32,
    ) -> Option<FrameId> {
        let mut last = None;
        let mut taken = 0;
        while taken < most
            && let Some(run) = self.runs.front_mut()
            && may_leave(run.stamp, releasable, kept)
        {
            let room = most - taken;
            if run.frames <= room {
                taken += run.frames;
                last = Some(run.last);
                self.frames -= u64::from(run.frames);
                self.runs.pop_front();
            } else {
                // Ids may have gaps, so that fewer frames may lie in so many ids, never more.
                let span = run.last.0.wrapping_sub(run.first.0).min(room - 1);
                let until = FrameId(run.first.0.wrapping_add(span));
                run.first = FrameId(until.0.wrapping_add(1));
                run.frames -= room;
                self.frames -= u64::from(room);
                last = Some(until);
                break;
            }
        }
        last
    }

    /// Forgets all frames; returns the id of the last.
    pub(super) fn take_all(&mut self) -> Option<FrameId> {
        self.frames = 0;
        self.runs.drain(..).next_back().map(|run| run.last)
    }

    /// Frames that wait.
    pub(super) fn frames(&self) -> u64 {
        self.frames
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use remus_abi::{Epoch, Term};

    use super::*;

    fn stamp(term: u32, epoch: u64) -> Stamp {
        Stamp::new(Term::new(term).unwrap(), Epoch::new(epoch).unwrap())
    }

    fn ledger(frames: &[(u32, Stamp)]) -> Ledger {
        let mut ledger = Ledger::default();
        for (id, stamp) in frames {
            ledger.handle_waits(FrameId(*id), *stamp);
        }
        ledger
    }

    #[test]
    fn all_of_the_committed_epochs_leave_at_once_and_no_more() {
        let mut ledger =
            ledger(&[(1, stamp(1, 1)), (2, stamp(1, 1)), (3, stamp(1, 2)), (4, stamp(1, 3))]);
        assert_eq!(ledger.poll_release(stamp(1, 2), Kept::NONE, 100), Some(FrameId(3)));
        assert_eq!(ledger.poll_release(stamp(1, 2), Kept::NONE, 100), None);
        assert_eq!(ledger.frames(), 1);
    }

    #[test]
    fn another_term_or_a_later_epoch_in_front_keeps_everything() {
        for front in [stamp(2, 1), stamp(1, 9)] {
            let mut ledger = ledger(&[(1, front), (2, stamp(1, 1))]);
            assert_eq!(ledger.poll_release(stamp(1, 3), Kept::NONE, 100), None);
            assert_eq!(ledger.frames(), 2);
        }
    }

    #[test]
    fn frames_of_a_term_that_was_kept_leave_first_and_those_of_another_term_keep_everything() {
        let kept = Kept::NONE.and(Term::FIRST, Term::FIRST.next(), Epoch::FIRST);
        let frames = [(1, stamp(1, 7)), (2, stamp(2, 1)), (3, stamp(2, 2))];
        let mut held = ledger(&frames);
        assert_eq!(held.poll_release(stamp(2, 0), kept, 100), None, "no commit of the new term");
        assert_eq!(held.poll_release(stamp(2, 1), kept, 100), Some(FrameId(2)));
        assert_eq!(ledger(&frames).poll_release(stamp(2, 2), Kept::NONE, 100), None);
    }

    #[test]
    fn what_is_taken_out_is_known_by_its_last_frame() {
        let mut ledger = ledger(&[(1, stamp(1, 1)), (2, stamp(1, 2))]);
        assert_eq!(ledger.take_all(), Some(FrameId(2)));
        assert_eq!((ledger.frames(), ledger.take_all()), (0, None));
    }

    #[test]
    fn a_long_run_leaves_in_steps_across_the_wrap_of_ids() {
        let first = u32::MAX - 4;
        let frames: Vec<_> = (0..10).map(|n| (first.wrapping_add(n), stamp(1, 1))).collect();
        let mut ledger = ledger(&frames);
        let mut until = Vec::new();
        while let Some(id) = ledger.poll_release(stamp(1, 1), Kept::NONE, 4) {
            until.push(id.0);
        }
        assert_eq!(until, [first.wrapping_add(3), 2, 4]);
        assert_eq!(ledger.frames(), 0);
    }

    proptest! {
        /// Against the plain rule: what leaves is the longest front whose frames are all covered.
        #[test]
        fn what_leaves_is_the_covered_front_and_nothing_behind_it(
            epochs in prop::collection::vec(1u64..6, 0..40),
            committed in 0u64..6,
            most in 1u32..10,
            begin: u32,
        ) {
            let id = |n: usize| begin.wrapping_add(u32::try_from(n).unwrap());
            let frames: Vec<_> = epochs.iter().enumerate().map(|(n, e)| (id(n), stamp(1, *e))).collect();
            let mut ledger = ledger(&frames);
            let covered = epochs.iter().take_while(|epoch| **epoch <= committed).count();
            let mut last = None;
            while let Some(until) = ledger.poll_release(stamp(1, committed), Kept::NONE, most) {
                last = Some(until.0);
            }
            prop_assert_eq!(last, covered.checked_sub(1).map(id));
            prop_assert_eq!(ledger.frames(), (epochs.len() - covered) as u64);
        }
    }
}
