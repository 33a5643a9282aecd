//! The primary's brain.
//!
//! Invariants, asserted after every mutation, in release builds too:
//!
//! ```text
//! released <= acked <= captured < open        each only grows within a term
//! checkpoints in flight <= depth
//! ```
//!
//! ```text
//!            handle_welcome          first ack               handle_end, last seal
//!  Waiting ───────────────► Syncing ───────────► Protected ───────────────────► Ending ──► Stopped
//!     ▲                      │   ▲                   │ handle_session_lost
//!     └── session lost ──────┘   └──── Stalled ◄─────┘
//!                                         │ run_unprotected(Fenced)
//!                                         └──► Unprotected ──► Syncing ..      anything ── newer term ──► Stopped
//! ```
//!
//! The pipeline is the only one that books a checkpoint's life: when it was sealed, what it is called on the wire,
//! whether it is acked and released. It also holds the release lease of its term, the end of the guest, and the standing
//! down for another host.
//!
//! Deliberately absent: partial resync (every session begins with all of RAM), and everything that acts: the pipeline
//! says what may be done, and the engine does it.

mod acks;
mod end;
mod line;
mod permission;
mod refusal;
mod view;

use std::time::Duration;

use remus_abi::{Epoch, Stamp, Term};

pub use self::{
    end::Stopped,
    permission::{Acked, Committed, Sealed},
    refusal::SessionError,
    view::Standing,
};
use self::{
    end::{Ending, Stop},
    line::Line,
};
use super::{
    ancestry::{Relation, judge},
    cadence::{Cadence, Due, Seen, Tempo},
    fenced::{Fenced, FencedBy},
    lease::PrimaryLease,
    next_epoch::NextEpoch,
    stream::Stream,
};
use crate::wire::{Instance, Moment, Session, Timing, Welcome};

/// How the pipeline is to work.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Policy {
    /// How long epochs last.
    pub tempo: Tempo,
    /// Most un-acked checkpoints; at least 1, and 2 or more to overlap sending with running.
    pub depth: usize,
    /// The live sync ends when at most this many pages are left: a pause can take them.
    pub sync_pages_max: usize,
    /// The live sync ends after this many rounds at the latest, however many pages are left then.
    pub sync_rounds_max: u32,
    /// How long an answer of the backup lets the gate release.
    pub lease: Duration,
}

/// The primary's brain.
///
/// Call order, in the engine's loop:
/// 1. events: [`handle_welcome`](Self::handle_welcome), [`handle_sync_round`](Self::handle_sync_round),
///    [`handle_sent`](Self::handle_sent), [`handle_ack`](Self::handle_ack) and [`handle_answer`](Self::handle_answer) (give
///    the gate what they return), [`handle_flushed`](Self::handle_flushed),
///    [`handle_output_waiting`](Self::handle_output_waiting), [`handle_session_lost`](Self::handle_session_lost),
///    [`handle_newer_term`](Self::handle_newer_term), [`handle_refused`](Self::handle_refused),
///    [`handle_end`](Self::handle_end)
/// 2. [`poll_seal`](Self::poll_seal); on [`SealWhen::Now`] pause, [`seal`](Self::seal), capture, resume
/// 3. [`poll_goodbye`](Self::poll_goodbye), [`poll_stopped`](Self::poll_stopped)
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pipeline {
    term: Term,
    line: Line,
    fenced_by: FencedBy,
    open: Epoch,
    captured: Epoch,
    acked: Epoch,
    released: Epoch,
    /// When the newest acked checkpoint was sealed.
    acked_sealed: Option<Moment>,
    /// The backup that may hold a checkpoint of this term. No other is taken: it could be promoted beside us.
    bound: Option<Instance>,
    lease: PrimaryLease,
    ending: Option<Ending>,
    cadence: Cadence,
    policy: Policy,
    phase: Phase,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Phase {
    Waiting,
    Syncing {
        stream: Stream,
        rounds: Rounds,
        from: SyncedFrom,
    },
    Protected {
        stream: Stream,
    },
    Stalled,
    Unprotected,
    /// The guest has ended, and its last checkpoint is captured.
    Ending {
        stream: Stream,
    },
    Stopped(Stop),
}

/// Where a sync came from, and falls back to while nothing of it can be committed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum SyncedFrom {
    Waiting,
    Stalled,
    Unprotected,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Rounds {
    /// This many rounds of pre-copy were sent.
    Live(u32),
    /// The next pause takes the rest.
    Ready,
    /// The first checkpoint is on its way: output is held from here on.
    Sealed,
}

/// When the open epoch should be sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SealWhen {
    Now,
    /// See first what the guest does: [`Pipeline::handle_look`].
    Look,
    At(Moment),
    /// Not before something else happens: an ack, a session, a round of the sync.
    NotYet,
}

/// After a round of the live sync.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SyncNext {
    /// Send what was dirtied meanwhile.
    Round,
    /// Seal: the rest fits in a pause.
    Seal,
}

impl Policy {
    pub fn new(timing: &Timing) -> Self {
        Self {
            tempo: Tempo::new(timing),
            depth: 2,
            sync_pages_max: 2048,
            sync_rounds_max: 8,
            lease: timing.lease,
        }
    }
}

impl Pipeline {
    /// A guest that starts with its gate shut, and waits for a backup.
    pub fn start_shut(fenced: Fenced, policy: Policy, now: Moment) -> Self {
        Self::new(fenced, policy, now, Phase::Waiting)
    }

    /// A guest that starts, or goes on after a takeover, with its gate open.
    pub fn start_unprotected(fenced: Fenced, policy: Policy, now: Moment) -> Self {
        Self::new(fenced, policy, now, Phase::Unprotected)
    }

    fn new(fenced: Fenced, policy: Policy, now: Moment, phase: Phase) -> Self {
        assert!(policy.depth >= 1, "a pipeline of no depth seals nothing");
        Self {
            term: fenced.term(),
            line: Line::default(),
            fenced_by: fenced.by(),
            open: Epoch::FIRST,
            captured: Epoch::NONE,
            acked: Epoch::NONE,
            released: Epoch::NONE,
            acked_sealed: None,
            bound: None,
            lease: PrimaryLease::new(fenced.term(), policy.lease),
            ending: None,
            cadence: Cadence::new(policy.tempo, now),
            policy,
            phase,
        }
        .checked()
    }

    /// The backup took the session that `asked` for it. All of RAM is owed now: begin the live sync.
    ///
    /// # Errors
    /// [`SessionError`]: drop the links.
    pub fn handle_welcome(
        &mut self,
        asked: Session,
        welcome: &Welcome,
    ) -> Result<(), SessionError> {
        let Welcome { session, features: _, backup, ref ancestry } = *welcome;
        if session != asked {
            return Err(SessionError::OtherSession(session));
        }
        let theirs = ancestry.newest().unwrap_or(self.id());
        match judge(&self.line.with(self.term), ancestry) {
            Relation::Same | Relation::Ancestor => {}
            Relation::Descendant => {
                self.fall_silent();
                return Err(SessionError::NewerTerm(theirs));
            }
            Relation::Split => {
                self.fall_silent();
                return Err(SessionError::Split { ours: self.id(), theirs });
            }
        }
        let from = match &self.phase {
            Phase::Waiting => SyncedFrom::Waiting,
            Phase::Stalled => SyncedFrom::Stalled,
            Phase::Unprotected => SyncedFrom::Unprotected,
            Phase::Syncing { .. }
            | Phase::Protected { .. }
            | Phase::Ending { .. }
            | Phase::Stopped(_) => {
                return Err(SessionError::NotNow);
            }
        };
        if let Some(bound) = self.bound.filter(|bound| *bound != backup) {
            return Err(SessionError::OtherBackup { bound });
        }
        let stream = Stream::new(session, backup);
        self.phase = Phase::Syncing { stream, rounds: Rounds::Live(0), from };
        self.line.speak(self.term);
        self.check_invariants();
        Ok(())
    }

    /// A round of the live sync was sent, and `left` pages were dirtied meanwhile.
    pub fn handle_sync_round(&mut self, left: usize) -> SyncNext {
        let Phase::Syncing { rounds, .. } = &mut self.phase else { return SyncNext::Seal };
        match rounds {
            Rounds::Live(sent) => {
                *sent += 1;
                if left > self.policy.sync_pages_max && *sent < self.policy.sync_rounds_max {
                    return SyncNext::Round;
                }
                *rounds = Rounds::Ready;
                SyncNext::Seal
            }
            Rounds::Ready | Rounds::Sealed => SyncNext::Seal,
        }
    }

    /// When to seal the open epoch.
    pub fn poll_seal(&self, now: Moment) -> SealWhen {
        let stream = match &self.phase {
            Phase::Syncing { rounds: Rounds::Live(_), .. } => return SealWhen::NotYet,
            Phase::Syncing { rounds: Rounds::Ready, .. } => return SealWhen::Now,
            Phase::Syncing { stream, rounds: Rounds::Sealed, .. } | Phase::Protected { stream } => {
                stream
            }
            Phase::Waiting
            | Phase::Stalled
            | Phase::Unprotected
            | Phase::Ending { .. }
            | Phase::Stopped(_) => {
                return SealWhen::NotYet;
            }
        };
        if stream.len() >= self.policy.depth {
            return SealWhen::NotYet;
        }
        if self.ending.is_some() {
            return SealWhen::Now;
        }
        match self.cadence.poll(now, stream.len() > 0) {
            Due::Seal => SealWhen::Now,
            Due::Look => SealWhen::Look,
            Due::At(when) => SealWhen::At(when),
        }
    }

    /// The guest is paused: its open epoch ends here.
    ///
    /// # Panics
    /// When there is no session to seal for, or the pipeline is full: [`poll_seal`](Self::poll_seal) said so.
    pub fn seal(&mut self, now: Moment) -> Sealed {
        let depth = self.policy.depth;
        let (stream, is_first) = match &mut self.phase {
            Phase::Syncing { stream, rounds, .. } => {
                let is_first = *rounds == Rounds::Ready;
                assert!(
                    is_first || *rounds == Rounds::Sealed,
                    "sealed in the middle of a live sync"
                );
                *rounds = Rounds::Sealed;
                (stream, is_first)
            }
            Phase::Protected { stream } => (stream, false),
            Phase::Waiting
            | Phase::Stalled
            | Phase::Unprotected
            | Phase::Ending { .. }
            | Phase::Stopped(_) => {
                panic!("sealed without a session")
            }
        };
        assert!(stream.len() < depth, "sealed into a full pipeline");
        // From here on the backup may come to hold a checkpoint of this term.
        self.bound = Some(stream.backup);
        let (session, epoch) = (stream.session, self.open);
        let predecessor = stream.push(epoch, now);
        self.captured = epoch;
        self.open = epoch.next();
        self.cadence.handle_sealed(now);
        if self.ending.is_some() {
            // What the guest said last is in this checkpoint.
            self.change(|phase| match phase {
                Phase::Protected { stream } => Phase::Ending { stream },
                other => other,
            });
        }
        self.check_invariants();
        let checkpoint = Stamp::new(self.term, epoch);
        Sealed {
            session,
            checkpoint,
            predecessor,
            next: NextEpoch::after_seal(Stamp::new(self.term, self.open), is_first),
        }
    }

    /// Output of the open epoch began to wait in the gate.
    pub fn handle_output_waiting(&mut self, now: Moment) {
        self.cadence.handle_output(now);
    }

    /// Takes what was seen after [`SealWhen::Look`]: `pages` are dirty now, and the guest is at work in this epoch, or not.
    pub fn handle_look(&mut self, now: Moment, pages: usize, works: bool) {
        self.cadence.handle_look(now, pages, works);
    }

    /// What was seen of the epoch that was sealed.
    pub fn handle_seen(&mut self, seen: Seen) {
        self.cadence.handle_seen(seen);
    }

    /// The sender found `pages` of a checkpoint changed.
    pub fn handle_changed(&mut self, pages: usize) {
        self.cadence.handle_changed(pages);
    }

    /// The gate is filling up: seal as soon as the pipeline has room.
    pub fn handle_gate_filling(&mut self, now: Moment) {
        self.cadence.handle_filling(now);
    }

    /// The session is over, for whatever reason; its links are or will be closed. Every page on its way is owed
    /// again ([`DirtyBook::put_back`](crate::checkpoint::DirtyBook::put_back)). The gate stays shut on what waits.
    pub fn handle_session_lost(&mut self) {
        let has_ended = self.ending.is_some();
        self.change(|phase| match phase {
            // A guest that has ended has nothing more to say, and what it said and nobody committed is not said.
            Phase::Ending { .. } | Phase::Protected { .. } if has_ended => {
                Phase::Stopped(Stop::Ended)
            }
            // Its first checkpoint may be committed although the ack was lost, so an open gate is not opened again.
            Phase::Syncing { rounds: Rounds::Sealed, from: SyncedFrom::Unprotected, .. } => {
                Phase::Stalled
            }
            Phase::Syncing { from: SyncedFrom::Unprotected, .. } => Phase::Unprotected,
            Phase::Syncing { from: SyncedFrom::Waiting, .. } => Phase::Waiting,
            Phase::Syncing { from: SyncedFrom::Stalled, .. } | Phase::Protected { .. } => {
                Phase::Stalled
            }
            other => other,
        });
        self.check_invariants();
    }

    /// The guest goes on with an open gate, in a term of its own, and may take any backup. The caller discards
    /// nothing: what waits in the gate was said by the guest that goes on.
    ///
    /// The lease of the old term is over with it. `policy` is that of sessions with the next backup.
    ///
    /// # Panics
    /// When the permission is not for a newer term, or the guest has ended.
    pub fn run_unprotected(&mut self, fenced: Fenced, policy: Policy, now: Moment) {
        assert!(fenced.term() > self.term, "going on unprotected takes a newer term");
        assert!(
            self.ending.is_none() && !matches!(self.phase, Phase::Stopped(_)),
            "the guest has ended"
        );
        let line = std::mem::take(&mut self.line).next();
        *self = Self { line, ..Self::start_unprotected(fenced, policy, now) };
        self.line.speak(self.term);
    }

    fn stream(&self) -> Option<&Stream> {
        match &self.phase {
            Phase::Syncing { stream, .. }
            | Phase::Protected { stream }
            | Phase::Ending { stream, .. } => Some(stream),
            Phase::Waiting | Phase::Stalled | Phase::Unprotected | Phase::Stopped(_) => None,
        }
    }

    fn stream_mut(&mut self) -> Option<&mut Stream> {
        match &mut self.phase {
            Phase::Syncing { stream, .. }
            | Phase::Protected { stream }
            | Phase::Ending { stream, .. } => Some(stream),
            Phase::Waiting | Phase::Stalled | Phase::Unprotected | Phase::Stopped(_) => None,
        }
    }

    /// Moves to the phase that `change` makes of this one.
    fn change(&mut self, change: impl FnOnce(Phase) -> Phase) {
        // What stands here while `change` runs is seen by nobody.
        let phase = std::mem::replace(&mut self.phase, Phase::Waiting);
        self.phase = change(phase);
    }

    fn checked(self) -> Self {
        self.check_invariants();
        self
    }

    fn check_invariants(&self) {
        assert!(
            self.released <= self.acked,
            "released {} beyond acked {}",
            self.released,
            self.acked
        );
        assert!(
            self.acked <= self.captured,
            "acked {} beyond captured {}",
            self.acked,
            self.captured
        );
        assert!(
            self.captured < self.open,
            "captured {} is not below open {}",
            self.captured,
            self.open
        );
        assert!(self.in_flight() <= self.policy.depth, "more in flight than the pipeline is deep");
    }
}

#[cfg(test)]
mod tests;
