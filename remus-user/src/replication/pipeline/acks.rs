//! What the backup says of checkpoints and heartbeats, and what the gate may do for it.

use std::time::Duration;

use remus_abi::{Epoch, Stamp};

use super::{Acked, Committed, Phase, Pipeline};
use crate::{
    replication::{LeaseUntil, lease::LeaseError, stream::AckError},
    wire::{Ack, Digest, Moment, Session},
};

impl Pipeline {
    /// The sender has encoded a checkpoint. Must be said before its `End` is written to the link, or the ack
    /// could overtake it. Ignored for a session that is over.
    pub fn handle_sent(&mut self, session: Session, epoch: Epoch, digest: Digest) {
        match self.stream_mut() {
            Some(stream) if stream.session == session => stream.sent(epoch, digest),
            Some(_) | None => {}
        }
    }

    /// A commit ack. Returns what the gate may do now, or `None` when the ack says nothing new. `each` is told of every
    /// checkpoint that the ack commits, oldest first, with the time since its seal.
    ///
    /// # Errors
    /// [`AckError`]: drop the session; nothing is committed by it.
    pub fn handle_ack(
        &mut self,
        now: Moment,
        ack: &Ack,
        mut each: impl FnMut(Stamp, Duration),
    ) -> Result<Option<Acked>, AckError> {
        let term = self.term;
        let stream = self.stream_mut().ok_or(AckError::NoSession)?;
        let mut sealed_at = None;
        let is_news = stream.handle_ack(now, term, ack, |epoch, sealed| {
            each(Stamp::new(term, epoch), now.since(sealed));
            sealed_at = Some(sealed);
        })?;
        if !is_news {
            return Ok(None);
        }
        (self.acked, self.acked_sealed) = (ack.epoch, sealed_at);
        self.change(|phase| match phase {
            Phase::Syncing { stream, rounds: _, from: _ } => Phase::Protected { stream },
            other => other,
        });
        self.lease.handle_answer(now, term, ack.sent).map_err(|_| AckError::FromTheFuture)?;
        self.check_invariants();
        let committed = Committed { stamp: Stamp::new(term, self.acked) };
        Ok(Some(Acked { committed, lease_until: self.lease.until() }))
    }

    /// The backup answered a heartbeat of `session` that was sent at `sent`. Returns until when the gate may release, or
    /// `None` when the session is over.
    ///
    /// # Errors
    /// [`LeaseError`]: drop the session.
    pub fn handle_answer(
        &mut self,
        now: Moment,
        session: Session,
        sent: Moment,
    ) -> Result<Option<LeaseUntil>, LeaseError> {
        if self.session() != Some(session) {
            return Ok(None);
        }
        self.lease.handle_answer(now, self.term, sent)?;
        Ok(self.lease.until())
    }

    /// Whether the gate holds output that is committed.
    pub fn wants_flush(&self) -> bool {
        self.released < self.acked
    }

    /// All that is committed has left the gate. Returns the newest checkpoint whose output that was, and the time since
    /// its seal; `None` when nothing new has left.
    pub fn handle_flushed(&mut self, now: Moment) -> Option<(Stamp, Duration)> {
        if !self.wants_flush() {
            return None;
        }
        self.released = self.acked;
        self.check_invariants();
        let sealed = self.acked_sealed?;
        Some((Stamp::new(self.term, self.released), now.since(sealed)))
    }
}
