//! A machine that is whole, behind its closed gate, and does not run yet.
//!
//! Both roles begin with one: the primary loads a guest into it and starts it; the backup fills its memory from
//! checkpoints for as long as the primary lives, and starts it when that dies. Everything slow is done here.
//!
//! The order, and why: the tap is made down and in no bridge; the gate is put on it, closed; only then is it
//! connected. At no moment can a frame pass without a gate.

mod announced;
mod announcer;
mod wiring;

use std::path::Path;

use anyhow::{Context, Result};
use tracing::warn;

use crate::{
    gate::{self, Engine, Gate, Pinned},
    machine::{CpuProfile, MTU_BYTES_MAX, Offloads, Placement, Prepared, Shape},
    names::{LinkName, VmName},
    net::{Links, Mac, TapSpec},
};

pub(crate) use self::{
    announced::{Announced, decode_cpu, encode_cpu},
    announcer::Announcer,
    wiring::Wiring,
};

// The gate holds the longest frame that a guest may send: addresses, type and two VLAN tags beside the packet.
const _: () = assert!(MTU_BYTES_MAX as usize + 14 + 8 <= remus_abi::gate::FRAME_MAX);

/// What it is built from.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Plan {
    pub(crate) vm: VmName,
    pub(crate) shape: Shape,
    pub(crate) cpu: CpuProfile,
    pub(crate) placement: Placement,
    pub(crate) tap: LinkName,
    pub(crate) bridge: Option<LinkName>,
    pub(crate) gate: gate::Settings,
}

/// What the network device may leave to the host: with a gate that copies frames nothing, since what is put off
/// is written beside a frame and would be lost.
pub(crate) fn offloads_under(engine: Engine) -> Offloads {
    match engine {
        Engine::Bpf => Offloads::None,
        Engine::NfQueue => Offloads::Segmentation,
    }
}

/// See the module.
pub(crate) struct Standby {
    pub(crate) machine: Prepared,
    pub(crate) gate: Gate,
    pub(crate) wiring: Wiring,
    pub(crate) announcer: Announcer,
    plan: Plan,
}

impl Standby {
    /// Builds everything, with a gate that is in no term yet. `pins` is where the gate's programs are pinned. On an error
    /// nothing is left behind.
    ///
    /// # Errors
    /// When this host cannot run such a machine, or not on this tap and bridge; says what is missing.
    pub(crate) fn prepare(plan: Plan, pins: &Path) -> Result<Self> {
        let links = Links::open()?;
        if let Some(bridge) = &plan.bridge {
            links.bridge(bridge.as_str())?;
        }
        let mac = Mac(plan.shape.mac);
        let spec = TapSpec {
            name: plan.tap.as_str(),
            guest_mac: mac,
            mtu_bytes: plan.shape.mtu_bytes.into(),
            vm: plan.vm.as_str(),
        };
        let tap = links.ensure_tap(&spec, |found| Gate::guards(&found.name))?;
        let index = tap.index;
        let built = || -> Result<(Gate, Prepared, Announcer)> {
            let guarded = gate::Tap { name: plan.tap.to_string(), ifindex: index.0 };
            tell_what_is_left(pins);
            let gate = Gate::install(guarded, pins, &plan.gate)?;
            let behind_it = || {
                tap.persist()?;
                let ours = tap.fd.try_clone().context("share the tap")?;
                let machine = Prepared::new(&plan.shape, &plan.cpu, &plan.placement, tap.fd)?;
                Ok((machine, Announcer::new(ours, mac)))
            };
            match behind_it() {
                Ok((machine, announcer)) => Ok((gate, machine, announcer)),
                Err(e) => {
                    remove_gate(gate);
                    Err(e)
                }
            }
        };
        match built() {
            Ok((gate, machine, announcer)) => {
                let bridge = plan.bridge.clone();
                let wiring = Wiring { links, tap: index, bridge, mac, overheard: None };
                Ok(Self { machine, gate, wiring, announcer, plan })
            }
            Err(e) => {
                links.delete(index)?;
                Err(e)
            }
        }
    }

    /// Whether it is what `plan` asks for.
    pub(crate) fn serves(&self, plan: &Plan) -> bool {
        self.plan == *plan
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Takes everything down again.
    ///
    /// # Errors
    /// When the tap cannot be deleted.
    pub(crate) fn remove(self) -> Result<()> {
        drop(self.machine);
        self.wiring.remove(self.gate)
    }
}

/// Says what a gate holds that an earlier controller left: the guest that sent it died with that controller, so it
/// is never released.
fn tell_what_is_left(pins: &Path) {
    let Ok(Some(left)) = Pinned::find(pins) else { return };
    let (view, Ok(held)) = (left.view(), left.held()) else { return };
    warn!(
        "an earlier controller left its gate, of term {}, epoch {} open, {} committed; the {} frames ({} bytes) that it \
         holds are discarded: their guest is gone",
        view.open.term(),
        view.open.epoch(),
        view.committed.epoch(),
        held.frames,
        held.bytes
    );
}

fn remove_gate(gate: Gate) {
    if let Err(e) = gate.remove() {
        warn!("the gate's pins are left behind: {e:#}");
    }
}
