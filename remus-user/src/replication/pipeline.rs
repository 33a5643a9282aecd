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
//!            handle_welcome          first ack                     guest_ended
//!  Waiting ───────────────► Syncing ───────────► Protected ───────────────────► Ending ──► Stopped
//!     ▲                      │   ▲                   │ handle_session_lost
//!     └── session lost ──────┘   └──── Stalled ◄─────┘
//!                                         │ run_unprotected(Fenced)
//!                                         └──► Unprotected ──► Syncing ..      anything ── newer term ──► Stopped
//! ```
//!
//! Deliberately absent: partial resync (every session begins with all of RAM), and everything that acts: this
//! says what may be done, and the engine does it.

mod line;

use std::fmt;

use remus_abi::{Epoch, Stamp, Term};

use self::line::Line;
use super::{
    ancestry::{Relation, judge},
    cadence::{Cadence, Due, Seen, Tempo},
    fenced::{Fenced, FencedBy},
    stream::{AckError, Stream},
};
use crate::wire::{
    Ack, Digest, Goodbye, GoodbyeWhy, Instance, Moment, Session, TermId, Timing, Welcome,
};

/// How the pipeline is to work.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Policy {
    /// How long epochs last.
    pub tempo: Tempo,
    /// Most un-acked checkpoints; at least 1, and 2 or more to overlap sending with running.
    pub depth: usize,
    /// The live sync ends when no more pages than these are left: a pause can take them.
    pub sync_pages_max: usize,
    /// The live sync ends after this many rounds, however many pages are left.
    pub sync_rounds_max: u32,
}

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

/// The primary's brain.
///
/// Call order, in the engine's loop:
/// 1. events: [`handle_welcome`](Self::handle_welcome), [`handle_sync_round`](Self::handle_sync_round),
///    [`handle_sent`](Self::handle_sent), [`handle_ack`](Self::handle_ack) (give its `Committed` to the gate),
///    [`handle_released`](Self::handle_released), [`handle_output_waiting`](Self::handle_output_waiting),
///    [`handle_session_lost`](Self::handle_session_lost), [`handle_newer_term`](Self::handle_newer_term),
///    [`handle_refused`](Self::handle_refused)
/// 2. [`poll_seal`](Self::poll_seal); on [`SealWhen::Now`] pause, [`seal`](Self::seal), capture, resume
/// 3. [`poll_goodbye`](Self::poll_goodbye) once [`handle_guest_ended`](Self::handle_guest_ended) was called
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pipeline {
    term: Term,
    line: Line,
    fenced_by: FencedBy,
    open: Epoch,
    captured: Epoch,
    acked: Epoch,
    released: Epoch,
    /// The backup that may hold a checkpoint of this term. No other is taken: it could be promoted beside us.
    bound: Option<Instance>,
    /// That backup knows that the guest has ended.
    end_is_heard: bool,
    cadence: Cadence,
    policy: Policy,
    phase: Phase,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Phase {
    Waiting,
    Syncing { stream: Stream, rounds: Rounds, from: Before },
    Protected { stream: Stream },
    Stalled,
    Unprotected,
    Ending { stream: Stream, why: GoodbyeWhy },
    Stopped,
}

/// Where a sync came from, and falls back to while nothing of it can be committed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Before {
    Waiting,
    Stalled,
    Unprotected,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Rounds {
    /// So many rounds of pre-copy were sent.
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

/// An epoch ended: what to capture, and what the guest runs in from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sealed {
    pub session: Session,
    /// The epoch that ends, and names the checkpoint.
    pub checkpoint: Stamp,
    /// The checkpoint before it in this session; [`Epoch::NONE`] for the first.
    pub predecessor: Epoch,
    /// What the gate stamps from now on. To be written before anything resumes.
    pub open: Stamp,
    /// The first checkpoint of a session: if the gate was open, holding begins in this pause.
    pub is_first: bool,
}

/// Permission to release the output of a term up to an epoch: its checkpoint is committed at the backup.
///
/// Only an ack makes one, or the word of a checkpointer that is not ours; not `Clone`. The gate's commit takes it.
#[derive(PartialEq, Eq, Debug)]
pub struct Committed {
    stamp: Stamp,
}

/// Why a `Welcome` begins no session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionError {
    /// It welcomes another session than the one that was asked for.
    OtherSession(Session),
    /// There is a session already, or there will be no more.
    NotNow,
    /// The backup has heard of this term, which goes on from this one: this guest is not to be heard any more.
    NewerTerm(TermId),
    /// The backup has heard of this term, and neither comes from the other: this guest is not to be heard any more.
    Split { ours: TermId, theirs: TermId },
    /// Another backup may hold a checkpoint of this term and be promoted. [`Pipeline::run_unprotected`] or the
    /// backup that was `bound` ends this.
    OtherBackup { bound: Instance },
}

impl SessionError {
    /// What the backup's ancestry is to this host's.
    pub fn relation(&self) -> Relation {
        match self {
            Self::NewerTerm(_) => Relation::Descendant,
            Self::Split { .. } => Relation::Split,
            Self::OtherSession(_) | Self::NotNow | Self::OtherBackup { .. } => Relation::Same,
        }
    }
}

impl Committed {
    /// On the word of somebody else's checkpointer, which `remus gate run` takes: only
    /// [`Standalone`](super::Standalone) does this.
    pub(super) fn by_checkpointer(stamp: Stamp) -> Self {
        Self { stamp }
    }

    pub fn stamp(&self) -> Stamp {
        self.stamp
    }
}

impl Policy {
    pub fn new(timing: &Timing) -> Self {
        Self { tempo: Tempo::new(timing), depth: 2, sync_pages_max: 2048, sync_rounds_max: 8 }
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
            bound: None,
            end_is_heard: false,
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
            Phase::Waiting => Before::Waiting,
            Phase::Stalled => Before::Stalled,
            Phase::Unprotected => Before::Unprotected,
            Phase::Syncing { .. }
            | Phase::Protected { .. }
            | Phase::Ending { .. }
            | Phase::Stopped => {
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
            | Phase::Stopped => {
                return SealWhen::NotYet;
            }
        };
        if stream.len() >= self.policy.depth {
            return SealWhen::NotYet;
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
            | Phase::Stopped => {
                panic!("sealed without a session")
            }
        };
        assert!(stream.len() < depth, "sealed into a full pipeline");
        // From here on the backup may come to hold a checkpoint of this term.
        self.bound = Some(stream.backup);
        let (session, epoch) = (stream.session, self.open);
        let predecessor = stream.push(epoch);
        self.captured = epoch;
        self.open = epoch.next();
        self.cadence.handle_sealed(now);
        self.check_invariants();
        let checkpoint = Stamp::new(self.term, epoch);
        Sealed {
            session,
            checkpoint,
            predecessor,
            open: Stamp::new(self.term, self.open),
            is_first,
        }
    }

    /// Output of the open epoch began to wait in the gate.
    pub fn handle_output_waiting(&mut self, now: Moment) {
        self.cadence.handle_output(now);
    }

    /// So many pages are dirty now, as [`SealWhen::Look`] asked, and the guest is at work in this epoch, or not.
    pub fn handle_look(&mut self, now: Moment, pages: usize, works: bool) {
        self.cadence.handle_look(now, pages, works);
    }

    /// What was seen of the epoch that was sealed.
    pub fn handle_seen(&mut self, seen: Seen) {
        self.cadence.handle_seen(seen);
    }

    /// So many pages of a checkpoint had changed, the sender has found.
    pub fn handle_changed(&mut self, pages: usize) {
        self.cadence.handle_changed(pages);
    }

    /// The gate is filling up: seal as soon as the pipeline has room.
    pub fn handle_gate_filling(&mut self, now: Moment) {
        self.cadence.handle_filling(now);
    }

    /// The sender has encoded a checkpoint. Must be said before its `End` is written to the link, or the ack
    /// could overtake it. Ignored for a session that is over.
    pub fn handle_sent(&mut self, session: Session, epoch: Epoch, digest: Digest) {
        match self.stream_mut() {
            Some(stream) if stream.session == session => stream.sent(epoch, digest),
            Some(_) | None => {}
        }
    }

    /// A commit ack. `None` when it says nothing new.
    ///
    /// # Errors
    /// [`AckError`]: drop the session; nothing is committed by it.
    pub fn handle_ack(&mut self, now: Moment, ack: &Ack) -> Result<Option<Committed>, AckError> {
        let term = self.term;
        let stream = self.stream_mut().ok_or(AckError::NoSession)?;
        if !stream.handle_ack(now, term, ack)? {
            return Ok(None);
        }
        self.acked = ack.epoch;
        self.phase = match std::mem::replace(&mut self.phase, Phase::Stopped) {
            Phase::Syncing { stream, rounds: _, from: _ } | Phase::Protected { stream } => {
                Phase::Protected { stream }
            }
            ending @ Phase::Ending { .. } => ending,
            Phase::Waiting | Phase::Stalled | Phase::Unprotected | Phase::Stopped => {
                unreachable!("a stream was found")
            }
        };
        self.check_invariants();
        Ok(Some(Committed { stamp: Stamp::new(term, self.acked) }))
    }

    /// The gate has released everything up to `epoch`.
    pub fn handle_released(&mut self, epoch: Epoch) {
        self.released = self.released.max(epoch);
        self.check_invariants();
    }

    /// The session is over, for whatever reason; its links are or will be closed. Every page on its way is owed
    /// again ([`DirtyBook::put_back`](crate::checkpoint::DirtyBook::put_back)). The gate stays shut on what waits.
    pub fn handle_session_lost(&mut self) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Stopped) {
            // Its first checkpoint may be committed although the ack was lost, so an open gate is not opened again.
            Phase::Syncing { rounds: Rounds::Sealed, from: Before::Unprotected, .. } => {
                Phase::Stalled
            }
            Phase::Syncing { from: Before::Unprotected, .. } => Phase::Unprotected,
            Phase::Syncing { from: Before::Waiting, .. } => Phase::Waiting,
            Phase::Syncing { from: Before::Stalled, .. } | Phase::Protected { .. } => {
                Phase::Stalled
            }
            // A guest that has ended has nothing more to say, and what it said and nobody committed is not said.
            Phase::Ending { .. } => Phase::Stopped,
            same @ (Phase::Waiting | Phase::Stalled | Phase::Unprotected | Phase::Stopped) => same,
        };
        self.check_invariants();
    }

    /// The guest goes on with an open gate, in a term of its own, and may take any backup. The caller discards
    /// nothing: what waits in the gate was said by the guest that goes on.
    ///
    /// The lease of the old term is over with it: begin a new [`PrimaryLease`](super::PrimaryLease).
    ///
    /// # Panics
    /// When the permission is not for a newer term, or the guest has ended.
    pub fn run_unprotected(&mut self, fenced: Fenced, now: Moment) {
        assert!(fenced.term() > self.term, "going on unprotected takes a newer term");
        assert!(
            !matches!(self.phase, Phase::Ending { .. } | Phase::Stopped),
            "the guest has ended"
        );
        let line = std::mem::take(&mut self.line).next();
        *self = Self { line, ..Self::start_unprotected(fenced, self.policy, now) };
        self.line.speak(self.term);
    }

    /// The guest ended on purpose. If it was protected, seal once more before calling this, so that its last
    /// words are in a checkpoint; the goodbye waits for that.
    pub fn handle_guest_ended(&mut self, why: GoodbyeWhy) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Stopped) {
            Phase::Protected { stream } | Phase::Syncing { stream, .. } => {
                Phase::Ending { stream, why }
            }
            ending @ Phase::Ending { .. } => ending,
            Phase::Waiting | Phase::Stalled | Phase::Unprotected | Phase::Stopped => Phase::Stopped,
        };
    }

    /// What to say to the backup once nothing is on its way any more.
    pub fn poll_goodbye(&self) -> Option<Goodbye> {
        match &self.phase {
            Phase::Ending { stream, why } if stream.len() == 0 => {
                Some(Goodbye { term: self.term, epoch: self.acked, why: *why })
            }
            Phase::Ending { .. }
            | Phase::Waiting
            | Phase::Syncing { .. }
            | Phase::Protected { .. }
            | Phase::Stalled
            | Phase::Unprotected
            | Phase::Stopped => None,
        }
    }

    /// The backup has taken the goodbye.
    pub fn handle_goodbye_answered(&mut self) {
        if self.poll_goodbye().is_some() {
            self.phase = Phase::Stopped;
            self.end_is_heard = true;
        }
    }

    /// Whether the end of the guest is one for everybody: no backup holds a checkpoint that it could go on from, or
    /// that backup has acknowledged the end. Otherwise the guest may live on there, as after a crash of this host.
    pub fn end_counts(&self) -> bool {
        self.bound.is_none() || self.end_is_heard
    }

    pub fn standing(&self) -> Standing {
        match &self.phase {
            Phase::Waiting => Standing::Waiting,
            Phase::Syncing { .. } => Standing::Syncing,
            Phase::Protected { .. } => Standing::Protected,
            Phase::Stalled => Standing::Stalled,
            Phase::Unprotected => Standing::Unprotected,
            Phase::Ending { .. } => Standing::Ending,
            Phase::Stopped => Standing::Stopped,
        }
    }

    /// Whether output may pass without a commit: unprotected, or syncing from there with nothing sealed yet.
    pub fn gate_is_open(&self) -> bool {
        match &self.phase {
            Phase::Unprotected => true,
            Phase::Syncing { rounds, from, .. } => {
                *from == Before::Unprotected && *rounds != Rounds::Sealed
            }
            Phase::Waiting
            | Phase::Protected { .. }
            | Phase::Stalled
            | Phase::Ending { .. }
            | Phase::Stopped => false,
        }
    }

    pub fn session(&self) -> Option<Session> {
        self.stream().map(|stream| stream.session)
    }

    pub fn in_flight(&self) -> usize {
        self.stream().map_or(0, Stream::len)
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

    fn stream(&self) -> Option<&Stream> {
        match &self.phase {
            Phase::Syncing { stream, .. }
            | Phase::Protected { stream }
            | Phase::Ending { stream, .. } => Some(stream),
            Phase::Waiting | Phase::Stalled | Phase::Unprotected | Phase::Stopped => None,
        }
    }

    fn stream_mut(&mut self) -> Option<&mut Stream> {
        match &mut self.phase {
            Phase::Syncing { stream, .. }
            | Phase::Protected { stream }
            | Phase::Ending { stream, .. } => Some(stream),
            Phase::Waiting | Phase::Stalled | Phase::Unprotected | Phase::Stopped => None,
        }
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

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherSession(session) => {
                write!(f, "the backup welcomed another session, {session}")
            }
            Self::NotNow => f.write_str("a welcome that nobody waits for"),
            Self::NewerTerm(term) => {
                write!(f, "another host has spoken for this guest since, in term {term}")
            }
            Self::Split { ours, theirs } => write!(
                f,
                "the backup has heard of term {theirs}, and this host speaks in term {ours}: neither comes from the other. \
                 Choose whose state is given up, and run remus clean VM --record there"
            ),
            Self::OtherBackup { bound } => {
                write!(
                    f,
                    "another backup than before answers, and cannot be taken: the one before (instance {bound}) may hold a \
                     checkpoint and take over. Bring that one back with its state directory; or, if it is gone for good, end \
                     this VM and start it again"
                )
            }
        }
    }
}

impl std::error::Error for SessionError {}

#[cfg(test)]
mod tests;
