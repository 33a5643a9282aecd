//! What runs on a machine, and the state in which it begins.
//!
//! A kernel says by its file what it is: a bzImage ([`bzimage`]), an ELF with a PVH entry point ([`pvh`]), or any other
//! ELF64, which is a bare-metal guest as `remus_abi::boot` describes ([`bare`]). The first two are told of their machine by
//! a memory map ([`map`]) and ACPI tables ([`acpi`]), and may leave by the entry point of a BIOS ([`vector`]); the last
//! is told by a boot block.
//!
//! Low memory, as it is filled here ([`low`]):
//!
//! ```text
//! 0x0_1000  PML4, one entry
//! 0x0_2000  page directory pointers, one a GiB
//! 0x0_3000  GDT: code 0x10, data 0x18
//! 0x0_4000  BootInfo; boot_params; or start_info, its modules and its memory map
//! 0x0_5000  command line, up to a page
//! 0x0_8000  the guest's own: where it starts its other vCPUs (`START_PAGE`)
//! 0x1_0000  page directories, one a GiB
//! 0xe_0000  ACPI tables
//! 0xf_fff0  where a BIOS is entered: the guest's reset
//! ```
//!
//! Absent: firmware (no UEFI, no BIOS, so no boot loader in the guest), 32-bit kernels, kernels in compressed ELF files.

mod acpi;
mod bare;
mod bzimage;
mod check;
mod elf;
mod file;
mod initrd;
mod kind;
mod low;
mod map;
mod pvh;
mod vector;

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kvm_ioctls::VcpuFd;
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use remus_abi::boot::GUEST_BASE;
use vm_memory::GuestAddress;

pub use self::check::{Found, check_software};
use self::kind::KernelKind;
use super::memory::Memory;

const NO_INITRD: &str = "it has no PVH entry point, so it takes no initrd: leave that out, or name a bzImage or a vmlinux with \
                         CONFIG_PVH";

/// What a machine begins with.
#[derive(Clone, Copy, Debug)]
pub struct Software<'a> {
    /// A bzImage, or an ELF64 for x86-64.
    pub kernel: &'a Path,
    /// The initial RAM disk, of a Linux kernel.
    pub initrd: Option<&'a Path>,
    /// ASCII.
    pub cmdline: &'a str,
}

/// What firmware knows of the machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Firmware {
    pub(super) vcpus: u8,
    pub(super) virtio_devices: u32,
}

/// Loads `software`, and makes `vcpu` begin in it.
///
/// # Errors
/// When a file is none for this machine, or does not fit its RAM. RAM may be partly written then.
pub(super) fn load(
    memory: &Memory,
    vcpu: &VcpuFd,
    firmware: Firmware,
    software: Software<'_>,
) -> Result<()> {
    let path = software.kernel.display();
    let mut file = file::open(software.kernel)?;
    let loaded = kind::of(&mut file).and_then(|kind| match kind {
        KernelKind::Elf => load_elf(memory, vcpu, firmware, &mut file, software),
        KernelKind::BzImage => {
            let Software { initrd, cmdline, .. } = software;
            let rsdp = write_firmware(memory, firmware)?;
            bzimage::load(memory, vcpu, &mut file, initrd, cmdline, rsdp)
        }
    });
    loaded.with_context(|| format!("kernel {path}"))
}

fn load_elf(
    memory: &Memory,
    vcpu: &VcpuFd,
    firmware: Firmware,
    file: &mut File,
    software: Software<'_>,
) -> Result<()> {
    let Software { initrd, cmdline, .. } = software;
    elf::check_fits(elf::look(file)?, memory.layout())?;
    let loaded = Elf::load(memory.ram(), None, file, Some(GuestAddress(GUEST_BASE)))
        .context("load it as an ELF64")?;
    let end = loaded.kernel_end;
    if let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap {
        let rsdp = write_firmware(memory, firmware)?;
        return pvh::enter(memory, vcpu, (entry.0, end), initrd, cmdline, rsdp);
    }
    ensure!(initrd.is_none(), "{NO_INITRD}");
    // After the file: should it reach into low memory, what the guest is entered with still stands.
    bare::enter(memory, vcpu, firmware, loaded.kernel_load.0, cmdline)
}

/// Writes what a kernel finds of firmware, and says where its ACPI tables begin.
fn write_firmware(memory: &Memory, firmware: Firmware) -> Result<u64> {
    low::put(memory, map::TABLES, &acpi::tables(firmware, map::TABLES))?;
    low::put(memory, vector::ADDRESS, &vector::code())?;
    Ok(map::TABLES)
}
