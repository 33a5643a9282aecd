//! What signals do to a process that holds a guest or a gate. The table for operators is in docs/operating.md.
//!
//! SIGTERM and SIGINT ask for an orderly end. Every thread has them blocked, and the task that can end the guest reads
//! them from a descriptor ([`Ends`]). So they interrupt no system call of another thread, and a signal that comes during
//! the start waits until there is something to end.
//!
//! Every other signal that would end or stop the process is ignored, unless it may come from a fault of the process
//! itself: a terminal that hangs up, a key that was meant for the guest (Ctrl-Z, Ctrl-\ beside Ctrl-]), a limit that turns
//! a write into an error, a timer that nobody has set. A backup is there for the death of a host, and none of these is
//! the death of a host.
//!
//! These are left as they are: SIGKILL and SIGSTOP, which cannot be changed; SIGABRT, for a core dump; faults (SIGSEGV,
//! SIGBUS, SIGILL, SIGFPE, SIGSYS, SIGTRAP); and what does nothing by itself (SIGCHLD, SIGCONT, SIGURG, SIGWINCH). The
//! first of the real-time signals takes vCPUs out of the guest (`machine/vcpu.rs`), and is harmless whoever sends it.

use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::{FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use tokio::io::{Interest, unix::AsyncFd};

/// Signals that are ignored, beside the real-time signals.
const IGNORED: [libc::c_int; 16] = [
    // A terminal hangs up, or somebody types a key.
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    // A write goes to what is gone, or beyond a limit: the write fails instead.
    libc::SIGPIPE,
    libc::SIGXFSZ,
    // CPU time is beyond the soft limit; the hard limit still kills.
    libc::SIGXCPU,
    // Timers and input that this process has not asked for.
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    // These mean nothing here.
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGPWR,
    libc::SIGSTKFLT,
];

/// Sets what signals do from here on. Call it before the process has another thread.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn settle() -> Result<()> {
    mask(libc::SIG_BLOCK, &ends()).context("block signals")?;
    for signal in IGNORED.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        // SAFETY: no handler.
        if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("ignore signal {signal}"));
        }
    }
    Ok(())
}

/// Does `work`, during which SIGTERM and SIGINT end the process at once. This is for work before there is a guest, which
/// may wait for a file for ever and leaves nothing behind.
pub(crate) fn interruptible<T>(work: impl FnOnce() -> T) -> T {
    let ends = ends();
    // A mask that cannot be changed delays an end; `Ends` reports that the kernel refuses.
    mask(libc::SIG_UNBLOCK, &ends).ok();
    let done = work();
    mask(libc::SIG_BLOCK, &ends).ok();
    done
}

/// Returns whether an end in order has been asked for, and nobody has taken note of it yet.
pub(crate) fn end_is_asked_for() -> bool {
    let mut pending = empty();
    // SAFETY: a set that lives during the call.
    if unsafe { libc::sigpending(&raw mut pending) } != 0 {
        return false;
    }
    // SAFETY: a whole set, and signals that there are.
    [libc::SIGTERM, libc::SIGINT]
        .iter()
        .any(|s| unsafe { libc::sigismember(&raw const pending, *s) } == 1)
}

/// The requests for an orderly end, one after another.
pub(crate) struct Ends(AsyncFd<OwnedFd>);

impl Ends {
    /// Receives every request since the beginning of the process. Call it within the runtime.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn new() -> Result<Self> {
        let ends = ends();
        mask(libc::SIG_BLOCK, &ends).context("block signals")?;
        // SAFETY: no descriptor yet, and a whole set.
        let fd =
            unsafe { libc::signalfd(-1, &raw const ends, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("wait for SIGTERM");
        }
        // SAFETY: a new descriptor that nobody else has.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an OwnedFd is open, and the same descriptor, for as long as the AsyncFd has it.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(Self(fd.context("wait for SIGTERM")?))
    }

    /// Waits for the next request. May be cancelled.
    pub(crate) async fn next(&mut self) {
        loop {
            // An error means that the runtime ends, and this task with it.
            let Ok(mut ready) = self.0.readable_mut().await else {
                return std::future::pending().await;
            };
            if ready.try_io(|fd| read(fd.get_ref())).is_ok_and(|read| read.is_ok()) {
                return;
            }
        }
    }
}

fn read(fd: &OwnedFd) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
    let size = size_of_val(&info);
    // SAFETY: as much room as is said, alive during the call.
    match unsafe { libc::read(fd.as_raw_fd(), info.as_mut_ptr().cast(), size) } {
        1.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the signals that ask for an end: SIGTERM, and SIGINT where it was not ignored before. What a script starts
/// with `&` ignores SIGINT, since Ctrl-C is meant for the script.
fn ends() -> libc::sigset_t {
    let mut set = empty();
    // SAFETY: a whole set, and a signal that there is.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGTERM) };
    // SAFETY: sigaction is plain data.
    let mut interrupt: libc::sigaction = unsafe { zeroed() };
    // SAFETY: nothing is changed; a place for the answer that lives during the call.
    let asked = unsafe { libc::sigaction(libc::SIGINT, std::ptr::null(), &raw mut interrupt) };
    if asked != 0 || interrupt.sa_sigaction != libc::SIG_IGN {
        // SAFETY: as above.
        unsafe { libc::sigaddset(&raw mut set, libc::SIGINT) };
    }
    set
}

fn empty() -> libc::sigset_t {
    // SAFETY: plain data.
    let mut set: libc::sigset_t = unsafe { zeroed() };
    // SAFETY: a place for a set.
    unsafe { libc::sigemptyset(&raw mut set) };
    set
}

/// Blocks or unblocks `signals` in this thread and in those that it starts from now on.
fn mask(how: libc::c_int, signals: &libc::sigset_t) -> io::Result<()> {
    let signals: *const libc::sigset_t = signals;
    // SAFETY: a whole set; the old one is not asked for.
    match unsafe { libc::pthread_sigmask(how, signals, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
