//! The host, without KVM, its memory and its links: privileges, kernel, CPUs, clock.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use super::Check;
use crate::{config::Placement, gate::HookKind};

/// Capabilities that the gate and the tap need, by bit number.
const CAPABILITIES: &[(u32, &str, &str)] = &[
    (12, "CAP_NET_ADMIN", "to make the tap and attach the gate"),
    (21, "CAP_SYS_ADMIN", "to mount the gate's bpffs"),
    (39, "CAP_BPF", "to load the gate"),
];

pub(super) fn capabilities() -> Check {
    const NAME: &str = "privileges";
    let Some(effective) = own_capabilities() else {
        return Check::refused(NAME, "/proc/self/status has no CapEff", "mount /proc");
    };
    // Before 5.8 there was no CAP_BPF; CAP_SYS_ADMIN has always implied it.
    let has = |bit: u32| effective >> bit & 1 != 0;
    let missing: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(bit, ..)| !has(*bit))
        .map(|(_, name, why)| format!("{name} ({why})"))
        .collect();
    if missing.is_empty() {
        return Check::ok(NAME, "CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF");
    }
    Check::refused(
        NAME,
        format!("missing: {}", missing.join(", ")),
        "run remus as root (sudo), or from the systemd unit, which grants exactly these capabilities",
    )
}

/// Checks whether a backup will hear what comes for a guest while nobody runs it. A backup that hears nothing can still
/// take over.
pub(super) fn overhearing() -> Check {
    const NAME: &str = "overhearing";
    const CAP_NET_RAW: u32 = 13;
    match own_capabilities() {
        Some(effective) if effective >> CAP_NET_RAW & 1 != 0 => Check::ok(NAME, "CAP_NET_RAW"),
        Some(_) | None => Check::warning(
            NAME,
            "CAP_NET_RAW is missing: what clients send between the death of a host and the takeover is lost until they \
             send it again",
            "run remus as root (sudo), or from the systemd unit, which grants this capability",
        ),
    }
}

fn own_capabilities() -> Option<u64> {
    effective_capabilities(&fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

pub(super) fn kernel_version() -> Check {
    const NAME: &str = "kernel";
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match version(release) {
        Some(v) if v >= (6, 1) => {
            let how = match HookKind::of_this_kernel() {
                Ok(HookKind::Tcx) => "the gate attaches by TCX".to_owned(),
                Ok(HookKind::Clsact) => "the gate attaches by clsact (TCX needs 6.6)".to_owned(),
                Err(e) => format!("whether this kernel has TCX is unknown ({e})"),
            };
            Check::ok(NAME, format!("{release}: {how}"))
        }
        Some(_) => Check::refused(
            NAME,
            format!("{release} is older than any kernel that the gate was tested on"),
            "use Linux 6.1 or later",
        ),
        None => Check::warning(NAME, format!("{release:?} is not a kernel version"), "mount /proc"),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

pub(super) fn btf() -> Check {
    const NAME: &str = "btf";
    const PATH: &str = "/sys/kernel/btf/vmlinux";
    if Path::new(PATH).exists() {
        return Check::ok(NAME, PATH);
    }
    let remedy = "use a kernel with CONFIG_DEBUG_INFO_BTF=y (the large distributions have one), and mount /sys";
    Check::refused(NAME, format!("{PATH} is not there"), remedy)
}

pub(super) fn tun() -> Check {
    const NAME: &str = "tun";
    const PATH: &str = "/dev/net/tun";
    match File::options().read(true).write(true).open(PATH) {
        Ok(_) => Check::ok(NAME, PATH),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Check::refused(NAME, format!("{PATH} is not there"), "load the driver: modprobe tun")
        }
        Err(e) => Check::refused(
            NAME,
            format!("cannot open {PATH}: {e}"),
            "run as root, or allow this user to open it",
        ),
    }
}

pub(super) fn clocksource() -> Check {
    const NAME: &str = "clocksource";
    let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let found = fs::read_to_string(path).unwrap_or_default();
    match found.trim() {
        good @ ("tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page") => Check::ok(NAME, good),
        "" => Check::warning(NAME, format!("cannot read {path}"), "mount /sys"),
        slow => Check::warning(
            NAME,
            format!("{slow}: to read the time takes a system call, and guests have no kvmclock"),
            "look into the kernel log for why tsc was given up",
        ),
    }
}

/// Checks that this process may run on every CPU that is named.
pub(super) fn placement(placement: &Placement) -> Check {
    const NAME: &str = "placement";
    let named = || placement.vcpu_cpus.iter().chain(&placement.io_cpus);
    if named().next().is_none() {
        return Check::ok(NAME, "anywhere");
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let Some(list) = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")) else {
        return Check::warning(NAME, "/proc/self/status has no Cpus_allowed_list", "mount /proc");
    };
    let list = list.trim();
    let mut outside: Vec<_> = named().filter(|cpu| !in_list(list, **cpu)).collect();
    outside.sort_unstable();
    outside.dedup();
    if !outside.is_empty() {
        let outside: Vec<_> = outside.iter().map(ToString::to_string).collect();
        return Check::refused(
            NAME,
            format!("CPU {} is not among those allowed here ({list})", outside.join(", ")),
            "name CPUs of that list, or leave them out",
        );
    }
    if placement.vcpu_cpus.iter().any(|cpu| placement.io_cpus.contains(cpu)) {
        let remedy =
            "give the vCPUs a CPU of their own, or every checkpoint is copied in the guest's time";
        return Check::warning(NAME, "a CPU runs both a vCPU and the rest", remedy);
    }
    Check::ok(NAME, format!("CPUs {list} are allowed"))
}

/// Returns whether `cpu` is in a kernel list such as `0-3,8`.
fn in_list(list: &str, cpu: u32) -> bool {
    list.split(',').any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (first.parse::<u32>(), last.parse::<u32>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&cpu),
            (Err(_), _) | (_, Err(_)) => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_in_what_the_kernel_prints() {
        assert_eq!(
            effective_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"),
            Some((1 << 41) - 1)
        );
        assert_eq!(version("6.18.44-cloud"), Some((6, 18)));
        assert_eq!(version("5.15"), Some((5, 15)));
        assert_eq!(version("linux"), None);
        assert!(in_list("0-3,8", 2) && in_list("0-3,8", 8) && !in_list("0-3,8", 4));
    }

    #[test]
    fn a_cpu_that_is_not_there_is_refused() {
        let far = Placement { vcpu_cpus: vec![1023], io_cpus: vec![] };
        let check = placement(&far);
        assert_eq!(check.outcome, super::super::Outcome::Refused);
        assert!(
            check.found.starts_with("CPU 1023 is not among those allowed here"),
            "{}",
            check.found
        );
    }
}
