//! A CPU with flat segments, as guests are entered: in 64-bit mode, or in 32-bit mode without paging.

use anyhow::{Context, Result};
use kvm_bindings::{kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

/// Bits of page table entries, for every level.
pub(super) const PRESENT_WRITABLE_USER: u64 = 0x7;
/// The entry of a page directory is a page itself.
pub(super) const LARGE: u64 = 1 << 7;
pub(super) const LARGE_PAGE: u64 = 2 << 20;
/// Bit 1 is always set; everything else, interrupts included, is off.
pub(super) const RFLAGS: u64 = 1 << 1;

const CR0_PE_ET: u64 = 1 | 1 << 4;
const CR0_NE_WP_PG: u64 = 1 << 5 | 1 << 16 | 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;

/// Segments from 0 to the end of the address space.
#[derive(Clone, Copy)]
pub(super) struct Flat {
    /// Selectors. What is in the GDT has to be the same, for when the guest loads them again.
    pub(super) code: u16,
    pub(super) data: u16,
    pub(super) ring: u8,
    /// Address of the GDT, and the offset of its last byte.
    pub(super) gdt: (u64, u16),
}

impl Flat {
    /// 64-bit mode, with the page tables at `pml4`.
    pub(super) fn enter_long_mode(self, vcpu: &VcpuFd, pml4: u64) -> Result<()> {
        self.enter(vcpu, true, |sregs| {
            sregs.cr0 = CR0_PE_ET | CR0_NE_WP_PG;
            sregs.cr3 = pml4;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME_LMA;
        })
    }

    /// 32-bit protected mode without paging.
    pub(super) fn enter_protected_mode(self, vcpu: &VcpuFd) -> Result<()> {
        self.enter(vcpu, false, |sregs| {
            (sregs.cr0, sregs.cr4, sregs.efer) = (CR0_PE_ET, 0, 0);
        })
    }

    fn enter(self, vcpu: &VcpuFd, long: bool, mode: impl FnOnce(&mut kvm_sregs)) -> Result<()> {
        let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
        let code = kvm_segment {
            limit: 0xffff_ffff,
            selector: self.code,
            type_: 0xb,
            present: 1,
            dpl: self.ring,
            s: 1,
            l: long.into(),
            db: (!long).into(),
            g: 1,
            ..Default::default()
        };
        let data = kvm_segment { selector: self.data, type_: 0x3, db: 1, l: 0, ..code };
        sregs.cs = code;
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        (sregs.gdt.base, sregs.gdt.limit) = self.gdt;
        mode(&mut sregs);
        vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")
    }
}
