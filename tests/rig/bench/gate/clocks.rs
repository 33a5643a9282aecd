//! Time and CPU time, as the kernel tells them.

use std::fs;

use anyhow::{Context, Result};

/// CLOCK_MONOTONIC, the clock of the sink.
pub(super) fn monotonic_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// CPU time of the calling thread. A softirq that runs at the end of its system calls is part of it, unless
/// the kernel accounts interrupts apart (IRQ_TIME_ACCOUNTING).
pub(super) fn thread_cpu_ns() -> u64 {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec that the call may write, and both clocks exist in every supported kernel.
    let result = unsafe { libc::clock_gettime(clock, &raw mut now) };
    assert_eq!(result, 0, "clock {clock}");
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Time that all CPUs together were busy with whatever it was, softirqs included, since boot. /proc/stat
/// samples it at every tick and tells hundredths of a second: of use over half a second and more.
pub(super) fn all_cpus_busy_ns() -> Result<u64> {
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    busy_ns(&text).context("read the first line of /proc/stat")
}

fn busy_ns(stat: &str) -> Option<u64> {
    let times = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let times: Vec<u64> = times.map(str::parse).collect::<Result<_, _>>().ok()?;
    // user, nice, system, idle, iowait, irq, softirq; what follows is another machine's time, or counted
    // already.
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = times[..] else { return None };
    Some((user + nice + system + irq + softirq) * 10_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_not_busy() {
        let stat = "cpu  1 2 4 800 900 8 16 32 64 128\ncpu0 9 9 9 9 9 9 9 9 9 9\n";
        assert_eq!(busy_ns(stat), Some(31 * 10_000_000));
        assert_eq!(busy_ns("cpu  1 2"), None);
    }
}
