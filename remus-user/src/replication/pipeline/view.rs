//! What others may see of the pipeline.

use std::time::Duration;

use remus_abi::{Epoch, Term};

use super::{Phase, Pipeline, Policy, Rounds, Stream, SyncedFrom};
use crate::{
    replication::{FencedBy, LeaseUntil},
    wire::{Moment, Session},
};

/// How the VM stands; the words of docs/protocol.md.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Standing {
    Waiting,
    Syncing,
    Protected,
    Stalled,
    Unprotected,
    /// The guest has ended; its last checkpoint is on its way, or the goodbye.
    Ending,
    Stopped,
}

impl Pipeline {
    pub fn standing(&self) -> Standing {
        match &self.phase {
            Phase::Waiting => Standing::Waiting,
            Phase::Syncing { .. } => Standing::Syncing,
            Phase::Protected { .. } if self.ending.is_some() => Standing::Ending,
            Phase::Protected { .. } => Standing::Protected,
            Phase::Stalled => Standing::Stalled,
            Phase::Unprotected => Standing::Unprotected,
            Phase::Ending { .. } => Standing::Ending,
            Phase::Stopped(_) => Standing::Stopped,
        }
    }

    /// Whether output may pass without a commit: unprotected, or syncing from there with nothing sealed yet.
    pub fn gate_is_open(&self) -> bool {
        match &self.phase {
            Phase::Unprotected => true,
            Phase::Syncing { rounds, from, .. } => {
                *from == SyncedFrom::Unprotected && *rounds != Rounds::Sealed
            }
            Phase::Waiting
            | Phase::Protected { .. }
            | Phase::Stalled
            | Phase::Ending { .. }
            | Phase::Stopped(_) => false,
        }
    }

    /// Whether the guest has ended on purpose, or is being ended.
    pub fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    pub fn session(&self) -> Option<Session> {
        self.stream().map(|stream| stream.session)
    }

    pub fn in_flight(&self) -> usize {
        self.stream().map_or(0, Stream::len)
    }

    /// How long the oldest checkpoint that is not acked has been on its way.
    pub fn unacked_for(&self, now: Moment) -> Option<Duration> {
        self.stream()?.oldest_seal().map(|sealed| now.since(sealed))
    }

    /// Whether the backup has answered lately: it may be gone otherwise, whatever TCP thinks.
    pub fn lease_holds(&self, now: Moment) -> bool {
        self.lease.holds(now)
    }

    /// Until when the gate may release; `None` before the first answer of the term.
    pub fn lease_until(&self) -> Option<LeaseUntil> {
        self.lease.until()
    }

    pub fn term(&self) -> Term {
        self.term
    }

    pub fn fenced_by(&self) -> FencedBy {
        self.fenced_by
    }

    pub fn open(&self) -> Epoch {
        self.open
    }

    pub fn captured(&self) -> Epoch {
        self.captured
    }

    pub fn acked(&self) -> Epoch {
        self.acked
    }

    pub fn released(&self) -> Epoch {
        self.released
    }
}
