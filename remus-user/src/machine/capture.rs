//! A vCPU's state: out of KVM and back in.
//!
//! Both orders were tried at random instants of running guests, over hundreds of generations.

use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::{
    KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, Msrs, kvm_msr_entry, kvm_sregs,
    kvm_sync_regs,
};
use kvm_ioctls::{Cap, SyncReg, VcpuFd, VmFd};

use super::ioctl::{
    DEBUG, EVENTS, LAPIC, MP_STATE, REGS, SREGS2, XCRS, XSAVE, set_tsc_offset, tsc_offset,
};
use crate::checkpoint::{Image, Msr, VcpuState};

const MSR_IA32_TSC: u32 = 0x10;
const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;

/// Makes room to fetch the registers that are part of the state; called once.
pub(super) fn msr_buffer(indices: &[u32]) -> Result<Msrs> {
    let entries: Vec<_> =
        indices.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
    Msrs::from_entries(&entries).context("more model-specific registers than KVM fetches at once")
}

/// Where registers come from that KVM can also leave behind at the end of a KVM_RUN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Registers {
    /// Each is asked for: some 7 us a call under KVM-PVM.
    Asked,
    /// As the last KVM_RUN left them (KVM_CAP_SYNC_REGS). For the one vCPU of a machine only: nobody sends it INIT or SIPI,
    /// which would change them after that.
    Synced,
}

impl Registers {
    /// Returns the better way for a machine of so many vCPUs, where `vm` knows it.
    pub(super) fn of(vm: &VmFd, vcpus: usize) -> Self {
        let all = (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS).cast_signed();
        match vm.check_extension_int(Cap::SyncRegs) & all == all && vcpus == 1 {
            true => Self::Synced,
            false => Self::Asked,
        }
    }

    /// To be called before the vCPU runs.
    pub(super) fn prepare(self, vcpu: &mut VcpuFd) {
        if self == Self::Synced {
            for which in [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents] {
                vcpu.set_sync_valid_reg(which);
            }
        }
    }
}

/// Fetches the state of a vCPU that is out of KVM_RUN and owes it no completion.
pub(super) fn save(
    vcpu: &VcpuFd,
    registers: Registers,
    msrs: &mut Msrs,
    state: &mut VcpuState,
) -> Result<()> {
    // First, because it delivers INIT and SIPI that are pending in the APIC, which changes all the others.
    MP_STATE.get(vcpu, &mut state.mp_state)?;
    let synced = match registers {
        Registers::Synced => take_synced(&vcpu.sync_regs(), state),
        Registers::Asked => false,
    };
    if !synced {
        REGS.get(vcpu, &mut state.regs)?;
        SREGS2.get(vcpu, &mut state.sregs)?;
    }
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
    // After the APIC, whose accepted interrupt is in here. It is accepted within KVM_RUN, and so in those left behind.
    if !synced {
        EVENTS.get(vcpu, &mut state.events)?;
    }
    DEBUG.get(vcpu, &mut state.debug)
}

/// Takes registers and events as KVM_RUN left them. False, and nothing is taken, of a vCPU that uses PAE paging: its page
/// directory pointers are not among them.
fn take_synced(from: &kvm_sync_regs, state: &mut VcpuState) -> bool {
    let kvm_sync_regs { regs, sregs, events } = from;
    if sregs.cr0 & CR0_PG != 0 && sregs.cr4 & CR4_PAE != 0 && sregs.efer & EFER_LMA == 0 {
        return false;
    }
    state.regs = Image(*bytes(regs));
    // `kvm_sregs2` is `kvm_sregs` up to the interrupt that is being delivered, which is among the events; flags and page
    // directory pointers follow, of which there are none.
    let shared = std::mem::offset_of!(kvm_sregs, interrupt_bitmap);
    state.sregs = Image::default();
    state.sregs.0[..shared].copy_from_slice(&bytes::<_, 312>(sregs)[..shared]);
    state.events = Image(*bytes(events));
    true
}

const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LMA: u64 = 1 << 10;

/// Returns the bytes of one of KVM's structures.
fn bytes<T, const N: usize>(of: &T) -> &[u8; N] {
    const { assert!(size_of::<T>() == N) };
    // SAFETY: as many bytes as asserted, borrowed as long as `of` is. KVM's structures have no padding: what lies between
    // fields are fields, and came from the kernel.
    unsafe { &*std::ptr::from_ref(of).cast() }
}

/// Puts a state into a vCPU that has never run. Its TSC goes on from `tsc_step` later.
pub(super) fn restore(vcpu: &VcpuFd, state: &VcpuState, tsc_step: u64) -> Result<()> {
    MP_STATE.set(vcpu, &state.mp_state)?;
    REGS.set(vcpu, &state.regs)?;
    // Carries the APIC base, without which the APIC takes no registers.
    SREGS2.set(vcpu, &state.sregs)?;
    XSAVE.set(vcpu, &state.xsave)?;
    XCRS.set(vcpu, &state.xcrs)?;
    DEBUG.set(vcpu, &state.debug)?;
    LAPIC.set(vcpu, &state.lapic)?;
    // The deadline after the TSC that it is compared with and the APIC's timer mode that it needs.
    let (deadline, mut others): (Vec<Msr>, Vec<Msr>) =
        state.msrs.iter().partition(|msr| msr.index == MSR_IA32_TSC_DEADLINE);
    for tsc in others.iter_mut().filter(|msr| msr.index == MSR_IA32_TSC) {
        tsc.value = tsc.value.wrapping_add(tsc_step);
    }
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

/// Returns whether two offsets differ by less than a second of a TSC at `tsc_khz`, and at all.
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
