//! The state in which a guest finds its CPU: long mode, identity-mapped, ring 0.

use anyhow::{Context, Result};
use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use remus_abi::boot::{BOOT_MAGIC, BootInfo, HIGH_RAM, RAM_HOLE, START_PAGE};
use vm_memory::{Bytes, GuestAddress};

use crate::machine::memory::Memory;

pub(super) const CMDLINE_MAX: usize = 4096;

const PML4: u64 = 0x1000;
const POINTERS: u64 = 0x2000;
const GDT: u64 = 0x3000;
const BOOT_INFO: u64 = 0x4000;
const CMDLINE: u64 = 0x5000;
const DIRECTORIES: u64 = 0x1_0000;
const _: () =
    assert!(CMDLINE + CMDLINE_MAX as u64 <= START_PAGE && START_PAGE + 4096 <= DIRECTORIES);

const GIB: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;

const PRESENT_WRITABLE_USER: u64 = 0x7;
const LARGE: u64 = 1 << 7;
const UNCACHED: u64 = 1 << 3 | 1 << 4;

const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
/// Null, unused, 64-bit code, data: flat, ring 0.
const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Offset of the last byte of [`DESCRIPTORS`].
const GDT_LIMIT: u16 = 4 * 8 - 1;

const CR0_PE_ET_NE_WP_PG: u64 = 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
/// Bit 1 is always set; everything else, interrupts included, is off.
const RFLAGS: u64 = 1 << 1;

/// Writes page tables, GDT, boot block and command line.
pub(super) fn write_low_memory(memory: &Memory, vcpus: u8, cmdline: &str) -> Result<()> {
    let (low_ram, high_ram) = memory.layout().low_and_high_bytes();
    let end = if high_ram == 0 { HIGH_RAM } else { HIGH_RAM + high_ram };
    let put = |address: u64, bytes: &[u8]| {
        memory.ram().write_slice(bytes, GuestAddress(address)).context("write low memory")
    };
    put(PML4, &(POINTERS | PRESENT_WRITABLE_USER).to_le_bytes())?;
    for n in 0..end.div_ceil(GIB) {
        let directory = DIRECTORIES + n * 4096;
        put(POINTERS + n * 8, &(directory | PRESENT_WRITABLE_USER).to_le_bytes())?;
        let mut entries = [0; 4096];
        for (entry, at) in entries.chunks_exact_mut(8).zip(0..) {
            entry.copy_from_slice(&large_page(n * GIB + at * LARGE_PAGE).to_le_bytes());
        }
        put(directory, &entries)?;
    }
    for (descriptor, at) in DESCRIPTORS.iter().zip(0..) {
        put(GDT + at * 8, &descriptor.to_le_bytes())?;
    }
    put(CMDLINE, cmdline.as_bytes())?;
    put(
        BOOT_INFO,
        &encode(BootInfo {
            magic: BOOT_MAGIC,
            low_ram,
            high_ram,
            cmdline: CMDLINE,
            cmdline_len: cmdline.len() as u64,
            devices: 1,
            vcpus: vcpus.into(),
        }),
    )
}

fn large_page(address: u64) -> u64 {
    let device = (RAM_HOLE..HIGH_RAM).contains(&address);
    address | PRESENT_WRITABLE_USER | LARGE | if device { UNCACHED } else { 0 }
}

fn encode(info: BootInfo) -> [u8; size_of::<BootInfo>()] {
    let BootInfo { magic, low_ram, high_ram, cmdline, cmdline_len, devices, vcpus } = info;
    let both = u64::from(devices) | u64::from(vcpus) << 32;
    let mut bytes = [0; size_of::<BootInfo>()];
    let words = [magic, low_ram, high_ram, cmdline, cmdline_len, both];
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Makes the boot CPU begin at `entry`.
pub(super) fn set_registers(vcpu: &VcpuFd, entry: u64) -> Result<()> {
    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    let code = kvm_segment {
        limit: 0xffff_ffff,
        selector: CODE,
        type_: 0xb,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: DATA, type_: 0x3, db: 1, l: 0, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = GDT;
    sregs.gdt.limit = GDT_LIMIT;
    sregs.cr0 = CR0_PE_ET_NE_WP_PG;
    sregs.cr3 = PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME_LMA;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let regs = kvm_regs { rip: entry, rdi: BOOT_INFO, rflags: RFLAGS, ..Default::default() };
    vcpu.set_regs(&regs).context("KVM_SET_REGS")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::layout::Layout;
    use crate::machine::shape::MEMORY_MIB_MAX;

    #[test]
    fn the_largest_machines_tables_stay_in_low_memory() {
        let (_, high) = Layout::of_mib(MEMORY_MIB_MAX).low_and_high_bytes();
        let directories = (HIGH_RAM + high).div_ceil(GIB);
        assert!(DIRECTORIES + directories * 4096 <= 0xa_0000);
    }

    #[test]
    fn only_the_device_hole_is_uncached() {
        assert_eq!(large_page(0), 0x87);
        assert_eq!(large_page(RAM_HOLE - LARGE_PAGE) & UNCACHED, 0);
        assert_eq!(large_page(RAM_HOLE) & UNCACHED, UNCACHED);
        assert_eq!(large_page(HIGH_RAM - LARGE_PAGE) & UNCACHED, UNCACHED);
        assert_eq!(large_page(HIGH_RAM) & UNCACHED, 0);
    }

    #[test]
    fn the_boot_block_is_as_the_guest_reads_it() {
        let info = BootInfo { magic: BOOT_MAGIC, devices: 1, vcpus: 3, ..Default::default() };
        let bytes = encode(info);
        let at = std::mem::offset_of!(BootInfo, vcpus);
        assert_eq!(bytes[..8], *b"RemusVM1");
        assert_eq!(bytes[at..at + 4], 3u32.to_le_bytes());
    }
}
