//! The bounds of a run's claims, as far as they depend on what the options ask for.
//!
//! They are stated for the defaults: one vCPU, 256 MiB, 1,000 dirty pages, epochs of 25 ms. What a run asks beyond that
//! costs more, and its bounds grow with it: vCPUs that share a CPU leave it one after the other, each page is copied, KVM
//! hands out its dirty log whole, and shorter epochs mean more pauses. What a run asks less of is bound by the same
//! figures, where they are not what it asks for.

use std::time::Duration;

use super::Report;
use crate::remus::Machine;

/// Of an idle guest, for each vCPU that is waited for.
const PAUSE_IDLE_US: f64 = 250.0;
/// The same of a guest at work, and each of its dirty pages.
const PAUSE_US: f64 = 300.0;
const PAUSE_US_A_PAGE: f64 = 0.5;
/// For each GiB beyond the default memory.
const PAUSE_US_A_GIB: f64 = 10.0;
/// An epoch may last so much longer than was asked.
const EPOCH_KEPT: f64 = 0.975;
/// The epoch for which a checkpoint's pause is within what [`EPOCH_KEPT`] leaves.
const EPOCH_MS: f64 = 25.0;
/// Of its speed, a guest may lose this, and beyond its pauses what its faults take.
const WORK_LOST: f64 = 0.1;
const WORK_LOST_BESIDE_PAUSES: f64 = 0.068;
/// More pages than `pause_max_us` has time for are paced by their faults, which is what it is for.
const PAGES_KEPT_HOT: u32 = 8000;

/// What the options ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) machine: Machine,
    /// The host's.
    pub(super) cpus: usize,
    pub(super) dirty_pages: u32,
    pub(super) epoch_ms: u32,
    /// How long checkpoints are counted.
    pub(super) counted: Duration,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Bounds {
    pub(super) pause_idle_us: f64,
    pub(super) pause_us: f64,
    pub(super) checkpoints_per_second: f64,
    /// `None` where the vCPUs share their CPUs with the daemons, or where faults pace the guest.
    pub(super) guest_work_ratio: Option<f64>,
}

impl Bounds {
    pub(super) fn of(load: &Load) -> Self {
        let pause_us =
            PAUSE_US * load.turns() + PAUSE_US_A_PAGE * f64::from(load.dirty_pages) + load.log_us();
        let epoch_ms = f64::from(load.epoch_ms);
        let epoch_s = epoch_ms / 1e3;
        // A short epoch is made longer by its pause.
        let pause_s = pause_us / 1e6;
        let cycle_s = epoch_s + pause_s * (1.0 - epoch_ms / EPOCH_MS).max(0.0);
        let counted_s = load.counted.as_secs_f64();
        let whole = (counted_s / cycle_s - 1.0) / counted_s;
        let lost = WORK_LOST_BESIDE_PAUSES + pause_s / epoch_s;
        let is_claimed = load.has_cpus_apart() && load.dirty_pages <= PAGES_KEPT_HOT;
        Self {
            pause_idle_us: PAUSE_IDLE_US * load.turns() + load.log_us(),
            pause_us,
            checkpoints_per_second: (EPOCH_KEPT / cycle_s).min(whole),
            guest_work_ratio: is_claimed.then(|| round(1.0 - lost.max(WORK_LOST)).max(0.0)),
        }
    }
}

impl Load {
    /// Of a run.
    pub(super) fn of(report: &Report) -> Self {
        Self {
            machine: report.machine,
            cpus: report.cpus,
            dirty_pages: report.dirty_pages_asked,
            epoch_ms: report.timing.epoch_ms,
            counted: crate::story::WORK,
        }
    }

    /// How many vCPUs leave the guest one after the other: the first has a CPU to itself, the others share the rest.
    fn turns(&self) -> f64 {
        let others = usize::from(self.machine.vcpus.max(1)) - 1;
        let shared = others.div_ceil(self.cpus.saturating_sub(1).max(1));
        1.0 + f64::from(u8::try_from(shared).unwrap_or(u8::MAX))
    }

    fn log_us(&self) -> f64 {
        let beyond = self.machine.memory_mib.saturating_sub(Machine::default().memory_mib);
        PAUSE_US_A_GIB * f64::from(beyond) / 1024.0
    }

    fn has_cpus_apart(&self) -> bool {
        self.machine.vcpus == 1 || usize::from(self.machine.vcpus) < self.cpus
    }
}

/// To a thousandth: a bound is read by people.
fn round(ratio: f64) -> f64 {
    (ratio * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(machine: Machine, dirty_pages: u32, epoch_ms: u32) -> Load {
        Load { machine, cpus: 2, dirty_pages, epoch_ms, counted: Duration::from_secs(2) }
    }

    fn with(vcpus: u8, memory_mib: u32) -> Machine {
        Machine { vcpus, memory_mib }
    }

    fn of(machine: Machine, dirty_pages: u32, epoch_ms: u32) -> Bounds {
        Bounds::of(&load(machine, dirty_pages, epoch_ms))
    }

    #[test]
    fn the_defaults_are_claimed_as_they_stand() {
        let Bounds { pause_idle_us, pause_us, checkpoints_per_second, guest_work_ratio } =
            of(Machine::default(), 1000, 25);
        assert_eq!((pause_idle_us, pause_us, guest_work_ratio), (250.0, 800.0, Some(0.9)));
        assert!((checkpoints_per_second - 39.0).abs() < 1e-9, "{checkpoints_per_second}");
    }

    #[test]
    fn vcpus_that_share_a_cpu_leave_one_after_the_other() {
        let idle = |vcpus, cpus| {
            let load = Load { cpus, ..load(with(vcpus, 256), 1000, 25) };
            Bounds::of(&load).pause_idle_us
        };
        assert_eq!([1, 2, 4].map(|vcpus| idle(vcpus, 2)), [250.0, 500.0, 1000.0]);
        // With CPUs enough they leave together.
        assert_eq!([4, 8].map(|vcpus| idle(vcpus, 8)), [500.0, 500.0]);
        assert_eq!(idle(1, 1), 250.0);
    }

    #[test]
    fn pages_and_memory_lengthen_a_pause() {
        assert_eq!(of(Machine::default(), 4000, 25).pause_us, 2300.0);
        let large = of(with(1, 256 + 4096), 1000, 25);
        assert_eq!((large.pause_idle_us, large.pause_us), (290.0, 840.0));
    }

    #[test]
    fn a_rate_is_what_the_epoch_and_the_time_of_counting_allow() {
        let rate = |epoch_ms| of(Machine::default(), 1000, epoch_ms).checkpoints_per_second;
        assert!((rate(50) - 19.5).abs() < 1e-9, "{}", rate(50));
        // Two seconds have two epochs of one second, of which one may just not have ended.
        assert!((rate(1000) - 0.5).abs() < 1e-9, "{}", rate(1000));
        assert!((300.0..488.0).contains(&rate(2)), "{}", rate(2));
    }

    #[test]
    fn more_pauses_cost_more_work_and_longer_epochs_claim_no_more() {
        let work = |pages, epoch_ms| of(Machine::default(), pages, epoch_ms).guest_work_ratio;
        assert_eq!(work(1000, 50), Some(0.9));
        assert_eq!(work(4000, 25), Some(0.84));
        assert!(work(1000, 10) < Some(0.9) && work(1000, 10) > Some(0.8));
        assert_eq!(work(30_000, 25), None, "paced by faults");
        assert_eq!(of(with(2, 256), 1000, 25).guest_work_ratio, None, "shared with the daemons");
    }

    #[test]
    fn no_option_makes_a_bound_that_holds_nothing() {
        for vcpus in [1, 2, 64] {
            for pages in [1, 30_000] {
                for epoch_ms in [2, 1000] {
                    let bounds = of(with(vcpus, 65_536), pages, epoch_ms);
                    assert!(bounds.checkpoints_per_second > 0.0, "{bounds:?}");
                    assert!(bounds.pause_us.is_finite() && bounds.pause_idle_us >= 250.0);
                }
            }
        }
    }
}
