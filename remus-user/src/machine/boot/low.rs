//! Low memory: what every guest is entered with.

use anyhow::{Context, Result, ensure};
use remus_abi::boot::{HIGH_RAM, RAM_HOLE, START_PAGE};
use vm_memory::{Bytes, GuestAddress};

use crate::machine::flat::{Flat, LARGE, LARGE_PAGE, PRESENT_WRITABLE_USER};
use crate::machine::memory::Memory;

/// Most bytes of a command line, its terminator aside.
pub(super) const CMDLINE_MAX: usize = 4095;

pub(super) const PML4: u64 = 0x1000;
const POINTERS: u64 = 0x2000;
const GDT: u64 = 0x3000;
/// What the guest is told about its machine, a page of its boot protocol's.
pub(super) const BOOT_BLOCK: u64 = 0x4000;
pub(super) const CMDLINE: u64 = 0x5000;
const DIRECTORIES: u64 = 0x1_0000;
const _: () = assert!(CMDLINE + (CMDLINE_MAX as u64) < START_PAGE);
const _: () = assert!(START_PAGE + 4096 <= DIRECTORIES);

const GIB: u64 = 1 << 30;
const UNCACHED: u64 = 1 << 3 | 1 << 4;

/// Code and data in ring 0. Linux asks for these selectors too (`__BOOT_CS`, `__BOOT_DS`).
pub(super) const FLAT: Flat = Flat { code: 0x10, data: 0x18, ring: 0, gdt: (GDT, 4 * 8 - 1) };
const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;

pub(super) fn put(memory: &Memory, address: u64, bytes: &[u8]) -> Result<()> {
    memory.ram().write_slice(bytes, GuestAddress(address)).context("write low memory")
}

/// Writes the GDT, with the code segment of the mode that the guest is entered in.
fn write_gdt(memory: &Memory, code: u64) -> Result<()> {
    let descriptors = [0, 0, code, DATA].map(u64::to_le_bytes);
    put(memory, GDT, descriptors.as_flattened())
}

/// For a guest that is entered in 32-bit mode, without paging.
pub(super) fn write_for_protected_mode(memory: &Memory) -> Result<()> {
    write_gdt(memory, CODE_32)
}

/// For a guest that is entered in 64-bit mode: all of RAM and of the device hole, each address by itself.
pub(super) fn write_for_long_mode(memory: &Memory) -> Result<()> {
    write_gdt(memory, CODE_64)?;
    let (_, high_ram) = memory.layout().low_and_high_bytes();
    put(memory, PML4, &(POINTERS | PRESENT_WRITABLE_USER).to_le_bytes())?;
    for n in 0..(HIGH_RAM + high_ram).div_ceil(GIB) {
        let directory = DIRECTORIES + n * 4096;
        put(memory, POINTERS + n * 8, &(directory | PRESENT_WRITABLE_USER).to_le_bytes())?;
        let mut entries = [0; 4096];
        for (entry, at) in entries.chunks_exact_mut(8).zip(0..) {
            entry.copy_from_slice(&large_page(n * GIB + at * LARGE_PAGE).to_le_bytes());
        }
        put(memory, directory, &entries)?;
    }
    Ok(())
}

fn large_page(address: u64) -> u64 {
    let device = (RAM_HOLE..HIGH_RAM).contains(&address);
    address | PRESENT_WRITABLE_USER | LARGE | if device { UNCACHED } else { 0 }
}

/// Writes the command line, and a zero behind it.
pub(super) fn write_cmdline(memory: &Memory, cmdline: &str) -> Result<()> {
    ensure!(
        cmdline.len() <= CMDLINE_MAX && cmdline.is_ascii() && !cmdline.contains('\0'),
        "the command line must be ASCII of at most {CMDLINE_MAX} bytes"
    );
    put(memory, CMDLINE, cmdline.as_bytes())?;
    put(memory, CMDLINE + cmdline.len() as u64, &[0])
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
        assert!(DIRECTORIES + directories * 4096 <= super::super::map::LOW_END);
    }

    #[test]
    fn only_the_device_hole_is_uncached() {
        assert_eq!(large_page(0), 0x87);
        assert_eq!(large_page(RAM_HOLE - LARGE_PAGE) & UNCACHED, 0);
        assert_eq!(large_page(RAM_HOLE) & UNCACHED, UNCACHED);
        assert_eq!(large_page(HIGH_RAM - LARGE_PAGE) & UNCACHED, UNCACHED);
        assert_eq!(large_page(HIGH_RAM) & UNCACHED, 0);
    }
}
