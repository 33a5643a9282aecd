//! The clocks. No other place reads one: clippy.toml forbids the rest.

use std::{
    os::unix::thread::JoinHandleExt,
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use crate::names::Moment;

/// Reads CLOCK_BOOTTIME, the clock that `flush` compares the lease with. It also runs while the host is suspended.
#[expect(clippy::disallowed_methods, reason = "the place that reads it for all")]
pub(crate) fn boot_now() -> Moment {
    // SAFETY: timespec is plain data.
    let mut now: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: a place for the answer that lives during the call; the clock is in every kernel since 2.6.39.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    assert_eq!(result, 0, "CLOCK_BOOTTIME can be read");
    Moment(now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned())
}

/// Returns the time of day, since 1970.
#[expect(clippy::disallowed_methods, reason = "the place that reads it for all")]
pub(crate) fn wall_now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Returns the CPU time of a thread; zero if the kernel does not say.
#[expect(clippy::disallowed_methods, reason = "the place that reads it for all")]
pub(crate) fn cpu_time_of<T>(thread: &JoinHandle<T>) -> Duration {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: the thread was not joined yet, so its id is valid; the clock is written.
    let found = unsafe { libc::pthread_getcpuclockid(thread.as_pthread_t(), &raw mut clock) };
    // SAFETY: the time is written.
    if found != 0 || unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Duration::ZERO;
    }
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
