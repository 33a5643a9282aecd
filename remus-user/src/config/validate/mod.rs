//! Turns TOML into a [`Config`]: checks first that every key is known and none is missing, then types, then ranges and how
//! values fit each other.

mod devices;
mod gate;
mod protection;
mod types;

use std::path::{Path, PathBuf};

use serde::Deserialize;

use self::{
    devices::{RawConsole, RawDisk},
    gate::RawGate,
    protection::RawProtection,
};
use super::{
    Config, ConfigError, LinkName, Machine, Net, Placement, RUN_DIR_DEFAULT, VmName,
    document::Document, nearest::nearest, state_dir_beside,
};
use crate::{
    machine::{MTU_BYTES_MAX, MTU_BYTES_MIN},
    net::Mac,
};

/// Every key: its dotted path, an example line, and whether it must be there.
const KEYS: &[(&str, &str, bool)] = &[
    ("name", "name = \"demo\"", true),
    ("run_dir", "run_dir = \"/run/remus\"", false),
    ("state_dir", "state_dir = \"/var/lib/remus\"", false),
    ("machine", "[machine]", true),
    ("machine.memory_mib", "memory_mib = 256", true),
    ("machine.vcpus", "vcpus = 1", false),
    ("machine.kernel", "kernel = \"/usr/lib/remus/remus-guest\"", true),
    ("machine.initrd", "initrd = \"/boot/initrd.img\"", false),
    ("machine.cmdline", "cmdline = \"\"", false),
    ("net", "[net]", true),
    ("net.tap", "tap = \"tap0\"", true),
    ("net.bridge", "bridge = \"br0\"", false),
    ("net.mac", "mac = \"52:54:00:77:00:0a\"", true),
    ("net.mtu", "mtu = 1500", false),
    ("disk", "[[disk]]", false),
    ("disk.path", "path = \"/srv/remus/root.img\"", false),
    ("disk.readonly", "readonly = true", false),
    ("disk.id", "id = \"root\"", false),
    ("console", "[console]", false),
    ("console.log", "log = \"/var/log/remus/demo.console\"", false),
    ("protection", "[protection]", true),
    ("protection.backup", "backup = \"10.99.0.2:7000\"", true),
    ("protection.start", "start = \"protected\"", false),
    ("protection.mode", "mode = \"latency\"", false),
    ("protection.epoch_ms", "epoch_ms = 25", false),
    ("protection.idle_ms", "idle_ms = 250", false),
    ("protection.output_delay_us", "output_delay_us = 0", false),
    ("protection.rate_max", "rate_max = 2000", false),
    ("protection.pause_max_us", "pause_max_us = 2000", false),
    ("protection.depth", "depth = 2", false),
    ("protection.delta_cache_mib", "delta_cache_mib = 256", false),
    ("protection.compression", "compression = \"none\"", false),
    ("protection.heartbeat_ms", "heartbeat_ms = 10", false),
    ("protection.detect_ms", "detect_ms = 100", false),
    ("protection.lease_ms", "lease_ms = 60", false),
    ("gate", "[gate]", false),
    ("gate.buffer_mib", "buffer_mib = 32", false),
    ("gate.engine", "engine = \"bpf\"", false),
    ("gate.release", "[gate.release]", false),
    ("gate.release.uplink", "uplink = \"eth0\"", false),
    ("gate.release.trigger", "trigger = \"kernel\"", false),
    ("placement", "[placement]", false),
    ("placement.vcpu_cpus", "vcpu_cpus = [0]", false),
    ("placement.io_cpus", "io_cpus = [1]", false),
];

const MEMORY_MIB_MAX: u32 = 65_536;
const CPUS_MAX: u32 = 1024;
const CMDLINE_BYTES_MAX: usize = 2048;
const MTU_BYTES_DEFAULT: i64 = 1500;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: String,
    run_dir: Option<String>,
    state_dir: Option<String>,
    machine: RawMachine,
    net: RawNet,
    #[serde(default)]
    disk: Vec<RawDisk>,
    console: Option<RawConsole>,
    protection: RawProtection,
    gate: Option<RawGate>,
    placement: Option<RawPlacement>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMachine {
    memory_mib: i64,
    vcpus: Option<i64>,
    kernel: String,
    initrd: Option<String>,
    cmdline: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNet {
    tap: String,
    bridge: Option<String>,
    mac: String,
    mtu: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawPlacement {
    #[serde(default)]
    vcpu_cpus: Vec<i64>,
    #[serde(default)]
    io_cpus: Vec<i64>,
}

pub(super) fn config(file: &Path, text: &str) -> Result<Config, ConfigError> {
    let document = Document::parse(file, text)?;
    check_keys(&document)?;
    let raw: Raw = toml::from_str(text).map_err(|e| {
        // From here on only types can be wrong.
        let problem = types::in_words(e.message());
        match e.span() {
            Some(span) => {
                let error = document.error_at(span, problem, String::new());
                let plain = plain(&error.key);
                let help = KEYS.iter().find(|(key, ..)| *key == plain);
                ConfigError {
                    help: help
                        .map_or_else(String::new, |(_, line, _)| format!("write it as: {line}")),
                    ..error
                }
            }
            None => document.error("", problem, String::new()),
        }
    })?;
    Check { document: &document, file }.config(&raw)
}

fn check_keys(document: &Document<'_>) -> Result<(), ConfigError> {
    for (key, span) in document.keys() {
        let plain = plain(&key);
        if KEYS.iter().any(|(known, ..)| *known == plain) {
            continue;
        }
        return Err(document.error_at(span, "there is no such key".into(), suggestion(&plain)));
    }
    for (key, line, required) in KEYS {
        if *required && !document.has(key) {
            let problem = match key.split_once('.') {
                None if line.starts_with('[') => format!("the section {line} is missing"),
                None => format!("`{key}` is missing"),
                Some((section, name)) => format!("`{name}` is missing from [{section}]"),
            };
            return Err(document.error(key, problem, format!("add: {line}")));
        }
    }
    Ok(())
}

/// Returns a dotted key without numbers: `disk.path` for `disk[1].path`.
fn plain(key: &str) -> String {
    let mut parts = key.split('[');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |plain, part| plain + part.split_once(']').map_or(part, |(_, rest)| rest))
}

/// Returns what to do about an unknown key: the known key that was probably meant, wherever that belongs, or why there
/// is no such key.
fn suggestion(key: &str) -> String {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    if let Some(absent) = ["vsock", "vhost"].iter().find(|device| name.starts_with(**device)) {
        return format!(
            "{absent} is not supported: its state is in the host's kernel, where no checkpoint can capture it"
        );
    }
    let section_of = |k: &'static str| k.rsplit_once('.').map_or("", |(s, _)| s);
    let name_of = |k: &'static str| k.rsplit_once('.').map_or(k, |(_, n)| n);
    let keys = || KEYS.iter().map(|(k, ..)| *k);
    let heading_of = |section: &str| {
        let found = KEYS.iter().find(|(k, ..)| *k == section);
        found.map_or_else(|| format!("[{section}]"), |(_, line, _)| (*line).to_owned())
    };
    // Known, but of another section.
    if let Some((right, line, _)) = KEYS.iter().find(|(k, ..)| name_of(k) == name) {
        return match section_of(right) {
            "" if line.starts_with('[') => format!("`{name}` is a section of its own: {line}"),
            "" => format!("`{name}` belongs above the first [section]"),
            s => format!("`{name}` belongs in the section {}", heading_of(s)),
        };
    }
    let here = || keys().filter(|k| section_of(k) == section).map(name_of);
    if let Some(near) = nearest(name, here()) {
        return format!("did you mean `{near}`?");
    }
    let known: Vec<_> = here().collect();
    if known.is_empty() {
        return "remove it; `remus run --print-example` shows every key".into();
    }
    match section {
        "" => format!("known here: {}", known.join(", ")),
        s => format!("known in {}: {}", heading_of(s), known.join(", ")),
    }
}

struct Check<'a, 'i> {
    document: &'a Document<'i>,
    file: &'a Path,
}

impl Check<'_, '_> {
    fn config(&self, raw: &Raw) -> Result<Config, ConfigError> {
        let name = VmName::new(&raw.name).map_err(|e| {
            self.wrong("name", e.to_string(), "the name becomes a directory: name = \"demo\"")
        })?;
        let run_dir =
            self.absolute("run_dir", raw.run_dir.as_deref().unwrap_or(RUN_DIR_DEFAULT))?;
        let state_dir = match raw.state_dir.as_deref() {
            Some(named) => self.absolute("state_dir", named)?,
            None => state_dir_beside(&run_dir),
        };
        let machine = self.machine(&raw.machine)?;
        let net = self.net(&raw.net)?;
        let disks = self.disks(&raw.disk)?;
        let console = self.console(raw.console.as_ref())?;
        let protection = self.protection(&raw.protection)?;
        let gate = self.gate(raw.gate.as_ref())?;
        let trigger = self.trigger(raw.gate.as_ref())?;
        let placement = self.placement(raw.placement.as_ref(), machine.vcpus)?;
        Ok(Config {
            name,
            run_dir,
            state_dir,
            machine,
            net,
            disks,
            console,
            protection,
            gate,
            trigger,
            placement,
        })
    }

    /// Reads a directory, whose path must mean the same wherever the process is.
    fn absolute(&self, key: &str, path: &str) -> Result<PathBuf, ConfigError> {
        if !path.starts_with('/') || path.contains('\0') {
            return Err(self.wrong(
                key,
                format!("{path:?} is not an absolute path"),
                format!("begin the path with a slash: {key} = \"/run/remus\""),
            ));
        }
        Ok(path.into())
    }

    fn machine(&self, raw: &RawMachine) -> Result<Machine, ConfigError> {
        let memory_mib = self.number("machine.memory_mib", raw.memory_mib, 16, MEMORY_MIB_MAX)?;
        if memory_mib % 2 != 0 {
            return Err(self.wrong(
                "machine.memory_mib",
                format!("{memory_mib} is odd"),
                format!("memory is made of pages of 2 MiB: write {}", memory_mib + 1),
            ));
        }
        let vcpus = self.number("machine.vcpus", raw.vcpus.unwrap_or(1), 1, 64)?;
        let kernel = self.path(
            "machine.kernel",
            &raw.kernel,
            "name the kernel's file: a bzImage or an ELF",
        )?;
        let help = "name the initial RAM disk's file, or leave the key out";
        let initrd = raw.initrd.as_deref();
        let initrd = initrd.map(|name| self.path("machine.initrd", name, help)).transpose()?;
        let cmdline = raw.cmdline.clone().unwrap_or_default();
        if let Some(c) = cmdline.chars().find(|c| !matches!(c, ' '..='~')) {
            return Err(self.wrong(
                "machine.cmdline",
                format!("{c:?} may not be in a command line"),
                "use printable ASCII only",
            ));
        }
        if cmdline.len() > CMDLINE_BYTES_MAX {
            return Err(self.wrong(
                "machine.cmdline",
                format!("{} bytes are too long", cmdline.len()),
                format!("a command line has at most {CMDLINE_BYTES_MAX} bytes"),
            ));
        }
        Ok(Machine { memory_mib, vcpus, kernel, initrd, cmdline })
    }

    /// Reads a file, whose path counts from the config's own directory.
    fn path(&self, key: &str, name: &str, help: &str) -> Result<PathBuf, ConfigError> {
        if name.is_empty() || name.contains('\0') {
            return Err(self.wrong(key, "this is not a path".into(), help));
        }
        Ok(self.file.parent().unwrap_or(Path::new("")).join(name))
    }

    fn net(&self, raw: &RawNet) -> Result<Net, ConfigError> {
        let tap = self.link("net.tap", &raw.tap)?;
        let bridge = raw.bridge.as_deref().map(|name| self.link("net.bridge", name)).transpose()?;
        if bridge.as_ref() == Some(&tap) {
            return Err(self.wrong(
                "net.bridge",
                format!("the bridge and the tap cannot both be {tap}"),
                "name the bridge that the tap is to join",
            ));
        }
        let mac: Mac = raw.mac.parse().map_err(|e| {
            self.wrong("net.mac", format!("{:?} is {e}", raw.mac), "mac = \"52:54:00:77:00:0a\"")
        })?;
        if !mac.is_unicast() {
            let (is, help) = match mac {
                Mac::BROADCAST => ("the broadcast address", "give the guest an address of its own"),
                Mac::ZERO => ("all zeros", "give the guest an address of its own"),
                _ => ("a multicast address", "the first byte must be even"),
            };
            return Err(self.wrong(
                "net.mac",
                format!("{mac} is {is}, not a unicast address"),
                format!("{help}, as in 52:54:00:77:00:0a"),
            ));
        }
        let mtu = raw.mtu.unwrap_or(MTU_BYTES_DEFAULT);
        let mtu = self.number("net.mtu", mtu, MTU_BYTES_MIN.into(), MTU_BYTES_MAX.into())?;
        let mtu_bytes = u16::try_from(mtu).expect("within the range of a u16");
        Ok(Net { tap, bridge, mac, mtu_bytes })
    }

    fn placement(&self, raw: Option<&RawPlacement>, vcpus: u32) -> Result<Placement, ConfigError> {
        let Some(raw) = raw else { return Ok(Placement::default()) };
        let cpus = |key, list: &[i64]| -> Result<Vec<u32>, ConfigError> {
            let mut cpus = Vec::new();
            for &cpu in list {
                let cpu = self.number(key, cpu, 0, CPUS_MAX - 1)?;
                if cpus.contains(&cpu) {
                    return Err(self.wrong(
                        key,
                        format!("CPU {cpu} is named twice"),
                        "name each CPU once",
                    ));
                }
                cpus.push(cpu);
            }
            Ok(cpus)
        };
        let vcpu_cpus = cpus("placement.vcpu_cpus", &raw.vcpu_cpus)?;
        let io_cpus = cpus("placement.io_cpus", &raw.io_cpus)?;
        if vcpu_cpus.len() > 1 && vcpu_cpus.len() != vcpus as usize {
            return Err(self.wrong(
                "placement.vcpu_cpus",
                format!("{} CPUs do not fit {vcpus} vCPUs", vcpu_cpus.len()),
                format!("name one CPU for all vCPUs, or {vcpus}"),
            ));
        }
        Ok(Placement { vcpu_cpus, io_cpus })
    }

    fn number(&self, key: &str, value: i64, min: u32, max: u32) -> Result<u32, ConfigError> {
        match u32::try_from(value) {
            Ok(n) if (min..=max).contains(&n) => Ok(n),
            Ok(_) | Err(_) => Err(self.wrong(
                key,
                format!("{value} is out of range"),
                format!("from {min} to {max}"),
            )),
        }
    }

    fn link(&self, key: &str, name: &str) -> Result<LinkName, ConfigError> {
        LinkName::new(name).map_err(|e| {
            self.wrong(key, e.to_string(), "name a link as `ip link` shows it, as in tap0")
        })
    }

    fn wrong(&self, key: &str, problem: String, help: impl Into<String>) -> ConfigError {
        self.document.error(key, problem, help.into())
    }
}

/// Returns every dotted key that is not a section.
#[cfg(test)]
pub(super) fn keys() -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter(|(_, line, _)| !line.starts_with('[')).map(|(key, ..)| *key)
}
