//! A machine that is whole, behind its closed gate, and does not run yet.
//!
//! Both roles begin with one: the primary loads a guest into it and starts it; the backup fills its memory from
//! checkpoints for as long as the primary lives, and starts it when that dies. Everything slow is done here.
//!
//! The order, and why: the tap is made down and in no bridge; the gate is put on it, closed; only then is it
//! connected. At no moment can a frame pass without a gate.

use std::{fs::File, io::Write, path::Path, thread, time::Duration};

use anyhow::{Context, Result};
use remus_abi::Term;
use tracing::{info, warn};

use crate::{
    config::LinkName,
    gate::{self, Engine, Gate, Pinned},
    machine::{CpuProfile, MTU_BYTES_MAX, Offloads, Placement, Prepared, Shape},
    net::{IfIndex, Links, Mac, Overheard, Station, TapSpec, VNET_HEADER_BYTES, announce},
};

// The gate holds the longest frame that a guest may send: addresses, type and two VLAN tags beside the packet.
const _: () = assert!(MTU_BYTES_MAX as usize + 14 + 8 <= remus_abi::gate::FRAME_MAX);

/// The announcement is repeated: a switch that is busy with the death of a link may miss the first.
const ANNOUNCE_AGAIN: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(1000)];

/// What it is built from.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Plan {
    pub(crate) vm: String,
    pub(crate) shape: Shape,
    pub(crate) cpu: CpuProfile,
    pub(crate) placement: Placement,
    pub(crate) tap: LinkName,
    pub(crate) bridge: Option<LinkName>,
    pub(crate) gate: gate::Settings,
    /// The term in which this host speaks, or would.
    pub(crate) term: Term,
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
    plan: Plan,
}

/// The guest's connection to this host's network.
pub(crate) struct Wiring {
    links: Links,
    tap: IfIndex,
    bridge: Option<IfIndex>,
    mac: Mac,
    /// The guest's end of the tap, for announcements in its name.
    voice: File,
    /// What comes for the guest while it runs elsewhere.
    overheard: Option<Overheard>,
}

impl Standby {
    /// Builds everything. `pins` is where the gate's programs are pinned. On an error nothing is left behind.
    ///
    /// # Errors
    /// When this host cannot run such a machine, or not on this tap and bridge; says what is missing.
    pub(crate) fn prepare(plan: Plan, pins: &Path) -> Result<Self> {
        let links = Links::open()?;
        let bridge = match &plan.bridge {
            Some(bridge) => Some(links.bridge(bridge.as_str())?.index),
            None => None,
        };
        let mac = Mac(plan.shape.mac);
        let spec = TapSpec {
            name: plan.tap.as_str(),
            guest_mac: mac,
            mtu_bytes: plan.shape.mtu_bytes.into(),
            vm: &plan.vm,
        };
        let tap = links.ensure_tap(&spec, |found| Gate::guards(&found.name))?;
        let index = tap.index;
        let built = || -> Result<(Gate, Prepared, File)> {
            let guarded = gate::Tap { name: plan.tap.to_string(), ifindex: index.0 };
            tell_what_is_left(pins);
            let gate = Gate::install(guarded, pins, &plan.gate, plan.term)?;
            let voice = File::from(tap.fd.try_clone().context("share the tap")?);
            match Prepared::new(&plan.shape, &plan.cpu, &plan.placement, tap.fd) {
                Ok(machine) => Ok((gate, machine, voice)),
                Err(e) => {
                    remove_gate(gate);
                    Err(e)
                }
            }
        };
        match built() {
            Ok((gate, machine, voice)) => {
                let wiring = Wiring { links, tap: index, bridge, mac, voice, overheard: None };
                Ok(Self { machine, gate, wiring, plan })
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

impl Wiring {
    /// Joins the bridge and raises the tap.
    ///
    /// # Errors
    /// When either is gone, or the kernel refuses.
    pub(crate) fn connect(&self) -> Result<()> {
        if let Some(bridge) = self.bridge {
            self.links.join(self.tap, bridge)?;
        }
        self.links.up(self.tap)
    }

    /// Overhears from here on what comes for the guest to the ports of its bridge. Without it, or without a bridge, that is
    /// lost until the guest runs here, as on a host that is away.
    pub(crate) fn overhear(&mut self) {
        let Some(bridge) = self.bridge else { return };
        let listening = self.links.ports(bridge).and_then(|ports| {
            if self.overheard.as_ref().is_none_or(|overheard| !overheard.is_at(&ports)) {
                let overheard = Overheard::listen(&ports, self.mac);
                let overheard = overheard.context("listen at the ports of the bridge")?;
                if let Some(old) = self.overheard.replace(overheard) {
                    close(old);
                }
                info!("frames for the guest are overheard at {} ports", ports.len());
            }
            Ok(())
        });
        if let Err(e) = listening {
            warn!("frames that come for the guest before a takeover will be lost: {e:#}");
        }
    }

    /// The primary lives: what was overheard so far, it has had.
    pub(crate) fn forget_overheard(&mut self) {
        if let Some(overheard) = &mut self.overheard {
            overheard.forget();
        }
    }

    /// What was overheard since, each behind its virtio-net header; nothing more will be.
    pub(crate) fn take_overheard(&mut self) -> Vec<Box<[u8]>> {
        let Some(mut overheard) = self.overheard.take() else { return Vec::new() };
        let frames = overheard.take();
        close(overheard);
        frames
    }

    /// Takes the guest's address off this host's network, for whoever speaks for the guest now.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn disconnect(&self) -> Result<()> {
        self.links.down(self.tap)?;
        self.links.leave(self.tap)
    }

    /// Tells switches where the guest's address is, now and a few times more. Neighbours need not be told: the
    /// address is the same. The gate must be open, or it keeps the announcement in.
    pub(crate) fn announce(&self) {
        let mut frame = vec![0; VNET_HEADER_BYTES];
        frame.extend(announce::rarp(Station { mac: self.mac, vlan: None }));
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

    /// Takes the gate and the tap away: the guest has ended.
    ///
    /// # Errors
    /// When the tap cannot be deleted.
    pub(crate) fn remove(self, gate: Gate) -> Result<()> {
        remove_gate(gate);
        self.links.delete(self.tap)
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

/// The kernel waits for all its CPUs when such a socket is closed, once for each; nobody here does.
fn close(overheard: Overheard) {
    if let Err(e) = thread::Builder::new().name("close".to_owned()).spawn(move || drop(overheard)) {
        warn!("the sockets that overheard were waited for: {e}");
    }
}

fn remove_gate(gate: Gate) {
    if let Err(e) = gate.remove() {
        warn!("the gate's pins are left behind: {e:#}");
    }
}
