//! A state, put into the parts of a machine.

use anyhow::{Context, Result, ensure};
use kvm_ioctls::VcpuFd;

use super::capture;
use super::cpu::CpuProfile;
use super::devices::board::Board;
use super::vm::Vm;
use crate::checkpoint::MachineState;

/// Puts a state into the parts of a machine whose vCPUs are in no thread; their TSCs go on from `tsc_step` later.
///
/// # Errors
/// When it is of another machine, or KVM refuses it.
pub(super) fn put_in(
    state: &MachineState,
    tsc_step: u64,
    cpu: &CpuProfile,
    vcpus: &[VcpuFd],
    vm: &Vm,
    board: &Board,
) -> Result<()> {
    ensure!(
        state.vcpus.len() == vcpus.len(),
        "a state of {} vCPUs for a machine of {}",
        state.vcpus.len(),
        vcpus.len()
    );
    for (n, (vcpu, from)) in vcpus.iter().zip(&state.vcpus).enumerate() {
        capture::restore(vcpu, from, tsc_step).with_context(|| format!("restore vCPU {n}"))?;
    }
    // Before the clock, which KVM keeps best while all TSCs agree.
    capture::unite_tscs(vcpus, cpu.tsc_khz())?;
    // After the vCPUs: the IOAPIC sends what it holds pending to their APICs.
    vm.restore_chips(&state.chips)?;
    board.restore(&state.devices, &state.serial)
}
