//! Linux as its distributions ship it: a bzImage, entered by the 64-bit boot protocol.
//!
//! Documentation/arch/x86/boot.rst, "64-bit Boot Protocol": `rsi` has the boot parameters ("zero page"), the setup header
//! in them is the file's own, and the entry point is 512 bytes behind the start of the protected-mode part. The kernel
//! unpacks itself to its preferred address, over what is there.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuFd;
use linux_loader::loader::KernelLoader;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::bzimage::BzImage;
use remus_abi::boot::GUEST_BASE;
use vm_memory::{ByteValued, GuestAddress};

use super::low::{self, BOOT_BLOCK, CMDLINE, FLAT, PML4};
use super::{initrd, map};
use crate::machine::flat::RFLAGS;
use crate::machine::memory::Memory;

/// `HdrS` at this offset of a file makes it a bzImage.
pub(super) const MAGIC_OFFSET: usize = 0x202;
pub(super) const MAGIC: [u8; 4] = *b"HdrS";
/// The first version of the protocol with 64-bit entry points and their flags.
const VERSION_MIN: u16 = 0x020c;
/// `xloadflags`: the kernel has a 64-bit entry point.
const HAS_64_BIT_ENTRY: u16 = 1;
const ENTRY_OFFSET: u64 = 0x200;
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

/// Loads `file` and makes `vcpu` begin in it.
pub(super) fn load(
    memory: &Memory,
    vcpu: &VcpuFd,
    file: &mut File,
    initrd: Option<&Path>,
    cmdline: &str,
    rsdp: u64,
) -> Result<()> {
    let base = Some(GuestAddress(GUEST_BASE));
    let loaded = BzImage::load(memory.ram(), base, file, None).context("load it as a bzImage")?;
    let mut header = loaded.setup_header.context("it has no setup header")?;
    let (version, flags) = (header.version, header.xloadflags);
    ensure!(
        version >= VERSION_MIN && flags & HAS_64_BIT_ENTRY != 0,
        "it has no 64-bit entry point (boot protocol {:x}.{:02x}): an x86-64 kernel of Linux 3.8 or later has",
        version >> 8,
        version & 0xff
    );
    let cmdline_max = header.cmdline_size as usize;
    ensure!(
        cmdline.len() <= cmdline_max,
        "this kernel takes a command line of {cmdline_max} bytes at most, not {}",
        cmdline.len()
    );
    let kernel_end = end_of(&header, loaded.kernel_end);
    let (low, _) = memory.layout().low_and_high_bytes();
    ensure!(
        kernel_end <= low,
        "the kernel unpacks itself up to {} MiB: raise machine.memory_mib",
        kernel_end.div_ceil(1 << 20)
    );
    if let Some(path) = initrd {
        let limit = u64::from(header.initrd_addr_max) + 1;
        let disk = initrd::load(memory, path, kernel_end, limit)?;
        header.ramdisk_image = u32::try_from(disk.address).expect("below the device hole");
        header.ramdisk_size = u32::try_from(disk.bytes).expect("below the device hole");
    }
    header.type_of_loader = LOADER_UNDEFINED;
    header.cmd_line_ptr = u32::try_from(CMDLINE).expect("low memory");

    low::write_for_long_mode(memory)?;
    low::write_cmdline(memory, cmdline)?;
    low::put(memory, BOOT_BLOCK, parameters(memory, header, rsdp).as_slice())?;
    FLAT.enter_long_mode(vcpu, PML4)?;
    let rip = GUEST_BASE + ENTRY_OFFSET;
    let regs = kvm_regs { rip, rsi: BOOT_BLOCK, rflags: RFLAGS, ..Default::default() };
    vcpu.set_regs(&regs).context("KVM_SET_REGS")
}

/// Where what the kernel needs to unpack itself ends.
fn end_of(header: &setup_header, image_end: u64) -> u64 {
    let unpacked = header.pref_address.saturating_add(header.init_size.into());
    image_end.max(unpacked)
}

fn parameters(memory: &Memory, header: setup_header, rsdp: u64) -> boot_params {
    let mut parameters = boot_params { hdr: header, acpi_rsdp_addr: rsdp, ..Default::default() };
    let ranges = map::ranges(memory.layout());
    parameters.e820_entries = u8::try_from(ranges.len()).expect("a few");
    let mut table = [boot_e820_entry::default(); 8];
    for (entry, range) in table.iter_mut().zip(ranges) {
        *entry =
            boot_e820_entry { addr: range.address, size: range.bytes, r#type: range.is as u32 };
    }
    let mut whole = parameters.e820_table;
    whole[..table.len()].copy_from_slice(&table);
    parameters.e820_table = whole;
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unpacked_kernel_counts_not_only_the_packed_one() {
        let header =
            setup_header { pref_address: 0x100_0000, init_size: 0x200_0000, ..Default::default() };
        assert_eq!(end_of(&header, 0x80_0000), 0x300_0000);
        assert_eq!(end_of(&header, 0x400_0000), 0x400_0000);
    }
}
