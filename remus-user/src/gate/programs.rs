//! The programs in the kernel: loading, attaching, pinning, asking whether they are still there, running `flush`.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::{Map, MapData},
    programs::{
        LinkOrder, ProgramInfo, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::TcAttachOptions,
    },
};
use remus_abi::gate::{FRAME_MAX, FlushResult, chunks, slots};

use super::{
    Tap,
    pins::Pins,
    settings::{Release, Settings},
};

/// The object that `cargo xtask build` made from remus-ebpf.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("REMUS_GATE_OBJECT"));

/// Every map of the gate, so that the next controller can go on with it.
const MAPS: [&str; 6] = ["CONTROL", "RING", "SLOTS", "COUNTERS", "RESIDENCE", "EVENTS"];
const HOLD: &str = "hold";
const FLUSH: &str = "flush";
const GUARD: &str = "guard";
/// Pins of programs; those of links are named after the program alone.
const HOLD_PROGRAM: &str = "hold_program";
const GUARD_PROGRAM: &str = "guard_program";

/// What `flush` gets as its packet: a buffer to write frames into, as long as a full frame so that it rarely
/// has to grow.
const FLUSH_BUFFER: [u8; 1514] = [0; 1514];
const _: () = assert!(FLUSH_BUFFER.len() <= FRAME_MAX);

/// Attached and pinned.
pub(super) struct Programs {
    hold: Hook,
    flush: SchedClassifier,
    guard: Option<Hook>,
    pins: Pins,
}

/// A program where it is attached.
struct Hook {
    program: u32,
    _link: PinnedLink,
    interface: String,
    side: TcAttachType,
}

/// See [`super::Gate::guards`].
pub(super) fn is_guarded(link: &str) -> bool {
    SchedClassifier::query_tcx(link, TcAttachType::Ingress).is_ok_and(|(_, chain)| {
        chain.first().is_some_and(|first| first.name_as_str() == Some(HOLD))
    })
}

/// Loads the programs, with room for as many frames as the settings say. Nothing is attached yet.
pub(super) fn load(settings: &Settings) -> Result<Ebpf> {
    let mut loaded = EbpfLoader::new()
        .map_max_entries("SLOTS", slots(settings.buffer_mib))
        .map_max_entries("DATA", chunks(settings.buffer_mib))
        .load(OBJECT)
        .context(
            "load the gate's eBPF object (needs CAP_BPF, CAP_NET_ADMIN and a kernel with BTF)",
        )?;
    for name in [HOLD, FLUSH, GUARD] {
        classifier(&mut loaded, name)?
            .load()
            .with_context(|| format!("the kernel refused the eBPF program {name}"))?;
    }
    Ok(loaded)
}

impl Programs {
    /// Attaches `hold` to the tap's ingress before whatever is there, `guard` to the uplink's egress if there is
    /// one, and pins all. An older gate on this tap stays attached until this one is first in the chain.
    pub(super) fn attach(
        mut loaded: Ebpf,
        tap: &Tap,
        settings: &Settings,
        pins: Pins,
    ) -> Result<Self> {
        let hold = attach(&mut loaded, HOLD, &tap.name, TcAttachType::Ingress)?;
        let guard = match &settings.release {
            Release::ReEntry => None,
            Release::Uplink(uplink) => {
                Some(attach(&mut loaded, GUARD, uplink.as_str(), TcAttachType::Egress)?)
            }
        };
        // From here on the new gate rules; the old one may go.
        for (name, link) in [(HOLD, Some(hold)), (GUARD, guard)] {
            pins.remove(name)?;
            if let Some(link) = link {
                link.pin(pins.path(name)).with_context(|| format!("pin the link of {name}"))?;
            }
        }
        for (pin, name) in [(HOLD_PROGRAM, HOLD), (FLUSH, FLUSH), (GUARD_PROGRAM, GUARD)] {
            pins.remove(pin)?;
            let program = classifier(&mut loaded, name)?;
            program.pin(pins.path(pin)).with_context(|| format!("pin the program {name}"))?;
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
        let hold = Hook::open(&pins, HOLD, HOLD_PROGRAM, &tap.name, TcAttachType::Ingress)?;
        let guard = match release {
            Release::ReEntry => None,
            Release::Uplink(uplink) => Some(Hook::open(
                &pins,
                GUARD,
                GUARD_PROGRAM,
                uplink.as_str(),
                TcAttachType::Egress,
            )?),
        };
        Ok(Self { hold, flush, guard, pins })
    }

    /// The map `name`.
    pub(super) fn map(&self, name: &str) -> Result<MapData> {
        map(&self.pins, name)
    }

    /// The kernel's number of `hold`, by which the log finds its ring.
    pub(super) fn hold_id(&self) -> u32 {
        self.hold.program
    }

    pub(super) fn run_flush(&self) -> Result<FlushResult> {
        let options = TestRunOptions { data_in: Some(&FLUSH_BUFFER), ..TestRunOptions::new() };
        let result = self.flush.test_run(options).context("run flush under BPF_PROG_TEST_RUN")?;
        Ok(match result.return_value {
            r if r == FlushResult::Done as u32 => FlushResult::Done,
            r if r == FlushResult::More as u32 => FlushResult::More,
            r if r == FlushResult::InFlight as u32 => FlushResult::InFlight,
            r if r == FlushResult::Busy as u32 => FlushResult::Busy,
            r if r == FlushResult::Refused as u32 => FlushResult::Refused,
            r if r == FlushResult::Unguarded as u32 => FlushResult::Unguarded,
            r => bail!("flush answered {r}, which means nothing"),
        })
    }

    /// See [`super::Gate::verify`].
    pub(super) fn verify(&self) -> Result<()> {
        self.hold.verify("the gate")?;
        match &self.guard {
            Some(guard) => guard.verify("the gate's second lock"),
            None => Ok(()),
        }
    }

    pub(super) fn detach(self) -> Result<()> {
        let Self { hold, guard, flush, pins } = self;
        // A link goes when neither a descriptor nor a pin refers to it.
        drop((hold, guard, flush));
        pins.clear(&[&[HOLD, GUARD, FLUSH, HOLD_PROGRAM, GUARD_PROGRAM][..], &MAPS].concat())
    }
}

impl Hook {
    fn open(
        pins: &Pins,
        link: &str,
        program: &str,
        interface: &str,
        side: TcAttachType,
    ) -> Result<Self> {
        let about = ProgramInfo::from_pin(pins.path(program))
            .with_context(|| format!("open the pin of {link}"))?;
        let link = PinnedLink::from_pin(pins.path(link))
            .with_context(|| format!("open the pin of the link of {link}"))?;
        Ok(Self { program: about.id(), _link: link, interface: interface.to_owned(), side })
    }

    /// Whether the program is attached, and the first of its chain.
    fn verify(&self, what: &str) -> Result<()> {
        let (_, chain) = SchedClassifier::query_tcx(&self.interface, self.side)
            .with_context(|| format!("ask which programs sit on {}", self.interface))?;
        let first = chain.first().map(ProgramInfo::id);
        ensure!(
            first == Some(self.program),
            "{what} is not in front of {}: {}",
            self.interface,
            match first {
                Some(other) => format!("program {other} comes first"),
                None =>
                    "no program is attached (was the interface deleted and made again?)".to_owned(),
            }
        );
        Ok(())
    }
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

/// Attaches the program before whatever is there.
fn attach(loaded: &mut Ebpf, name: &str, interface: &str, side: TcAttachType) -> Result<FdLink> {
    let program = classifier(loaded, name)?;
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let link = program
        .attach_with_options(interface, side, order)
        .with_context(|| format!("attach {name} to {interface} (TCX needs Linux 6.6)"))?;
    program.take_link(link)?.try_into().context("it is attached by a link")
}

fn classifier<'a>(loaded: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = loaded
        .program_mut(name)
        .with_context(|| format!("the gate's object has no program {name}"))?;
    Ok(program.try_into()?)
}
