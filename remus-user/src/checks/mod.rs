//! What must hold for a VM to run, to be protected and to be taken over: one list of questions.
//!
//! A check is data: what was looked at, how that stands, what to do. [`Outcome::Refused`] stops `run` and `backup` with
//! exit code 3; an [`Outcome::Warning`] is logged and stops nothing. No check changes the machine.
//!
//! Deliberately absent: whether an existing tap carries our own gate. Only the gate's loader can tell, when it adopts the
//! tap.

mod cgroup;
mod console;
mod directory;
mod engines;
mod guest;
mod host;
mod kvm;
pub(crate) mod memory;
mod network;
pub(crate) mod wiring;

use std::path::Path;

use serde::Serialize;

pub(crate) use self::console::open as open_console_log;
use self::wiring::Wanted;
use crate::{
    config::{BackupOptions, Config},
    gate::{Engine, Release},
};

/// The outcome of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Ok,
    /// What was looked at works, but slower or less safely than it should.
    Warning,
    /// What was looked at cannot work.
    Refused,
}

/// One thing that was looked at, and its outcome.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// What to do; empty when all is well.
    pub remedy: String,
}

impl Check {
    pub(crate) fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Ok, found: found.into(), remedy: String::new() }
    }

    pub(crate) fn warning(
        name: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { name, outcome: Outcome::Warning, found: found.into(), remedy: remedy.into() }
    }

    pub(crate) fn refused(
        name: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { name, outcome: Outcome::Refused, found: found.into(), remedy: remedy.into() }
    }
}

/// All checks of one role.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    pub ready: bool,
    pub checks: Vec<Check>,
}

impl Report {
    pub(crate) fn new(checks: Vec<Check>) -> Self {
        let ready = checks.iter().all(|c| c.outcome != Outcome::Refused);
        Self { ready, checks }
    }

    pub fn passed(&self) -> bool {
        self.ready
    }

    pub fn refused(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|c| c.outcome == Outcome::Refused)
    }

    /// Logs the warnings, which stop nothing.
    pub fn log_warnings(&self) {
        for check in self.checks.iter().filter(|c| c.outcome == Outcome::Warning) {
            tracing::warn!("{}: {}. {}", check.name, check.found, check.remedy);
        }
    }
}

/// Checks what `run` needs for `config`.
pub(crate) fn primary(config: &Config) -> Report {
    let Config { machine, net, gate, .. } = config;
    let needs = memory::Needs { ram_mib: machine.memory_mib, buffer_mib: gate.buffer_mib };
    let mut checks = everywhere(Some(gate.engine));
    checks.extend(kvm::vcpus(machine.vcpus));
    checks.push(directory::run_dir(&config.run_dir));
    checks.push(directory::state_dir(&config.state_dir));
    checks.extend(directory::vm(config));
    checks.push(memory::check(needs));
    checks.push(guest::software(machine));
    checks.extend(config.disks.iter().map(|disk| guest::disk(&disk.path)));
    checks.extend(console::log(config));
    checks.push(host::placement(&config.placement));
    let (vm, mtu_bytes) = (Some(&config.name), Some(net.mtu_bytes));
    checks.extend(network::links(Some(&net.tap), net.bridge.as_ref(), vm, mtu_bytes));
    checks.extend(wiring::before_start(&wanted(config)));
    checks.extend(network::trigger(config.trigger, config.protection.backup));
    Report::new(checks)
}

/// Returns what the VM is to have of this host's network.
pub(crate) fn wanted(config: &Config) -> Wanted {
    let net = &config.net;
    let uplink = match &config.gate.release {
        Release::ReEntry => None,
        Release::Uplink(uplink) => Some(uplink.clone()),
    };
    Wanted { tap: net.tap.clone(), bridge: net.bridge.clone(), mac: net.mac, uplink }
}

/// Checks what `backup` needs. The VM's own needs are checked when a primary announces it ([`memory::admission`]), and
/// once the machine is there ([`wiring`]).
pub(crate) fn backup(options: &BackupOptions) -> Report {
    let mut checks = everywhere(None);
    checks.push(host::overhearing());
    checks.push(directory::run_dir(&options.run_dir));
    checks.push(directory::state_dir(&options.state_dir));
    checks.push(directory::instance(&options.state_dir));
    checks.extend(options.disks.as_deref().map(directory::disks));
    checks.push(host::placement(&options.placement));
    checks.push(network::listen(options.listen));
    checks.extend(network::links(options.tap.as_ref(), options.bridge.as_ref(), None, None));
    checks.extend(options.bridge.as_ref().map(wiring::carrier_before_start));
    Report::new(checks)
}

/// Checks what a gate needs that guards somebody else's tap. The tap itself is looked at when the gate is put on it.
pub(crate) fn gate(run_dir: &Path) -> Report {
    let mut checks = Vec::from(for_a_gate());
    checks.push(directory::run_dir(run_dir));
    Report::new(checks)
}

pub(crate) fn everywhere(engine: Option<Engine>) -> Vec<Check> {
    let mut checks = kvm::checks();
    checks.extend(for_a_gate());
    checks.extend([host::tun(), host::clocksource(), engines::check(engine)]);
    checks
}

fn for_a_gate() -> [Check; 3] {
    [host::capabilities(), host::kernel_version(), host::btf()]
}
