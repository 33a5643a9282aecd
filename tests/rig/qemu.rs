//! QEMU with KVM, as a peer to measure beside: the same Linux guest, nothing in the machine that it does not need.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{remus::TAP, topology::GUEST_MAC};

const PROGRAM: &str = "qemu-system-x86_64";

/// A virtual machine of QEMU's with the guest that runs in it.
#[derive(Clone, Copy, Debug)]
pub struct Spec<'a> {
    /// `-M`.
    pub machine: &'a str,
    pub vcpus: u8,
    pub memory_mib: u32,
    /// Kernel and initial RAM disk.
    pub linux: &'a [PathBuf; 2],
    /// The kernel's command line.
    pub words: &'a str,
    /// The model of its network device, whose tap is made when QEMU starts.
    pub nic: &'a str,
}

impl Spec<'_> {
    /// The command that starts it, serial port on standard output.
    pub fn command(&self) -> Command {
        let Self { machine, vcpus, memory_mib, linux: [kernel, initrd], words, nic } = *self;
        let mut command = Command::new(PROGRAM);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        command.args(["-M", machine, "-accel", "kvm", "-cpu", "host"]);
        command.args(["-smp", &vcpus.to_string(), "-m", &memory_mib.to_string()]);
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd).args(["-append", words]);
        command.args(["-serial", "stdio"]);
        let tap = format!("tap,id=net0,ifname={TAP},script=no,downscript=no,vhost=off");
        command.args(["-netdev", &tap]);
        command.args(["-device", &format!("{nic},id=nic0,netdev=net0,mac={GUEST_MAC}")]);
        command
    }
}

/// What QEMU calls itself.
///
/// # Errors
/// When there is none.
pub fn version() -> Result<String> {
    let output = Command::new(PROGRAM).arg("--version").output();
    let output = output.with_context(|| format!("{PROGRAM} (Debian: qemu-system-x86)"))?;
    ensure!(output.status.success(), "{PROGRAM} --version: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
