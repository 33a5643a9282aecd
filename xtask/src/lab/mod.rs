//! `lab`: a command on another kernel, with a KVM that is true to the letter, on any machine that runs QEMU.
//!
//! The lab is a stock Debian kernel under QEMU's translator, which emulates AMD SVM. Its root is the root of the
//! machine, read-only, with memory on top: a binary just built is there at its own path, and nothing that runs
//! there changes the machine. So tests run as root without being root, on a kernel that this machine does not
//! have; and guests run on hardware virtualization where the machine offers none.
//!
//! ```text
//!  xtask ── job ───────────► 9p share: host.sh, settings, command    started, status ──► exit status
//!    │                                     │                             ▲
//!    │                                     out/: what is to stay ──────────────────────► target/
//!    └─ qemu ─ kernel ─ initramfs: init.sh ┴► host.sh (process 1) ─► command ─► two virtio ports ──► our outputs
//! ```
//!
//! [`packages`] and [`kernel`] bring Debian's files; [`initramfs`] and [`cpio`] make what is booted; [`job`] is
//! what goes in and comes out, [`qemu`] the machine, which [`emulator`] finds. [`suite`] runs the project's tests there, [`guest`] makes
//! Linux guests for our own VMM, with [`vmlinux`], and one of them by [`debian`].
//!
//! A lab that dies before the command was started has told nothing about the command and is started again, with a
//! word about it. One that dies later is never started again: what died may be what is tested.
//!
//! Deliberately absent: a network to the outside, a terminal, and an image of a disk.

mod cpio;
mod debian;
mod emulator;
pub(crate) mod guest;
mod initramfs;
mod job;
mod kernel;
mod packages;
mod qemu;
pub(crate) mod suite;
mod vmlinux;

use std::{
    ffi::OsString,
    fs,
    io::{self, Read, Write},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;

use self::{emulator::Emulator, job::Job, kernel::Kernel, qemu::Lab};
use crate::{setup, tree::Tree};

const PROGRAMS: [(&str, &str); 4] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("modprobe", "kmod"),
    ("xz", "xz-utils"),
    ("setpriv", "util-linux"),
];

/// Our exit status when the command took too long, as timeout(1) has it.
pub(crate) const TIMED_OUT: u8 = 124;
/// Our exit status when the lab ended and the command had not.
pub(crate) const DIED: u8 = 125;
/// 41 s were seen on a machine with other work.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How long a lab whose command has ended may take to switch itself off.
const OFF_LIMIT: Duration = Duration::from_secs(5);

const KERNEL: &str = "linux-image-amd64";
const MEMORY_MIB: u32 = 4096;
const CPUS: u8 = 3;
const TIMEOUT_S: u64 = 600;
const RETRIES: u32 = 2;

#[derive(Args)]
pub(crate) struct Options {
    /// The lab's kernel: a Debian package linux-image-..., or one that depends on one
    #[arg(long, value_name = "PACKAGE", default_value = KERNEL)]
    kernel: String,
    /// The lab's memory; the machine gives what is used
    #[arg(long, value_name = "MIB", default_value_t = MEMORY_MIB, value_parser = clap::value_parser!(u32).range(512..))]
    memory: u32,
    /// CPUs for the command; the lab has one more
    #[arg(long, value_name = "N", default_value_t = CPUS, value_parser = clap::value_parser!(u8).range(1..))]
    cpus: u8,
    /// How long the command may take, boot not included
    #[arg(long, value_name = "SECONDS", default_value_t = TIMEOUT_S)]
    pub(crate) timeout: u64,
    /// How often a lab that dies before the command has started is started again
    #[arg(long, value_name = "N", default_value_t = RETRIES)]
    retries: u32,
    /// The command, run by root in the lab, in this working directory
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Options {
    /// Takes a command, with the defaults for all else.
    pub(crate) fn of(command: Vec<OsString>) -> Self {
        Self {
            kernel: KERNEL.to_owned(),
            memory: MEMORY_MIB,
            cpus: CPUS,
            timeout: TIMEOUT_S,
            retries: RETRIES,
            command,
        }
    }
}

/// How one start of the lab ended.
enum Ending {
    Exited(u8),
    TimedOut,
    /// The command had been started.
    Died,
    DiedInBoot(&'static str),
}

/// One start of the lab.
struct Start {
    ending: Ending,
    took: Duration,
    /// How long the command had to wait; less than that is told of no start.
    boot: Option<Duration>,
}

/// Runs the command in the lab. Our exit status is its own, unless it has none.
pub(crate) fn run(tree: &Tree, options: &Options) -> Result<u8> {
    setup::programs(&PROGRAMS)?;
    let emulator = Emulator::find(tree)?;
    let kernel = Kernel::fetch(tree, &options.kernel)?;
    let initramfs = initramfs::build(&kernel, &packages::busybox(tree)?)?;
    let job = Job::create(tree, &kernel.modules(), &initramfs, &options.command)?;
    let mut retries = 0;
    loop {
        let Start { ending, took, boot } = start(&job, &emulator, &kernel, options)?;
        // However it has ended: what is there by then may say why.
        let kept = job.bring_out(&tree.target())?;
        if kept > 0 {
            eprintln!("lab: {kept} files in {}", tree.target().display());
        }
        let times = match boot {
            Some(boot) => format!("after {} (boot {})", seconds(took), seconds(boot)),
            None => format!("after {}", seconds(took)),
        };
        let (what, status) = match ending {
            Ending::Exited(status) => (format!("exit {status}"), status),
            Ending::TimedOut => {
                (format!("timeout: the command took {} s", options.timeout), TIMED_OUT)
            }
            Ending::Died => {
                eprint!("lab: its last words:\n{}", job.last_words());
                let kept = tree.lab().join("died.console");
                if fs::copy(job.console(), &kept).is_ok() {
                    eprintln!("lab: all of them: {}", kept.display());
                }
                ("died while the command ran".to_owned(), DIED)
            }
            Ending::DiedInBoot(how) => {
                eprint!("lab: its last words:\n{}", job.last_words());
                if retries < options.retries {
                    retries += 1;
                    eprintln!("lab: {how} in boot {times}, retry {retries} of {}", options.retries);
                    job.rewind()?;
                    continue;
                }
                (format!("{how} in boot"), DIED)
            }
        };
        let plural = if retries == 1 { "retry" } else { "retries" };
        eprintln!("lab: {what} {times}, {retries} {plural}");
        return Ok(status);
    }
}

/// Starts the lab once and waits for the end of the command, or of the lab, or of our patience.
fn start(job: &Job, emulator: &Emulator, kernel: &Kernel, options: &Options) -> Result<Start> {
    let begun = Instant::now();
    let Options { memory, cpus, .. } = *options;
    let mut lab = Lab::start(job, emulator, &kernel.image(), memory, cpus)?;
    let (stdout, stderr) = lab.outputs().context("QEMU has no outputs")?;
    let outputs = [pass_on(stdout, io::stdout()), pass_on(stderr, io::stderr())];
    let limit = Duration::from_secs(options.timeout);
    let mut boot = None;
    let ending = loop {
        // Asked first: whatever a lab leaves is there once it has ended.
        let ended = lab.has_ended()?;
        let now = begun.elapsed();
        if boot.is_none() && job.started() {
            boot = Some(now);
        }
        if let Some(status) = job.status() {
            break Ending::Exited(status);
        }
        match boot {
            None if ended => break Ending::DiedInBoot("died"),
            None if now > BOOT_LIMIT => break Ending::DiedInBoot("hung"),
            Some(_) if ended => break Ending::Died,
            Some(boot) if now - boot > limit => break Ending::TimedOut,
            None | Some(_) => thread::sleep(Duration::from_millis(10)),
        }
    };
    let took = begun.elapsed();
    if let Ending::Exited(_) = ending {
        // It has nothing more to say, so one that cannot switch itself off loses nothing by being killed.
        while !lab.has_ended()? && begun.elapsed() < took + OFF_LIMIT {
            thread::sleep(Duration::from_millis(10));
        }
    }
    // With QEMU the pipes end, and with them the threads.
    drop(lab);
    for output in outputs {
        drop(output.join());
    }
    Ok(Start { ending, took, boot })
}

/// Copies what comes, as it comes. When nobody reads us any more it stops, and QEMU notices.
fn pass_on(
    mut from: impl Read + Send + 'static,
    mut to: impl Write + Send + 'static,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 1 << 16];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..length]).and_then(|()| to.flush()).is_err() {
                return;
            }
        }
    })
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
