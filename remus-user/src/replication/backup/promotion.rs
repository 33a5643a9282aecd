//! The end of a backup: whether its image may be promoted, and what is left of it then.

use std::fmt;

use remus_abi::{Epoch, Term};

use super::{Backup, Image, Known};
use crate::{
    replication::{
        Fenced, Suspicion,
        ancestry::{Relation, judge, split},
    },
    wire::{Ancestry, Hello, Moment, Nonce, Refusal, Refuse, StandDown, TermId, VmId},
};

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
    /// Permission to run in the next term, for
    /// [`Pipeline::start_unprotected`](crate::replication::Pipeline::start_unprotected).
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

impl fmt::Display for NotPromotable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoImage => f.write_str("there is no whole image"),
            Self::GuestEnded => f.write_str("the guest ended on purpose"),
            Self::Lease(_) => f.write_str("the primary's lease may not be over"),
        }
    }
}
