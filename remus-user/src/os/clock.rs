//! The clocks. No other place reads one: clippy.toml forbids the rest.

use std::time::{Duration, SystemTime};

use crate::names::Moment;

/// Reads CLOCK_BOOTTIME, the clock that `flush` compares the lease with. It also runs while the host is suspended.
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
