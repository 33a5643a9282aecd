//! The lab's hardware: QEMU that translates, with AMD's virtualization emulated.

use std::{
    ffi::OsString,
    path::Path,
    process::{Child, ChildStderr, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result};

use super::{emulator::Emulator, job::Job};

/// What the kernel is told.
/// - A death is an end: every oops, every CPU that is stuck for 20 s and every CPU whose timer is lost for 30 s is a
///   panic, and every panic a reboot, which QEMU makes its end.
/// - `quiet`: each line takes a millisecond on the emulated port.
/// - `tsc=reliable nokaslr mitigations=off`: shorter boot and the same addresses each time; the translator has
///   none of the faults that mitigations are for.
const KERNEL_WORDS: &str = "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic softlockup_panic=1 \
                            rcupdate.rcu_cpu_stall_timeout=30 sysctl.kernel.panic_on_rcu_stall=1 tsc=reliable nokaslr \
                            mitigations=off random.trust_cpu=on";

/// A lab that runs. It ends with this process, whichever way that ends.
pub(crate) struct Lab {
    qemu: Child,
}

impl Lab {
    /// `cpus` are for the command, beside CPU 0 (host.sh).
    pub(crate) fn start(
        job: &Job,
        emulator: &Emulator,
        kernel: &Path,
        memory_mib: u32,
        cpus: u8,
    ) -> Result<Self> {
        // The kernel kills QEMU when the thread that has started it is gone: the main one.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(emulator.words());
        command.args(["-name", "remus-lab", "-nodefaults", "-no-user-config", "-no-reboot"]);
        command.args(["-display", "none"]);
        // Nested paging is SVM's default there. 57-bit addresses are not known to the emulated nested paging.
        command.args(["-machine", "q35,hpet=off,usb=off,vmport=off", "-cpu", "max,la57=off"]);
        command.args(["-accel", "tcg,thread=multi"]);
        command.args(["-smp", &(1 + u32::from(cpus)).to_string(), "-m", &memory_mib.to_string()]);
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(job.initramfs());
        command.args(["-append", KERNEL_WORDS]);
        command.arg("-serial").arg(joined("file:", &job.console()));
        command.args(["-device", "virtio-rng-pci"]);

        // The command's two outputs, kept apart. QEMU opens the pipes that we read.
        command.args(["-device", "virtio-serial-pci"]);
        for name in ["stdout", "stderr"] {
            command.args(["-chardev", &format!("file,id={name},path=/dev/{name}")]);
            command.args(["-device", &format!("virtserialport,name={name},chardev={name}")]);
        }

        let share = |tag: &str, options: &str, folder: &Path| {
            // A comma in a path is doubled, or it would end the option.
            let folder = folder.to_string_lossy().replace(',', ",,");
            [
                format!(
                    "local,id={tag},security_model=none,multidevs=remap{options},path={folder}"
                ),
                format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
            ]
        };
        for [folder, device] in
            [share("machine", ",readonly=on", Path::new("/")), share("job", "", job.folder())]
        {
            command.args(["-fsdev", &folder, "-device", &device]);
        }

        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let qemu = command.spawn().context("cannot start setpriv, of util-linux")?;
        Ok(Self { qemu })
    }

    /// Returns the command's outputs. QEMU's own complaints are among the second.
    pub(crate) fn outputs(&mut self) -> Option<(ChildStdout, ChildStderr)> {
        Some((self.qemu.stdout.take()?, self.qemu.stderr.take()?))
    }

    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.qemu.try_wait().context("wait for QEMU")?.is_some())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // It fails when QEMU has ended, which is what is wanted.
        drop(self.qemu.kill());
        drop(self.qemu.wait());
    }
}

fn joined(beginning: &str, path: &Path) -> OsString {
    let mut word = OsString::from(beginning);
    word.push(path);
    word
}
