//! From TOML to a [`Config`]: first that every key is known and none is missing, then types, then ranges and
//! how values fit each other.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use remus_abi::gate::{BUFFER_MIB_DEFAULT, BUFFER_MIB_MAX};
use serde::Deserialize;

use super::{
    Config, ConfigError, LEASE_MARGIN, LinkName, Machine, Net, Placement, Protection,
    RUN_DIR_DEFAULT, ReleaseTrigger, Start, VmName, document::Document, nearest::nearest,
    state_dir_beside,
};
use crate::{
    checkpoint::{COPIES_DEFAULT, Compression, EncoderSettings},
    gate::{Engine, Release, Settings},
    machine::{MTU_BYTES_MAX, MTU_BYTES_MIN},
    net::Mac,
    replication::{Mode, Tempo},
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
    ("machine.cmdline", "cmdline = \"\"", false),
    ("net", "[net]", true),
    ("net.tap", "tap = \"tap0\"", true),
    ("net.bridge", "bridge = \"br0\"", false),
    ("net.mac", "mac = \"52:54:00:77:00:0a\"", true),
    ("net.mtu", "mtu = 1500", false),
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
const PAGES_PER_MIB: u32 = 256;
const CPUS_MAX: u32 = 1024;
const CMDLINE_BYTES_MAX: usize = 2048;
const MTU_BYTES_DEFAULT: i64 = 1500;
const EPOCH_MS_DEFAULT: i64 = 25;
const EPOCH_MS_MAX: u32 = 10_000;
const IDLE_MS_DEFAULT: i64 = 250;
const RATE_MAX_DEFAULT: i64 = 2000;
const PAUSE_MAX_US_DEFAULT: i64 = 2000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: String,
    run_dir: Option<String>,
    state_dir: Option<String>,
    machine: RawMachine,
    net: RawNet,
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProtection {
    backup: String,
    start: Option<String>,
    mode: Option<String>,
    epoch_ms: Option<i64>,
    idle_ms: Option<i64>,
    output_delay_us: Option<i64>,
    rate_max: Option<i64>,
    pause_max_us: Option<i64>,
    depth: Option<i64>,
    delta_cache_mib: Option<i64>,
    compression: Option<String>,
    heartbeat_ms: Option<i64>,
    detect_ms: Option<i64>,
    lease_ms: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGate {
    buffer_mib: Option<i64>,
    engine: Option<String>,
    #[serde(default)]
    release: RawRelease,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawRelease {
    uplink: Option<String>,
    trigger: Option<String>,
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
        // Only types are left to be wrong.
        let problem = e.message().to_owned();
        match e.span() {
            Some(span) => {
                let error = document.error_at(span, problem, String::new());
                let help = KEYS.iter().find(|(key, ..)| *key == error.key);
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
        if KEYS.iter().any(|(known, ..)| *known == key) {
            continue;
        }
        return Err(document.error_at(span, "there is no such key".into(), suggestion(&key)));
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

/// What to do about an unknown key: the known key it may have been, wherever that belongs.
fn suggestion(key: &str) -> String {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    let section_of = |k: &'static str| k.rsplit_once('.').map_or("", |(s, _)| s);
    let name_of = |k: &'static str| k.rsplit_once('.').map_or(k, |(_, n)| n);
    let keys = || KEYS.iter().map(|(k, ..)| *k);
    // Known, but of another section.
    if let Some(right) = keys().find(|k| name_of(k) == name) {
        return match section_of(right) {
            "" => format!("`{name}` stands above the first [section]"),
            s => format!("`{name}` belongs in the section [{s}]"),
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
        s => format!("known in [{s}]: {}", known.join(", ")),
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
        let protection = self.protection(&raw.protection)?;
        let gate = self.gate(raw.gate.as_ref())?;
        let trigger = self.trigger(raw.gate.as_ref())?;
        let placement = self.placement(raw.placement.as_ref(), machine.vcpus)?;
        Ok(Config { name, run_dir, state_dir, machine, net, protection, gate, trigger, placement })
    }

    /// A directory, by a path that means the same wherever the process is.
    fn absolute(&self, key: &str, path: &str) -> Result<PathBuf, ConfigError> {
        if !path.starts_with('/') || path.contains('\0') {
            return Err(self.wrong(
                key,
                format!("{path:?} is not an absolute path"),
                format!("begin it with a slash: {key} = \"/run/remus\""),
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
                format!("memory comes in pages of 2 MiB: write {}", memory_mib + 1),
            ));
        }
        let vcpus = self.number("machine.vcpus", raw.vcpus.unwrap_or(1), 1, 64)?;
        if raw.kernel.is_empty() || raw.kernel.contains('\0') {
            return Err(self.wrong(
                "machine.kernel",
                "this is not a path".into(),
                "name the guest's ELF file",
            ));
        }
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
        let kernel = self.file.parent().unwrap_or(Path::new("")).join(&raw.kernel);
        Ok(Machine { memory_mib, vcpus, kernel, cmdline })
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
            return Err(self.wrong(
                "net.mac",
                format!("{mac} is not the address of one station"),
                "the first byte must be even, as in 52:54:00:77:00:0a",
            ));
        }
        let mtu = raw.mtu.unwrap_or(MTU_BYTES_DEFAULT);
        let mtu = self.number("net.mtu", mtu, MTU_BYTES_MIN.into(), MTU_BYTES_MAX.into())?;
        let mtu_bytes = u16::try_from(mtu).expect("within the range of a u16");
        Ok(Net { tap, bridge, mac, mtu_bytes })
    }

    fn protection(&self, raw: &RawProtection) -> Result<Protection, ConfigError> {
        let backup: SocketAddr = raw.backup.parse().map_err(|_| {
            self.wrong(
                "protection.backup",
                format!("{:?} is not IP:PORT", raw.backup),
                "a number, not a name: backup = \"10.99.0.2:7000\", or \"[fd00::2]:7000\"",
            )
        })?;
        if backup.port() == 0 || backup.ip().is_unspecified() || backup.ip().is_multicast() {
            return Err(self.wrong(
                "protection.backup",
                format!("nobody can listen at {backup}"),
                "write the address and port that `remus backup --listen` was given",
            ));
        }
        let start = match raw.start.as_deref() {
            None | Some("protected") => Start::Protected,
            Some("unprotected") => Start::Unprotected,
            Some(other) => {
                return Err(self.wrong(
                    "protection.start",
                    format!("{other:?} is no way to start"),
                    "\"protected\": nothing leaves before the backup has a checkpoint; \"unprotected\": the guest \
                     may talk at once, and what it said is lost if the host dies before that",
                ));
            }
        };
        let ms = |key, value: Option<i64>, default, min, max| {
            self.number(key, value.unwrap_or(default), min, max)
        };
        let tempo = self.tempo(raw)?;
        let pause_max_us = raw.pause_max_us.unwrap_or(PAUSE_MAX_US_DEFAULT);
        let pause_max_us = self.number("protection.pause_max_us", pause_max_us, 300, 1_000_000)?;
        let depth = self.number("protection.depth", raw.depth.unwrap_or(2), 1, 16)?;
        let heartbeat_ms = ms("protection.heartbeat_ms", raw.heartbeat_ms, 10, 1, 1000)?;
        let detect_ms = ms("protection.detect_ms", raw.detect_ms, 100, 30, 60_000)?;
        let lease_ms = ms("protection.lease_ms", raw.lease_ms, 60, 5, 60_000)?;
        if detect_ms < 3 * heartbeat_ms {
            return Err(self.wrong(
                "protection.detect_ms",
                format!("{detect_ms} ms is less than three heartbeats of {heartbeat_ms} ms"),
                format!(
                    "one late heartbeat must not promote: detect_ms = {} or more, or a shorter heartbeat_ms",
                    3 * heartbeat_ms
                ),
            ));
        }
        let lease_max = detect_ms.saturating_sub(margin_ms());
        if lease_ms > lease_max {
            return Err(self.wrong(
                "protection.lease_ms",
                format!("{lease_ms} ms is too long for detect_ms = {detect_ms}"),
                format!(
                    "the old primary must be mute {} ms before its backup speaks: lease_ms = {lease_max} or \
                     less, or detect_ms = {} or more",
                    margin_ms(),
                    lease_ms + margin_ms()
                ),
            ));
        }
        let duration = |ms: u32| Duration::from_millis(u64::from(ms));
        Ok(Protection {
            backup,
            start,
            tempo,
            pause_max: Duration::from_micros(pause_max_us.into()),
            depth: depth as usize,
            encoding: self.encoding(raw)?,
            heartbeat: duration(heartbeat_ms),
            detect: duration(detect_ms),
            lease: duration(lease_ms),
        })
    }

    fn tempo(&self, raw: &RawProtection) -> Result<Tempo, ConfigError> {
        let mode = match raw.mode.as_deref() {
            None | Some("latency") => Mode::Latency,
            Some("throughput") => Mode::Throughput,
            Some("fixed") => Mode::Fixed,
            Some(other) => {
                return Err(self.wrong(
                    "protection.mode",
                    format!("{other:?} is no mode"),
                    "\"latency\": output waits as short as can be; \"throughput\": the guest is stopped as rarely \
                     as may be; \"fixed\": every epoch lasts epoch_ms",
                ));
            }
        };
        let epoch_ms = raw.epoch_ms.unwrap_or(EPOCH_MS_DEFAULT);
        let epoch_ms = self.number("protection.epoch_ms", epoch_ms, 1, EPOCH_MS_MAX)?;
        let idle_ms = raw.idle_ms.unwrap_or(i64::from(epoch_ms).max(IDLE_MS_DEFAULT));
        let idle_ms = self.number("protection.idle_ms", idle_ms, 1, EPOCH_MS_MAX)?;
        if idle_ms < epoch_ms {
            return Err(self.wrong(
                "protection.idle_ms",
                format!("{idle_ms} ms is less than epoch_ms = {epoch_ms}"),
                format!("an idle guest is not stopped more often than one that works: {epoch_ms} or more"),
            ));
        }
        let delay_us = raw.output_delay_us.unwrap_or(0);
        let delay_us = self.number("protection.output_delay_us", delay_us, 0, 1_000_000)?;
        let rate_max = raw.rate_max.unwrap_or(RATE_MAX_DEFAULT);
        let rate_max = self.number("protection.rate_max", rate_max, 1, 10_000)?;
        let interval_min = Duration::from_secs(1) / rate_max;
        let epoch_max = Duration::from_millis(epoch_ms.into());
        if interval_min > epoch_max {
            return Err(self.wrong(
                "protection.rate_max",
                format!(
                    "{rate_max} checkpoints a second are fewer than one each epoch_ms = {epoch_ms}"
                ),
                format!("rate_max = {} or more, or a longer epoch_ms", 1000_u32.div_ceil(epoch_ms)),
            ));
        }
        Ok(Tempo {
            mode,
            epoch_max,
            output_delay: Duration::from_micros(delay_us.into()),
            interval_min,
            idle_max: Duration::from_millis(idle_ms.into()),
        })
    }

    fn encoding(&self, raw: &RawProtection) -> Result<EncoderSettings, ConfigError> {
        let key = "protection.delta_cache_mib";
        let mib = raw.delta_cache_mib.unwrap_or((COPIES_DEFAULT / PAGES_PER_MIB).into());
        let copies = self.number(key, mib, 2, MEMORY_MIB_MAX)? * PAGES_PER_MIB;
        let compression = match raw.compression.as_deref() {
            None | Some("none") => Compression::None,
            Some("lz4") => Compression::Lz4,
            Some("zstd") => Compression::Zstd,
            Some(other) => {
                return Err(self.wrong(
                    "protection.compression",
                    format!("{other:?} is no compression"),
                    "\"none\"; \"lz4\" or \"zstd\" for a link that is slower than they are",
                ));
            }
        };
        Ok(EncoderSettings { copies, compression })
    }

    fn gate(&self, raw: Option<&RawGate>) -> Result<Settings, ConfigError> {
        let Some(raw) = raw else { return Ok(Settings::default()) };
        let key = "gate.buffer_mib";
        let buffer_mib = raw.buffer_mib.unwrap_or(BUFFER_MIB_DEFAULT.into());
        let buffer_mib = self.number(key, buffer_mib, 1, BUFFER_MIB_MAX)?;
        if !buffer_mib.is_power_of_two() {
            let above = buffer_mib.next_power_of_two();
            return Err(self.wrong(
                key,
                format!("{buffer_mib} is not a power of two"),
                format!("nearest: {} or {above}", above / 2),
            ));
        }
        let release = match &raw.release.uplink {
            Some(uplink) => Release::Uplink(self.link("gate.release.uplink", uplink)?),
            None => Release::ReEntry,
        };
        let key = "gate.engine";
        let engine = match raw.engine.as_deref() {
            None | Some("bpf") => Engine::Bpf,
            Some("nfqueue") if release == Release::ReEntry => Engine::NfQueue,
            Some("nfqueue") => {
                return Err(self.wrong(
                    key,
                    "netfilter's queue releases frames where they were held, not by an uplink"
                        .to_owned(),
                    "leave out gate.release.uplink, or use engine = \"bpf\"",
                ));
            }
            Some(other) => {
                let what = format!("{other:?} is no engine");
                return Err(self.wrong(key, what, "\"bpf\" or \"nfqueue\""));
            }
        };
        Ok(Settings { buffer_mib, release, engine })
    }

    fn trigger(&self, raw: Option<&RawGate>) -> Result<ReleaseTrigger, ConfigError> {
        match raw.and_then(|gate| gate.release.trigger.as_deref()) {
            None | Some("controller") => Ok(ReleaseTrigger::Controller),
            Some("kernel") => Ok(ReleaseTrigger::Kernel),
            Some(other) => Err(self.wrong(
                "gate.release.trigger",
                format!("{other:?} is no trigger of a release"),
                "\"controller\": the process that runs the guest; \"kernel\": a program at the link to the \
                 backup too, at once",
            )),
        }
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

fn margin_ms() -> u32 {
    u32::try_from(LEASE_MARGIN.as_millis()).expect("a margin of milliseconds")
}

/// Every dotted key that is not a section.
#[cfg(test)]
pub(super) fn keys() -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter(|(_, line, _)| !line.starts_with('[')).map(|(key, ..)| *key)
}
