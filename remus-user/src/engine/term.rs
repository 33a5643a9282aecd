//! A new term for a guest that runs on: without its backup, which is gone.

use anyhow::Result;
use tracing::{info, warn};

use super::{Engine, input::Order};
use crate::{
    gate::Held,
    observe,
    os::boot_now,
    replication::{Fenced, Standing},
    store,
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
            Standing::Protected if self.brain.lease_holds(boot_now()) => return answers(),
            Standing::Syncing => return answers(),
            Standing::Unprotected => return Err("the guest runs unprotected already".to_owned()),
            Standing::Ending | Standing::Stopped => return Err("the guest has ended".to_owned()),
            Standing::Waiting | Standing::Stalled | Standing::Protected => {}
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
        self.record.write(term, store::Standing::Unprotected)?;
        let gate = &mut self.guard.gate;
        gate.begin_term(&fenced, Held::Keep)?;
        gate.open(&fenced);
        let policy = *self.brain.policy();
        self.brain.run_unprotected(fenced, policy, boot_now());
        self.report.begin_term(term);
        self.report.reason("");
        self.order(Order::BeginTerm(term));
        if let Some(peer) = &mut self.peer {
            peer.relay.begin_term();
        }
        info!("clients get what they have waited for");
        self.flush()?;
        self.report_standing();
        Ok(())
    }
}
