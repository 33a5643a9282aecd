//! A vCPU's state: out of KVM and back in.
//!
//! Both orders were tried at random instants of running guests, over hundreds of generations.

use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::ioctl::{
    DEBUG, EVENTS, LAPIC, MP_STATE, REGS, SREGS2, XCRS, XSAVE, set_tsc_offset, tsc_offset,
};
use crate::checkpoint::{Msr, VcpuState};

const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;

/// Room to fetch the registers that are part of the state, made once.
pub(super) fn msr_buffer(indices: &[u32]) -> Result<Msrs> {
    let entries: Vec<_> =
        indices.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
    Msrs::from_entries(&entries).context("more model-specific registers than KVM fetches at once")
}

/// Fetches the state of a vCPU that is out of KVM_RUN and owes it no completion.
pub(super) fn save(vcpu: &VcpuFd, msrs: &mut Msrs, state: &mut VcpuState) -> Result<()> {
    // First, because it delivers INIT and SIPI that are pending in the APIC, which changes all the others.
    MP_STATE.get(vcpu, &mut state.mp_state)?;
    REGS.get(vcpu, &mut state.regs)?;
    SREGS2.get(vcpu, &mut state.sregs)?;
    XSAVE.get(vcpu, &mut state.xsave)?;
    XCRS.get(vcpu, &mut state.xcrs)?;
    let wanted = msrs.as_slice().len();
    let fetched = vcpu.get_msrs(msrs).context("KVM_GET_MSRS")?;
    if fetched != wanted {
        bail!("KVM_GET_MSRS refused {:#x}", msrs.as_slice()[fetched].index);
    }
    state.msrs.clear();
    let entries = msrs.as_slice().iter();
    state.msrs.extend(entries.map(|entry| Msr { index: entry.index, value: entry.data }));
    LAPIC.get(vcpu, &mut state.lapic)?;
    // After the APIC, whose accepted interrupt is in here.
    EVENTS.get(vcpu, &mut state.events)?;
    DEBUG.get(vcpu, &mut state.debug)
}

/// Puts a state into a vCPU that has never run.
pub(super) fn restore(vcpu: &VcpuFd, state: &VcpuState) -> Result<()> {
    MP_STATE.set(vcpu, &state.mp_state)?;
    REGS.set(vcpu, &state.regs)?;
    // Carries the APIC base, without which the APIC takes no registers.
    SREGS2.set(vcpu, &state.sregs)?;
    XSAVE.set(vcpu, &state.xsave)?;
    XCRS.set(vcpu, &state.xcrs)?;
    DEBUG.set(vcpu, &state.debug)?;
    LAPIC.set(vcpu, &state.lapic)?;
    // The deadline after the TSC that it is compared with and the APIC's timer mode that it needs.
    let (deadline, others): (Vec<Msr>, Vec<Msr>) =
        state.msrs.iter().partition(|msr| msr.index == MSR_IA32_TSC_DEADLINE);
    set_msrs(vcpu, &others)?;
    set_msrs(vcpu, &deadline)?;
    // Last: setting registers drops pending exceptions.
    EVENTS.set(vcpu, &state.events)
}

/// Makes restored vCPUs' TSCs tell the same time again.
///
/// Each was read, and written, at a moment of its own. KVM takes what is written within a second of the others'
/// for the same, but not where it thinks the host's TSC unstable; the guest, which was told once that its TSCs
/// agree, never asks again. A TSC that the guest itself has set apart stays so.
pub(super) fn unite_tscs(vcpus: &[VcpuFd], tsc_khz: u32) -> Result<()> {
    let Some((first, others)) = vcpus.split_first() else { return Ok(()) };
    let offset = tsc_offset(first)?;
    for vcpu in others {
        if is_another_reading(offset, tsc_offset(vcpu)?, tsc_khz) {
            set_tsc_offset(vcpu, offset)?;
        }
    }
    Ok(())
}

/// Whether two offsets differ, by less than a second of a TSC at `tsc_khz`.
fn is_another_reading(offset: u64, other: u64, tsc_khz: u32) -> bool {
    let apart = other.wrapping_sub(offset).cast_signed().unsigned_abs();
    apart != 0 && apart < u64::from(tsc_khz) * 1000
}

/// Sets registers in as few calls as KVM lets us; one that it does not take must have its value already.
fn set_msrs(vcpu: &VcpuFd, mut msrs: &[Msr]) -> Result<()> {
    while !msrs.is_empty() {
        let entry = |msr: &Msr| kvm_msr_entry { index: msr.index, data: msr.value, reserved: 0 };
        let entries: Vec<_> = msrs.iter().map(entry).collect();
        let entries = Msrs::from_entries(&entries).context("too many registers")?;
        let taken = vcpu.set_msrs(&entries).context("KVM_SET_MSRS")?;
        let Some((refused, rest)) = msrs.get(taken..).and_then(<[Msr]>::split_first) else { break };
        ensure_msr(vcpu, *refused)?;
        msrs = rest;
    }
    Ok(())
}

fn ensure_msr(vcpu: &VcpuFd, msr: Msr) -> Result<()> {
    let mut one = msr_buffer(&[msr.index])?;
    let fetched = vcpu.get_msrs(&mut one).context("KVM_GET_MSRS")?;
    let has = one.as_slice()[0].data;
    ensure!(
        fetched == 1 && has == msr.value,
        "KVM refuses {:#x} in model-specific register {:#x}, which has {has:#x}",
        msr.value,
        msr.index
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_less_than_a_second_apart_are_readings_of_one_tsc() {
        let second = 2_000_000_000;
        for (other, one_tsc) in
            [(0, false), (1, true), (u64::MAX, true), (second - 1, true), (second, false)]
        {
            assert_eq!(is_another_reading(0, other, 2_000_000), one_tsc, "{other}");
            assert_eq!(is_another_reading(other, 0, 2_000_000), one_tsc, "{other}");
        }
    }
}
