//! How a gate comes to be on a tap: put there anew, taken over from an earlier controller, or put back where it was lost.

use std::{cell::RefCell, os::fd::AsFd, path::Path, sync::Weak};

use anyhow::{Context, Result};
use aya::maps::{Map, RingBuf};
use aya_log::EbpfLogger;
use remus_abi::gate::{Control, LAYOUT, UNIT, slots};

use super::{
    Gate, Tap,
    acks::AckMaps,
    control::Words,
    counters::CounterMap,
    hook::HookKind,
    nfqueue::NfQueue,
    pins::Pins,
    programs::{self, Programs},
    settings::{Engine, Release, Settings},
    words::{ControlWords, NFQUEUE, Write},
};
use crate::names::LinkName;

impl Gate {
    /// Puts a closed, empty gate on `tap`, pinned below the directory `pins` (a bpffs is mounted there if there is none).
    /// The gate is in no term until [`begin_term`](Self::begin_term) gives it one. A gate that an earlier controller left
    /// on this tap is replaced: whatever it held is discarded, since the guest that sent it is gone.
    ///
    /// # Errors
    /// When the kernel refuses the programs (privilege, version), the tap or the uplink; each says which.
    pub fn install(tap: Tap, pins: &Path, settings: &Settings) -> Result<Self> {
        let kind = HookKind::of_this_kernel().context("ask whether this kernel has TCX")?;
        Self::install_by(kind, tap, pins, settings)
    }

    /// As [`Gate::install`], attached in this way rather than in the best one that the kernel has.
    ///
    /// # Errors
    /// As those of `install`, and when the kernel has no such way.
    pub fn install_by(kind: HookKind, tap: Tap, pins: &Path, settings: &Settings) -> Result<Self> {
        Self::install_with(kind, tap, pins, settings, [])
    }

    fn install_with(
        kind: HookKind,
        tap: Tap,
        pins: &Path,
        settings: &Settings,
        words: impl IntoIterator<Item = Write>,
    ) -> Result<Self> {
        settings.validate()?;
        let uplink = match &settings.release {
            Release::ReEntry => 0,
            Release::Uplink(name) => interface_index(name.as_str())?,
        };
        let loaded = programs::load(settings)?;
        {
            let control = programs::loaded_map(&loaded, "CONTROL")?;
            let control = Words::map(control)?;
            let units = slots(settings.buffer_mib);
            let about_the_gate = [
                (Control::Units, units.into()),
                (Control::Watermark, (units / 2).into()),
                (Control::Tap, tap.ifindex.into()),
                (Control::Uplink, uplink.into()),
                (Control::Layout, LAYOUT),
                (Control::Engine, engine_word(settings.engine)),
            ];
            control.perform(about_the_gate.into_iter().chain(words));
        }
        let programs = Programs::attach(loaded, &tap, settings, kind, Pins::at(pins)?)?;
        let gate = Self::over(tap, programs)?;
        gate.verify()?;
        Ok(gate)
    }

    /// Takes over the gate that an earlier controller left on `tap`, as it stands: mode, epochs, and all that it
    /// holds. `None` when there is none that can be trusted: none is pinned, it is of another build, its tap was
    /// made anew, or it is not in front of the tap any more. Then [`Gate::install`] is the way.
    ///
    /// # Errors
    /// When there is one, and the kernel does not let it be opened.
    pub fn adopt(tap: Tap, pins: &Path) -> Result<Option<Self>> {
        let Some(pins) = Pins::existing(pins)? else { return Ok(None) };
        let Ok(control) = programs::map(&pins, "CONTROL") else { return Ok(None) };
        let control = Words::map(&control)?;
        let word = |which: Control| control.get(which as usize);
        if word(Control::Layout) != LAYOUT || word(Control::Tap) != u64::from(tap.ifindex) {
            return Ok(None);
        }
        let release = match word(Control::Uplink) {
            0 => Release::ReEntry,
            index => match interface_name(index) {
                Some(name) => Release::Uplink(name),
                None => return Ok(None),
            },
        };
        let Ok(programs) = Programs::open(&tap, &release, pins) else { return Ok(None) };
        let gate = Self::over(tap, programs)?;
        Ok(gate.verify().is_ok().then_some(gate))
    }

    /// A new gate in the place of this one, which is lost: of the same build, term and epoch, closed and empty, without
    /// a lease. This one is of no use after; what it held is gone.
    ///
    /// # Errors
    /// As those of [`Gate::install`], and when the new gate finds itself lost for the same reason.
    pub fn again(&mut self) -> Result<Self> {
        let (words, units) = (self.words(), self.control.get(Control::Units as usize));
        let settings = Settings {
            buffer_mib: u32::try_from((units * u64::from(UNIT)) >> 20).context("a gate's size")?,
            release: self.programs.release()?,
            engine: if words.has_queue { Engine::NfQueue } else { Engine::Bpf },
        };
        // The rules have one owner: they stand without one, and drop, until the new gate takes them over.
        self.queue = None;
        let (kind, pins) = (self.programs.kind(), self.programs.pins());
        Self::install_with(kind, self.tap.clone(), pins, &settings, words.again())
    }

    fn over(tap: Tap, programs: Programs) -> Result<Self> {
        let control = Words::map(&programs.map("CONTROL")?)?;
        let has_queue = ControlWords::read(|word| control.get(word as usize)).has_queue;
        let queue = match has_queue {
            true => Some(NfQueue::install(&tap, programs.lock()?.fd()?.as_fd())?),
            false => None,
        };
        Ok(Self {
            control,
            queue,
            ring: Words::map(&programs.map("RING")?)?,
            counters: CounterMap::new(programs.map("COUNTERS")?)?,
            acks: AckMaps::new(&programs.map("ACKED")?, programs.map("ACKS")?)?,
            residence: Words::map(&programs.map("RESIDENCE")?)?,
            events: RingBuf::try_from(Map::RingBuf(programs.map("EVENTS")?))?,
            logger: EbpfLogger::init_from_id(programs.hold_id())?,
            trigger: RefCell::new(Weak::new()),
            tap,
            programs,
        })
    }
}

fn engine_word(engine: Engine) -> u64 {
    match engine {
        Engine::Bpf => 0,
        Engine::NfQueue => NFQUEUE,
    }
}

fn interface_index(name: &str) -> Result<u32> {
    let terminated = std::ffi::CString::new(name)?;
    // SAFETY: a terminated string that lives during the call.
    match unsafe { libc::if_nametoindex(terminated.as_ptr()) } {
        0 => {
            Err(std::io::Error::last_os_error()).with_context(|| format!("find the uplink {name}"))
        }
        index => Ok(index),
    }
}

fn interface_name(index: u64) -> Option<LinkName> {
    let mut name = [0u8; libc::IF_NAMESIZE];
    let index = u32::try_from(index).ok()?;
    // SAFETY: a buffer as long as a name can be.
    let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) };
    if found.is_null() {
        return None;
    }
    let name = std::ffi::CStr::from_bytes_until_nul(&name).ok()?;
    LinkName::new(name.to_str().ok()?).ok()
}
