//! KVM calls that kvm-ioctls does not wrap, or wraps with an allocation.
//!
//! State is read and written as [`Image`]s: the number of a request carries the size of its structure, so
//! an image of the wrong size would be another request, which KVM does not know.

use std::os::fd::{AsRawFd, RawFd};

use anyhow::{Context, Result};
use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_device_attr, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1,
};
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::{_IOC_READ, _IOC_WRITE, ioctl_expr, ioctl_with_mut_ref, ioctl_with_ref};

use super::layout::Slot;
use crate::checkpoint::Image;

/// A structure of KVM's that is fetched and put whole: its two requests, and its name for errors.
#[derive(Clone, Copy)]
pub(super) struct Register<const N: usize> {
    name: &'static str,
    get: (u32, u32),
    set: (u32, u32),
}

const R: u32 = _IOC_READ;
const W: u32 = _IOC_WRITE;

pub(super) const MP_STATE: Register<4> =
    Register { name: "MP_STATE", get: (R, 0x98), set: (W, 0x99) };
pub(super) const REGS: Register<144> = Register { name: "REGS", get: (R, 0x81), set: (W, 0x82) };
pub(super) const SREGS2: Register<320> =
    Register { name: "SREGS2", get: (R, 0xcc), set: (W, 0xcd) };
/// In 4096 bytes, which suffices unless a feature enabled by `arch_prctl` is offered; AMX is masked, and
/// the machine is not created when KVM asks for more.
pub(super) const XSAVE: Register<4096> = Register { name: "XSAVE", get: (R, 0xcf), set: (W, 0xa5) };
pub(super) const XCRS: Register<392> = Register { name: "XCRS", get: (R, 0xa6), set: (W, 0xa7) };
pub(super) const LAPIC: Register<1024> = Register { name: "LAPIC", get: (R, 0x8e), set: (W, 0x8f) };
pub(super) const EVENTS: Register<64> =
    Register { name: "VCPU_EVENTS", get: (R, 0x9f), set: (W, 0xa0) };
pub(super) const DEBUG: Register<128> =
    Register { name: "DEBUGREGS", get: (R, 0xa1), set: (W, 0xa2) };
/// Of the VM, not of a vCPU. The image names the chip when it is fetched, too.
pub(super) const IRQCHIP: Register<520> =
    Register { name: "IRQCHIP", get: (R | W, 0x62), set: (R, 0x63) };

impl<const N: usize> Register<N> {
    /// Fetches it from the vCPU (or VM) `fd`.
    pub(super) fn get(self, fd: &impl AsRawFd, into: &mut Image<N>) -> Result<()> {
        let request = ioctl_expr(self.get.0, KVMIO, self.get.1, size::<N>());
        // SAFETY: the request writes no more than the N bytes whose size it carries (for XSAVE2, see
        // there), and `into` has room for them.
        check(unsafe { ioctl_with_mut_ref(fd, request, &mut into.0) })
            .with_context(|| format!("KVM_GET_{}", self.name))
    }

    /// Puts it into the vCPU (or VM) `fd`.
    pub(super) fn set(self, fd: &impl AsRawFd, from: &Image<N>) -> Result<()> {
        let request = ioctl_expr(self.set.0, KVMIO, self.set.1, size::<N>());
        // SAFETY: the request reads no more than the N bytes whose size it carries.
        check(unsafe { ioctl_with_ref(fd, request, &from.0) })
            .with_context(|| format!("KVM_SET_{}", self.name))
    }
}

/// Writes the dirty log of a slot to `words`, one bit a page.
pub(super) fn get_dirty_log(vm: &impl AsRawFd, slot: Slot, words: &mut [u64]) -> Result<()> {
    assert!(words.len() * 64 >= slot.pages as usize);
    let log = kvm_dirty_log {
        slot: slot.number,
        padding1: 0,
        __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: words.as_mut_ptr().cast() },
    };
    let request = ioctl_expr(W, KVMIO, 0x42, size::<{ size_of::<kvm_dirty_log>() }>());
    // SAFETY: KVM writes one bit for each page of the slot, rounded up to words; the room was checked.
    check(unsafe { ioctl_with_ref(vm, request, &log) }).context("KVM_GET_DIRTY_LOG")
}

/// Takes the pages whose bits are set out of the log and write-protects them. `first` is the number within
/// the slot of the page in bit 0, a multiple of 64.
pub(super) fn clear_dirty_log(vm: RawFd, slot: Slot, first: u32, words: &[u64]) -> Result<()> {
    let pages = u32::try_from(words.len() * 64).expect("no slot is that large");
    assert!(first.is_multiple_of(64) && first + pages <= slot.pages.next_multiple_of(64));
    let log = kvm_clear_dirty_log {
        slot: slot.number,
        num_pages: pages.min(slot.pages - first),
        first_page: first.into(),
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: words.as_ptr().cast_mut().cast(),
        },
    };
    let request = ioctl_expr(R | W, KVMIO, 0xc0, size::<{ size_of::<kvm_clear_dirty_log>() }>());
    // SAFETY: KVM reads one bit for each of the pages named, which `words` has.
    check(unsafe { ioctl_with_ref(&vm, request, &log) }).context("KVM_CLEAR_DIRTY_LOG")
}

/// Returns the offset, modulo 2^64, that KVM adds to the host's TSC for a vCPU.
pub(super) fn tsc_offset(vcpu: &impl AsRawFd) -> Result<u64> {
    let mut offset = 0u64;
    let attribute = tsc_offset_at((&raw mut offset) as u64);
    let request = ioctl_expr(W, KVMIO, 0xe2, size::<{ size_of::<kvm_device_attr>() }>());
    // SAFETY: of this attribute KVM writes 8 bytes to the address given, which is that of a live u64.
    check(unsafe { ioctl_with_ref(vcpu, request, &attribute) })
        .context("get KVM_VCPU_TSC_OFFSET")?;
    Ok(offset)
}

pub(super) fn set_tsc_offset(vcpu: &impl AsRawFd, offset: u64) -> Result<()> {
    let attribute = tsc_offset_at((&raw const offset) as u64);
    let request = ioctl_expr(W, KVMIO, 0xe1, size::<{ size_of::<kvm_device_attr>() }>());
    // SAFETY: of this attribute KVM reads 8 bytes at the address given, which is that of a live u64.
    check(unsafe { ioctl_with_ref(vcpu, request, &attribute) }).context("set KVM_VCPU_TSC_OFFSET")
}

/// Of Linux 5.16, hence there where KVM_CAP_XSAVE2 is.
fn tsc_offset_at(addr: u64) -> kvm_device_attr {
    kvm_device_attr { flags: 0, group: KVM_VCPU_TSC_CTRL, attr: KVM_VCPU_TSC_OFFSET.into(), addr }
}

#[expect(clippy::cast_possible_truncation, reason = "bounded by the assertion")]
const fn size<const N: usize>() -> u32 {
    assert!(N < 1 << 14, "more than a request's number can carry");
    N as u32
}

fn check(returned: i32) -> Result<(), errno::Error> {
    if returned == 0 { Ok(()) } else { Err(errno::Error::last()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings as kvm;

    #[test]
    fn images_are_as_large_as_kvms_structures() {
        fn of<T, const N: usize>(register: Register<N>) {
            assert_eq!(size_of::<T>(), N, "{}", register.name);
        }
        of::<kvm::kvm_mp_state, _>(MP_STATE);
        of::<kvm::kvm_regs, _>(REGS);
        of::<kvm::kvm_sregs2, _>(SREGS2);
        of::<kvm::kvm_xsave, _>(XSAVE);
        of::<kvm::kvm_xcrs, _>(XCRS);
        of::<kvm::kvm_lapic_state, _>(LAPIC);
        of::<kvm::kvm_vcpu_events, _>(EVENTS);
        of::<kvm::kvm_debugregs, _>(DEBUG);
        of::<kvm::kvm_irqchip, _>(IRQCHIP);
    }
}
