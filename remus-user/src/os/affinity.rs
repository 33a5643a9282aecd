//! Which CPUs of the host a thread runs on.

use std::io;

/// Keeps the calling thread, and those that it starts from now on, on these CPUs. An empty list changes nothing.
///
/// # Errors
/// When none of the CPUs is one of this host that the process may use.
pub(crate) fn run_on(cpus: &[u32]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    // SAFETY: cpu_set_t is plain data.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in cpus {
        if (*cpu as usize) < libc::CPU_SETSIZE as usize {
            // SAFETY: within the set, as just checked.
            unsafe { libc::CPU_SET(*cpu as usize, &mut set) };
        }
    }
    // SAFETY: concerns this thread; a set that lives during the call.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_that_there_is_not_changes_nothing() {
        // SAFETY: plain data, and a set of the size given.
        let allowed = || unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            assert_eq!(libc::sched_getaffinity(0, size_of_val(&set), &raw mut set), 0);
            libc::CPU_COUNT(&set)
        };
        let before = allowed();
        run_on(&[]).unwrap();
        run_on(&[u32::MAX]).unwrap_err();
        assert_eq!(allowed(), before);
        // SAFETY: takes nothing.
        let here = u32::try_from(unsafe { libc::sched_getcpu() }).unwrap();
        run_on(&[here]).unwrap();
        assert_eq!(allowed(), 1);
    }
}
