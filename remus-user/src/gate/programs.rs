//! The programs in the kernel: loading, attaching, pinning, asking whether they are still there, running `flush`.

use std::path::Path;

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::{Map, MapData},
    programs::{SchedClassifier, SocketFilter},
};
use remus_abi::gate::{FRAME_MAX, FlushResult, Turn, chunks, slots};

use super::{
    Tap,
    chain::{Place, Side},
    health::{Health, Lost, check_hook},
    hook::{self, Hook, HookKind},
    pins::Pins,
    settings::{Engine, Release, Settings},
};

use crate::names::LinkName;

/// The object that `cargo xtask build` made from remus-ebpf.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("REMUS_GATE_OBJECT"));

/// Every map of the gate, so that the next controller can go on with it, and `ack` be loaded over them: with a lock of
/// its own it would not exclude `flush`.
const MAPS: [&str; 10] = [
    "CONTROL",
    "RING",
    "FLUSHING",
    "SLOTS",
    "DATA",
    "COUNTERS",
    "RESIDENCE",
    "EVENTS",
    "ACKED",
    "ACKS",
];
pub(super) const HOLD: &str = "hold";
const FLUSH: &str = "flush";
const TURN: &str = "turn";
pub(super) const GUARD: &str = "guard";
/// What the engine `nfqueue` has in the place of [`HOLD`], and as its second lock.
const STAMP: &str = "stamp";
const LOCK: &str = "lock";
/// Pins of programs; those of links are named after the program alone.
pub(super) const HOLD_PROGRAM: &str = "hold_program";
pub(super) const GUARD_PROGRAM: &str = "guard_program";

/// What `flush` gets as its packet: a buffer to write frames into, as long as a full frame so that it rarely
/// has to grow.
const FLUSH_BUFFER: [u8; 1514] = [0; 1514];
const _: () = assert!(FLUSH_BUFFER.len() <= FRAME_MAX);

/// Attached and pinned.
pub(super) struct Programs {
    hold: Hook,
    flush: SchedClassifier,
    turn: SchedClassifier,
    guard: Option<Hook>,
    health: Health,
    pins: Pins,
}

/// See [`super::Gate::guards`].
pub(super) fn is_guarded(link: &str) -> bool {
    hook::is_in_front(HOLD, link)
}

/// Loads the programs, with room for as many frames as the settings say. Nothing is attached yet.
pub(super) fn load(settings: &Settings) -> Result<Ebpf> {
    let mut loaded = loader()
        .map_max_entries("SLOTS", slots(settings.buffer_mib))
        .map_max_entries("DATA", chunks(settings.buffer_mib))
        .load(OBJECT)
        .context(
            "load the gate's eBPF object (needs CAP_BPF, CAP_NET_ADMIN and a kernel with BTF)",
        )?;
    for name in [front(settings.engine), FLUSH, TURN, GUARD] {
        classifier(&mut loaded, name)?
            .load()
            .with_context(|| format!("the kernel refused the eBPF program {name}"))?;
    }
    Ok(loaded)
}

/// A loader that does not parse the kernel's BTF, which takes 0.4 s: no program here reads a structure of the kernel's, so
/// there is nothing to relocate. A guest whose gate is put back stands still for so long.
fn loader() -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    loader
}

impl Programs {
    /// Attaches `hold` to the tap's ingress before whatever is there, `guard` to the uplink's egress if there is
    /// one, and pins all. An older gate on this tap stays attached until this one is first in the chain.
    pub(super) fn attach(
        mut loaded: Ebpf,
        tap: &Tap,
        settings: &Settings,
        kind: HookKind,
        pins: Pins,
    ) -> Result<Self> {
        // The guard first: without it nothing is to leave by the uplink.
        match &settings.release {
            Release::ReEntry => pins.remove(GUARD)?,
            Release::Uplink(uplink) => {
                let (uplink, place) = egress(uplink.as_str())?;
                let guard = classifier(&mut loaded, GUARD)?;
                hook::attach(guard, GUARD, GUARD_PROGRAM, uplink, place, kind, &pins)?;
            }
        }
        let front = front(settings.engine);
        let hold = classifier(&mut loaded, front)?;
        hook::attach(hold, HOLD, HOLD_PROGRAM, &tap.name, ingress(tap), kind, &pins)?;
        // From here on the new gate rules.
        for (pin, name) in
            [(HOLD_PROGRAM, front), (FLUSH, FLUSH), (TURN, TURN), (GUARD_PROGRAM, GUARD)]
        {
            pins.remove(pin)?;
            let program = classifier(&mut loaded, name)?;
            program.pin(pins.path(pin)).with_context(|| format!("pin the program {name}"))?;
        }
        pins.remove(LOCK)?;
        if settings.engine == Engine::NfQueue {
            let lock = socket_filter(&mut loaded, LOCK)?;
            lock.load().with_context(|| format!("the kernel refused the eBPF program {LOCK}"))?;
            lock.pin(pins.path(LOCK)).with_context(|| format!("pin the program {LOCK}"))?;
        }
        for name in MAPS {
            pins.remove(name)?;
            let map = loaded
                .map_mut(name)
                .with_context(|| format!("the gate's object has no map {name}"))?;
            map.pin(pins.path(name)).with_context(|| format!("pin the map {name}"))?;
        }
        Self::open(tap, &settings.release, pins)
    }

    /// The programs that are pinned.
    ///
    /// # Errors
    /// When one of the pins is missing.
    pub(super) fn open(tap: &Tap, release: &Release, pins: Pins) -> Result<Self> {
        let flush = SchedClassifier::from_pin(pins.path(FLUSH)).context("open the pin of flush")?;
        let turn = SchedClassifier::from_pin(pins.path(TURN)).context("open the pin of turn")?;
        let hold = Hook::open(HOLD, HOLD_PROGRAM, &tap.name, ingress(tap), &pins)?;
        let guard = match release {
            Release::ReEntry => None,
            Release::Uplink(uplink) => {
                let (uplink, place) = egress(uplink.as_str())?;
                Some(Hook::open(GUARD, GUARD_PROGRAM, uplink, place, &pins)?)
            }
        };
        let mut pinned = [&[FLUSH, TURN, HOLD_PROGRAM, GUARD_PROGRAM][..], &MAPS].concat();
        pinned.extend([Some(&hold), guard.as_ref()].into_iter().flatten().filter_map(Hook::pin));
        pinned.extend(pins.path(LOCK).exists().then_some(LOCK));
        let health = Health::watch(&hold, &pins, &pinned)?;
        Ok(Self { hold, flush, turn, guard, health, pins })
    }

    /// The map `name`.
    pub(super) fn map(&self, name: &str) -> Result<MapData> {
        map(&self.pins, name)
    }

    /// Loads the program `name` of the object over the maps of this gate. Maps of its own are not pinned.
    pub(super) fn load_beside(&self, name: &str) -> Result<Ebpf> {
        let mut loader = loader();
        for map in MAPS {
            loader.map_pin_path(map, self.pins.path(map));
        }
        let mut loaded = loader.load(OBJECT).context("load the gate's eBPF object again")?;
        classifier(&mut loaded, name)?
            .load()
            .with_context(|| format!("the kernel refused the eBPF program {name}"))?;
        Ok(loaded)
    }

    /// The second lock of the engine `nfqueue`.
    pub(super) fn lock(&self) -> Result<SocketFilter> {
        SocketFilter::from_pin(self.pins.path(LOCK)).context("open the pin of lock")
    }

    /// The kernel's number of `hold`, by which the log finds its ring.
    pub(super) fn hold_id(&self) -> u32 {
        self.hold.program_id
    }

    pub(super) fn run_flush(&self) -> Result<FlushResult> {
        let options = TestRunOptions { data_in: Some(&FLUSH_BUFFER), ..TestRunOptions::new() };
        let result = self.flush.test_run(options).context("run flush under BPF_PROG_TEST_RUN")?;
        result_of(FLUSH, result.return_value)
    }

    /// Ends a term; see the program.
    pub(super) fn run_turn(&self, how: Turn) -> Result<FlushResult> {
        // The first words of __sk_buff: len, pkt_type, mark (include/uapi/linux/bpf.h).
        let mut context = [0; 16];
        context[8..12].copy_from_slice(&(how as u32).to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(&FLUSH_BUFFER),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let result = self.turn.test_run(options).context("run turn under BPF_PROG_TEST_RUN")?;
        result_of(TURN, result.return_value)
    }

    /// How `hold` is attached.
    pub(super) fn kind(&self) -> HookKind {
        self.hold.kind()
    }

    pub(super) fn pins(&self) -> &Path {
        self.pins.dir()
    }

    /// Which way released frames go.
    pub(super) fn release(&self) -> Result<Release> {
        Ok(match &self.guard {
            None => Release::ReEntry,
            Some(guard) => Release::Uplink(LinkName::new(&guard.link)?),
        })
    }

    /// See [`super::Gate::verify`].
    pub(super) fn verify(&self) -> Result<(), Lost> {
        self.health.check(&self.hold)?;
        match &self.guard {
            Some(guard) => check_hook(guard, self.health.rtnl()),
            None => Ok(()),
        }
    }

    pub(super) fn detach(self) -> Result<()> {
        let Self { hold, guard, flush, turn, pins, health: _ } = self;
        hold.detach()?;
        guard.map_or(Ok(()), Hook::detach)?;
        drop((flush, turn));
        pins.clear(
            &[&[HOLD, GUARD, FLUSH, TURN, LOCK, HOLD_PROGRAM, GUARD_PROGRAM][..], &MAPS].concat(),
        )
    }
}

/// What `program` said by returning `value`.
fn result_of(program: &str, value: u32) -> Result<FlushResult> {
    Ok(match value {
        v if v == FlushResult::Done as u32 => FlushResult::Done,
        v if v == FlushResult::More as u32 => FlushResult::More,
        v if v == FlushResult::InFlight as u32 => FlushResult::InFlight,
        v if v == FlushResult::Busy as u32 => FlushResult::Busy,
        v if v == FlushResult::Refused as u32 => FlushResult::Refused,
        v if v == FlushResult::Broken as u32 => FlushResult::Broken,
        v if v == FlushResult::Unguarded as u32 => FlushResult::Unguarded,
        v => bail!("{program} answered {v}, which means nothing"),
    })
}

/// The program in front at the tap. Its pins have the name of the place, `hold`, whichever it is.
fn front(engine: Engine) -> &'static str {
    match engine {
        Engine::Bpf => HOLD,
        Engine::NfQueue => STAMP,
    }
}

fn ingress(tap: &Tap) -> Place {
    Place { ifindex: tap.ifindex, side: Side::Ingress }
}

fn egress(uplink: &str) -> Result<(&str, Place)> {
    let ifindex = hook::ifindex(uplink).with_context(|| format!("there is no uplink {uplink}"))?;
    Ok((uplink, Place { ifindex, side: Side::Egress }))
}

/// The map `name` of what was loaded and is not pinned yet.
pub(super) fn loaded_map<'a>(loaded: &'a Ebpf, name: &str) -> Result<&'a MapData> {
    match loaded.map(name) {
        Some(Map::Array(map)) => Ok(map),
        _ => bail!("the gate's object has no array {name}"),
    }
}

/// The map that is pinned as `name`.
pub(super) fn map(pins: &Pins, name: &str) -> Result<MapData> {
    open_map(&pins.path(name)).with_context(|| format!("open the pinned map {name}"))
}

fn open_map(path: &Path) -> Result<MapData> {
    Ok(MapData::from_pin(path)?)
}

fn socket_filter<'a>(loaded: &'a mut Ebpf, name: &str) -> Result<&'a mut SocketFilter> {
    let program = loaded
        .program_mut(name)
        .with_context(|| format!("the gate's object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// The program `name` of the object.
pub(super) fn classifier<'a>(loaded: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = loaded
        .program_mut(name)
        .with_context(|| format!("the gate's object has no program {name}"))?;
    Ok(program.try_into()?)
}
