//! Permission to speak for a guest.

use remus_abi::{Epoch, Term};

/// Whoever holds this may run the guest in [`term`](Self::term) with its output released by that term alone.
///
/// Every constructor names a reason why nobody else speaks for the guest in this term or a later one. None of them is "the
/// other side is silent": in a takeover silence is joined by a lease that ran out and by acks that are not given any
/// more. Not `Clone`: one permission, one speaker. No constructor is public, so that a reader of this crate finds all
/// sources: the start of a guest judges this host's record (`store/start.rs`), and the brains of a backup and of a
/// checkpointer that is not ours make their own. An arbiter will be one more.
#[derive(PartialEq, Eq, Hash, Debug)]
pub struct Fenced {
    term: Term,
    first: Epoch,
    by: FencedBy,
}

/// Why it was given.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FencedBy {
    /// The guest has never run before.
    FirstStart,
    /// Its last run ended, and nobody else has spoken for it since.
    Restart,
    /// An operator named a host and said that it is off.
    Operator,
    /// This host was the backup, and the primary can release nothing any more.
    Takeover,
    /// Somebody else's checkpointer, which keeps a fence of its own, speaks for the guest.
    Checkpointer,
}

impl Fenced {
    /// For a guest that has never run anywhere: the caller has looked for a newer term and there is none.
    pub(crate) fn first_start() -> Self {
        Self::in_term(Term::FIRST, FencedBy::FirstStart)
    }

    /// For a guest whose last run, in `ended`, is known to be over: it ended on purpose, or it ran on this very
    /// host without a backup that could have taken over.
    pub(crate) fn restart(ended: Term) -> Self {
        Self::in_term(ended.next(), FencedBy::Restart)
    }

    /// For a start in `term` that is made again: the last attempt was accepted by no backup and heard by nobody, so
    /// that it has spent nothing.
    pub(crate) fn start_again(term: Term) -> Self {
        Self::in_term(term, FencedBy::Restart)
    }

    /// On the word of an operator that `host_off` is off and stays off. The term is well above this host's own, `term`, since
    /// that host may have spoken in a newer one. `None` when no such term is left.
    ///
    /// # Panics
    /// When no host is named.
    pub(crate) fn by_operator(term: Term, host_off: &str) -> Option<Self> {
        /// More takeovers than a host can have had unheard.
        const ABOVE: u32 = 256;
        assert!(!host_off.is_empty(), "an operator names the host");
        let term = Term::new(term.get() + ABOVE).filter(|term| *term < Term::MAX)?;
        Some(Self::in_term(term, FencedBy::Operator))
    }

    /// Only [`Backup::promote`](super::Backup::promote) does this.
    pub(super) fn by_takeover(newest_heard: Term) -> Self {
        Self::in_term(newest_heard.next(), FencedBy::Takeover)
    }

    /// On the word of somebody else's checkpointer, in the term of the gate that it drives, whose epoch `open` is open:
    /// only [`Standalone`](super::Standalone) does this. That nobody else speaks for the guest is for it to know.
    pub(super) fn by_checkpointer(term: Term, open: Epoch) -> Self {
        Self { term, first: open, by: FencedBy::Checkpointer }
    }

    fn in_term(term: Term, by: FencedBy) -> Self {
        Self { term, first: Epoch::FIRST, by }
    }

    pub fn term(&self) -> Term {
        self.term
    }

    /// The epoch with which a term begins that begins by this permission. Epochs of our own brains count from
    /// [`Epoch::FIRST`] in every term; those of somebody else's checkpointer go on across terms.
    pub fn first(&self) -> Epoch {
        self.first
    }

    pub fn by(&self) -> FencedBy {
        self.by
    }
}
