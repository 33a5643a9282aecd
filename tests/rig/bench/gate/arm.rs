//! What is compared: the bridge with no gate, and each way a gate can work. Each arm has the same tap.

use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;
use remus::{
    config::LinkName,
    gate::{Counters, Engine, Flushed, Gate, Release, Settings},
};
use remus_abi::{Term, gate::BUFFER_MIB_MAX};
use serde::Serialize;

use super::{
    BURSTS,
    bed::{Bed, PINS, UPLINK},
    epochs::Epochs,
    frames::Size,
};

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
}

impl Arm {
    pub const ALL: [Self; 4] = [Self::None, Self::Reentry, Self::Uplink, Self::NfQueue];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Reentry => "reentry",
            Self::Uplink => "uplink",
            Self::NfQueue => "nfqueue",
        }
    }

    /// In drawings; told apart also by those who see few colours.
    pub(super) fn colour(self) -> &'static str {
        match self {
            Self::None => "#999999",
            Self::Reentry => "#0072b2",
            Self::Uplink => "#e69f00",
            Self::NfQueue => "#009e73",
        }
    }

    /// Whether the arm takes frames of this size. A gate that copies takes no super-frames, so its virtio-net
    /// device does not offer them to the guest.
    pub(super) fn takes(self, size: Size) -> bool {
        match (self, size) {
            (Self::None | Self::NfQueue, _)
            | (Self::Reentry | Self::Uplink, Size::B64 | Size::B1500) => true,
            (Self::Reentry | Self::Uplink, Size::Gso64K) => false,
        }
    }

    /// Frames of the runs that release everything at once: netfilter's queue takes 65,536.
    pub(super) fn bursts(self) -> &'static [u32] {
        match self {
            Self::None => &[],
            Self::Reentry | Self::Uplink => &BURSTS,
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
        };
        let buffer_mib = match room {
            Room::Default => Settings::default().buffer_mib,
            Room::Burst => BUFFER_MIB_MAX,
        };
        let settings = Settings { buffer_mib, release, engine };
        let gate = Gate::install(bed.tap.clone(), Path::new(PINS), &settings, Term::FIRST)?;
        Ok(Some(Gated::holding(gate, engine)))
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

/// A gate that holds, and the brain that permits it to release. The lease is never over: how it is renewed is
/// no work of the gate.
pub(super) struct Gated {
    gate: Gate,
    engine: Engine,
    epochs: Epochs,
}

impl Gated {
    fn holding(mut gate: Gate, engine: Engine) -> Self {
        let epochs = Epochs::begin();
        gate.hold_from(epochs.open());
        gate.renew_lease(u64::MAX);
        Self { gate, engine, epochs }
    }

    /// Ends the open epoch; what it held may leave after [`Gated::commit`].
    pub(super) fn seal(&mut self) {
        self.gate.seal(self.epochs.seal());
    }

    /// The backup has every checkpoint that was sealed.
    pub(super) fn commit(&mut self) {
        self.gate.commit(&self.epochs.commit());
    }

    pub(super) fn flush(&mut self) -> Result<Flushed> {
        self.gate.flush()
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
        match self.engine {
            Engine::Bpf => Some(self.gate.held()),
            Engine::NfQueue => None,
        }
    }

    /// Frames that are held after a flush.
    pub(super) fn left(&self) -> u64 {
        self.gate.held()
    }

    pub(super) fn counters(&self) -> Result<Counters> {
        self.gate.counters()
    }

    pub(super) fn remove(self) -> Result<()> {
        self.gate.remove()
    }
}
