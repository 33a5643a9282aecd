//! What this process may take.

/// Lets this process have as many descriptors as it may: a VM takes some dozens, and the usual limit is 1024.
pub(crate) fn use_all_descriptors() {
    // SAFETY: rlimit is plain data.
    let mut limit: libc::rlimit = unsafe { std::mem::zeroed() };
    // SAFETY: a place for the answer that lives during the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: a whole limit. One that is not raised is the one that was there.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}
