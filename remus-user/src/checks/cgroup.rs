//! How much memory the cgroups of this process, and those above them, leave to it: versions 1 and 2.
//!
//! The kernel ends a process whose cgroup is at its limit, however much memory the host has. All of a guest's RAM is
//! touched when it is made, so the kernel would end this process at once.

use std::fs;

use crate::os::Cgroups;

/// A limit on what this process may still take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Limit {
    /// Bytes.
    pub(super) left: u64,
    /// Whose limit it is, for people.
    pub(super) of: String,
}

/// The files in which a hierarchy says what is used and allowed.
struct Files {
    limits: &'static [&'static str],
    usage: &'static str,
    /// Lines of `memory.stat` with memory that the kernel reclaims before it ends a process.
    reclaimable: &'static [&'static str],
}

const V1: Files = Files {
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    reclaimable: &["total_inactive_file", "total_active_file"],
};

/// Above `memory.high` the kernel ends no process, but throttles them to a standstill.
const V2: Files = Files {
    limits: &["memory.max", "memory.high"],
    usage: "memory.current",
    reclaimable: &["inactive_file", "active_file", "slab_reclaimable"],
};

/// Returns every limit that this process can ask for.
pub(super) fn limits() -> Vec<Limit> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut limits = Vec::new();
    for (controllers, path) in own.lines().filter_map(membership) {
        let files = if controllers.is_empty() { &V2 } else { &V1 };
        let Ok(cgroups) = Cgroups::open(&controllers) else { continue };
        for directory in upwards(path) {
            limits.extend(limit(&cgroups, directory, files));
        }
    }
    limits
}

/// Returns the controllers of a line of /proc/self/cgroup (none for version 2) and its path, if the line has to do with
/// memory.
fn membership(line: &str) -> Option<(Vec<&str>, &str)> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let controllers: Vec<_> = controllers.split(',').filter(|name| !name.is_empty()).collect();
    // A path outside of this cgroup namespace cannot be read.
    let is_within = path.starts_with('/') && !path.split('/').any(|part| part == "..");
    (is_within && (controllers.is_empty() || controllers.contains(&"memory")))
        .then_some((controllers, path))
}

/// Returns the directory at `path` and those above it, without the root, which has no limit.
fn upwards(path: &str) -> impl Iterator<Item = &str> {
    let path = path.trim_matches('/');
    let first = (!path.is_empty()).then_some(path);
    std::iter::successors(first, |path| path.rsplit_once('/').map(|(above, _)| above))
}

fn limit(cgroups: &Cgroups, directory: &str, files: &Files) -> Option<Limit> {
    let read = |file: &str| cgroups.read(&format!("{directory}/{file}"));
    let limit =
        files.limits.iter().filter_map(|file| read(file).ok()?.trim().parse().ok()).min()?;
    let usage = read(files.usage).ok()?.trim().parse().ok()?;
    let reclaimable = reclaimable(&read("memory.stat").unwrap_or_default(), files.reclaimable);
    Some(Limit {
        left: left(limit, usage, reclaimable),
        of: format!("the memory limit of the cgroup /{directory}"),
    })
}

/// Returns the number of bytes that may still be used under `limit`.
fn left(limit: u64, usage: u64, reclaimable: u64) -> u64 {
    limit.saturating_sub(usage.saturating_sub(reclaimable))
}

fn reclaimable(stat: &str, lines: &[&str]) -> u64 {
    let value = |name: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    lines.iter().map(|name| value(name)).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_cgroups_are_found_in_both_versions_of_the_list() {
        assert_eq!(membership("4:memory:/a/b"), Some((vec!["memory"], "/a/b")));
        assert_eq!(membership("4:cpu,memory:/a:b"), Some((vec!["cpu", "memory"], "/a:b")));
        assert_eq!(membership("0::/user.slice"), Some((vec![], "/user.slice")));
        for other in ["9:name=systemd:/", "1:cpu:/x", "0::/../x", "", "0:"] {
            assert_eq!(membership(other), None, "{other}");
        }
        assert_eq!(upwards("/a/b/c").collect::<Vec<_>>(), ["a/b/c", "a/b", "a"]);
        assert_eq!(upwards("/").count(), 0);
    }

    #[test]
    fn file_pages_that_go_when_they_must_are_not_in_the_way() {
        let stat = "cache 1\ninactive_file 7\ntotal_inactive_file 100\ntotal_active_file 20\n";
        assert_eq!(reclaimable(stat, V1.reclaimable), 120);
        assert_eq!(reclaimable(stat, V2.reclaimable), 7);
        assert_eq!(left(1000, 400, 120), 720);
        assert_eq!(left(1000, 4000, 120), 0);
        // Version 1 says this where there is no limit.
        assert!(left(9_223_372_036_854_771_712, 400, 0) > 1 << 60);
        assert_eq!("max".parse::<u64>().ok(), None, "and version 2");
    }
}
