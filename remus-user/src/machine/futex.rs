//! Waiting for a word to change: a short spin, then the kernel's futex.
//!
//! The spin is worth it because both sides usually answer within a pause's length, while being woken costs
//! tens of microseconds in a nested VM.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::os::boot_now;

/// Waits until `word` is no longer `from`; returns what it then is, or `None` after `limit`.
pub(super) fn wait_while(
    word: &AtomicU32,
    from: u32,
    spin: Duration,
    limit: Option<Duration>,
) -> Option<u32> {
    let start = boot_now();
    loop {
        for _ in 0..64 {
            let now = word.load(Ordering::SeqCst);
            if now != from {
                return Some(now);
            }
            std::hint::spin_loop();
        }
        let waited = boot_now().since(start);
        if limit.is_some_and(|limit| waited >= limit) {
            return None;
        }
        if waited >= spin {
            sleep_while(word, from, limit.map(|limit| limit - waited));
        }
    }
}

fn sleep_while(word: &AtomicU32, from: u32, limit: Option<Duration>) {
    let limit = limit.map(|limit| libc::timespec {
        tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // Spurious and failed waits are all the same: the caller looks at the word again.
    // SAFETY: FUTEX_WAIT reads the word, which is live, and the time, which is null or live.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            from,
            limit,
        )
    };
}

/// Wakes whoever sleeps on `word`, after it was changed.
pub(super) fn wake_all(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE uses the address as a name only.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            i32::MAX,
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_wakes_a_sleeper_and_no_change_ends_at_the_limit() {
        let word = AtomicU32::new(1);
        let waited = wait_while(&word, 1, Duration::ZERO, Some(Duration::from_millis(5)));
        assert_eq!(waited, None);
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| wait_while(&word, 1, Duration::ZERO, None));
            std::thread::sleep(Duration::from_millis(5));
            word.store(7, Ordering::SeqCst);
            wake_all(&word);
            assert_eq!(sleeper.join().unwrap(), Some(7));
        });
    }
}
