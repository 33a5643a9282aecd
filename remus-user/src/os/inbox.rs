//! A channel whose receiver sleeps in an event loop: what is sent also rings an eventfd.

use std::{
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The receiving end, for one thread. Its descriptor is readable when something was sent.
pub(crate) struct Inbox<T> {
    inputs: Receiver<T>,
    /// The input that was waited for, and is not taken yet.
    first: Option<T>,
    bell: Arc<EventFd>,
}

/// The sending end, for as many threads as want one.
pub(crate) struct Post<T> {
    inputs: Sender<T>,
    bell: Arc<EventFd>,
}

/// # Errors
/// When no descriptor is free.
pub(crate) fn inbox<T>() -> Result<(Inbox<T>, Post<T>)> {
    let bell = Arc::new(EventFd::new(EFD_NONBLOCK).context("make an eventfd")?);
    let (sender, receiver) = mpsc::channel();
    Ok((
        Inbox { inputs: receiver, first: None, bell: Arc::clone(&bell) },
        Post { inputs: sender, bell },
    ))
}

impl<T> Inbox<T> {
    /// The next input, if there is one.
    pub(crate) fn next(&mut self) -> Option<T> {
        self.first.take().or_else(|| self.inputs.try_recv().ok())
    }

    /// Waits until there is an input, for `within` at most.
    pub(crate) fn wait(&mut self, within: Duration) {
        if self.first.is_none() {
            self.first = self.inputs.recv_timeout(within).ok();
        }
    }

    /// The input that was waited for, which [`next`](Self::next) takes later.
    pub(crate) fn peek(&self) -> Option<&T> {
        self.first.as_ref()
    }

    /// Takes the rings so far. Call this before the inputs are taken: an input that is sent meanwhile rings again.
    pub(crate) fn quiet(&self) {
        // An empty counter is an error of a non-blocking eventfd: nobody rang.
        self.bell.read().ok();
    }
}

impl<T> AsRawFd for Inbox<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
}

impl<T> Post<T> {
    /// Sends `input`. Once the receiver is gone nobody is told.
    pub(crate) fn send(&self, input: T) {
        if self.inputs.send(input).is_ok() {
            // Only a counter at its limit refuses, and then the receiver is rung for already.
            self.bell.write(1).ok();
        }
    }
}

impl<T> Clone for Post<T> {
    fn clone(&self) -> Self {
        Self { inputs: self.inputs.clone(), bell: Arc::clone(&self.bell) }
    }
}
