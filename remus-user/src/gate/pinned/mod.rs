//! A gate as its pins show it, whoever controls it: for an operator after a crash, and for the controller that
//! takes it over.
//!
//! Everything here is read from the kernel at the moment of the call; nothing is remembered, and nothing is
//! believed: a map of another layout is refused, and sizes are bounded by what the maps can hold.
//!
//! The one thing that may be written is the mode, and only to [`Mode::Closed`]: shutting a gate is safe whoever
//! does it and whoever else is at it. Deliberately absent: whatever lets a frame out.

mod link;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use remus_abi::{
    Kept, Stamp,
    gate::{
        CONTROL_WORDS, Control, Counters, LAYOUT, Life, Mode, RING_WORDS, Ring, Slot, SlotState,
        UNIT,
    },
    may_leave, releasable,
};

use self::link::TcxLink;
use super::{
    chain::{Place, Side},
    control::Words,
    counters::CounterMap,
    health::{Lost, check_hook},
    hook::Hook,
    pins::Pins,
    programs::{self, GUARD, GUARD_PROGRAM, HOLD, HOLD_PROGRAM},
    rtnl::Rtnl,
    words::ControlWords,
};

const CONTROL: &str = "CONTROL";

/// See the module.
pub struct Pinned {
    pins: Pins,
    control: Words,
    ring: Words,
    slots: Array<MapData, SlotBytes>,
    counters: CounterMap,
}

/// What the controller's words say. Whatever is not a known mode is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct View {
    pub mode: Mode,
    /// Of the epoch that frames are stamped with now.
    pub open: Stamp,
    /// Of the newest checkpoint that is committed.
    pub committed: Stamp,
    /// Which frames of earlier terms leave in this one.
    pub kept: Kept,
    /// CLOCK_BOOTTIME ns after which nothing leaves; `u64::MAX` when there is no lease.
    pub lease_until_ns: u64,
    /// Of the tap, in the network namespace of the controller.
    pub tap_index: u32,
    /// Of the interface by which frames leave; 0: they go back into the tap.
    pub uplink_index: u32,
    /// Bytes of frames that fit, each frame rounded up to 64.
    pub capacity_bytes: u64,
}

/// Frames that wait in slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct InSlots {
    pub frames: u64,
    pub bytes: u64,
    /// Those of `frames` that leave at the next flush: their checkpoint is committed, or the gate is open.
    pub committed: u64,
    /// Of the first and the last; [`Stamp::NONE`] when nothing is held.
    pub first: Stamp,
    pub last: Stamp,
}

/// Whether the gate is in front of its tap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Attachment {
    /// First in the chain: every frame meets it before anything else.
    First,
    /// Another program comes before it, and may let frames pass by.
    Behind(Lost),
    /// The link is alive, but no interface of this network namespace has it: the tap is in another one.
    Elsewhere,
    /// The tap was deleted, or the gate taken off it; without TCX (before Linux 6.6) it may also be in another
    /// network namespace. Frames of a tap made anew under its name are not held.
    Gone,
}

impl Attachment {
    /// Whether the interface that was asked about is the gate's tap.
    pub fn is_on_tap(&self) -> bool {
        match self {
            Self::First | Self::Behind(_) => true,
            Self::Elsewhere | Self::Gone => false,
        }
    }
}

/// A slot as the kernel keeps it: [`Slot`].
type SlotBytes = [u8; size_of::<Slot>()];

impl Pinned {
    /// The gate pinned below `dir`. `None` when there is none: no such directory, or its bpffs has gone with the
    /// mount namespace that it was in.
    ///
    /// # Errors
    /// When pins are there and cannot be read (privilege), or are those of another version.
    pub fn find(dir: &Path) -> Result<Option<Self>> {
        let Some(pins) = Pins::existing(dir)? else { return Ok(None) };
        if !pins.path(CONTROL).exists() {
            return Ok(None);
        }
        let control = Words::map(&map(&pins, CONTROL, CONTROL_WORDS * 8)?)?;
        let layout = control.get(Control::Layout as usize);
        ensure!(
            layout == LAYOUT,
            "the gate pinned below {} has layout {layout}, not {LAYOUT}: {OTHER_VERSION}",
            dir.display()
        );
        let slots = Map::Array(map(&pins, "SLOTS", size_of::<Slot>())?);
        Ok(Some(Self {
            control,
            ring: Words::map(&map(&pins, "RING", RING_WORDS * 8)?)?,
            slots: slots.try_into()?,
            counters: CounterMap::new(map(&pins, "COUNTERS", 8)?)?,
            pins,
        }))
    }

    pub fn view(&self) -> View {
        let word = |which: Control| self.control.get(which as usize);
        let words = ControlWords::read(word);
        View {
            mode: words.mode,
            open: words.open,
            committed: words.committed,
            kept: words.kept,
            lease_until_ns: words.lease_until_ns,
            // An index has 32 bits; whatever does not fit is no interface.
            tap_index: u32::try_from(word(Control::Tap)).unwrap_or(0),
            uplink_index: u32::try_from(word(Control::Uplink)).unwrap_or(0),
            capacity_bytes: word(Control::Units).saturating_mul(u64::from(UNIT)),
        }
    }

    /// What waits. A moving picture while a guest sends.
    ///
    /// # Errors
    /// When a slot cannot be read.
    pub fn held(&self) -> Result<InSlots> {
        let view = self.view();
        // What is committed leaves as soon as the gate is taken up, even if it is closed now; what an open gate holds
        // leaves before anything passes.
        let mode = if view.mode == Mode::Open { Mode::Open } else { Mode::Hold };
        let leaving = releasable(mode as u64, || view.open, || view.committed);
        let (head, tail) = (self.ring.get(Ring::Head as usize), self.ring.get(Ring::Tail as usize));
        let slots = u64::from(self.slots.len());
        let mut held = InSlots::default();
        // More than the map has would be read twice.
        for at in tail.max(head.saturating_sub(slots))..head {
            let number = u32::try_from(at % slots).context("a slot's number has 32 bits")?;
            let bytes = self.slots.get(&number, 0).context("read a slot")?;
            let life = Life::from_bits(word32(&bytes, std::mem::offset_of!(Slot, life)));
            if life.is(SlotState::Free) {
                continue;
            }
            let stamp = Stamp::from_bits(word64(&bytes, std::mem::offset_of!(Slot, stamp)));
            if held.frames == 0 {
                held.first = stamp;
            }
            held.last = stamp;
            held.frames += 1;
            held.bytes += u64::from(word32(&bytes, std::mem::offset_of!(Slot, len)));
            held.committed += u64::from(may_leave(stamp, leaving, view.kept));
        }
        Ok(held)
    }

    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Counters> {
        self.counters.read()
    }

    /// Where `hold` is, seen from the calling thread's network namespace. `name` is that of the interface with
    /// [`View::tap_index`] there, if it has one.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn attachment(&self, name: Option<&str>) -> Result<Attachment> {
        let Some(name) = name else { return self.away() };
        let place = Place { ifindex: self.view().tap_index, side: Side::Ingress };
        // Without a link it is found by its filter; where there is none either it is not there.
        let Ok(hook) = Hook::open(HOLD, HOLD_PROGRAM, name, place, &self.pins) else {
            return self.away();
        };
        let rtnl = Rtnl::open().context("open an rtnetlink socket")?;
        match check_hook(&hook, &rtnl) {
            Ok(()) => Ok(Attachment::First),
            Err(why @ (Lost::Displaced { .. } | Lost::XdpInFront { .. })) => {
                Ok(Attachment::Behind(why))
            }
            // Indexes are counted per network namespace: this may be another interface with the same number.
            Err(
                Lost::Deleted { .. }
                | Lost::Recreated { .. }
                | Lost::Detached { .. }
                | Lost::QdiscRemoved { .. },
            ) => self.away(),
            Err(
                unknown @ (Lost::Steered { .. }
                | Lost::Napi { .. }
                | Lost::SeveralQueues { .. }
                | Lost::PinGone { .. }
                | Lost::PinsUnmounted { .. }
                | Lost::QueueGone { .. }
                | Lost::Unknown { .. }),
            ) => Err(unknown.into()),
        }
    }

    /// Where `hold` is, if it is on no interface that we see.
    fn away(&self) -> Result<Attachment> {
        let path = self.pins.path(HOLD);
        match TcxLink::at(&path) {
            Ok(TcxLink { ifindex: Some(_) }) => Ok(Attachment::Elsewhere),
            Ok(TcxLink { ifindex: None }) => Ok(Attachment::Gone),
            // A filter leaves no trace of where it was.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Attachment::Gone),
            Err(e) => Err(e).with_context(|| format!("ask for the link {}", path.display())),
        }
    }

    /// Shuts the gate: fresh frames are dropped, and nothing that is held leaves. A live controller may open it
    /// again.
    pub fn close(&self) {
        self.control.perform(ControlWords::close());
    }

    /// Takes the gate off its tap and removes its pins; what it held is discarded, and whatever the tap sends from
    /// now on passes. Only for a gate without a live controller.
    ///
    /// # Errors
    /// When a pin cannot be removed; says which.
    pub fn remove(self) -> Result<()> {
        self.close();
        let View { tap_index, uplink_index, .. } = self.view();
        for (name, program, ifindex, side) in [
            (HOLD, HOLD_PROGRAM, tap_index, Side::Ingress),
            (GUARD, GUARD_PROGRAM, uplink_index, Side::Egress),
        ] {
            // A link goes with its pin; a filter has to be removed while the program's pin says which it is.
            let (link, place) = (format!("link {ifindex}"), Place { ifindex, side });
            if let Ok(hook) = Hook::open(name, program, &link, place, &self.pins) {
                hook.detach()?;
            }
        }
        let mut names = pin_names(&self.pins)?;
        // The link first, since it is what is asked for; then the pin by which a gate is found, so that none is
        // found that is not whole.
        names.sort_by_key(|name| (name != HOLD, name != CONTROL));
        drop((self.control, self.ring, self.slots, self.counters));
        self.pins.clear(&names.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

/// What to do about a gate that this program does not understand.
const OTHER_VERSION: &str = "another version of remus made it. Use that one; or, if nobody needs the guest behind it, \
                             delete its tap and unmount and remove this directory";

/// The map pinned as `name`, whose values have `value_bytes`.
fn map(pins: &Pins, name: &str, value_bytes: usize) -> Result<MapData> {
    let map = programs::map(pins, name)?;
    let found = map.info().with_context(|| format!("read about map {name}"))?.value_size();
    ensure!(
        found as usize == value_bytes,
        "the map pinned at {} has values of {found} bytes, not {value_bytes}: {OTHER_VERSION}",
        pins.path(name).display()
    );
    Ok(map)
}

fn pin_names(pins: &Pins) -> Result<Vec<String>> {
    let dir: PathBuf = pins.path("");
    let entries = fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    // The kernel puts files of its own into a bpffs; they have a dot in their names, which no pin may have
    // (`bpf_lookup` in kernel/bpf/inode.c, 6.18).
    Ok(names.filter(|name| !name.contains('.')).collect())
}

fn word32(bytes: &SlotBytes, at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn word64(bytes: &SlotBytes, at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
