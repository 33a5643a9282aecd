//! What the engine tells the status: its own words turned into the document's.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use remus_abi::Stamp;

use super::{
    sender::{Cargo, Shipment},
    standing::Evidence,
};
use crate::{
    checkpoint::PAGE_SIZE,
    gate::Gate,
    observe::{
        GateReading, PauseParts, Shared,
        status::{Distribution, Inbound, Protection},
    },
    replication::Pipeline,
    watch::Found,
    wire::Moment,
};

pub(crate) struct Report {
    shared: Arc<Shared>,
    stands: Option<Protection>,
    /// Something was heard that the reason tells.
    has_news: bool,
    said: String,
    refusals: String,
    warnings: String,
    backup_lacks: String,
}

impl Report {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            stands: None,
            has_news: false,
            said: String::new(),
            refusals: String::new(),
            warnings: String::new(),
            backup_lacks: String::new(),
        }
    }

    /// How the VM stands, if that or its reason has changed. `unacked` is how long the oldest checkpoint that is not
    /// committed has been on its way.
    /// Protected means now: a backup that has not answered for a lease may be gone, whatever TCP thinks.
    pub(crate) fn standing(
        &mut self,
        brain: &Pipeline,
        lease_holds: bool,
        unacked: Option<Duration>,
    ) {
        let evidence = Evidence {
            standing: brain.standing(),
            fenced_by: brain.fenced_by(),
            lease_holds,
            unacked,
            said: &self.said,
            refusals: &self.refusals,
            warnings: &self.warnings,
            backup_lacks: &self.backup_lacks,
        };
        let protection = evidence.protection();
        if self.stands != Some(protection) || self.has_news {
            self.shared.stand(protection, &evidence.reason());
            (self.stands, self.has_news) = (Some(protection), false);
            if matches!(protection, Protection::Protected | Protection::Impaired) {
                self.said.clear();
            }
        }
    }

    /// The guest is paused because its gate is lost.
    pub(crate) fn gate_lost(&mut self, why: &str) {
        self.shared.stand(Protection::GateLost, why);
        self.stands = Some(Protection::GateLost);
    }

    /// Why there is no session, or why it ended.
    pub(crate) fn reason(&mut self, why: &str) {
        if self.said != why {
            why.clone_into(&mut self.said);
            self.has_news = true;
        }
    }

    /// Whether clients reach the guest.
    pub(crate) fn clients(&mut self, found: &Found) {
        (self.refusals, self.warnings) = (found.refusals(), found.warnings());
        self.has_news = true;
    }

    /// What a takeover by the backup lacks: nothing when `what` is empty, or there is no backup.
    pub(crate) fn backup_lacks(&mut self, what: String) {
        self.has_news |= self.backup_lacks != what;
        self.backup_lacks = what;
    }

    /// `marks`: when each part of the pause began, and when the last ended.
    pub(crate) fn sealed(
        &self,
        checkpoint: Stamp,
        marks: &[Moment; PauseParts::COUNT + 1],
        pages: usize,
    ) {
        // Differences of rounded times, so that nothing is lost between them.
        let until = |at: usize| micros(marks[at].since(marks[0]));
        let parts = PauseParts(std::array::from_fn(|at| until(at + 1) - until(at)));
        self.shared.sealed(checkpoint, &parts, u32::try_from(pages).unwrap_or(u32::MAX));
    }

    /// What a shipment has cost. The sync is no checkpoint.
    pub(crate) fn sent(&self, shipment: &Shipment) {
        match shipment.cargo {
            Cargo::Sync => {}
            Cargo::Checkpoint { .. } => {
                self.shared.sent(shipment.bytes, (shipment.staging.len() * PAGE_SIZE) as u64);
            }
        }
    }

    pub(crate) fn committed(&self, stamp: Stamp, since_seal: Duration) {
        self.shared.committed(stamp, micros(since_seal));
    }

    pub(crate) fn released(&self, stamp: Stamp, since_seal: Duration) {
        self.shared.released(stamp, micros(since_seal));
    }

    /// The kernel released so long before the controller is about to.
    pub(crate) fn led(&self, lead: Duration) {
        self.shared.kernel_lead(micros(lead));
    }

    /// What the guest was given, for its backup to keep.
    pub(crate) fn relayed(&self, counters: Inbound) {
        self.shared.relayed(counters);
    }

    pub(crate) fn gate(&self, gate: &Gate) -> Result<()> {
        let (fill, residence) = (gate.fill(), gate.residence());
        self.shared.gate(&GateReading {
            mode: gate.mode(),
            waiting: fill.frames,
            waiting_bytes: fill.bytes,
            capacity_bytes: fill.capacity_bytes,
            residence_us: Distribution {
                count: residence.count(),
                p50: residence.percentile_us(50),
                p90: residence.percentile_us(90),
                p99: residence.percentile_us(99),
                max: residence.max_us(),
            },
            counters: gate.counters()?,
            acks: gate.ack_counters()?,
        });
        Ok(())
    }
}

fn micros(span: Duration) -> u32 {
    u32::try_from(span.as_micros()).unwrap_or(u32::MAX)
}
