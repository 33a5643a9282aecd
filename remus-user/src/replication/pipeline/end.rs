//! How a guest's time in this host's hands ends: on purpose, or because another host speaks for it.
//!
//! An end on purpose, of a guest that is protected, takes these steps: what it said last is sealed, committed and
//! released; then the backup is told, so that it does not take over; then it answers.

use remus_abi::Term;

use super::{Phase, Pipeline};
use crate::wire::{Goodbye, GoodbyeWhy, Moment};

/// The guest has ended on purpose, or is being ended.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Ending {
    why: GoodbyeWhy,
    /// The steps are given up after this.
    give_up: Moment,
    /// The goodbye was given out.
    is_said: bool,
    /// The backup has taken it.
    is_heard: bool,
}

/// Why nothing more leaves from here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Stop {
    Ended,
    /// Another host speaks for the guest, in this term.
    StoodDown(Term),
}

/// How an engine's work is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// The guest ended, or the operator ended it, and no backup can go on with it.
    Ended(GoodbyeWhy),
    /// The same, but the backup that may hold a checkpoint has not acknowledged that: it may go on with the guest.
    EndedUnheard(GoodbyeWhy),
    /// Another host speaks for the guest, in this term.
    StoodDown(Term),
}

impl Pipeline {
    /// The guest ends on purpose. If it is protected it is sealed once more ([`poll_seal`](Self::poll_seal) says so), so
    /// that its last words are in a checkpoint. After `give_up` nobody is waited for any more. Only the first call counts.
    pub fn handle_end(&mut self, why: GoodbyeWhy, give_up: Moment) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(Ending { why, give_up, is_said: false, is_heard: false });
        self.change(|phase| match phase {
            Phase::Syncing { stream, .. } => Phase::Ending { stream },
            Phase::Waiting | Phase::Stalled | Phase::Unprotected => Phase::Stopped(Stop::Ended),
            other @ (Phase::Protected { .. } | Phase::Ending { .. } | Phase::Stopped(_)) => other,
        });
    }

    /// What to say to the backup, once, when all that the guest said is committed and has left.
    pub fn poll_goodbye(&mut self) -> Option<Goodbye> {
        let ending = self.ending.as_mut().filter(|ending| !ending.is_said)?;
        match &self.phase {
            Phase::Ending { stream } if stream.len() == 0 && self.released == self.acked => {
                ending.is_said = true;
                Some(Goodbye { term: self.term, epoch: self.acked, why: ending.why })
            }
            Phase::Ending { .. }
            | Phase::Waiting
            | Phase::Syncing { .. }
            | Phase::Protected { .. }
            | Phase::Stalled
            | Phase::Unprotected
            | Phase::Stopped(_) => None,
        }
    }

    /// The backup has taken the goodbye.
    pub fn handle_goodbye_answered(&mut self) {
        if let Some(ending) = self.ending.as_mut().filter(|ending| ending.is_said) {
            ending.is_heard = true;
            self.change(|phase| match phase {
                Phase::Ending { .. } => Phase::Stopped(Stop::Ended),
                other => other,
            });
        }
    }

    /// Whether and how the work here is over. The gate is to be shut then.
    pub fn poll_stopped(&self, now: Moment) -> Option<Stopped> {
        if let Phase::Stopped(Stop::StoodDown(newer)) = self.phase {
            return Some(Stopped::StoodDown(newer));
        }
        let ending = self.ending.as_ref()?;
        if !matches!(self.phase, Phase::Stopped(_)) && now < ending.give_up {
            return None;
        }
        // The end is one for everybody when no backup holds a checkpoint that it could go on from, or when that backup
        // has acknowledged the end. Otherwise the guest may live on there, as after a crash of this host.
        Some(match self.bound.is_none() || ending.is_heard {
            true => Stopped::Ended(ending.why),
            false => Stopped::EndedUnheard(ending.why),
        })
    }
}
