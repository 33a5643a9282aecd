//! Whether a primary is taken: its VM, its term, and who it is in it.

use remus_abi::Term;

use super::{Backup, Course, Following, Image, Known};
use crate::{
    replication::ancestry::{Relation, judge, split},
    wire::{Features, Hello, Refusal, Refuse, TermId, Welcome},
};

impl Backup {
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
}
