//! kvmclock and TSC across hosts.
//!
//! A guest tells the time by either. Its clock goes on by the time that the wall clocks say has passed since the capture:
//! never back, and never by more than [`STEP_MAX`], so that two hosts whose clocks disagree do not make every timer of the
//! guest run out at once.

use std::time::Duration;

use anyhow::{Context, Result};
use kvm_bindings::{KVM_CLOCK_REALTIME, kvm_clock_data};
use kvm_ioctls::VmFd;

use crate::{checkpoint::ClockState, os::wall_now};

/// How far a restore moves the guest's clock at most.
const STEP_MAX: Duration = Duration::from_secs(5);

/// Returns the guest's clock and the host's, both of one instant.
pub(super) fn save(vm: &VmFd) -> Result<ClockState> {
    let clock = vm.get_clock().context("KVM_GET_CLOCK")?;
    // KVM reads both at once where its clock is stable; else a moment lies between.
    let paired = clock.flags & KVM_CLOCK_REALTIME != 0;
    let real_ns = if paired { clock.realtime } else { real_ns() };
    Ok(ClockState { guest_ns: clock.clock, real_ns })
}

/// Returns the time by which the guest's clocks go on now.
pub(super) fn step(saved: ClockState) -> Duration {
    Duration::from_nanos(step_ns(saved, real_ns()))
}

/// Sets the guest's clock to what it would show by now.
pub(super) fn restore(vm: &VmFd, saved: ClockState) -> Result<()> {
    let clock = saved.guest_ns.saturating_add(step_ns(saved, real_ns()));
    vm.set_clock(&kvm_clock_data { clock, ..Default::default() }).context("KVM_SET_CLOCK")
}

fn step_ns(saved: ClockState, real_ns: u64) -> u64 {
    let step_max = u64::try_from(STEP_MAX.as_nanos()).expect("some seconds");
    real_ns.saturating_sub(saved.real_ns).min(step_max)
}

fn real_ns() -> u64 {
    u64::try_from(wall_now().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_clock_never_goes_back_and_never_leaps() {
        let saved = ClockState { guest_ns: 1_000, real_ns: 50_000 };
        assert_eq!(step_ns(saved, 50_300), 300);
        assert_eq!(step_ns(saved, 10), 0);
        assert_eq!(step_ns(saved, u64::MAX), 5_000_000_000);
    }
}
