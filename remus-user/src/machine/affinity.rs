//! Which host CPUs a thread of the machine runs on.

/// Binds this thread to these host CPUs; to none in particular when the list is empty. That it is not to be had is
/// said of `whom`, and left.
pub(super) fn run_on(cpus: &[usize], whom: &str) {
    if cpus.is_empty() {
        return;
    }
    // SAFETY: a cpu_set_t is an array of integers, for which zeros are values.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus.iter().filter(|cpu| **cpu < libc::CPU_SETSIZE as usize) {
        // SAFETY: the index is within the set, as just checked.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: reads a set of the size given. One without a CPU is refused.
    let bound = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    if bound != 0 {
        tracing::warn!("cannot run {whom} on host CPUs {cpus:?}");
    }
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
        run_on(&[], "nobody");
        run_on(&[usize::MAX], "nobody");
        assert_eq!(allowed(), before);
        // SAFETY: takes nothing.
        let here = usize::try_from(unsafe { libc::sched_getcpu() }).unwrap();
        run_on(&[here], "this test");
        assert_eq!(allowed(), 1);
    }
}
