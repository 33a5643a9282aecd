//! What the engine tells the status: its own words turned into the document's.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use remus_abi::{
    Stamp,
    ack::{ACK_COUNTERS, AckCounter},
    gate::{COUNTERS, Counter},
};

use super::sender::{Cargo, Shipment};
use crate::{
    checkpoint::PAGE_SIZE,
    gate::Gate,
    observe::{
        GateReading, PauseParts, Shared,
        status::{Distribution, Inbound, Protection},
    },
    replication::{FencedBy, Pipeline, Standing},
    wire::Moment,
};

pub(crate) struct Report {
    shared: Arc<Shared>,
    standing: Option<Protection>,
    reason: String,
}

impl Report {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, standing: None, reason: String::new() }
    }

    /// How the VM stands, if that has changed.
    /// Protected means now: a backup that has not answered for a lease may be gone, whatever TCP thinks.
    pub(crate) fn standing(&mut self, brain: &Pipeline, lease_holds: bool) {
        let protection = match brain.standing() {
            Standing::Waiting => Protection::Waiting,
            Standing::Syncing => Protection::Syncing,
            Standing::Protected if !lease_holds => Protection::Stalled,
            Standing::Protected | Standing::Ending => Protection::Protected,
            Standing::Stalled => Protection::Stalled,
            Standing::Unprotected => match brain.fenced_by() {
                FencedBy::Takeover => Protection::Promoted,
                FencedBy::FirstStart
                | FencedBy::Restart
                | FencedBy::Operator
                | FencedBy::Checkpointer => Protection::Unprotected,
            },
            Standing::Stopped => Protection::Stopped,
        };
        if self.standing != Some(protection) {
            self.standing = Some(protection);
            match protection {
                Protection::Protected => self.reason.clear(),
                Protection::Stalled if self.reason.is_empty() => {
                    "the backup does not answer".clone_into(&mut self.reason)
                }
                Protection::Waiting
                | Protection::Syncing
                | Protection::Stalled
                | Protection::Unprotected
                | Protection::Promoted
                | Protection::GateLost
                | Protection::Stopped => {}
            }
            self.shared.stand(protection, &self.reason);
        }
    }

    /// The guest is paused because its gate is lost.
    pub(crate) fn gate_lost(&mut self, why: &str) {
        self.standing = Some(Protection::GateLost);
        why.clone_into(&mut self.reason);
        self.shared.stand(Protection::GateLost, why);
    }

    /// Why protection is not what it should be; said with the standing as it is.
    pub(crate) fn reason(&mut self, why: &str) {
        if self.reason != why {
            why.clone_into(&mut self.reason);
            if let Some(standing) = self.standing {
                self.shared.stand(standing, why);
            }
        }
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
        self.shared.led(micros(lead));
    }

    /// What the guest was given, for its backup to keep.
    pub(crate) fn relayed(&self, counters: Inbound) {
        self.shared.relayed(counters);
    }

    pub(crate) fn gate(&self, gate: &Gate) -> Result<()> {
        let read = gate.counters()?;
        let mut counters = [0; COUNTERS as usize];
        for counter in Counter::ALL {
            counters[counter as usize] = read.get(counter);
        }
        let read = gate.ack_counters()?;
        let mut acks = [0; ACK_COUNTERS as usize];
        for counter in AckCounter::ALL {
            acks[counter as usize] = read.get(counter);
        }
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
            counters,
            acks,
        });
        Ok(())
    }
}

fn micros(span: Duration) -> u32 {
    u32::try_from(span.as_micros()).unwrap_or(u32::MAX)
}
