//! Linux (or another kernel) as an ELF file with an entry point for PVH: 32-bit mode, without paging.
//!
//! xen/docs/misc/pvh.pandoc and xen/include/public/arch-x86/hvm/start_info.h: `ebx` has the start info; segments are
//! flat.

use std::path::Path;

use anyhow::{Context, Result};
use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuFd;
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use remus_abi::boot::HIGH_RAM;
use vm_memory::ByteValued;

use super::low::{self, BOOT_BLOCK, CMDLINE, FLAT};
use super::{initrd, map};
use crate::machine::flat::RFLAGS;
use crate::machine::memory::Memory;

/// The start info is first in its page.
const MODULES: u64 = BOOT_BLOCK + 0x100;
const RANGES: u64 = BOOT_BLOCK + 0x200;

/// Writes what the kernel, which is loaded up to `kernel_end`, is entered with, and makes `vcpu` begin at `entry`.
pub(super) fn enter(
    memory: &Memory,
    vcpu: &VcpuFd,
    (entry, kernel_end): (u64, u64),
    initrd: Option<&Path>,
    cmdline: &str,
    rsdp: u64,
) -> Result<()> {
    let disk = initrd.map(|path| initrd::load(memory, path, kernel_end, HIGH_RAM)).transpose()?;
    let ranges = map::ranges(memory.layout());
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: disk.is_some().into(),
        modlist_paddr: if disk.is_some() { MODULES } else { 0 },
        cmdline_paddr: CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: RANGES,
        memmap_entries: u32::try_from(ranges.len()).expect("a few"),
        ..Default::default()
    };
    low::write_for_protected_mode(memory)?;
    low::write_cmdline(memory, cmdline)?;
    low::put(memory, BOOT_BLOCK, info.as_slice())?;
    if let Some(disk) = disk {
        let module =
            hvm_modlist_entry { paddr: disk.address, size: disk.bytes, ..Default::default() };
        low::put(memory, MODULES, module.as_slice())?;
    }
    for (at, range) in (RANGES..).step_by(size_of::<hvm_memmap_table_entry>()).zip(ranges) {
        let range = hvm_memmap_table_entry {
            addr: range.address,
            size: range.bytes,
            type_: range.is as u32,
            reserved: 0,
        };
        low::put(memory, at, range.as_slice())?;
    }
    FLAT.enter_protected_mode(vcpu)?;
    let regs = kvm_regs { rip: entry, rbx: BOOT_BLOCK, rflags: RFLAGS, ..Default::default() };
    vcpu.set_regs(&regs).context("KVM_SET_REGS")
}
