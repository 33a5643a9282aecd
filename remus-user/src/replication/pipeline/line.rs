//! Where the pipeline's term stands among the terms of others.

use remus_abi::Term;

use super::{Phase, Pipeline, end::Stop};
use crate::{
    replication::{Relation, judge},
    wire::{Ancestry, Nonce, TermId},
};

/// Who speaks in the term, and the terms that the guest's state comes from.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Line {
    nonce: Option<Nonce>,
    /// The terms that were spoken in: this one too, once the guest may have been heard in it.
    ancestry: Ancestry,
}

impl Line {
    /// The guest may be heard in `term` from now on.
    pub(super) fn speak(&mut self, term: Term) {
        let before = std::mem::take(&mut self.ancestry);
        self.ancestry = before.spoken_in(TermId { term, nonce: self.nonce });
    }

    /// The line goes on in a new term, whose speaker has no name yet.
    pub(super) fn next(self) -> Self {
        Self { nonce: None, ..self }
    }

    /// What a backup that follows `term` may know.
    pub(super) fn with(&self, term: Term) -> Ancestry {
        self.ancestry.clone().spoken_in(TermId { term, nonce: self.nonce })
    }
}

impl Pipeline {
    /// Says who speaks in the term, and which terms the guest's state comes from.
    ///
    /// # Panics
    /// When it comes from a later term than this one.
    pub fn in_line(mut self, nonce: Nonce, ancestry: Ancestry) -> Self {
        self.line = Line { nonce: Some(nonce), ancestry };
        assert!(self.line.ancestry.leads_to(self.id()), "a term before those that it comes from");
        if self.gate_is_open() {
            self.line.speak(self.term);
        }
        self
    }

    /// Says who speaks in a term that [`run_unprotected`](Self::run_unprotected) began.
    pub fn speak_as(&mut self, nonce: Nonce) {
        self.line.nonce = Some(nonce);
        self.line.speak(self.term);
    }

    /// The term, and who speaks in it.
    pub fn id(&self) -> TermId {
        TermId { term: self.term, nonce: self.line.nonce }
    }

    /// The terms that the guest's state comes from, and in which it may have been heard.
    pub fn ancestry(&self) -> &Ancestry {
        &self.line.ancestry
    }

    /// Another speaker says which terms its guest comes from. If this guest is one of its ancestors, this one has stopped
    /// for good: close the gate, end the guest. In a split this one falls silent, as
    /// [`handle_refused`](Self::handle_refused) says.
    pub fn handle_newer_term(&mut self, theirs: &Ancestry) -> Relation {
        let relation = judge(&self.line.ancestry, theirs);
        match relation {
            Relation::Descendant => {
                let newer = theirs.newest().map_or(self.term, |newest| newest.term);
                self.phase = Phase::Stopped(Stop::StoodDown(newer));
            }
            Relation::Split => self.fall_silent(),
            Relation::Same | Relation::Ancestor => {}
        }
        relation
    }

    /// A backup refuses this host, and says which terms it has heard of. Where one of them does not lead here, or goes on
    /// from here, this guest must not be heard: close the gate. It does not end, since a record is no speaker, and this may
    /// be the last copy.
    pub fn handle_refused(&mut self, theirs: &Ancestry) -> Relation {
        let relation = judge(&self.line.ancestry, theirs);
        match relation {
            Relation::Descendant | Relation::Split => self.fall_silent(),
            Relation::Same | Relation::Ancestor => {}
        }
        relation
    }

    /// Another host speaks or has spoken, and this guest must not be heard: close the gate. It is shut from now on, until a backup has a
    /// checkpoint.
    pub fn fall_silent(&mut self) {
        self.handle_session_lost();
        if self.phase == Phase::Unprotected {
            self.phase = Phase::Waiting;
        }
    }
}
