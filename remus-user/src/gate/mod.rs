//! The output commit gateway: its controller.
//!
//! Every frame that the guest sends enters the host through one tap, and there the eBPF program `hold` keeps
//! it until the checkpoint that covers it is committed. This module loads the programs, attaches them, and
//! turns the one knob that lets frames out.
//!
//! Invariants:
//! - A gate begins [`Mode::Closed`], empty, and in no term, whatever was on the tap before: the new `hold` is first in the
//!   chain before the old one goes.
//! - Every step towards letting something out takes a permission, which only the brains of replication make: a term
//!   begins and a gate opens by a [`Fenced`], an epoch ends by a [`NextEpoch`] and is released by a [`Committed`], until
//!   the end of a [`LeaseUntil`]. The gate asserts that each is of its own term.
//! - A gate outlives its term: [`Gate::begin_term`] leaves no commit, lease or trigger of the old one in force.
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
mod make;
mod nfqueue;
mod pinned;
mod pins;
mod programs;
mod rtnl;
mod settings;
mod trigger;
mod turn;
mod words;

use std::{
    cell::RefCell,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    sync::Weak,
};

use anyhow::{Result, bail};
use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use remus_abi::{
    Stamp,
    ack::AckCounters,
    gate::{Control, Counter, Counters, FlushResult, Mode, Ring, UNIT},
};

use self::{
    acks::AckMaps, control::Words, counters::CounterMap, nfqueue::NfQueue, programs::Programs,
    trigger::Armed,
};
pub use self::{
    counters::Residence,
    health::{Lost, Remedy},
    hook::HookKind,
    nfqueue::{
        Support as QueueSupport, forward_policy_drop, support as queue_support,
        sweep as sweep_queue,
    },
    pinned::{Attachment, InSlots, Pinned, View},
    pins::sweep as sweep_pins,
    settings::{Engine, Release, Settings},
    trigger::Trigger,
    words::{ControlWords, Held, NewTerm, Write, Writes},
};
use crate::{
    replication::{Committed, Fenced, LeaseUntil, NextEpoch},
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

/// A gate on one tap, in one term after another.
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
    /// The trigger that was given last, if there ever was one; another thread may have it.
    trigger: RefCell<Weak<Armed>>,
    logger: EbpfLogger<&'static dyn log::Log>,
}

/// The descriptor by which a gate says that it fills.
impl AsRawFd for Gate {
    fn as_raw_fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }
}

impl Gate {
    /// Whether the program in front of the link `name` is a gate's: of this build or another, of this process or
    /// one that has died.
    pub fn guards(name: &str) -> bool {
        programs::is_guarded(name)
    }

    /// The epoch that frames are stamped with now; [`Stamp::NONE`] before the first term.
    pub fn open_epoch(&self) -> Stamp {
        self.words().open
    }

    /// From now on frames are held, as output of the open epoch. Needs no permission: nothing leaves by it.
    ///
    /// # Panics
    /// Before the first term.
    pub fn hold(&mut self) {
        self.write(self.words().hold());
    }

    /// Stamps frames with the epoch after the sealed one from now on, and begins to hold if that is the first of a
    /// session. Called in the pause that takes the checkpoint, when no frame is on its way into the tap.
    ///
    /// # Panics
    /// When the epoch does not follow the open one: frames would be released too early or never.
    pub fn seal(&mut self, next: &NextEpoch) {
        self.write(self.words().seal(next));
    }

    /// Raises the committed epoch. Frames leave at the next [`Gate::flush`].
    ///
    /// # Panics
    /// On a commit of another term, or one that is not below the open epoch: the brain that gave the
    /// permission is broken.
    pub fn commit(&mut self, committed: &Committed) {
        self.write(self.words().commit(committed));
    }

    /// Allows releases until the end of the lease. A lease never gets shorter by being renewed.
    ///
    /// # Panics
    /// When the lease is of another term: the brain that gave it is broken.
    pub fn renew_lease(&mut self, lease: &LeaseUntil) {
        self.write(self.words().renew_lease(lease));
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
        let words = self.words();
        let Some(queue) = &mut self.queue else { return Ok(Flushed::All) };
        match words.mode {
            Mode::Closed => Ok(Flushed::Refused),
            Mode::Hold => queue.flush(&words),
            Mode::Open => {
                let flushed = queue.flush(&words)?;
                self.write(ControlWords::queue_is_passed());
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

    /// Lets the guest's frames pass unheld: it runs unprotected from here on. What is held leaves first, by
    /// [`Gate::flush`], and as long as there is any, new frames line up behind it.
    ///
    /// # Panics
    /// When the permission is for another term than the gate's, which [`Gate::begin_term`] has begun.
    pub fn open(&mut self, fenced: &Fenced) {
        self.write(self.words().open(fenced));
    }

    /// Shuts the gate: fresh frames are dropped, and nothing that is held leaves.
    pub fn close(&mut self) {
        self.write(ControlWords::close());
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
        self.words().mode
    }

    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Counters> {
        let mut counters = self.counters.read()?;
        if let Some(queue) = &self.queue {
            let dropped = counters.get(Counter::DroppedFull) + queue.dropped()?;
            counters.set(Counter::DroppedFull, dropped);
            let discarded = counters.get(Counter::Discarded) + queue.discarded();
            counters.set(Counter::Discarded, discarded);
        }
        Ok(counters)
    }

    pub fn residence(&self) -> Residence {
        Residence::read(&self.residence)
    }

    /// Loads what releases on the word of a datagram. The gate disarms the last trigger that it gave when its term
    /// ends.
    ///
    /// # Errors
    /// When the kernel refuses the program.
    pub fn trigger(&self) -> Result<Trigger> {
        let trigger = Trigger::over(&self.programs)?;
        self.trigger.replace(trigger.armed());
        Ok(trigger)
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
            None if self.words().has_queue => Err(gone("nobody listens to its queue".to_owned())),
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

    fn words(&self) -> ControlWords {
        ControlWords::read(|word| self.control.get(word as usize))
    }

    fn write(&self, writes: Writes) {
        self.control.perform(writes);
    }
}
