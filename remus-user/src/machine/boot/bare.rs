//! Bare-metal guests, entered as `remus_abi::boot` describes.

use anyhow::{Context, Result, ensure};
use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuFd;
use remus_abi::boot::{BOOT_MAGIC, BootInfo};

use super::Firmware;
use super::low::{self, BOOT_BLOCK, CMDLINE, FLAT, PML4};
use crate::machine::flat::RFLAGS;
use crate::machine::memory::Memory;

/// Writes what the guest is entered with, and makes `vcpu` begin at `entry`.
pub(super) fn enter(
    memory: &Memory,
    vcpu: &VcpuFd,
    firmware: Firmware,
    entry: u64,
    cmdline: &str,
) -> Result<()> {
    ensure!(
        memory.layout().page_at(entry).is_some(),
        "its entry point {entry:#x} is not in RAM: it is no guest for this machine"
    );
    low::write_for_long_mode(memory)?;
    low::write_cmdline(memory, cmdline)?;
    let (low_ram, high_ram) = memory.layout().low_and_high_bytes();
    let info = BootInfo {
        magic: BOOT_MAGIC,
        low_ram,
        high_ram,
        cmdline: CMDLINE,
        cmdline_len: cmdline.len() as u64,
        // The network, which is all that such guests know.
        devices: 1,
        vcpus: firmware.vcpus.into(),
    };
    low::put(memory, BOOT_BLOCK, &encode(info))?;
    FLAT.enter_long_mode(vcpu, PML4)?;
    let regs = kvm_regs { rip: entry, rdi: BOOT_BLOCK, rflags: RFLAGS, ..Default::default() };
    vcpu.set_regs(&regs).context("KVM_SET_REGS")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_block_is_as_the_guest_reads_it() {
        let info = BootInfo { magic: BOOT_MAGIC, devices: 1, vcpus: 3, ..Default::default() };
        let bytes = encode(info);
        let at = std::mem::offset_of!(BootInfo, vcpus);
        assert_eq!(bytes[..8], *b"RemusVM1");
        assert_eq!(bytes[at..at + 4], 3u32.to_le_bytes());
    }
}
