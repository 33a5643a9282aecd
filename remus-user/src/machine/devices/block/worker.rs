//! The thread of a disk.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};

use super::super::parking::Parking;
use super::super::port::Port;
use super::device::{Next, Work};
use super::{Block, Disk};
use crate::os::run_on;

/// A disk's thread. It ends at the first turn that it is not given, after [`Parking::shut`]; nobody waits for it,
/// since it may be in a system call that takes its time, and touches nothing of the machine's after that.
pub(in crate::machine) struct Worker {
    port: Arc<Port<Block>>,
    disk: Arc<Disk>,
    parking: Arc<Parking>,
}

impl Worker {
    /// Starts the thread of a disk that is served by `port`, on these host CPUs, in turns that `parking` gives.
    ///
    /// # Errors
    /// When a thread cannot be had.
    pub(in crate::machine) fn start(
        number: usize,
        cpus: &[u32],
        port: Arc<Port<Block>>,
        disk: Arc<Disk>,
        parking: Arc<Parking>,
    ) -> Result<()> {
        let worker = Self { port, disk, parking };
        let cpus = cpus.to_vec();
        let run = move || {
            if let Err(e) = run_on(&cpus) {
                tracing::warn!(
                    "the thread of disk {number} runs on any host CPU: {cpus:?} refuse it: {e}"
                );
            }
            if let Err(e) = worker.run() {
                tracing::error!("disk {}: it is served no more: {e:#}", worker.disk.shape.path);
            }
        };
        let thread = thread::Builder::new().name(format!("disk{number}")).spawn(run);
        thread.map(drop).context("start a disk's thread")
    }

    fn run(&self) -> Result<()> {
        let mut work = Work::new();
        loop {
            let next = {
                let Some(_turn) = self.parking.enter() else { return Ok(()) };
                let Self { port, .. } = self;
                port.lock().turn(&mut work, port.ram(), port.interrupt())?
            };
            match next {
                Next::Perform => work.perform(&self.disk),
                Next::Again => {}
                Next::Wait => self.wait().context("wait for the doorbell")?,
            }
        }
    }

    fn wait(&self) -> io::Result<()> {
        let doorbell = self.port.doorbell(0);
        let mut ready = libc::pollfd { fd: doorbell.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, alive during the call.
        if unsafe { libc::poll(&raw mut ready, 1, -1) } < 0 {
            let e = io::Error::last_os_error();
            return if e.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(e) };
        }
        // Cleared before the queue is looked at, lest a ring in between be lost.
        doorbell.read().ok();
        Ok(())
    }
}
