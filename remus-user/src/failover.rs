//! A takeover: from the permission to speak to a guest that runs and is heard.
//!
//! Everything slow was done when the primary connected ([`Standby::prepare`]): machine, memory, tap, closed gate
//! in the term to come. What is left, in this order:
//! 1. The new term goes to disk: a host that crashes after it was heard must know, when it comes back, that it
//!    spoke.
//! 2. The state beside RAM is put into the machine.
//! 3. The tap joins the bridge and goes up, behind its gate, which is still closed.
//! 4. The gate opens; the network is told where the guest is now. The guest's own first frame might come late.
//! 5. The guest runs.

use std::{fs::File, io::Write, os::fd::OwnedFd, path::Path, thread, time::Duration};

use anyhow::{Context, Result};
use remus_abi::Term;
use tracing::warn;

use crate::{
    checkpoint::MachineState,
    config::LinkName,
    gate::{self, Gate},
    machine::{CpuProfile, Placement, Prepared, Shape},
    net::{IfIndex, Links, Mac, Station, VNET_HEADER_BYTES, announce},
    primary::make_tap,
    replication::Fenced,
    store::{Record, Standing, Store},
};

/// The announcement is repeated: a switch that is busy with the death of a link may miss the first.
const ANNOUNCE_AGAIN: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(1000)];

/// What the standby is built from.
pub(crate) struct Plan {
    pub(crate) vm: String,
    pub(crate) shape: Shape,
    pub(crate) cpu: CpuProfile,
    pub(crate) placement: Placement,
    pub(crate) tap: LinkName,
    pub(crate) bridge: Option<LinkName>,
    pub(crate) slots: u32,
    /// The term in which this host would speak.
    pub(crate) term: Term,
}

/// A machine that is ready to go on with the guest.
pub(crate) struct Standby {
    pub(crate) machine: Prepared,
    pub(crate) gate: Gate,
    pub(crate) tap: IfIndex,
    plan: Plan,
    links: Links,
    bridge: Option<IfIndex>,
    /// The guest's end of the tap, for announcements in its name.
    voice: File,
}

impl Standby {
    /// Builds everything that a takeover needs.
    ///
    /// # Errors
    /// When this host cannot run such a machine, or not on this tap and bridge; says what is missing.
    pub(crate) fn prepare(plan: Plan, pins: &Path) -> Result<Self> {
        let links = Links::open()?;
        let bridge = match &plan.bridge {
            Some(bridge) => Some(links.bridge(bridge.as_str())?.index),
            None => None,
        };
        let tap = make_tap(&links, &plan.tap, Mac(plan.shape.mac), &plan.vm)?;
        let guarded = gate::Tap { name: plan.tap.to_string(), ifindex: tap.index.0 };
        let gate = Gate::install(guarded, pins, plan.slots, plan.term)?;
        let voice = tap.fd.try_clone().context("share the tap")?;
        let machine = Prepared::new(&plan.shape, &plan.cpu, &plan.placement, tap.fd)?;
        Ok(Self {
            machine,
            gate,
            tap: tap.index,
            links,
            bridge,
            voice: File::from(OwnedFd::from(voice)),
            plan,
        })
    }

    /// Whether it would serve `plan` as well.
    pub(crate) fn serves(&self, plan: &Plan) -> bool {
        let Plan { vm, shape, cpu, placement, tap, bridge, slots, term } = &self.plan;
        (vm, shape, placement, tap, bridge, slots, term)
            == (
                &plan.vm,
                &plan.shape,
                &plan.placement,
                &plan.tap,
                &plan.bridge,
                &plan.slots,
                &plan.term,
            )
            && *cpu == plan.cpu
    }

    /// Takes over; see the module for the order. The guest does not run yet: its engine starts it.
    ///
    /// # Errors
    /// When a step fails; the gate may be open then, but no guest runs behind it.
    pub(crate) fn take_over(
        &mut self,
        state: &MachineState,
        fenced: &Fenced,
        store: &Store,
    ) -> Result<()> {
        store.write(&self.plan.vm, Record { term: fenced.term(), standing: Standing::Promoted })?;
        self.machine.restore(state)?;
        if let Some(bridge) = self.bridge {
            self.links.join(self.tap, bridge)?;
        }
        self.links.up(self.tap)?;
        self.gate.open(fenced);
        self.announce();
        Ok(())
    }

    /// Takes down what this host held ready.
    ///
    /// # Errors
    /// When the gate or the tap cannot be removed.
    pub(crate) fn remove(gate: Gate, tap: IfIndex) -> Result<()> {
        gate.remove()?;
        Links::open()?.delete(tap)
    }

    /// Tells switches where the guest's address is now. Its neighbours need not be told: the address is the same.
    fn announce(&self) {
        let mut frame = vec![0; VNET_HEADER_BYTES];
        frame.extend(announce::rarp(Station { mac: Mac(self.plan.shape.mac), vlan: None }));
        let mut voice = &self.voice;
        // A frame that is not taken is repeated below, and the guest will speak for itself.
        voice.write_all(&frame).ok();
        let Ok(voice) = self.voice.try_clone() else { return };
        let again = move || {
            for pause in ANNOUNCE_AGAIN {
                thread::sleep(pause);
                (&voice).write_all(&frame).ok();
            }
        };
        if let Err(e) = thread::Builder::new().name("announce".to_owned()).spawn(again) {
            warn!("the announcement is not repeated: {e}");
        }
    }
}
