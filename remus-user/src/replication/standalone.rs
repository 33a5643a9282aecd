//! The brain of a gate that somebody else's checkpointer drives: in which order its words may come.
//!
//! That checkpointer captures, sends and keeps checkpoints in its own way, and says here only what the gate has to
//! know. It is believed about *whether* a checkpoint is kept, and held to the order in which that can be true.
//!
//! Invariants: `committed < open`; both only grow, across terms too, so that a commit which comes late, from a
//! client that slept through a [`discard`](Standalone::handle_discard), covers no frame of the new term.
//!
//! Deliberately absent: sessions, acks, silence, promotion. Who may speak for the guest is settled elsewhere, by
//! whoever drives this; see [`Fenced::by_checkpointer`].

use std::fmt;

use remus_abi::{Epoch, Stamp, Term, gate::Mode};

use super::{Committed, Fenced, LeaseUntil, NextEpoch};
use crate::wire::Moment;

/// See the module. `handle_*` take the checkpointer's words and say what the gate is to do; a refusal changes
/// nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standalone {
    term: Term,
    open: Epoch,
    committed: Epoch,
    mode: Mode,
}

/// Why a word of the checkpointer is not followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// Epochs are sealed while the gate holds.
    NotHolding,
    /// The epoch has not been sealed: the guest may still be in it.
    NotSealed { asked: Epoch, open: Epoch },
    /// Something later is committed already.
    GoingBack { asked: Epoch, committed: Epoch },
    /// No epoch or term is left to count with.
    UsedUp,
}

/// What a gate says of itself that cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inconsistent {
    pub open: Stamp,
    pub committed: Stamp,
}

impl Standalone {
    /// A gate that nobody has driven yet: closed, in the first epoch of the first term, which the permission begins.
    pub fn begin() -> (Self, Fenced) {
        let begun = Self {
            term: Term::FIRST,
            open: Epoch::FIRST,
            committed: Epoch::NONE,
            mode: Mode::Closed,
        };
        let fenced = begun.fenced();
        (begun, fenced)
    }

    /// Goes on where an earlier controller of the same gate ended.
    ///
    /// # Errors
    /// When the gate's words do not fit each other: nobody knows then what may be released.
    pub fn resume(mode: Mode, open: Stamp, committed: Stamp) -> Result<Self, Inconsistent> {
        let fits = open.term() != Term::NONE
            && open.term() == committed.term()
            && committed.epoch() < open.epoch();
        if !fits {
            return Err(Inconsistent { open, committed });
        }
        Ok(Self { term: open.term(), open: open.epoch(), committed: committed.epoch(), mode })
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The epoch that the guest is in.
    pub fn open(&self) -> Stamp {
        Stamp::new(self.term, self.open)
    }

    pub fn committed(&self) -> Stamp {
        Stamp::new(self.term, self.committed)
    }

    /// Frames are to be held from now on, as output of the epoch that is returned.
    pub fn handle_hold(&mut self) -> Epoch {
        self.mode = Mode::Hold;
        self.open
    }

    /// The guest is paused and its checkpoint is taken: the epoch that is returned has ended, and the next one is open.
    ///
    /// # Errors
    /// When the gate does not hold.
    pub fn handle_seal(&mut self) -> Result<(Epoch, NextEpoch), Refused> {
        match self.mode {
            Mode::Hold => {}
            Mode::Closed | Mode::Open => return Err(Refused::NotHolding),
        }
        let sealed = self.open;
        self.open = self.after_open()?;
        self.check_invariants();
        // The gate holds already.
        Ok((sealed, NextEpoch::after_seal(self.open(), false)))
    }

    /// The checkpoint that ends `epoch` is kept where the guest would be restored from, and so are all before it.
    /// `None` when that was known.
    ///
    /// # Errors
    /// When the epoch has not ended, or a later one is committed.
    pub fn handle_commit(&mut self, epoch: Epoch) -> Result<Option<Committed>, Refused> {
        if epoch >= self.open {
            return Err(Refused::NotSealed { asked: epoch, open: self.open });
        }
        if epoch < self.committed {
            return Err(Refused::GoingBack { asked: epoch, committed: self.committed });
        }
        if epoch == self.committed {
            return Ok(None);
        }
        self.committed = epoch;
        self.check_invariants();
        Ok(Some(Committed::by_checkpointer(self.committed())))
    }

    /// The guest runs without checkpoints from now on, so whatever it has said was said: what is held may leave, and
    /// what comes may pass.
    pub fn handle_open(&mut self) -> Fenced {
        self.mode = Mode::Open;
        self.fenced()
    }

    /// The gate was shut, by the checkpointer or by whoever else may.
    pub fn handle_close(&mut self) {
        self.mode = Mode::Closed;
    }

    /// The guest goes on from its committed checkpoint: what it said after that was never said. The permission begins a
    /// new term, with an epoch after all that there were. The mode stays, but an open gate holds.
    ///
    /// # Errors
    /// When terms or epochs are used up.
    pub fn handle_discard(&mut self) -> Result<Fenced, Refused> {
        if self.term == Term::MAX {
            return Err(Refused::UsedUp);
        }
        let (abandoned, next) = (self.open, self.after_open()?);
        self.term = self.term.next();
        self.open = next;
        self.committed = abandoned;
        self.mode = match self.mode {
            Mode::Closed => Mode::Closed,
            Mode::Hold | Mode::Open => Mode::Hold,
        };
        self.check_invariants();
        Ok(self.fenced())
    }

    /// Releases need no lease: the checkpointer has a fence of its own.
    pub fn without_lease(&self) -> LeaseUntil {
        self.lease_until(Moment(u64::MAX))
    }

    /// Whoever could take over has promised the checkpointer not to before `until`.
    pub fn lease_until(&self, until: Moment) -> LeaseUntil {
        LeaseUntil::by_checkpointer(self.term, until)
    }

    fn fenced(&self) -> Fenced {
        Fenced::by_checkpointer(self.term, self.open)
    }

    fn after_open(&self) -> Result<Epoch, Refused> {
        if self.open == Epoch::MAX { Err(Refused::UsedUp) } else { Ok(self.open.next()) }
    }

    fn check_invariants(&self) {
        assert!(self.committed < self.open, "committed < open: {self:?}");
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotHolding => f.write_str("the gate does not hold: ask hold first"),
            Self::NotSealed { asked, open } => {
                write!(f, "epoch {asked} has not been sealed: epoch {open} is open")
            }
            Self::GoingBack { asked, committed } => {
                write!(f, "epoch {asked} is before epoch {committed}, which is committed")
            }
            Self::UsedUp => f.write_str("no epoch or term is left: remove the gate and begin anew"),
        }
    }
}

impl std::error::Error for Refused {}

impl fmt::Display for Inconsistent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "open is {} and committed {}, which cannot be", self.open, self.committed)
    }
}

impl std::error::Error for Inconsistent {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn epoch(n: u64) -> Epoch {
        Epoch::new(n).unwrap()
    }

    fn holding() -> Standalone {
        let (mut brain, _) = Standalone::begin();
        assert_eq!(brain.handle_hold(), Epoch::FIRST);
        brain
    }

    #[test]
    fn a_seal_names_the_epoch_that_the_next_commit_is_about() {
        let mut brain = holding();
        let (sealed, next) = brain.handle_seal().unwrap();
        assert_eq!((sealed, next.stamp()), (epoch(1), brain.open()));
        let committed = brain.handle_commit(sealed).unwrap().expect("news");
        assert_eq!(committed.stamp(), Stamp::new(Term::FIRST, epoch(1)));
        assert_eq!(brain.handle_commit(sealed), Ok(None), "said twice");
    }

    #[test]
    fn words_in_the_wrong_order_change_nothing() {
        let (mut brain, _) = Standalone::begin();
        assert_eq!(brain.handle_seal().unwrap_err(), Refused::NotHolding);
        brain.handle_hold();
        for _ in 0..5 {
            brain.handle_seal().unwrap();
        }
        brain.handle_commit(epoch(3)).unwrap();
        let before = brain.clone();
        let refused = brain.handle_commit(epoch(6)).unwrap_err();
        assert_eq!(refused, Refused::NotSealed { asked: epoch(6), open: epoch(6) });
        let refused = brain.handle_commit(epoch(2)).unwrap_err();
        assert_eq!(refused, Refused::GoingBack { asked: epoch(2), committed: epoch(3) });
        assert_eq!(brain, before);
    }

    #[test]
    fn a_commit_from_before_a_discard_covers_no_frame_after_it() {
        let mut brain = holding();
        for _ in 0..4 {
            brain.handle_seal().unwrap();
        }
        let fenced = brain.handle_discard().unwrap();
        assert_eq!((fenced.term(), fenced.first()), (Term::FIRST.next(), epoch(6)));
        assert_eq!(brain.open(), Stamp::new(Term::FIRST.next(), epoch(6)));
        assert!(matches!(brain.handle_commit(epoch(4)), Err(Refused::GoingBack { .. })));
        assert!(!brain.open().is_covered_by(brain.committed()));
    }

    #[test]
    fn a_gate_whose_words_do_not_fit_is_not_resumed() {
        let stamp = |term, n| Stamp::new(Term::new(term).unwrap(), epoch(n));
        for (open, committed) in [
            (stamp(1, 3), stamp(1, 3)),
            (stamp(1, 3), stamp(1, 4)),
            (stamp(2, 3), stamp(1, 1)),
            (Stamp::NONE, Stamp::NONE),
        ] {
            assert!(Standalone::resume(Mode::Hold, open, committed).is_err(), "{open} {committed}");
        }
        let resumed = Standalone::resume(Mode::Hold, stamp(2, 9), stamp(2, 7)).unwrap();
        assert_eq!((resumed.open(), resumed.committed()), (stamp(2, 9), stamp(2, 7)));
    }

    #[test]
    fn epochs_and_terms_end_in_a_refusal_and_not_in_a_panic() {
        let last = Stamp::new(Term::MAX, Epoch::MAX);
        let mut brain =
            Standalone::resume(Mode::Hold, last, Stamp::new(Term::MAX, Epoch::NONE)).unwrap();
        assert_eq!(brain.handle_seal().unwrap_err(), Refused::UsedUp);
        assert_eq!(brain.handle_discard().unwrap_err(), Refused::UsedUp);
    }

    proptest! {
        /// Whatever is said in whatever order: nothing is permitted that is not below the open epoch, and no
        /// permission is older than the one before.
        #[test]
        fn permissions_are_below_the_open_epoch_and_only_grow(
            words in prop::collection::vec((0u8..6, 0u64..40), 0..200)
        ) {
            let (mut brain, _) = Standalone::begin();
            let mut newest = Stamp::NONE;
            for (word, n) in words {
                let permission = match word {
                    0 => { brain.handle_hold(); None }
                    1 => { brain.handle_seal().ok(); None }
                    2 => brain.handle_commit(epoch(n)).ok().flatten(),
                    3 => { brain.handle_open(); None }
                    4 => { brain.handle_close(); None }
                    _ => { brain.handle_discard().ok(); None }
                };
                if let Some(permission) = permission {
                    prop_assert!(permission.stamp() > newest);
                    prop_assert!(permission.stamp() < brain.open());
                    newest = permission.stamp();
                }
            }
        }
    }
}
