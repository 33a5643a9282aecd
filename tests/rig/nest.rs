//! Containment: the rig runs as the init of a PID namespace, with mounts and a network of its own.
//!
//! ```text
//! outer  what the user started: waits, and turns Ctrl-C into the end of the inner one
//!   inner  PID 1 of a new PID namespace; SIGKILLed by the kernel when the outer one is gone
//!     every process of every host
//! ```
//!
//! However the outer process ends, the kernel ends the inner one, and with an init the kernel ends its whole
//! PID namespace; namespaces and mounts have no names, so they go with the last process. Nothing is left to
//! tidy up, hence nothing does.

use std::{
    fs,
    io::{self, PipeReader, PipeWriter},
    os::{
        fd::{AsRawFd, RawFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Child, Command, ExitCode},
    sync::atomic::{AtomicI32, AtomicU32, Ordering},
};

use anyhow::{Context, Result};

use crate::sys;

/// Set in the inner process's environment: our PID as processes outside see it.
const INNER: &str = "REMUS_RIG_INNER";

/// In the outer process: starts the inner one, which runs this same command line, and returns its exit
/// code. In the inner process: `None`, after the last preparations.
pub fn enter() -> Result<Option<ExitCode>> {
    if std::env::var_os(INNER).is_some() {
        settle().context(
            "prepare the rig's namespaces (in a chroot its root must be a mount point, or mounts would \
             escape: mount --bind ROOT ROOT before entering it)",
        )?;
        return Ok(None);
    }
    let myself = fs::read_link("/proc/self/exe").context("find the rig's own file")?;
    let (reader, writer) = io::pipe().context("make a pipe")?;
    let mut command = Command::new(myself);
    command.args(std::env::args_os().skip(1)).env(INNER, "1");
    // The next child is the init of a new namespace.
    sys::unshare(libc::CLONE_NEWPID)
        .context("make a PID namespace (the rig needs root: start it through `cargo xtask run`)")?;
    let child = spawn(&mut command, &reader, &writer).context("start the rig's inner process")?;
    Ok(Some(wait(child)?))
}

fn spawn(command: &mut Command, reader: &PipeReader, writer: &PipeWriter) -> io::Result<Child> {
    let (reader, writer) = (reader.as_raw_fd(), writer.as_raw_fd());
    let isolate = move || {
        sys::die_with_parent(libc::SIGKILL)?;
        if parent_is_gone(reader, writer) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWNET)
    };
    // SAFETY: between fork and exec the closure makes system calls only; it neither allocates nor locks.
    unsafe { command.pre_exec(isolate) };
    command.spawn()
}

/// Whether the parent ended before we asked to end with it: then nobody else holds the pipe's writing end.
fn parent_is_gone(reader: RawFd, writer: RawFd) -> bool {
    let mut poll = libc::pollfd { fd: reader, events: 0, revents: 0 };
    // SAFETY: closes our copy of the descriptor, which this process does not use again before exec.
    unsafe { libc::close(writer) };
    // SAFETY: one pollfd is passed, and it may be written.
    unsafe { libc::poll(&raw mut poll, 1, 0) };
    poll.revents & libc::POLLHUP != 0
}

/// The inner process's own preparations.
fn settle() -> io::Result<()> {
    // The old /proc is still there, and shows us under the PID that others know us by.
    let known_as = fs::read_link("/proc/self")?;
    let known_as = known_as.to_string_lossy().parse().map_err(io::Error::other)?;
    OUTSIDE_PID.store(known_as, Ordering::Relaxed);
    sys::make_mounts_private()?;
    sys::mount(c"proc", c"/proc")
}

static OUTSIDE_PID: AtomicU32 = AtomicU32::new(0);

/// Our PID as processes outside the nest know it; `None` outside of a nest.
pub fn outside_pid() -> Option<u32> {
    Some(OUTSIDE_PID.load(Ordering::Relaxed)).filter(|&pid| pid != 0)
}

/// The inner process, for the signal handler.
static INNER_PID: AtomicI32 = AtomicI32::new(0);
/// The signal that asked us to end, or 0.
static ENDED_BY: AtomicI32 = AtomicI32::new(0);

/// Waits for the inner process. A signal that asks us to end kills it first, so that everything is gone when
/// we return.
fn wait(mut child: Child) -> Result<ExitCode> {
    INNER_PID.store(child.id().cast_signed(), Ordering::SeqCst);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let handler: extern "C" fn(libc::c_int) = end_inner;
        // SAFETY: the handler is async-signal-safe: it reads an atomic and calls kill(2).
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
    let status = child.wait().context("wait for the rig's inner process")?;
    let asked = ENDED_BY.load(Ordering::SeqCst);
    if asked != 0 {
        eprintln!("\nrig: ended; nothing of it is left");
        return Ok(ExitCode::from(128 + u8::try_from(asked).unwrap_or(0)));
    }
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    Ok(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

extern "C" fn end_inner(signal: libc::c_int) {
    ENDED_BY.store(signal, Ordering::SeqCst);
    let pid = INNER_PID.load(Ordering::SeqCst);
    // SAFETY: takes no pointers; the PID is our child's, and until it is reaped nobody else can have it.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}
