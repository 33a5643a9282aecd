//! The system calls that std has no safe form of, one function each.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd},
    ptr,
    sync::OnceLock,
};

/// How many CPUs a cpu_set_t can name.
const CPU_LIMIT: usize = libc::CPU_SETSIZE.unsigned_abs() as usize;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Nanoseconds since boot, sleep included: the clock in which Remus states its times.
pub fn boottime_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec that the call may write, and the clock exists in every supported kernel.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    assert_eq!(result, 0, "CLOCK_BOOTTIME");
    let (seconds, nanoseconds) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    seconds * 1_000_000_000 + nanoseconds
}

/// Whether this machine is the lab (`cargo xtask lab`), which is emulated.
pub fn is_the_lab() -> bool {
    std::env::var_os("REMUS_LAB").is_some_and(|value| value == "1")
}

/// Gives the calling thread namespaces of its own. Async-signal-safe.
pub fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: takes no pointers; what it changes belongs to the calling thread alone.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

/// Puts the calling thread into the namespace that `fd` holds. Async-signal-safe.
pub fn setns(fd: impl AsFd, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: takes no pointers; the descriptor is open for the length of the borrow.
    check(unsafe { libc::setns(fd.as_fd().as_raw_fd(), kind) }).map(drop)
}

/// Makes the directory that `fd` holds the calling process's root. Async-signal-safe.
pub fn change_root(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: takes no pointers; the descriptor is open for the length of the borrow.
    check(unsafe { libc::fchdir(fd.as_fd().as_raw_fd()) })?;
    // SAFETY: the path is terminated and outlives the call.
    check(unsafe { libc::chroot(c".".as_ptr()) }).map(drop)
}

/// Mounts a file system of a kind that needs no source and no data.
pub fn mount(kind: &CStr, target: &CStr) -> io::Result<()> {
    // SAFETY: all strings are terminated and outlive the call; no data is passed.
    check(unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, ptr::null()) })
        .map(drop)
}

/// Keeps what is mounted from here on in this mount namespace.
pub fn make_mounts_private() -> io::Result<()> {
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the target is a terminated string; with these flags the other pointers are not looked at.
    let result =
        unsafe { libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), flags, ptr::null()) };
    check(result).map(drop)
}

/// Sends `signal` to the calling process when the thread that started it ends. Async-signal-safe.
pub fn die_with_parent(signal: libc::c_int) -> io::Result<()> {
    let signal = libc::c_ulong::from(signal.unsigned_abs());
    // SAFETY: PR_SET_PDEATHSIG takes one integer.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) }).map(drop)
}

pub fn kill(pid: u32, signal: libc::c_int) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: takes no pointers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Makes the calling process give way to the others. Async-signal-safe.
pub fn be_nice(by: libc::c_int) -> io::Result<()> {
    // SAFETY: takes no pointers; 0 means the calling process.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, by) }).map(drop)
}

/// Makes the calling process the leader of a session of its own, out of reach of its terminal's signals.
pub fn begin_session() -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::setsid() }).map(drop)
}

/// The CPUs that a process may use here, in order: all that are online, but for those that its cpuset leaves out. Whoever
/// has bound this thread has not changed that.
pub fn cpus() -> &'static [usize] {
    static CPUS: OnceLock<Vec<usize>> = OnceLock::new();
    CPUS.get_or_init(|| {
        let ask = || {
            let bound = affinity()?;
            // The only way to ask. What the thread is bound to it is bound to again.
            use_every_cpu()?;
            let all = affinity();
            set_affinity(&bound)?;
            all
        };
        let all = ask().expect("a thread may look at its CPUs");
        // SAFETY: within the set.
        (0..CPU_LIMIT).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &all) }).collect()
    })
}

/// The CPU that a guest has to itself, and those of everything else, of which there is one at least: where there are two
/// CPUs.
pub fn apart() -> Option<(usize, &'static [usize])> {
    let (first, others) = cpus().split_first()?;
    (!others.is_empty()).then_some((*first, others))
}

/// Keeps the calling thread, and what it starts, off the guest's CPU, where there is another.
pub fn leave_the_guests_cpu() -> io::Result<()> {
    let Some((guests, _)) = apart() else { return Ok(()) };
    let mut set = every_cpu();
    // SAFETY: within the set, as it is one of those that were found there.
    unsafe { libc::CPU_CLR(guests, &mut set) };
    set_affinity(&set)
}

/// Lets the calling thread, and what it starts, run on every CPU that there is. Async-signal-safe.
pub fn use_every_cpu() -> io::Result<()> {
    set_affinity(&every_cpu())
}

/// Keeps the calling thread, and what it starts, on CPU `cpu`.
pub fn use_only_cpu(cpu: usize) -> io::Result<()> {
    if cpu >= CPU_LIMIT {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = no_cpu();
    // SAFETY: within the set, as was checked.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    set_affinity(&set)
}

/// The kernel passes over the bits of CPUs that are not there.
fn every_cpu() -> libc::cpu_set_t {
    let mut set = no_cpu();
    for cpu in 0..CPU_LIMIT {
        // SAFETY: the set has CPU_SETSIZE bits.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    set
}

fn no_cpu() -> libc::cpu_set_t {
    // SAFETY: a cpu_set_t is a plain bit mask; all zeroes is the empty one.
    unsafe { std::mem::zeroed() }
}

fn affinity() -> io::Result<libc::cpu_set_t> {
    let mut set = no_cpu();
    // SAFETY: the set is as large as the size says, and 0 means the calling thread.
    check(unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) })?;
    Ok(set)
}

fn set_affinity(set: &libc::cpu_set_t) -> io::Result<()> {
    let set: *const libc::cpu_set_t = set;
    // SAFETY: the set is as large as the size says, and 0 means the calling thread.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set) }).map(drop)
}

/// A thread of another process, stopped while all others of that process go on. It goes on when this is dropped, or when
/// the thread that made this ends.
pub struct StoppedThread(libc::pid_t);

impl StoppedThread {
    /// Stops the thread of `process` that is called `name`. Root is needed.
    ///
    /// # Errors
    /// When there is no such thread, or the kernel refuses.
    pub fn of(process: u32, name: &str) -> io::Result<Self> {
        let threads = std::fs::read_dir(format!("/proc/{process}/task"))?;
        let is_named = |path: &std::path::Path| {
            std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name)
        };
        let path = threads.flatten().map(|entry| entry.path()).find(|path| is_named(path));
        let number = path.and_then(|path| path.file_name()?.to_str()?.parse().ok());
        let thread: libc::pid_t = number.ok_or(io::ErrorKind::NotFound)?;
        let none = std::ptr::null_mut::<libc::c_void>();
        for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
            // SAFETY: requests that take no address of this process.
            if unsafe { libc::ptrace(request, thread, none, none) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: waits for the stop; no status is asked for.
        if unsafe { libc::waitpid(thread, std::ptr::null_mut(), libc::__WALL) } != thread {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(thread))
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: a request that takes no address of this process. A thread that is gone needs none.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, none, none) };
    }
}
