//! The engine's event loop: what is waited for, and how exactly.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    time::Duration,
};

use anyhow::{Context, Result};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Who is readable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(super) enum Source {
    Inbox = 0,
    Machine = 1,
    Gate = 2,
}

/// The descriptors that are waited for, and room for what is found.
pub(super) struct Waiter {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Waiter {
    /// Made on the thread that is to wait.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn new() -> Result<Self> {
        fine_timers()?;
        let epoll = Epoll::new().context("make an epoll instance")?;
        Ok(Self { epoll, events: vec![EpollEvent::default(); 16] })
    }

    /// # Errors
    /// When the kernel refuses.
    pub(super) fn add(&self, source: Source, fd: RawFd) -> Result<()> {
        let event = EpollEvent::new(EventSet::IN, source as u64);
        let added = self.epoll.ctl(ControlOperation::Add, fd, event);
        added.with_context(|| format!("wait for the {source:?}"))
    }

    /// Waits for at most `span`, to the nanosecond (`epoll_wait` counts milliseconds). Returns whether each of the sources
    /// is readable, by its number.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn wait(&mut self, span: Duration) -> Result<[bool; 3]> {
        let span = libc::timespec {
            tv_sec: span.as_secs().cast_signed(),
            tv_nsec: span.subsec_nanos().into(),
        };
        let room = i32::try_from(self.events.len()).expect("a few events");
        // SAFETY: EpollEvent is a transparent epoll_event; the array and the span live during the call.
        let ready = unsafe {
            libc::epoll_pwait2(
                self.epoll.as_raw_fd(),
                self.events.as_mut_ptr().cast(),
                room,
                &raw const span,
                std::ptr::null(),
            )
        };
        let mut readable = [false; 3];
        match usize::try_from(ready) {
            Ok(ready) => {
                for event in &self.events[..ready] {
                    let number = usize::try_from(event.data()).expect("the number of a source");
                    readable[number] = true;
                }
                Ok(readable)
            }
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => Ok(readable),
                e => Err(e).context("wait for events"),
            },
        }
    }
}

/// Timers of this thread fire when they are due, not up to 50 us later.
fn fine_timers() -> Result<()> {
    // SAFETY: a plain value for this thread.
    let result = unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1usize) };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("set the timer slack");
    }
    Ok(())
}
