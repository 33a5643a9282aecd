//! Linux as its distributions ship it: a bzImage, entered by the 64-bit boot protocol.
//!
//! Documentation/arch/x86/boot.rst, "64-bit Boot Protocol": `rsi` has the boot parameters ("zero page"), the setup header
//! in them is the file's own, and the entry point is 512 bytes behind the start of the protected-mode part. The kernel
//! unpacks itself to its preferred address, over what is there.

use std::fs::File;
use std::os::unix::fs::FileExt;
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
/// The setup header of a file.
const HEADER_OFFSET: u64 = 0x1f1;
const SECTOR: u64 = 512;
/// What `syssize` counts.
const PARAGRAPH: u64 = 16;
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
    let read = Header::read(file)?;
    let (low, _) = memory.layout().low_and_high_bytes();
    read.check(cmdline, low)?;
    let kernel_end = read.end();
    let loaded = BzImage::load(memory.ram(), base, file, None).context("load it as a bzImage")?;
    let mut header = loaded.setup_header.context("it has no setup header")?;
    if let Some(path) = initrd {
        let disk = initrd::load(memory, path, kernel_end, read.initrd_limit())?;
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

/// The setup header of a file, and what it says of the file.
pub(super) struct Header {
    header: setup_header,
    /// Bytes of the file behind its real-mode part.
    image_bytes: u64,
}

impl Header {
    /// Reads the header of `file`, whose position stays as it is.
    ///
    /// # Errors
    /// When the file is cut short.
    pub(super) fn read(file: &mut File) -> Result<Self> {
        let mut header = setup_header::default();
        file.read_exact_at(header.as_mut_slice(), HEADER_OFFSET)
            .context("read its setup header")?;
        let length = file.metadata().context("look at it")?.len();
        // A boot sector, and as many sectors of setup; 0 means 4.
        let setup_sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
        let setup_bytes = (1 + setup_sectors) * SECTOR;
        let whole = setup_bytes + u64::from(header.syssize) * PARAGRAPH;
        // The last paragraph may be a part of one.
        ensure!(
            length + PARAGRAPH > whole,
            "it is cut short: its header speaks of {whole} bytes and it has {length}"
        );
        Ok(Self { header, image_bytes: length.saturating_sub(setup_bytes) })
    }

    /// Checks that the kernel can be entered, with this command line and in RAM of which `low` bytes are under the
    /// device hole.
    ///
    /// # Errors
    /// When it cannot; says why.
    pub(super) fn check(&self, cmdline: &str, low: u64) -> Result<()> {
        let (version, flags) = (self.header.version, self.header.xloadflags);
        ensure!(
            version >= VERSION_MIN && flags & HAS_64_BIT_ENTRY != 0,
            "it has no 64-bit entry point (boot protocol {:x}.{:02x}): an x86-64 kernel of Linux 3.8 or later has",
            version >> 8,
            version & 0xff
        );
        let cmdline_max = self.header.cmdline_size as usize;
        ensure!(
            cmdline.len() <= cmdline_max,
            "this kernel takes a command line of {cmdline_max} bytes at most, not {}",
            cmdline.len()
        );
        ensure!(
            self.end() <= low,
            "the kernel unpacks itself up to {} MiB: raise machine.memory_mib",
            self.end().div_ceil(1 << 20)
        );
        Ok(())
    }

    /// Returns the end of the memory that the kernel needs to unpack itself.
    pub(super) fn end(&self) -> u64 {
        end_of(&self.header, GUEST_BASE.saturating_add(self.image_bytes))
    }

    /// Returns the highest address that an initial RAM disk may reach.
    pub(super) fn initrd_limit(&self) -> u64 {
        u64::from(self.header.initrd_addr_max) + 1
    }
}

/// Returns the end of the memory that the kernel needs to unpack itself.
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
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_that_ends_before_its_header_says_is_cut_short() {
        let read = |length: usize| {
            // One sector of setup, and 64 paragraphs.
            let mut bytes = vec![0; 4096];
            (bytes[0x1f1], bytes[0x1f4]) = (1, 64);
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes[..length]).unwrap();
            Header::read(&mut file).map(|header| header.image_bytes)
        };
        assert_eq!(read(2048).unwrap(), 1024);
        assert_eq!(read(4096).unwrap(), 3072, "a signature may follow");
        assert_eq!(read(2033).unwrap(), 1009, "the last paragraph may be a part of one");
        let error = read(2032).unwrap_err().to_string();
        assert_eq!(error, "it is cut short: its header speaks of 2048 bytes and it has 2032");
        assert!(read(512).is_err());
    }

    #[test]
    fn the_unpacked_kernel_counts_not_only_the_packed_one() {
        let header =
            setup_header { pref_address: 0x100_0000, init_size: 0x200_0000, ..Default::default() };
        assert_eq!(end_of(&header, 0x80_0000), 0x300_0000);
        assert_eq!(end_of(&header, 0x400_0000), 0x400_0000);
    }
}
