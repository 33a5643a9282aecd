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
//! - Nobody is followed whose state lacks a term that is known here to have been spoken in ([`judge`]).
//!
//! The image survives the loss of a session and the greeting of the next, until the first page of that next
//! session arrives: those pages overwrite it.
//!
//! Deliberately absent: bytes (`checkpoint::Assembly`) and the digest chain (`wire::Chain`), which the shell holds
//! and whose results it passes in; the image itself.

use std::fmt;

use remus_abi::{Epoch, Term};

use super::{
    ancestry::{Relation, judge, split},
    detector::Suspicion,
    fenced::Fenced,
    lease::BackupLease,
};
use crate::{
    checkpoint::Arrived,
    wire::{
        Ack, Ancestry, Attach, Begin, Digest, End, Features, Goodbye, GoodbyeAck, Heartbeat,
        HeartbeatAck, Hello, Inbound, Instance, Moment, Nonce, Refusal, Refuse, Session, StandDown,
        TermId, Timing, VmId, Welcome,
    },
};

/// The brain of a backup, for one VM.
///
/// Call order: [`handle_hello`](Self::handle_hello), [`handle_attach`](Self::handle_attach), then as they arrive
/// [`handle_boot_part`](Self::handle_boot_part), [`handle_sync_pages`](Self::handle_sync_pages), and per checkpoint
/// [`handle_begin`](Self::handle_begin) and [`handle_end`](Self::handle_end), whose ack is sent and whose pages are then applied;
/// [`handle_heartbeat`](Self::handle_heartbeat), [`handle_inbound`](Self::handle_inbound) and
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

/// Whether the image could be promoted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Readiness {
    Not(NotPromotable),
    /// The lease is over after this moment.
    After(Moment),
    Now,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotPromotable {
    /// No whole image.
    NoImage,
    /// The guest ended on purpose.
    GuestEnded,
    /// The lease runs until this moment.
    Lease(Moment),
}

/// A backup that stays one.
#[derive(Debug)]
pub struct NotPromoted {
    pub backup: Backup,
    pub why: NotPromotable,
}

/// A takeover.
#[derive(Debug)]
pub struct Promotion {
    /// The checkpoint that the guest goes on from.
    pub epoch: Epoch,
    /// The term whose primary made it.
    pub of: Term,
    /// Why it happened; used up by it.
    pub suspicion: Suspicion,
    /// Permission to run in the next term, for [`Pipeline::start_unprotected`](super::Pipeline::start_unprotected).
    pub fenced: Fenced,
    /// The terms that its state comes from, and the one in which it speaks from now on.
    pub ancestry: Ancestry,
    /// Answers whoever still takes this host for a backup.
    pub promoted: Promoted,
}

/// What is left of a backup that speaks for the guest itself: it can only refuse.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Promoted {
    term: Term,
    id: Option<VmId>,
    ancestry: Ancestry,
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

    /// A primary asks for a session. The shell has checked shape, CPU and memory.
    ///
    /// A newer term voids the image here, before anything is answered. A session that was going on with the same
    /// primary is over: its links must be closed.
    ///
    /// # Errors
    /// The refusal to send; nothing has changed.
    pub fn handle_hello(&mut self, hello: &Hello) -> Result<Welcome, Refuse> {
        self.admit(hello).map_err(|(why, text)| self.refusal(why, &text))?;
        let Self { known: Known { id, newest, owner, ancestry }, .. } = self;
        if hello.term > *newest {
            *newest = hello.term;
            self.image = Image::Void;
        }
        *id = Some(hello.id);
        *owner = Some(hello.nonce);
        // A primary that was cut off may not have heard that it has a checkpoint here, and so may speak.
        if judge(ancestry, &hello.ancestry) != Relation::Ancestor {
            *ancestry = hello.ancestry.clone();
        }
        self.following = Following::Somebody {
            session: hello.session,
            timing: hello.timing,
            course: Course::Greeted,
        };
        Ok(Welcome {
            session: hello.session,
            features: Features::OURS,
            backup: self.me,
            ancestry: self.known.ancestry.clone(),
        })
    }

    /// Whether the primary that says this may be followed; why not, if not.
    fn admit(&self, hello: &Hello) -> Result<(), (Refusal, String)> {
        let Known { id, newest, owner, ancestry } = &self.known;
        let refuse = |why, text: &str| Err((why, text.to_owned()));
        if let Err(error) = hello.timing.check() {
            return refuse(Refusal::Timing, &error.to_string());
        }
        let relation = judge(ancestry, &hello.ancestry);
        if relation == Relation::Split {
            return Err((Refusal::Split, split(hello, *id, ancestry)));
        }
        if let Some(id) = id.filter(|id| *id != hello.id) {
            let other = format!(
                "this host knows VM {} under the id {id}, and the host that asks under {}: two VMs have one name. Rename one; or \
                 run remus clean {} --record on the side whose VM is gone",
                hello.vm, hello.id, hello.vm
            );
            return Err(match self.kept() {
                Some(kept) => (Refusal::OtherPrimary, format!("{kept}; {other}")),
                None => (Refusal::OtherVm, other),
            });
        }
        if hello.term == Term::NONE || hello.term < *newest || !hello.ancestry.leads_to(hello.of())
        {
            return refuse(Refusal::OutdatedTerm, "a newer term was heard of");
        }
        if hello.term == Term::MAX {
            return refuse(Refusal::OutdatedTerm, "no term would be left to take over in");
        }
        if hello.term == *newest && owner.is_some_and(|owner| owner != hello.nonce) {
            return refuse(Refusal::OtherPrimary, "another primary speaks in this term");
        }
        let goes_on = |nonce| {
            hello.of() == TermId::new(*newest, nonce)
                || hello.ancestry.iter().any(|known| known.id == TermId::new(*newest, nonce))
        };
        if !owner.is_some_and(goes_on)
            && let Some(kept) = self.kept()
        {
            return refuse(Refusal::OtherPrimary, kept);
        }
        match ancestry.newest() {
            Some(spoken) if relation == Relation::Ancestor && !spoken.matches(hello.of()) => {
                let text = format!(
                    "the guest was heard in term {spoken}, and the primary that asks does not come from there. If that guest \
                     is to be given up, run remus clean {} --record here",
                    hello.vm
                );
                Err((Refusal::OutdatedTerm, text))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// A refusal that tells what is known here.
    pub fn refusal(&self, why: Refusal, text: &str) -> Refuse {
        Refuse::new(why, self.known.newest, text).with(self.known.ancestry.clone())
    }

    /// What a stranger must not take from the primary that is followed, in words; `None` when there is nothing.
    fn kept(&self) -> Option<&'static str> {
        match (&self.following, self.image) {
            (Following::Somebody { .. }, _) => {
                Some("another primary speaks for this VM: this host follows it")
            }
            (Following::Nobody, Image::Whole { .. }) => {
                Some("another primary spoke for this VM: this host keeps its guest, to take over")
            }
            (Following::Nobody, Image::Void | Image::Ended) => None,
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

    /// Whether [`promote`](Self::promote) would, given a suspicion.
    pub fn poll_readiness(&self, now: Moment) -> Readiness {
        match (self.image, self.lease.over_after()) {
            (Image::Void, _) => Readiness::Not(NotPromotable::NoImage),
            (Image::Ended, _) => Readiness::Not(NotPromotable::GuestEnded),
            (Image::Whole { .. }, Some(last)) if now <= last => Readiness::After(last),
            (Image::Whole { .. }, Some(_) | None) => Readiness::Now,
        }
    }

    /// Takes over, as `nonce`: from here on nothing is acknowledged, since nothing is left that could.
    ///
    /// # Errors
    /// The backup as it was, and why it stays one.
    pub fn promote(
        self,
        now: Moment,
        suspicion: Suspicion,
        nonce: Nonce,
    ) -> Result<Promotion, Box<NotPromoted>> {
        let why = match self.poll_readiness(now) {
            Readiness::Not(why) => why,
            Readiness::After(last) => NotPromotable::Lease(last),
            Readiness::Now => {
                let Image::Whole { term: of, epoch } = self.image else {
                    unreachable!("it is ready")
                };
                let Known { id, newest, owner: _, ancestry } = self.known;
                assert_eq!(of, newest, "an image of an older term was not voided");
                let fenced = Fenced::by_takeover(newest);
                let term = fenced.term();
                let ancestry = ancestry.ended_with(epoch).spoken_in(TermId::new(term, nonce));
                let promoted = Promoted { term, id, ancestry: ancestry.clone() };
                return Ok(Promotion { epoch, of, suspicion, fenced, ancestry, promoted });
            }
        };
        Err(Box::new(NotPromoted { backup: self, why }))
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

impl Promoted {
    pub fn term(&self) -> Term {
        self.term
    }

    /// The answer to any `Hello`.
    pub fn refuse(&self, hello: &Hello) -> Refuse {
        let (why, text) = match judge(&self.ancestry, &hello.ancestry) {
            Relation::Split => (Refusal::Split, split(hello, self.id, &self.ancestry)),
            Relation::Same | Relation::Ancestor | Relation::Descendant => {
                (Refusal::Promoted, "this host speaks for the guest now".to_owned())
            }
        };
        Refuse::new(why, self.term, &text).with(self.ancestry.clone())
    }

    /// Whether whoever says this speaks for the same VM at this moment, in a term that has nothing to do with this one:
    /// two guests are heard, and neither may be.
    pub fn must_fall_silent(&self, hello: &Hello) -> bool {
        let speaks = hello.ancestry.newest() == Some(hello.of());
        let is_split = judge(&self.ancestry, &hello.ancestry) == Relation::Split;
        speaks && is_split && self.id.is_none_or(|id| id == hello.id)
    }

    /// The answer to anything else that an old primary says.
    pub fn stand_down(&self) -> StandDown {
        StandDown { ancestry: self.ancestry.clone() }
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

impl fmt::Display for NotPromotable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoImage => f.write_str("there is no whole image"),
            Self::GuestEnded => f.write_str("the guest ended on purpose"),
            Self::Lease(_) => f.write_str("the primary's lease may not be over"),
        }
    }
}

#[cfg(test)]
mod tests;
