//! Terms: a new one for a guest that goes on without its backup, and those of others, for which it falls silent.

use anyhow::Result;
use remus_abi::{Term, gate::Mode};
use tracing::{info, warn};

use super::{
    Engine,
    input::{NewTerm, Order},
};
use crate::{
    gate::Held,
    observe,
    os::{boot_now, fresh_nonce},
    replication::{self, Fenced, Relation, split_advice},
    store::Standing,
    wire::Ancestry,
};

impl Engine {
    /// Follows an operator's order, or says why not.
    pub(super) fn follow(&mut self, asked: observe::Asked) -> Result<()> {
        let observe::Order::Unprotect { host_off } = &asked.order;
        let host_off = host_off.clone();
        match self.may_unprotect(&host_off) {
            Err(why) => asked.answer(Err(why)),
            Ok(fenced) => {
                let term = fenced.term();
                self.go_on_unprotected(fenced, &host_off)?;
                asked.answer(Ok(format!(
                    "the guest goes on without {host_off}, in term {term}, and is protected again as soon as a backup answers"
                )));
            }
        }
        Ok(())
    }

    /// The permission to go on without a backup whose host is off, on an operator's word.
    fn may_unprotect(&mut self, host_off: &str) -> Result<Fenced, String> {
        let answers = || {
            Err(format!(
                "a backup answers, so {host_off} is not off, or is not its host: end that backup first"
            ))
        };
        match self.brain.standing() {
            replication::Standing::Protected if self.brain.lease_holds(boot_now()) => {
                return answers();
            }
            replication::Standing::Syncing => return answers(),
            replication::Standing::Unprotected => {
                return Err("the guest runs unprotected already".to_owned());
            }
            replication::Standing::Ending | replication::Standing::Stopped => {
                return Err("the guest has ended".to_owned());
            }
            replication::Standing::Waiting
            | replication::Standing::Stalled
            | replication::Standing::Protected => {}
        }
        if !self.gate_is_well() {
            return Err("the gate is lost, and must be put back first: see the log".to_owned());
        }
        Fenced::by_operator(self.brain.term(), host_off)
            .ok_or_else(|| "no term is left to go on in".to_owned())
    }

    /// The guest goes on in the term of `fenced` with its gate open. What the gate holds leaves first: it was said by the
    /// guest that goes on.
    fn go_on_unprotected(&mut self, fenced: Fenced, host_off: &str) -> Result<()> {
        let term = fenced.term();
        if let Some(session) = self.current() {
            self.lose(session, "the guest goes on without this backup");
        }
        warn!(
            "by the operator's word that {host_off} is off the guest goes on unprotected, in term {term}"
        );
        // On disk before the guest is heard in that term.
        let nonce = fresh_nonce();
        self.record.write(|record| record.starting(term, nonce).speaking(Standing::Unprotected))?;
        let gate = &mut self.guard.gate;
        gate.begin_term(&fenced, Held::Keep)?;
        gate.open(&fenced);
        let policy = *self.brain.policy();
        self.brain.run_unprotected(fenced, policy, boot_now());
        self.brain.speak_as(nonce);
        self.report.begin_term(term);
        self.report.reason("");
        let ancestry = self.brain.ancestry().clone();
        self.order(Order::BeginTerm(NewTerm { term, nonce, ancestry }));
        if let Some(peer) = &mut self.peer {
            peer.relay.begin_term();
        }
        info!("clients get what they have waited for");
        self.flush()?;
        self.report_standing();
        Ok(())
    }

    /// Another host speaks for the guest: nothing more leaves from here, ever, if that host goes on from this term.
    pub(super) fn newer_term(&mut self, theirs: Ancestry) -> Result<()> {
        let newer = theirs.newest().map_or(Term::NONE, |newest| newest.term);
        match self.brain.handle_newer_term(&theirs) {
            Relation::Descendant => {
                self.guard.gate.close();
                self.record.write(|record| record.stood_down(theirs))
            }
            Relation::Split => {
                let text = format!(
                    "another host speaks in term {newer}, and this host in term {}: {}",
                    self.brain.term(),
                    split_advice(self.record.vm().as_str())
                );
                self.refused(Relation::Split, &text)
            }
            Relation::Same | Relation::Ancestor => Ok(()),
        }
    }

    /// A backup refuses this host, for a reason that `text` says. Where terms were spoken in that do not lead to this
    /// guest's, nothing of it leaves until an operator has chosen.
    pub(super) fn refused(&mut self, relation: Relation, text: &str) -> Result<()> {
        match relation {
            Relation::Same | Relation::Ancestor => {
                self.report.reason(text);
                Ok(())
            }
            Relation::Descendant | Relation::Split => {
                if let Some(session) = self.current() {
                    self.lose(session, text);
                }
                let gate = &mut self.guard.gate;
                if gate.mode() != Mode::Closed {
                    warn!("the gate is shut, and the guest goes on unheard: {text}");
                    gate.close();
                }
                self.report.reason(&format!(
                    "{text}; the gate of this host is shut until a backup has its checkpoint"
                ));
                self.publish()
            }
        }
    }
}
