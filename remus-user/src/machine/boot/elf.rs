//! Putting the guest's ELF file where it says it belongs.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kvm_ioctls::VcpuFd;
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::Elf;
use remus_abi::boot::GUEST_BASE;
use vm_memory::GuestAddress;

use super::entry;
use crate::machine::memory::Memory;

/// Loads the ELF file at `path` and makes `vcpu` begin in it.
///
/// # Errors
/// When the file is none for this machine, or does not fit its RAM. RAM may be partly written then.
pub(in crate::machine) fn load(
    memory: &Memory,
    vcpu: &VcpuFd,
    vcpus: u8,
    path: &Path,
    cmdline: &str,
) -> Result<()> {
    ensure!(
        cmdline.len() <= entry::CMDLINE_MAX && cmdline.is_ascii(),
        "the command line must be ASCII of at most {} bytes",
        entry::CMDLINE_MAX
    );
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let loaded = Elf::load(memory.ram(), None, &mut file, Some(GuestAddress(GUEST_BASE)))
        .with_context(|| format!("load {} as an ELF64 kernel", path.display()))?;
    let entry_point = loaded.kernel_load.0;
    let end = loaded.kernel_end;
    ensure!(
        memory.layout().page_at(entry_point).is_some(),
        "{}: entry point {entry_point:#x} is not in RAM",
        path.display()
    );
    ensure!(
        end == 0 || memory.layout().page_at(end - 1).is_some(),
        "{}: needs RAM up to {end:#x}",
        path.display()
    );
    // After the file: should it reach into low memory, what the guest is entered with still stands.
    entry::write_low_memory(memory, vcpus, cmdline)?;
    entry::set_registers(vcpu, entry_point)
}
