//! What the kernel says of memory in its files of lines `Name:   1234 kB`.

use std::fs;

/// The text of /proc/meminfo; empty where it cannot be read.
pub(crate) fn meminfo() -> String {
    fs::read_to_string("/proc/meminfo").unwrap_or_default()
}

/// A value of /proc/meminfo or /proc/self/status, in KiB. `name` ends with a colon.
pub(crate) fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim_end().parse().ok()
}
