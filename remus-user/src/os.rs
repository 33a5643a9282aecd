//! What the shells take from the operating system for the brains: the time, and random names.

use std::io;

use remus_abi::ack::AckKey;

use crate::wire::{Instance, Moment, Nonce, Session, VmId};

/// CLOCK_BOOTTIME, the clock that `flush` compares the lease with: it goes on while the host is suspended.
pub(crate) fn boot_now() -> Moment {
    // SAFETY: timespec is plain data.
    let mut now: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: a place for the answer that lives during the call; the clock is in every kernel since 2.6.39.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    assert_eq!(result, 0, "CLOCK_BOOTTIME can be read");
    Moment(now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned())
}

/// A session that nobody else has.
pub(crate) fn fresh_session() -> Session {
    fresh(Session::new)
}

/// An identity that nobody else has.
pub(crate) fn fresh_instance() -> Instance {
    fresh(Instance::new)
}

/// A name for a speaker that nobody else has.
pub(crate) fn fresh_nonce() -> Nonce {
    fresh(Nonce::new)
}

/// The id of a VM that has never run.
pub(crate) fn fresh_vm_id() -> VmId {
    let word = || u128::from(random());
    VmId::new(word() << 64 | word()).unwrap_or_else(fresh_vm_id)
}

/// A secret that nobody can guess: from the kernel's generator, which is seeded before it gives anything.
pub(crate) fn fresh_key() -> AckKey {
    AckKey([random(), random()])
}

/// The first random number that names something.
fn fresh<T>(name: impl Fn(u64) -> Option<T>) -> T {
    loop {
        if let Some(named) = name(random()) {
            return named;
        }
    }
}

/// A random word.
fn random() -> u64 {
    loop {
        let mut bytes = [0u8; 8];
        // SAFETY: a buffer of that length, alive during the call.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        // Up to 256 bytes come whole or not at all (man 2 getrandom); not at all means that a signal came.
        assert!(got == 8 || got == -1, "getrandom gives all or nothing");
        if got == 8 {
            return u64::from_ne_bytes(bytes);
        }
    }
}

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

/// Keeps the calling thread, and those that it starts from now on, on these CPUs. None named: anywhere.
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
