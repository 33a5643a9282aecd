//! Why a backup that welcomes a session is not taken.

use std::fmt;

#[cfg(doc)]
use super::Pipeline;
use crate::{
    replication::{Relation, ancestry::split_advice},
    wire::{Instance, Session, TermId},
};

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
                "the backup has heard of term {theirs}, and this host speaks in term {ours}: {}",
                split_advice("VM")
            ),
            Self::OtherBackup { bound } => {
                write!(
                    f,
                    "another backup than before answers, and cannot be taken: the one before (instance {bound}) may hold a \
                     checkpoint and take over. Bring that one back with its state directory; or, if its host is off \
                     and stays off, say so (remus unprotect)"
                )
            }
        }
    }
}

impl std::error::Error for SessionError {}
