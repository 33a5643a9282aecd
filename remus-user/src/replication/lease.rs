//! The release lease: why a primary that was stopped and wakes cannot speak after the takeover.
//!
//! Acks give agreement on content. Yet a primary that stopped between an ack and its release, and wakes when its
//! backup has long taken over, would send *committed* frames late. So an answer from the backup is also a
//! promise not to promote for a while:
//!
//! ```text
//! primary   sent ├──────── lease ────────┤ nothing is released after this (flush itself compares)
//! backup       answered ├──────── lease ────────┼─ margin ─┤ nothing is promoted before this
//! ```
//!
//! The message was sent before it was answered, so the primary's end is the earlier one by construction; the
//! margin covers clocks that run at different speeds. Neither host reads the other's clock.

use std::time::Duration;

use remus_abi::Term;

use crate::wire::Moment;

/// Until when the primary may release.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PrimaryLease {
    term: Term,
    duration: Duration,
    until: Option<Moment>,
}

/// Permission to release until a moment, in one term. Only a lease makes one, or the brain of a checkpointer that is not
/// ours; not `Clone`. The gate's `renew_lease` takes it.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LeaseUntil {
    term: Term,
    until: Moment,
}

/// An answer that cannot be one; drop the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseError {
    /// It echoes a moment that has not come yet.
    FromTheFuture,
    /// It answers something said in another term.
    OtherTerm(Term),
}

impl LeaseUntil {
    /// On the word of somebody else's checkpointer: only [`Standalone`](super::Standalone) does this.
    pub(super) fn by_checkpointer(term: Term, until: Moment) -> Self {
        Self { term, until }
    }

    pub fn term(&self) -> Term {
        self.term
    }

    pub fn until(&self) -> Moment {
        self.until
    }
}

impl PrimaryLease {
    /// No lease yet: nothing may be released.
    pub fn new(term: Term, duration: Duration) -> Self {
        Self { term, duration, until: None }
    }

    /// The backup answered (a heartbeat or a checkpoint) what was sent at `sent`. Never shortens the lease.
    ///
    /// # Errors
    /// [`LeaseError`]; the lease is as before.
    pub fn handle_answer(
        &mut self,
        now: Moment,
        term: Term,
        sent: Moment,
    ) -> Result<(), LeaseError> {
        if term != self.term {
            return Err(LeaseError::OtherTerm(term));
        }
        if sent > now {
            return Err(LeaseError::FromTheFuture);
        }
        self.until = self.until.max(Some(sent + self.duration));
        Ok(())
    }

    /// What the gate is told; `None` until the first answer.
    pub fn until(&self) -> Option<LeaseUntil> {
        self.until.map(|until| LeaseUntil { term: self.term, until })
    }

    pub fn holds(&self, now: Moment) -> bool {
        self.until.is_some_and(|until| now <= until)
    }
}

/// Until when the backup has promised not to promote.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct BackupLease {
    over_after: Option<Moment>,
}

impl BackupLease {
    /// Something is answered now. A later session with shorter spans does not take back an earlier promise.
    pub fn handle_answered(&mut self, now: Moment, lease: Duration, margin: Duration) {
        self.over_after = self.over_after.max(Some(now + lease + margin));
    }

    /// The last moment of the promise.
    pub fn over_after(&self) -> Option<Moment> {
        self.over_after
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEASE: Duration = Duration::from_millis(60);
    const MARGIN: Duration = Duration::from_millis(20);

    #[test]
    fn an_answer_to_an_earlier_message_does_not_shorten_the_lease() {
        let mut lease = PrimaryLease::new(Term::FIRST, LEASE);
        assert!(!lease.holds(Moment(0)));
        lease.handle_answer(Moment(50), Term::FIRST, Moment(40)).unwrap();
        lease.handle_answer(Moment(60), Term::FIRST, Moment(10)).unwrap();
        assert_eq!(lease.until().unwrap().until(), Moment(40) + LEASE);
    }

    #[test]
    fn an_answer_from_the_future_or_of_another_term_is_refused() {
        let mut lease = PrimaryLease::new(Term::FIRST, LEASE);
        let future = lease.handle_answer(Moment(5), Term::FIRST, Moment(6));
        assert_eq!(future, Err(LeaseError::FromTheFuture));
        let other = Term::FIRST.next();
        assert_eq!(
            lease.handle_answer(Moment(5), other, Moment(1)),
            Err(LeaseError::OtherTerm(other))
        );
        assert_eq!(lease.until(), None);
    }

    proptest! {
        #[test]
        fn the_primarys_lease_ends_before_the_backups_promise(
            exchanges in proptest::collection::vec((0u64..1 << 30, 0u64..1 << 20, 0u64..1 << 20), 1..20)
        ) {
            let (mut primary, mut backup) = (PrimaryLease::new(Term::FIRST, LEASE), BackupLease::default());
            for (sent, there, back) in exchanges {
                backup.handle_answered(Moment(sent + there), LEASE, MARGIN);
                primary.handle_answer(Moment(sent + there + back), Term::FIRST, Moment(sent)).unwrap();
            }
            prop_assert!(primary.until().unwrap().until() + MARGIN <= backup.over_after().unwrap());
        }
    }
}
