//! Permission to speak for a guest.

use remus_abi::Term;

/// Whoever holds this may run the guest in [`term`](Self::term) with its output released by that term alone.
///
/// Every constructor is a reason why nobody else speaks for the guest in this term or a later one; there is none
/// for "the other side is silent" except the takeover, where silence is joined by a lease that ran out and by
/// acks that are not given any more. Not `Clone`: one permission, one speaker. An arbiter would be one more
/// constructor; there is none yet.
#[derive(PartialEq, Eq, Hash, Debug)]
pub struct Fenced {
    term: Term,
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
    pub fn first_start() -> Self {
        Self { term: Term::FIRST, by: FencedBy::FirstStart }
    }

    /// For a guest whose last run, in `ended`, is known to be over: it ended on purpose, or it ran on this very
    /// host without a backup that could have taken over.
    pub fn restart(ended: Term) -> Self {
        Self { term: ended.next(), by: FencedBy::Restart }
    }

    /// For a start in `term` that is made again: the last attempt was accepted by no backup and heard by nobody, so
    /// that it has spent nothing.
    pub fn start_again(term: Term) -> Self {
        Self { term, by: FencedBy::Restart }
    }

    /// On the word of an operator that `host_off` is off and stays off; the newest term known here ends.
    ///
    /// # Panics
    /// When no host is named.
    pub fn by_operator(newest_known: Term, host_off: &str) -> Self {
        assert!(!host_off.is_empty(), "an operator names the host");
        Self { term: newest_known.next(), by: FencedBy::Operator }
    }

    /// Only [`Backup::promote`](super::Backup::promote) does this.
    pub(super) fn by_takeover(newest_heard: Term) -> Self {
        Self { term: newest_heard.next(), by: FencedBy::Takeover }
    }

    /// On the word of somebody else's checkpointer, in the term of the gate that it drives: only
    /// [`Standalone`](super::Standalone) does this. That nobody else speaks for the guest is for it to know.
    pub(super) fn by_checkpointer(term: Term) -> Self {
        Self { term, by: FencedBy::Checkpointer }
    }

    pub fn term(&self) -> Term {
        self.term
    }

    pub fn by(&self) -> FencedBy {
        self.by
    }
}
