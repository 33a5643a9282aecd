//! The last [`REMEMBERED`] epochs, one slot each: what each cost, for percentiles over a stretch of time that
//! the reader chooses.
//!
//! One thread seals; that thread and others complete the slot (bytes, commit, lag) with plain atomic stores. Readers take
//! what they find. A slot is published by its stamp, which is zero while the slot is being reused, so a reader either sees
//! one epoch's numbers or skips the slot.

use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
    fence,
};

use remus_abi::{Epoch, Stamp, Term};

use super::{histogram::exact, status::Distribution};

/// The number of epochs: six minutes of them at 40 a second, and a power of two.
pub(super) const REMEMBERED: usize = 1 << 14;

/// What the parts of a pause took, in microseconds. They add up to the whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PauseParts(pub [u32; Self::COUNT]);

impl PauseParts {
    pub const COUNT: usize = 6;
    /// The parts, in order: until the vCPUs have left the guest; until all state is captured, that of the gate and the
    /// devices included; reading the dirty log; copying; protecting what cooled; letting the guest go on.
    pub const NAMES: [&'static str; Self::COUNT] =
        ["kick", "state", "log", "copy", "clear", "resume"];

    pub fn sum_us(&self) -> u32 {
        self.0.iter().fold(0, |sum, us| sum.saturating_add(*us))
    }
}

/// In every field zero means "not yet". A value that is zero by itself is stored as zero, since it counts nothing.
#[derive(Default)]
struct Slot {
    stamp: AtomicU64,
    parts_us: [AtomicU32; PauseParts::COUNT],
    dirty_pages: AtomicU32,
    /// The time plus one, since zero means "not yet".
    commit_us: AtomicU32,
}

pub(super) struct EpochRing {
    slots: Box<[Slot]>,
}

/// Distributions over a stretch of epochs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stretch {
    pub(super) pause_us: Distribution,
    /// Medians.
    pub(super) parts_us: [u64; PauseParts::COUNT],
    pub(super) dirty_pages: Distribution,
    /// Over the epochs that are committed.
    pub(super) commit_us: Distribution,
}

impl EpochRing {
    pub(super) fn new() -> Self {
        Self { slots: (0..REMEMBERED).map(|_| Slot::default()).collect() }
    }

    /// Begins the slot of an epoch. Only one thread may call this: a second writer would mix two epochs in one slot.
    pub(super) fn seal(&self, stamp: Stamp, parts: &PauseParts, dirty_pages: u32) {
        let slot = self.slot(stamp);
        // Readers that see any store below also see that the slot belongs to no epoch.
        slot.stamp.store(0, Relaxed);
        fence(Release);
        for (word, us) in slot.parts_us.iter().zip(parts.0) {
            word.store(us, Relaxed);
        }
        slot.dirty_pages.store(dirty_pages, Relaxed);
        slot.commit_us.store(0, Relaxed);
        slot.stamp.store(stamp.bits(), Release);
    }

    /// Adds the commit to an epoch that is still remembered.
    pub(super) fn commit(&self, stamp: Stamp, commit_us: u32) {
        let slot = self.slot(stamp);
        if slot.stamp.load(Acquire) == stamp.bits() {
            slot.commit_us.store(commit_us.saturating_add(1), Relaxed);
        }
    }

    /// Returns the distributions over the remembered epochs of `term` after `since`.
    pub(super) fn stretch(&self, term: Term, since: Epoch) -> Stretch {
        let (mut pauses, mut pages, mut commits) = (Vec::new(), Vec::new(), Vec::new());
        let mut parts: [Vec<u32>; PauseParts::COUNT] = Default::default();
        for slot in &self.slots {
            let before = slot.stamp.load(Acquire);
            let of_pause = PauseParts(std::array::from_fn(|at| slot.parts_us[at].load(Relaxed)));
            let dirty_pages = slot.dirty_pages.load(Relaxed);
            let commit_us = slot.commit_us.load(Relaxed);
            fence(Acquire);
            let stamp = Stamp::from_bits(before);
            let whole = before != 0 && slot.stamp.load(Relaxed) == before;
            if !whole || stamp.term() != term || stamp.epoch() <= since {
                continue;
            }
            pauses.push(of_pause.sum_us());
            parts.iter_mut().zip(of_pause.0).for_each(|(part, us)| part.push(us));
            pages.push(dirty_pages);
            commits.extend(commit_us.checked_sub(1));
        }
        Stretch {
            pause_us: exact(&mut pauses),
            parts_us: parts.map(|mut part| exact(&mut part).p50),
            dirty_pages: exact(&mut pages),
            commit_us: exact(&mut commits),
        }
    }

    fn slot(&self, stamp: Stamp) -> &Slot {
        let at = stamp.epoch().get() % REMEMBERED as u64;
        &self.slots[usize::try_from(at).expect("below REMEMBERED")]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn stamp(term: u32, epoch: u64) -> Stamp {
        Stamp::new(Term::new(term).unwrap(), Epoch::new(epoch).unwrap())
    }

    fn pause(us: u32) -> PauseParts {
        PauseParts([0, us, 0, 0, 0, 0])
    }

    #[test]
    fn a_stretch_counts_its_own_term_after_its_epoch() {
        let ring = EpochRing::new();
        ring.seal(stamp(1, 5), &pause(900), 900);
        for n in 1..=10u32 {
            ring.seal(stamp(2, n.into()), &pause(n * 100), n);
        }
        ring.commit(stamp(2, 9), 0);
        let all = ring.stretch(Term::new(2).unwrap(), Epoch::NONE);
        assert_eq!((all.pause_us.count, all.pause_us.max, all.dirty_pages.p50), (10, 1000, 5));
        let last = ring.stretch(Term::new(2).unwrap(), Epoch::new(8).unwrap());
        assert_eq!((last.pause_us.count, last.commit_us.count, last.commit_us.max), (2, 1, 0));
    }

    #[test]
    fn the_oldest_epoch_gives_way_and_its_late_commit_goes_nowhere() {
        let ring = EpochRing::new();
        let reuse = 3 + REMEMBERED as u64;
        ring.seal(stamp(1, 3), &pause(10), 1);
        ring.seal(stamp(1, reuse), &pause(20), 2);
        ring.commit(stamp(1, 3), 77);
        let all = ring.stretch(Term::FIRST, Epoch::NONE);
        assert_eq!((all.pause_us.count, all.pause_us.max, all.commit_us.count), (1, 20, 0));
    }

    #[test]
    fn a_reader_never_sees_two_epochs_in_one() {
        let (ring, done) = (EpochRing::new(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 1..=400_000u32 {
                    // One slot over and over; both numbers of an epoch are the same.
                    ring.seal(stamp(1, u64::from(n) * REMEMBERED as u64), &pause(n), n);
                }
                done.store(true, Relaxed);
            });
            while !done.load(Relaxed) {
                let seen = ring.stretch(Term::FIRST, Epoch::NONE);
                assert_eq!(seen.pause_us.max, seen.dirty_pages.max);
            }
        });
    }
}
