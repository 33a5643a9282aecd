//! What is compared: the bridge with no gate, and each way a gate can work. Each arm has the same tap.

use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;
use remus::{
    gate::{Engine, Flushed, Gate, Held, Release, Settings},
    names::LinkName,
};
use remus_abi::{
    Term,
    gate::{BUFFER_MIB_MAX, Counters},
};
use serde::Serialize;

use super::{
    BURSTS,
    bed::{Bed, PINS, UPLINK},
    frames::Size,
    plug::Plug,
};
use crate::permits::{self, Epochs};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arm {
    /// The bridge alone
    None,
    /// Engine bpf, released into the tap's own ingress
    Reentry,
    /// Engine bpf, released straight out of the uplink
    Uplink,
    /// Engine nfqueue: netfilter keeps the frames themselves
    #[value(name = "nfqueue")]
    NfQueue,
    /// The kernel's sch_plug on an IFB, where it has them
    Plug,
}

impl Arm {
    /// What is compared when nothing is said: every kernel has it.
    pub const ALL: [Self; 4] = [Self::None, Self::Reentry, Self::Uplink, Self::NfQueue];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Reentry => "reentry",
            Self::Uplink => "uplink",
            Self::NfQueue => "nfqueue",
            Self::Plug => "plug",
        }
    }

    /// In drawings; told apart also by those who see few colours.
    pub(super) fn colour(self) -> &'static str {
        match self {
            Self::None => "#999999",
            Self::Reentry => "#0072b2",
            Self::Uplink => "#e69f00",
            Self::NfQueue => "#009e73",
            Self::Plug => "#cc79a7",
        }
    }

    /// Whether the arm takes frames of this size. A gate that copies takes no super-frames, so its virtio-net
    /// device does not offer them to the guest.
    pub(super) fn takes(self, size: Size) -> bool {
        match (self, size) {
            (Self::None | Self::NfQueue | Self::Plug, _)
            | (Self::Reentry | Self::Uplink, Size::B64 | Size::B1500) => true,
            (Self::Reentry | Self::Uplink, Size::Gso64K) => false,
        }
    }

    /// Frames of the runs that release everything at once: netfilter's queue takes 65,536. Without a gate as many go
    /// through the bridge.
    pub(super) fn bursts(self) -> &'static [u32] {
        match self {
            Self::None | Self::Reentry | Self::Uplink | Self::Plug => &BURSTS,
            Self::NfQueue => &[10_000, 60_000],
        }
    }

    /// Puts the arm's gate on the tap, holding; `None` for the arm that has none.
    pub(super) fn set_up(self, bed: &Bed, room: Room) -> Result<Option<Gated>> {
        let uplink = || Release::Uplink(LinkName::new(UPLINK).expect("a link's name"));
        let (engine, release) = match self {
            Self::None => return Ok(None),
            Self::Reentry => (Engine::Bpf, Release::ReEntry),
            Self::Uplink => (Engine::Bpf, uplink()),
            Self::NfQueue => (Engine::NfQueue, Release::ReEntry),
            Self::Plug => return Ok(Some(Gated::Plug(Plug::install(bed)?))),
        };
        let buffer_mib = match room {
            Room::Default => Settings::default().buffer_mib,
            Room::Burst => BUFFER_MIB_MAX,
        };
        let settings = Settings { buffer_mib, release, engine };
        let gate = Gate::install(bed.tap.clone(), Path::new(PINS), &settings)?;
        Ok(Some(Gated::holding(gate, engine)?))
    }
}

/// How much a gate can hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Room {
    /// What a VM gets that does not say otherwise.
    Default,
    /// A hundred thousand full frames.
    Burst,
}

/// What holds the tap's frames.
pub(super) enum Gated {
    /// A gate, and the brain that permits it to release. The lease is never over: how it is renewed is no work of the
    /// gate.
    Gate {
        gate: Box<Gate>,
        engine: Engine,
        epochs: Box<Epochs>,
    },
    Plug(Plug),
}

impl Gated {
    fn holding(mut gate: Gate, engine: Engine) -> Result<Self> {
        gate.begin_term(&permits::first(), Held::Discard)?;
        gate.hold();
        gate.renew_lease(&permits::long_lease(Term::FIRST));
        let epochs = Box::new(Epochs::begin(permits::first()));
        Ok(Self::Gate { gate: Box::new(gate), engine, epochs })
    }

    /// Ends the open epoch; what it held may leave after [`Gated::commit`].
    pub(super) fn seal(&mut self) -> Result<()> {
        match self {
            Self::Gate { gate, epochs, .. } => gate.seal(&epochs.seal()),
            Self::Plug(plug) => plug.block()?,
        }
        Ok(())
    }

    /// The backup has every checkpoint that was sealed. A plug is not told.
    pub(super) fn commit(&mut self) {
        match self {
            Self::Gate { gate, epochs, .. } => gate.commit(&epochs.commit()),
            Self::Plug(_) => {}
        }
    }

    pub(super) fn flush(&mut self) -> Result<Flushed> {
        match self {
            Self::Gate { gate, .. } => gate.flush(),
            Self::Plug(plug) => plug.release().map(|()| Flushed::All),
        }
    }

    /// Releases what is committed, all of it. Says how many calls that took.
    pub(super) fn flush_all(&mut self) -> Result<u64> {
        for calls in 1..100_000 {
            match self.flush()? {
                Flushed::All => return Ok(calls),
                Flushed::Pending => {}
                Flushed::Refused => anyhow::bail!("the gate refused to release what is committed"),
            }
        }
        anyhow::bail!("released frames do not come back")
    }

    /// Frames that are held, or `None` where only a flush finds out.
    pub(super) fn held(&self) -> Option<u64> {
        match self {
            Self::Gate { gate, engine: Engine::Bpf, .. } => Some(gate.held()),
            Self::Gate { engine: Engine::NfQueue, .. } | Self::Plug(_) => None,
        }
    }

    /// Frames that are held after a flush, or `None` where nobody tells.
    pub(super) fn left(&self) -> Option<u64> {
        match self {
            Self::Gate { gate, .. } => Some(gate.held()),
            Self::Plug(_) => None,
        }
    }

    /// A plug counts nothing of what a gate does.
    pub(super) fn counters(&self) -> Result<Counters> {
        match self {
            Self::Gate { gate, .. } => gate.counters(),
            Self::Plug(_) => Ok(Counters::default()),
        }
    }

    pub(super) fn remove(self) -> Result<()> {
        match self {
            Self::Gate { gate, .. } => gate.remove(),
            Self::Plug(plug) => plug.remove(),
        }
    }
}
