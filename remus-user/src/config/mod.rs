//! The config file of a VM: turns TOML text into a [`Config`] whose values are in range and fit each other.
//!
//! Everything here is pure but [`Config::load`], which reads the one file. Whether this host can do what the config asks
//! (the bridge exists, the kernel's file is an ELF) is for `preflight` to judge.
//!
//! An unknown key is an error that names the nearest known key: a misspelt `lease_ms` must not silently leave the default
//! in force. Keys are never renamed quietly; [`EXAMPLE`] lists all of them, and a test checks that.

mod backup;
mod document;
mod nearest;
mod validate;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

pub use backup::BackupOptions;
pub use document::ConfigError;

use crate::{
    checkpoint::EncoderSettings,
    gate,
    machine::{self, Software},
    names::{LinkName, VmName},
    net::Mac,
    replication::Tempo,
};

/// A config file with every key, for people to start from.
pub const EXAMPLE: &str = include_str!("example.toml");
/// Where VMs keep their sockets and pins when nothing else is configured.
pub const RUN_DIR_DEFAULT: &str = "/run/remus";
const STATE_DIR_DEFAULT: &str = "/var/lib/remus";

/// Returns where records are kept when no directory is named. They must outlive a reboot, which /run does not; but
/// whoever names another RUN_DIR makes a trial, and its records stay with it.
pub fn state_dir_beside(run_dir: &Path) -> PathBuf {
    if run_dir == Path::new(RUN_DIR_DEFAULT) {
        STATE_DIR_DEFAULT.into()
    } else {
        run_dir.join("state")
    }
}
/// The lease ends at least this long before the backup may promote. The margin is for clocks that drift, for timer slack,
/// and for a flush that passed its check just before the end.
pub const LEASE_MARGIN: Duration = Duration::from_millis(20);

/// A VM that this host is to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    pub name: VmName,
    pub run_dir: PathBuf,
    /// Records that outlive a reboot.
    pub state_dir: PathBuf,
    pub machine: Machine,
    pub net: Net,
    /// The guest can write to none of these.
    pub disks: Vec<Disk>,
    pub console: Console,
    pub protection: Protection,
    pub gate: gate::Settings,
    /// Who sets a release off at this host's gate.
    pub trigger: ReleaseTrigger,
    pub placement: Placement,
}

/// The shape of the VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    pub memory_mib: u32,
    pub vcpus: u32,
    /// The kernel's file: a bzImage or an ELF64; absolute, or relative to the config file's directory, already joined.
    pub kernel: PathBuf,
    /// A Linux kernel's initial RAM disk, by a path of the same kind.
    pub initrd: Option<PathBuf>,
    /// Printable ASCII.
    pub cmdline: String,
}

impl Machine {
    /// Returns the size of guest RAM in bytes.
    pub fn memory_bytes(&self) -> u64 {
        u64::from(self.memory_mib) << 20
    }

    /// Returns what the machine begins with.
    pub fn software(&self) -> Software<'_> {
        let Self { kernel, initrd, cmdline, .. } = self;
        Software { kernel, initrd: initrd.as_deref(), cmdline }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Net {
    pub tap: LinkName,
    pub bridge: Option<LinkName>,
    /// The guest's own address.
    pub mac: Mac,
    /// The longest packet of the guest, of its tap, and of everything behind that tap.
    pub mtu_bytes: u16,
}

/// A disk that is there at both hosts and that nobody writes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disk {
    /// An absolute path, the same on both hosts.
    pub path: PathBuf,
    /// The serial number that the guest reads; may be empty.
    pub id: String,
}

/// Where the guest's words on its serial port go.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Console {
    /// A file that they are appended to; without one they go to the log.
    pub log: Option<PathBuf>,
}

/// What the guest may do at its very first start, while no backup has been there yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// The guest runs behind a shut gate until the first checkpoint is committed.
    Protected,
    /// The guest runs with an open gate until then. If the host dies first, what the guest has told clients is lost.
    Unprotected,
}

/// Invariant: `lease + LEASE_MARGIN <= detect`, `2 * heartbeat <= lease`, and `3 * heartbeat <= detect`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Protection {
    pub backup: SocketAddr,
    pub start: Start,
    /// When epochs end.
    pub tempo: Tempo,
    /// How long a pause may take, which bounds the number of pages that stay writable.
    pub pause_max: Duration,
    /// How many epochs may be unacknowledged before the guest has to wait.
    pub depth: usize,
    pub encoding: EncoderSettings,
    pub heartbeat: Duration,
    /// Silence after which the other host is suspected.
    pub detect: Duration,
    /// How long after an ack output may leave.
    pub lease: Duration,
}

/// Who sets a release off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ReleaseTrigger {
    /// The controller, when the ack on the bulk connection has woken it up.
    #[default]
    Controller,
    /// The kernel too, at once, when a datagram says so.
    Kernel,
}

/// CPUs by number. Empty means anywhere.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Placement {
    /// One CPU for all vCPU threads, or one for each.
    pub vcpu_cpus: Vec<u32>,
    /// The CPUs of all other threads.
    pub io_cpus: Vec<u32>,
}

impl Placement {
    /// Returns the CPU that vCPU `n`'s thread is pinned to, if any.
    pub fn of_vcpu(&self, n: usize) -> Option<u32> {
        match self.vcpu_cpus.as_slice() {
            [] => None,
            [one] => Some(*one),
            each => each.get(n).copied(),
        }
    }

    /// The CPUs of a machine with so many vCPUs.
    pub(crate) fn of_machine(&self, vcpus: usize) -> machine::Placement {
        let vcpu_cpus = (0..vcpus).map_while(|n| self.of_vcpu(n)).collect();
        machine::Placement { vcpu_cpus, device_cpus: self.io_cpus.clone() }
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// The first mistake in the order of the text; or that the file cannot be read, is not text, or is larger than a config
    /// can be.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        const BYTES_MAX: u64 = 1 << 20;
        let unreadable = |problem: String, help: &str| ConfigError {
            file: path.to_owned(),
            at: None,
            key: String::new(),
            problem,
            help: help.into(),
        };
        let cannot = |e: std::io::Error| {
            unreadable(
                format!("cannot read this file: {e}"),
                "name a file that this user may read; `remus run --print-example` prints one to start from",
            )
        };
        let size = std::fs::metadata(path).map_err(cannot)?.len();
        if size > BYTES_MAX {
            return Err(unreadable(
                format!("{size} bytes are too large for a config"),
                "name the TOML file, not the kernel or a log",
            ));
        }
        let bytes = std::fs::read(path).map_err(cannot)?;
        let text = String::from_utf8(bytes).map_err(|e| {
            unreadable(
                format!("byte {} is not UTF-8", e.utf8_error().valid_up_to()),
                "a config is a text file in UTF-8",
            )
        })?;
        Self::parse(path, &text)
    }

    /// Checks `text`; `file` is named in errors, and relative paths are taken from its directory.
    ///
    /// # Errors
    /// The first mistake in the order of the text.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        validate::config(file, text)
    }
}

#[cfg(test)]
mod tests;
