//! The output commit gateway: its controller.
//!
//! Every frame that the guest sends enters the host through one tap, and there the eBPF program `hold` keeps
//! it until the checkpoint that covers it is committed. This module loads the programs, attaches them, and
//! turns the one knob that lets frames out.
//!
//! Invariants:
//! - A gate begins [`Mode::Closed`] and empty, in a term of its own, whatever was on the tap before: the new
//!   `hold` is first in the chain before the old one goes.
//! - Nothing is released without a [`Committed`], nor passed unheld without a [`Fenced`]; both are permissions
//!   that only the replication brain hands out.
//! - The lease is checked by `flush` itself. A controller that was stopped and wakes releases nothing.
//! - Links, maps and programs are pinned: the controller may die at any moment and the gate stays shut.
//! - A pin alone proves nothing. [`Gate::verify`] asks the kernel whether `hold` is attached to this very
//!   interface, and first; the shells ask before any vCPU runs and on every tick.
//!
//! Deliberately absent: the tap itself (`net`), and any decision when to release (`replication`).

mod acks;
mod chain;
mod control;
mod counters;
mod health;
mod hook;
mod nfqueue;
mod pinned;
mod pins;
mod programs;
mod rtnl;
mod settings;
mod trigger;

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    path::Path,
};

use anyhow::{Context, Result, bail};
use aya::maps::{Map, MapData, RingBuf};
use aya_log::EbpfLogger;
use remus_abi::{
    Epoch, Stamp, Term,
    ack::AckCounters,
    gate::{Control, Counter, Counters, FlushResult, LAYOUT, Mode, Ring, UNIT, slots},
};

use self::{
    acks::AckMaps,
    control::Words,
    counters::CounterMap,
    nfqueue::{NfQueue, Permit},
    pins::Pins,
    programs::Programs,
};
pub use self::{
    counters::Residence,
    health::{Lost, Remedy},
    hook::HookKind,
    nfqueue::{
        Support as QueueSupport, forward_policy_drop, support as queue_support,
        sweep as sweep_queue,
    },
    pinned::{Attachment, Held, Pinned, View},
    pins::sweep as sweep_pins,
    settings::{Engine, Release, Settings},
    trigger::Trigger,
};
use crate::{
    names::LinkName,
    replication::{Committed, Fenced},
    wire::Moment,
};

/// Runs of `flush` in one call of [`Gate::flush`] before the caller gets its thread back.
const RUNS_PER_FLUSH: u32 = 64;

/// The tap that a gate guards.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tap {
    pub name: String,
    pub ifindex: u32,
}

/// What a flush left behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flushed {
    /// Whatever was committed is out.
    All,
    /// Some frames are still on their way: flush again soon.
    Pending,
    /// The gate lets nothing out now: it is closed, or the lease is over.
    Refused,
}

/// How much a gate holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fill {
    pub frames: u64,
    /// As they lie in the buffer, in multiples of 64.
    pub bytes: u64,
    pub capacity_bytes: u64,
}

/// A gate on one tap, in one term.
pub struct Gate {
    tap: Tap,
    control: Words,
    ring: Words,
    counters: CounterMap,
    acks: AckMaps,
    residence: Words,
    events: RingBuf<MapData>,
    programs: Programs,
    queue: Option<NfQueue>,
    logger: EbpfLogger<&'static dyn log::Log>,
}

/// The descriptor by which a gate says that it fills.
impl AsRawFd for Gate {
    fn as_raw_fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }
}

impl Gate {
    /// Puts a closed, empty gate of `term` on `tap`, pinned below the directory `pins` (a bpffs is mounted
    /// there if there is none). A gate that an earlier controller left on this tap is replaced: whatever it
    /// held is discarded, since the guest that sent it is gone.
    ///
    /// # Errors
    /// When the kernel refuses the programs (privilege, version), the tap or the uplink; each says which.
    pub fn install(tap: Tap, pins: &Path, settings: &Settings, term: Term) -> Result<Self> {
        let kind = HookKind::of_this_kernel().context("ask whether this kernel has TCX")?;
        Self::install_by(kind, tap, pins, settings, term)
    }

    /// As [`Gate::install`], attached in this way rather than in the best one that the kernel has.
    ///
    /// # Errors
    /// As those of `install`, and when the kernel has no such way.
    pub fn install_by(
        kind: HookKind,
        tap: Tap,
        pins: &Path,
        settings: &Settings,
        term: Term,
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
            for (word, value) in [
                (Control::Units, units.into()),
                (Control::Watermark, (units / 2).into()),
                (Control::Tap, tap.ifindex.into()),
                (Control::Uplink, uplink.into()),
                (Control::Layout, LAYOUT),
                (Control::Engine, engine_word(settings.engine)),
                (Control::Open, Stamp::new(term, Epoch::FIRST).bits()),
                (Control::Committed, Stamp::new(term, Epoch::NONE).bits()),
            ] {
                control.set(word as usize, value);
            }
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

    /// A new gate in the place of this one, which is lost: of the same term and build, closed and empty. This one is
    /// of no use after; what it held is gone.
    ///
    /// # Errors
    /// As those of [`Gate::install`], and when the new gate finds itself lost for the same reason.
    pub fn again(&mut self) -> Result<Self> {
        let units = self.control.get(Control::Units as usize);
        let settings = Settings {
            buffer_mib: u32::try_from((units * u64::from(UNIT)) >> 20).context("a gate's size")?,
            release: self.programs.release()?,
            engine: match self.control.get(Control::Engine as usize) {
                NFQUEUE => Engine::NfQueue,
                _ => Engine::Bpf,
            },
        };
        let kind = self.programs.kind();
        // The rules have one owner: they stand without one, and drop, until the new gate takes them over.
        self.queue = None;
        Self::install_by(kind, self.tap.clone(), self.programs.pins(), &settings, self.term())
    }

    fn over(tap: Tap, programs: Programs) -> Result<Self> {
        let control = Words::map(&programs.map("CONTROL")?)?;
        let queue = match control.get(Control::Engine as usize) {
            NFQUEUE => Some(NfQueue::install(&tap, programs.lock()?.fd()?.as_fd())?),
            _ => None,
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
            tap,
            programs,
        })
    }

    /// Whether the program in front of the link `name` is a gate's: of this build or another, of this process or
    /// one that has died.
    pub fn guards(name: &str) -> bool {
        programs::is_guarded(name)
    }

    /// Begins `term` in a gate that has been closed since it was made, so that no frame and no word of another term is
    /// in it.
    ///
    /// # Panics
    /// When the gate is not closed, or holds something.
    pub fn begin_term_closed(&mut self, term: Term) {
        assert!(
            self.mode() == Mode::Closed && self.held() == 0,
            "a term begins in a gate that is not closed and empty"
        );
        self.control.set(Control::Committed as usize, Stamp::new(term, Epoch::NONE).bits());
        self.control.set(Control::Open as usize, Stamp::new(term, Epoch::FIRST).bits());
    }

    /// The epoch that frames are stamped with now.
    pub fn open_epoch(&self) -> Stamp {
        Stamp::from_bits(self.control.get(Control::Open as usize))
    }

    /// From now on frames are held, as output of `epoch`. Called in the pause that captures the checkpoint
    /// before `epoch`, which is the first whole one.
    pub fn hold_from(&mut self, epoch: Epoch) {
        self.control.set(Control::Queueing as usize, self.queue.is_some().into());
        self.control.set(Control::Open as usize, Stamp::new(self.term(), epoch).bits());
        self.set_mode(Mode::Hold);
    }

    /// Opens `epoch`: frames sent from now on belong to it. Called in a pause, when no frame is on its way
    /// into the tap.
    ///
    /// # Panics
    /// When `epoch` does not follow the open one: frames would be released too early or never.
    pub fn seal(&mut self, epoch: Epoch) {
        assert_eq!(
            epoch,
            self.open_epoch().epoch().next(),
            "the epoch after the open one is opened"
        );
        self.control.set(Control::Open as usize, Stamp::new(self.term(), epoch).bits());
    }

    /// Raises the committed epoch. Frames leave at the next [`Gate::flush`].
    ///
    /// # Panics
    /// On a commit of another term, or one that is not below the open epoch: the brain that gave the
    /// permission is broken.
    pub fn commit(&mut self, committed: &Committed) {
        let stamp = committed.stamp();
        assert_eq!(stamp.term(), self.term(), "a commit of this gate's term");
        assert!(stamp < self.open_epoch(), "a committed epoch is below the open one");
        if stamp.bits() > self.control.get(Control::Committed as usize) {
            self.control.set(Control::Committed as usize, stamp.bits());
        }
    }

    /// Allows releases until `until_ns` of CLOCK_BOOTTIME. A lease never gets shorter by being renewed.
    pub fn renew_lease(&mut self, until_ns: u64) {
        if until_ns > self.control.get(Control::LeaseUntil as usize) {
            self.control.set(Control::LeaseUntil as usize, until_ns);
        }
    }

    /// Releases what is committed, as far as it goes in one call.
    ///
    /// # Errors
    /// When the kernel does not run the program any more.
    pub fn flush(&mut self) -> Result<Flushed> {
        match (self.flush_queue()?, self.flush_buffer()?) {
            (Flushed::Refused, _) | (_, Flushed::Refused) => Ok(Flushed::Refused),
            (Flushed::Pending, _) | (_, Flushed::Pending) => Ok(Flushed::Pending),
            (Flushed::All, Flushed::All) => Ok(Flushed::All),
        }
    }

    fn flush_queue(&mut self) -> Result<Flushed> {
        let word = |which: Control| self.control.get(which as usize);
        let (open, mode) = (self.open_epoch(), self.mode());
        let Some(queue) = &mut self.queue else { return Ok(Flushed::All) };
        match mode {
            Mode::Closed => Ok(Flushed::Refused),
            Mode::Hold => queue.flush(&Permit::Committed {
                open,
                committed: Stamp::from_bits(word(Control::Committed)),
                lease_until_ns: word(Control::LeaseUntil),
            }),
            Mode::Open => {
                let flushed = queue.flush(&Permit::Unprotected { open })?;
                // What came before the gate opened is out: what comes next need not queue up behind it.
                self.control.set(Control::Queueing as usize, 0);
                Ok(flushed)
            }
        }
    }

    fn flush_buffer(&mut self) -> Result<Flushed> {
        if self.in_buffer() == 0 {
            return Ok(Flushed::All);
        }
        for _ in 0..RUNS_PER_FLUSH {
            match self.programs.run_flush()? {
                FlushResult::Done => return Ok(Flushed::All),
                FlushResult::More | FlushResult::InFlight | FlushResult::Busy => {}
                FlushResult::Refused | FlushResult::Broken => return Ok(Flushed::Refused),
                FlushResult::Unguarded => bail!(
                    "a frame left by the uplink without passing the gate's second lock: somebody has taken it off"
                ),
            }
        }
        Ok(Flushed::Pending)
    }

    /// Lets the guest's frames pass unheld: it runs unprotected from here on. What this term still holds leaves
    /// first, by [`Gate::flush`], and as long as there is any, new frames queue up behind it.
    pub fn open(&mut self, _fenced: &Fenced) {
        self.set_mode(Mode::Open);
    }

    /// Shuts the gate: fresh frames are dropped, and nothing that is held leaves.
    pub fn close(&mut self) {
        self.set_mode(Mode::Closed);
    }

    /// Frames held now, those on their way out included; of those in netfilter's queue, the ones that were there at
    /// the last [`Gate::flush`].
    pub fn held(&self) -> u64 {
        self.in_buffer() + self.queue.as_ref().map_or(0, NfQueue::held)
    }

    fn in_buffer(&self) -> u64 {
        self.ring.get(Ring::Head as usize).saturating_sub(self.ring.get(Ring::Tail as usize))
    }

    pub fn fill(&self) -> Fill {
        let ring = |word: Ring| self.ring.get(word as usize);
        let units = ring(Ring::HeadUnit).saturating_sub(ring(Ring::TailUnit));
        Fill {
            frames: self.held(),
            bytes: units * u64::from(UNIT),
            capacity_bytes: self.control.get(Control::Units as usize) * u64::from(UNIT),
        }
    }

    /// Whether the gate has said, since this was last asked, that it fills: half of it is in use. Asked when the
    /// gate's descriptor is readable.
    pub fn take_filling(&mut self) -> bool {
        let mut filling = false;
        while self.events.next().is_some() {
            filling = true;
        }
        filling
    }

    /// What becomes of a fresh frame now. Whatever is not a known mode is closed.
    pub fn mode(&self) -> Mode {
        mode_of(self.control.get(Control::Mode as usize))
    }

    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Counters> {
        let mut counters = self.counters.read()?;
        if let Some(queue) = &self.queue {
            let dropped = counters.get(Counter::DroppedFull) + queue.dropped()?;
            counters.set(Counter::DroppedFull, dropped);
        }
        Ok(counters)
    }

    pub fn residence(&self) -> Residence {
        Residence::read(&self.residence)
    }

    /// Loads what releases on the word of a datagram.
    ///
    /// # Errors
    /// When the kernel refuses the program.
    pub fn trigger(&self) -> Result<Trigger> {
        Trigger::over(&self.programs)
    }

    /// # Errors
    /// When the map cannot be read.
    pub fn ack_counters(&self) -> Result<AckCounters> {
        self.acks.counters()
    }

    /// The newest commit that a datagram brought, and when.
    pub fn newest_ack(&self) -> Option<(Stamp, Moment)> {
        self.acks.newest()
    }

    /// Asks the kernel whether the gate still guards: `hold` is attached to the tap, and first; the tap is what
    /// it was; the pins are in place; so is `guard` on its uplink. Costs some 30 us, allocates nothing while all
    /// is well, and is made from a thread in the tap's network namespace.
    ///
    /// # Errors
    /// When it does not, what has happened. Frames may be passing by this gate, so the guest must not run on.
    pub fn verify(&self) -> Result<(), Lost> {
        self.programs.verify()?;
        let gone = |how| Lost::QueueGone { link: self.tap.name.clone(), how };
        match &self.queue {
            Some(queue) => queue.verify().map_err(|e| gone(format!("{e:#}"))),
            None if self.control.get(Control::Engine as usize) == NFQUEUE => {
                Err(gone("nobody listens to its queue".to_owned()))
            }
            None => Ok(()),
        }
    }

    /// Switches the programs' debug lines on or off; [`Gate::drain_log`] brings them.
    pub fn set_debug(&mut self, on: bool) {
        self.control.set(Control::Debug as usize, on.into());
    }

    /// Hands the programs' debug lines to the log.
    pub fn drain_log(&mut self) {
        self.logger.flush();
    }

    /// Takes the gate off the tap. Only for a guest that has ended: what it sent after this is not held.
    ///
    /// # Errors
    /// When a pin cannot be removed; says which.
    pub fn remove(mut self) -> Result<()> {
        self.close();
        let queue = self.queue.take().map_or(Ok(()), NfQueue::remove);
        self.programs.detach().and(queue)
    }

    /// Readable when frames have joined netfilter's queue; `None` with another engine.
    pub fn queue_fd(&self) -> Option<BorrowedFd<'_>> {
        self.queue.as_ref().map(AsFd::as_fd)
    }

    pub fn tap(&self) -> &Tap {
        &self.tap
    }

    fn term(&self) -> Term {
        self.open_epoch().term()
    }

    fn set_mode(&mut self, mode: Mode) {
        self.control.set(Control::Mode as usize, mode as u64);
    }
}

/// The mode that a word of the map stands for.
fn mode_of(word: u64) -> Mode {
    let known = [Mode::Hold, Mode::Open].into_iter().find(|known| *known as u64 == word);
    known.unwrap_or(Mode::Closed)
}

/// [`Control::Engine`] of the engine `nfqueue`.
const NFQUEUE: u64 = 1;

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
