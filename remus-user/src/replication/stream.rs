//! The checkpoints of one session on their way to the backup.

use std::{collections::VecDeque, fmt};

use remus_abi::{Epoch, Term};

use crate::wire::{Ack, Digest, Instance, Moment, Session};

/// One session's un-acked checkpoints, oldest first.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Stream {
    pub(super) session: Session,
    pub(super) backup: Instance,
    /// The last checkpoint captured for this session; none before the first.
    pub(super) last: Epoch,
    in_flight: VecDeque<InFlight>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct InFlight {
    epoch: Epoch,
    sealed: Moment,
    /// Known once the sender has encoded it.
    digest: Option<Digest>,
}

/// An ack that no honest backup sends on this link: drop the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AckError {
    /// There is no session.
    NoSession,
    OtherSession(Session),
    OtherTerm(Term),
    /// Nothing of the kind was captured, or it was not sent yet.
    NotSent(Epoch),
    /// It commits something else than what was sent.
    Digest(Epoch),
    /// It echoes a moment that has not come yet.
    FromTheFuture,
}

impl Stream {
    pub(super) fn new(session: Session, backup: Instance) -> Self {
        Self { session, backup, last: Epoch::NONE, in_flight: VecDeque::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.in_flight.len()
    }

    /// A checkpoint was captured; returns its predecessor in this session.
    pub(super) fn push(&mut self, epoch: Epoch, sealed: Moment) -> Epoch {
        self.in_flight.push_back(InFlight { epoch, sealed, digest: None });
        std::mem::replace(&mut self.last, epoch)
    }

    pub(super) fn sent(&mut self, epoch: Epoch, digest: Digest) {
        if let Some(flight) = self.in_flight.iter_mut().find(|flight| flight.epoch == epoch) {
            flight.digest = Some(digest);
        }
    }

    /// When the oldest checkpoint that is not acked was sealed.
    pub(super) fn oldest_seal(&self) -> Option<Moment> {
        self.in_flight.front().map(|flight| flight.sealed)
    }

    /// Takes out what `ack` commits, everything before it included, and tells `each` its epoch and when it was sealed.
    /// Returns `false` when all of it was taken out before.
    pub(super) fn handle_ack(
        &mut self,
        now: Moment,
        term: Term,
        ack: &Ack,
        mut each: impl FnMut(Epoch, Moment),
    ) -> Result<bool, AckError> {
        let Ack { session, term: ack_term, epoch, digest, sent } = *ack;
        if ack_term != term {
            return Err(AckError::OtherTerm(ack_term));
        }
        if session != self.session {
            return Err(AckError::OtherSession(session));
        }
        if sent > now {
            return Err(AckError::FromTheFuture);
        }
        let Some(at) = self.in_flight.iter().position(|flight| flight.epoch == epoch) else {
            let known = epoch <= self.last
                && self.in_flight.front().is_none_or(|first| epoch < first.epoch);
            return if known { Ok(false) } else { Err(AckError::NotSent(epoch)) };
        };
        match self.in_flight[at].digest {
            None => Err(AckError::NotSent(epoch)),
            Some(ours) if ours != digest => Err(AckError::Digest(epoch)),
            Some(_) => {
                self.in_flight.drain(..=at).for_each(|flight| each(flight.epoch, flight.sealed));
                Ok(true)
            }
        }
    }
}

impl fmt::Display for AckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSession => f.write_str("a commit ack while there is no session"),
            Self::OtherSession(session) => write!(f, "a commit ack of another session, {session}"),
            Self::OtherTerm(term) => write!(f, "a commit ack of another term, {term}"),
            Self::NotSent(epoch) => write!(f, "a commit ack of epoch {epoch}, which was not sent"),
            Self::Digest(epoch) => {
                write!(f, "epoch {epoch} was acked with another digest than it has")
            }
            Self::FromTheFuture => f.write_str("a commit ack that echoes a moment yet to come"),
        }
    }
}

impl std::error::Error for AckError {}
