//! What the other threads tell the engine, and how they wake it.

use std::{
    net::TcpStream,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use remus_abi::Epoch;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::sender::Shipment;
use crate::wire::{Ack, Ancestry, Digest, Moment, Refusal, Session, Welcome};

/// Everything that happens to the engine from outside its own devices.
pub(crate) enum Input {
    /// A backup has welcomed a session; its bulk connection.
    Connected { session: Session, welcome: Welcome, bulk: TcpStream },
    /// One of the session's connections is gone.
    Lost { session: Session, why: String },
    /// No session could be made; the reason for people, and tried again.
    NoSession { why: String },
    /// The backup refused a session, for now; what it said is for people. The terms that it has heard of.
    Refused { why: Refusal, text: String, ancestry: Ancestry },
    /// What a takeover by the backup lacks, in words; nothing when they are empty.
    BackupLacks { what: String },
    /// The backup answered a heartbeat that was sent at this moment.
    Answered { session: Session, sent: Moment },
    /// The sender has a checkpoint ready to send, with this digest; said before its last byte leaves.
    Encoded { session: Session, epoch: Epoch, digest: Digest },
    /// The backup has committed a checkpoint.
    Acked(Ack),
    /// The sender has dealt with a shipment.
    Shipped(Box<Shipment>),
    /// Another host speaks for the guest, in the newest of these terms: the word of that host.
    StandDown { ancestry: Ancestry },
    /// A host that speaks at this moment is in a split with this one, in words.
    Split { text: String },
    /// The backup has taken the goodbye, or there is none to take it.
    GoodbyeSaid,
    /// The operator ends the guest.
    Stop,
}

/// The engine's end.
pub(crate) struct Inbox {
    inputs: Receiver<Input>,
    /// Looked at, and not taken.
    first: Option<Input>,
    bell: Arc<EventFd>,
}

/// Everybody else's end.
#[derive(Clone)]
pub(crate) struct Post {
    inputs: Sender<Input>,
    bell: Arc<EventFd>,
}

pub(crate) fn inbox() -> Result<(Inbox, Post)> {
    let bell = Arc::new(EventFd::new(EFD_NONBLOCK).context("make an eventfd")?);
    let (sender, receiver) = mpsc::channel();
    Ok((
        Inbox { inputs: receiver, first: None, bell: Arc::clone(&bell) },
        Post { inputs: sender, bell },
    ))
}

impl Inbox {
    /// The next input, if there is one. Rings are taken first: an input posted meanwhile rings again.
    pub(super) fn next(&mut self) -> Option<Input> {
        self.first.take().or_else(|| self.inputs.try_recv().ok())
    }

    /// Waits until there is an input, at most for so long.
    pub(super) fn wait(&mut self, within: Duration) {
        if self.first.is_none() {
            self.first = self.inputs.recv_timeout(within).ok();
        }
    }

    /// The input that was waited for, which [`next`](Self::next) takes later.
    pub(super) fn peek(&self) -> Option<&Input> {
        self.first.as_ref()
    }

    /// Takes the rings so far; to be called before the inputs are taken.
    pub(super) fn quiet(&self) {
        // An empty counter is an error of a non-blocking eventfd: nobody rang.
        self.bell.read().ok();
    }
}

impl AsRawFd for Inbox {
    fn as_raw_fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
}

impl Post {
    /// Tells the engine. Once the engine is gone there is nobody to tell.
    pub(crate) fn send(&self, input: Input) {
        if self.inputs.send(input).is_ok() {
            // Only a counter at its limit refuses, and then the engine is rung for already.
            self.bell.write(1).ok();
        }
    }
}
