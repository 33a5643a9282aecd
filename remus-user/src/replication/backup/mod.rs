//! The backup's brain: what is taken, what is answered, what may be promoted.
//!
//! Invariants:
//! - A checkpoint is committed whole, and only as the direct successor of the one before; the first of a session
//!   only when the session has carried every page.
//! - A promoted backup answers nothing that could be taken for an ack: [`Backup::promote`] consumes it, and
//!   [`Promoted`], which is left, has no method that makes one.
//! - Only a whole image of the newest term ever heard is promoted, and only when the lease is over. Accepting a
//!   newer term voids the old image before anything is answered.
//! - A stranger's word voids nothing: while a primary is followed, or its whole image is here, a newer term is
//!   accepted only if it comes from that primary's. Anybody can start a VM under a known name and count terms.
//! - Nobody is followed whose state lacks a term that is known here to have been spoken in
//!   ([`judge`](super::ancestry::judge)).
//!
//! The image survives the loss of a session and the greeting of the next, until the first page of that next
//! session arrives: those pages overwrite it.
//!
//! Deliberately absent: bytes (`checkpoint::Assembly`) and the digest chain (`wire::Chain`), which the shell holds
//! and whose results it passes in; the image itself.

mod greeting;
mod promotion;

use std::fmt;

use remus_abi::{Epoch, Term};

pub use self::promotion::{NotPromotable, NotPromoted, Promoted, Promotion, Readiness};
#[cfg(doc)]
use super::Suspicion;
use super::lease::BackupLease;
use crate::{
    checkpoint::Arrived,
    wire::{
        Ack, Ancestry, Attach, Begin, Digest, End, Goodbye, GoodbyeAck, Heartbeat, HeartbeatAck,
        Inbound, Instance, Moment, Nonce, Session, TermId, Timing, VmId,
    },
};

/// The brain of a backup, for one VM.
///
/// Call order: [`handle_hello`](Self::handle_hello), [`handle_attach`](Self::handle_attach), then as they arrive
/// [`handle_boot_part`](Self::handle_boot_part), [`handle_sync_pages`](Self::handle_sync_pages), and per checkpoint
/// [`handle_begin`](Self::handle_begin) and [`handle_end`](Self::handle_end), whose ack is sent and whose pages are then
/// applied; [`handle_heartbeat`](Self::handle_heartbeat), [`handle_inbound`](Self::handle_inbound) and
/// [`handle_goodbye`](Self::handle_goodbye) beside that. An error
/// from any of them means: drop both links, then [`handle_session_lost`](Self::handle_session_lost). With a
/// [`Suspicion`] and when [`poll_readiness`](Self::poll_readiness) is [`Readiness::Now`]: apply all that is
/// committed, [`promote`](Self::promote).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Backup {
    me: Instance,
    known: Known,
    lease: BackupLease,
    image: Image,
    following: Following,
}

/// What a backup knows of its VM. It is to be kept, before a `Welcome` is sent.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Known {
    pub id: Option<VmId>,
    /// The newest term heard of, from anybody, and who speaks in it, where that is known.
    pub newest: Term,
    pub owner: Option<Nonce>,
    /// The terms that are known to have been spoken in.
    pub ancestry: Ancestry,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Image {
    /// There is none, or it is half overwritten, or of a term that is over.
    Void,
    Whole {
        term: Term,
        epoch: Epoch,
    },
    /// The guest ended on purpose.
    Ended,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Following {
    Nobody,
    Somebody { session: Session, timing: Timing, course: Course },
}

/// Where the bulk connection of a session is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Course {
    /// Not there yet.
    Greeted,
    /// Nothing of this session is committed.
    Syncing,
    /// Up to here everything is committed.
    Between {
        epoch: Epoch,
        digest: Digest,
    },
    Arriving {
        begin: Begin,
    },
}

/// A message that no honest primary sends here and now: drop the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FollowError {
    /// It belongs to no session that is going on.
    NoSession,
    /// It is of another term.
    OtherTerm(Term),
    /// Out of order: not what may come next.
    OutOfOrder(&'static str),
    /// Not the direct successor of what is committed.
    NotTheSuccessor(Epoch),
    /// What arrived is not what was announced.
    NotWhole(Epoch),
    /// The first checkpoint of a session that has not carried every page.
    PagesMissing(Epoch),
}

impl Backup {
    /// A backup that knows this much of its VM: nothing, if it has never heard of it.
    pub fn new(me: Instance, known: Known) -> Self {
        Self {
            me,
            known,
            lease: BackupLease::default(),
            image: Image::Void,
            following: Following::Nobody,
        }
    }

    /// The bulk connection of the session is here.
    ///
    /// # Errors
    /// [`FollowError`] when it is of no session that waits for one.
    pub fn handle_attach(&mut self, attach: &Attach) -> Result<(), FollowError> {
        match &mut self.following {
            Following::Somebody { session, course: course @ Course::Greeted, .. }
                if *session == attach.session =>
            {
                *course = Course::Syncing;
                Ok(())
            }
            Following::Somebody { .. } | Following::Nobody => Err(FollowError::NoSession),
        }
    }

    /// A part of what the guest begins with arrived, which is kept apart from the image.
    ///
    /// # Errors
    /// [`FollowError`]; keep nothing.
    pub fn handle_boot_part(&mut self) -> Result<(), FollowError> {
        match self.course_mut()? {
            Course::Syncing => Ok(()),
            Course::Greeted | Course::Between { .. } | Course::Arriving { .. } => {
                Err(FollowError::OutOfOrder("a part of a boot image"))
            }
        }
    }

    /// Pages of the live sync arrived: the image is overwritten from here on. Call before applying them.
    ///
    /// # Errors
    /// [`FollowError`]; apply nothing.
    pub fn handle_sync_pages(&mut self) -> Result<(), FollowError> {
        match self.course_mut()? {
            Course::Syncing => {
                self.image = Image::Void;
                Ok(())
            }
            Course::Greeted | Course::Between { .. } | Course::Arriving { .. } => {
                Err(FollowError::OutOfOrder("pages of a sync"))
            }
        }
    }

    /// A checkpoint begins; `chain` is the chain's value before its frame.
    ///
    /// # Errors
    /// [`FollowError`] unless it is of this session and term and the direct successor of what is committed.
    pub fn handle_begin(&mut self, begin: &Begin, chain: Digest) -> Result<(), FollowError> {
        let newest = self.known.newest;
        let Following::Somebody { session, course, .. } = &mut self.following else {
            return Err(FollowError::NoSession);
        };
        if begin.session != *session {
            return Err(FollowError::NoSession);
        }
        if begin.term != newest {
            return Err(FollowError::OtherTerm(begin.term));
        }
        let is_successor = match course {
            Course::Syncing => begin.predecessor == Epoch::NONE && begin.epoch > Epoch::NONE,
            Course::Between { epoch, digest } => {
                begin.predecessor == *epoch
                    && begin.epoch.get() == epoch.get() + 1
                    && begin.predecessor_digest == *digest
            }
            Course::Greeted | Course::Arriving { .. } => {
                return Err(FollowError::OutOfOrder("the beginning of a checkpoint"));
            }
        };
        if !is_successor || begin.predecessor_digest != chain {
            return Err(FollowError::NotTheSuccessor(begin.epoch));
        }
        *course = Course::Arriving { begin: *begin };
        Ok(())
    }

    /// Whether pages or state of a checkpoint may arrive now.
    ///
    /// # Errors
    /// [`FollowError`] when none has begun.
    pub fn handle_part(&mut self) -> Result<(), FollowError> {
        match self.course_mut()? {
            Course::Arriving { .. } => Ok(()),
            Course::Greeted | Course::Syncing | Course::Between { .. } => {
                Err(FollowError::OutOfOrder("a part of a checkpoint"))
            }
        }
    }

    /// The checkpoint is complete; `chain` is the chain's value now, `arrived` what was collected. The answer
    /// commits it: send it, and apply what was collected before anything that comes later.
    ///
    /// # Errors
    /// [`FollowError`]: nothing is committed; discard what was collected.
    pub fn handle_end(
        &mut self,
        now: Moment,
        end: &End,
        chain: Digest,
        arrived: Arrived,
    ) -> Result<Ack, FollowError> {
        let term = self.known.newest;
        let Following::Somebody { session, timing, course, .. } = &mut self.following else {
            return Err(FollowError::NoSession);
        };
        let begin = match course {
            Course::Arriving { begin } => *begin,
            Course::Greeted | Course::Syncing | Course::Between { .. } => {
                return Err(FollowError::OutOfOrder("the end of a checkpoint"));
            }
        };
        let Arrived { pages, state_len, covers_ram } = arrived;
        if (end.epoch, end.pages, end.digest) != (begin.epoch, pages, chain)
            || begin.state_len != state_len
        {
            return Err(FollowError::NotWhole(begin.epoch));
        }
        if begin.predecessor == Epoch::NONE && !covers_ram {
            return Err(FollowError::PagesMissing(begin.epoch));
        }
        *course = Course::Between { epoch: begin.epoch, digest: chain };
        self.image = Image::Whole { term, epoch: begin.epoch };
        self.lease.handle_answered(now, timing.lease, timing.margin);
        let session = *session;
        // The primary that hears of it may release what its guest has said.
        let speaker = TermId { term, nonce: self.known.owner };
        if self.known.ancestry.newest() != Some(speaker) {
            let before = std::mem::take(&mut self.known.ancestry);
            self.known.ancestry = before.spoken_in(speaker);
        }
        Ok(Ack { session, term, epoch: begin.epoch, digest: chain, sent: begin.sent })
    }

    /// A heartbeat. Returns the answer, or `None` when there must be none: the primary's engine has not turned for longer
    /// than the detection time, while its control task still speaks. Then the heartbeat also counts as silence. Before
    /// this host has an image that it could go on with, nothing would be won by that, and the heartbeat is answered.
    ///
    /// # Errors
    /// [`FollowError`] when it is of no session or of another term; it must not be answered.
    pub fn handle_heartbeat(
        &mut self,
        now: Moment,
        heartbeat: &Heartbeat,
    ) -> Result<Option<HeartbeatAck>, FollowError> {
        let Heartbeat { term, seq, sent, engine_age } = *heartbeat;
        let Following::Somebody { timing, .. } = &self.following else {
            return Err(FollowError::NoSession);
        };
        if term != self.known.newest {
            return Err(FollowError::OtherTerm(term));
        }
        let hangs = engine_age.is_some_and(|age| age > timing.detect);
        if hangs && matches!(self.image, Image::Whole { .. }) {
            return Ok(None);
        }
        self.lease.handle_answered(now, timing.lease, timing.margin);
        Ok(Some(HeartbeatAck { term, seq, sent }))
    }

    /// What the guest was given lately: keep it. It says nothing of the lease, since it is not answered.
    ///
    /// # Errors
    /// [`FollowError`] when it is of no session or of another term; keep nothing.
    pub fn handle_inbound(&self, inbound: &Inbound) -> Result<(), FollowError> {
        if self.following == Following::Nobody {
            return Err(FollowError::NoSession);
        }
        if inbound.term != self.known.newest {
            return Err(FollowError::OtherTerm(inbound.term));
        }
        Ok(())
    }

    /// The guest ended on purpose: nothing will be promoted.
    ///
    /// # Errors
    /// [`FollowError`] when it is of no session or of another term.
    pub fn handle_goodbye(&mut self, goodbye: &Goodbye) -> Result<GoodbyeAck, FollowError> {
        let Goodbye { term, epoch, why: _ } = *goodbye;
        if self.following == Following::Nobody {
            return Err(FollowError::NoSession);
        }
        if term != self.known.newest {
            return Err(FollowError::OtherTerm(term));
        }
        self.image = Image::Ended;
        self.following = Following::Nobody;
        let speaker = TermId { term, nonce: self.known.owner };
        let before = std::mem::take(&mut self.known.ancestry);
        self.known.ancestry = before.spoken_in(speaker).ended_with(epoch);
        Ok(GoodbyeAck { term, epoch })
    }

    /// The links of the session are closed. A part of a checkpoint is discarded; the image stays.
    pub fn handle_session_lost(&mut self) {
        self.following = Following::Nobody;
    }

    /// What is known of the VM: to be kept before a `Welcome` is sent.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// The newest term heard of.
    pub fn newest(&self) -> Term {
        self.known.newest
    }

    pub fn session(&self) -> Option<Session> {
        match &self.following {
            Following::Nobody => None,
            Following::Somebody { session, .. } => Some(*session),
        }
    }

    /// The newest committed checkpoint, when the image is whole.
    pub fn committed(&self) -> Option<(Term, Epoch)> {
        match self.image {
            Image::Whole { term, epoch } => Some((term, epoch)),
            Image::Void | Image::Ended => None,
        }
    }

    fn course_mut(&mut self) -> Result<&mut Course, FollowError> {
        match &mut self.following {
            Following::Nobody => Err(FollowError::NoSession),
            Following::Somebody { course, .. } => Ok(course),
        }
    }
}

impl fmt::Display for FollowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSession => f.write_str("it belongs to no session that is going on"),
            Self::OtherTerm(term) => write!(f, "it is of another term, {term}"),
            Self::OutOfOrder(what) => write!(f, "{what} does not belong here"),
            Self::NotTheSuccessor(epoch) => {
                write!(f, "epoch {epoch} does not follow what is committed")
            }
            Self::NotWhole(epoch) => write!(f, "epoch {epoch} is not what was announced"),
            Self::PagesMissing(epoch) => {
                write!(f, "epoch {epoch} would leave pages that were never sent")
            }
        }
    }
}

impl std::error::Error for FollowError {}

#[cfg(test)]
mod tests;
