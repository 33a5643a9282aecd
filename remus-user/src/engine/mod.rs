//! The engine: what runs a guest, on whichever host and however the guest came there.
//!
//! The guest's devices, its epochs and its gate are served by one thread, in one loop. The engine takes sessions and sheds
//! them; it is made once, when the guest begins to run here.
//!
//! There is one thread, because of one order that must hold: when the open epoch is raised, every frame that the guest
//! sent in the epoch before is in its slot, stamped. Only this thread writes to the tap, and it raises the
//! epoch itself, in a pause; so there is nothing to wait for but the vCPUs.
//!
//! Within a pause, in this order:
//! 1. vCPUs are out of KVM_RUN, and each has captured its own state.
//! 2. The open epoch is raised ([`Gate::seal`]): what the guest sends from now on belongs to the next.
//! 3. State of devices and interrupt controllers is captured, while the vCPUs still capture themselves.
//! 4. The dirty log is harvested, then every reported page is copied, then pages that cooled are protected
//!    again: protected without having been copied, what was written would be in no checkpoint.
//!
//! Encoding and sending are the sender's, off the pause path. Nothing here waits for the network: with no
//! buffer or no place in the pipeline the epoch just lasts longer.

mod capture;
mod epoch;
mod input;
mod loss;
mod pulse;
mod record;
mod relay;
mod release;
mod report;
mod sender;
mod session;
mod shipment;
mod standing;
mod sync;
mod term;
mod wait;

use std::{os::fd::AsRawFd, sync::Arc, time::Duration};

use anyhow::{Result, bail};
use remus_abi::gate::Mode;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, info, warn};

use self::{
    capture::Capture,
    loss::Guard,
    record::Recorder,
    session::Ongoing,
    shipment::{Payload, Spare},
    wait::{Source, Waiter},
};
pub(crate) use self::{
    input::{Input, NewTerm, Order},
    pulse::Pulse,
    relay::{Relay, Relayed, relay},
    report::Report,
};
use crate::{
    checkpoint::{BootImage, EncoderSettings},
    gate::Gate,
    machine::{End, Event, Machine, Prepared},
    names::VmName,
    os::{Inbox, Post, boot_now},
    replication::{Pipeline, Relation, SealWhen, Stopped},
    standby::Announcer,
    store::{Record, Store},
    watch::Watch,
    wire::{GoodbyeWhy, Moment},
};

/// How often the gate is verified and the status is published.
const TICK: Duration = Duration::from_millis(10);
/// How soon frames that are still under way are looked after.
const FLUSH_AGAIN: Duration = Duration::from_millis(1);
/// How long the last checkpoint of a guest that ended may take, beside the goodbye.
const LAST_SEAL_WITHIN: Duration = Duration::from_secs(1);

/// What an engine is made of.
pub(crate) struct Setup {
    pub(crate) vm: VmName,
    /// Loaded or restored, and not yet running.
    pub(crate) machine: Prepared,
    /// What its guest begins with after a reset.
    pub(crate) boot: BootImage,
    pub(crate) gate: Gate,
    pub(crate) announcer: Announcer,
    /// Sees whether clients reach the guest; a guest without it is not doubted.
    pub(crate) watch: Option<Watch>,
    pub(crate) brain: Pipeline,
    /// How long a goodbye is worth an answer.
    pub(crate) goodbye_within: Duration,
    /// What a pause may take.
    pub(crate) pause_max: Duration,
    /// Epochs after which a page that stays as it is is protected again.
    pub(crate) cool_after: u8,
    pub(crate) encoding: EncoderSettings,
    pub(crate) store: Store,
    /// What is on disk of this VM.
    pub(crate) record: Record,
    pub(crate) report: Report,
    pub(crate) inbox: Inbox<Input>,
    pub(crate) post: Post<Input>,
    pub(crate) pulse: Pulse,
    /// `None` for a guest that has no backup to look for.
    pub(crate) peer: Option<Peer>,
}

/// The way to the task that keeps the engine's sessions.
pub(crate) struct Peer {
    pub(crate) orders: UnboundedSender<Order>,
    pub(crate) relay: Relay,
}

pub(crate) struct Engine {
    brain: Pipeline,
    machine: Machine,
    boot: Arc<BootImage>,
    guard: Guard,
    capture: Capture,
    spare: Spare,
    session: Option<Ongoing>,
    peer: Option<Peer>,
    outside: Outside,
    record: Recorder,
    report: Report,
    inbox: Inbox<Input>,
    post: Post<Input>,
    waiter: Waiter,
    next_tick: Moment,
    pulse: Pulse,
    goodbye_within: Duration,
    encoding: EncoderSettings,
}

/// How the outside finds the guest, and whether it does.
struct Outside {
    announcer: Announcer,
    watch: Option<Watch>,
    /// How often the tap has joined its bridge again.
    joined: u32,
}

impl Engine {
    /// Lets the guest of `setup` run.
    ///
    /// # Errors
    /// When its gate is not in front of its tap, or a part of the machine does not start.
    pub(crate) fn start(setup: Setup) -> Result<Self> {
        let Setup {
            vm,
            machine,
            boot,
            mut gate,
            announcer,
            watch,
            brain,
            goodbye_within,
            pause_max,
            cool_after,
            encoding,
            store,
            record,
            report,
            inbox,
            post,
            pulse,
            peer,
        } = setup;
        // Lines that nobody would see are not written in the kernel either.
        gate.set_debug(tracing::enabled!(tracing::Level::DEBUG));
        match gate.verify() {
            // Nothing is held: a guest that runs unprotected does not wait for a gate.
            Err(lost) if brain.gate_is_open() => warn!("the gate, which is open, is lost: {lost}"),
            verified => verified?,
        }
        debug!("the gate is sound");
        let waiter = Waiter::new()?;
        let machine = machine.start()?;
        debug!("the vCPUs are on their way");
        waiter.add(Source::Inbox, inbox.as_raw_fd())?;
        waiter.add(Source::Machine, machine.as_raw_fd())?;
        waiter.add(Source::Gate, gate.as_raw_fd())?;
        let ram_pages = machine.memory().layout().pages();
        Ok(Self {
            brain,
            machine,
            boot: Arc::new(boot),
            guard: Guard::new(gate),
            capture: Capture::new(ram_pages, cool_after, pause_max),
            spare: Spare::default(),
            session: None,
            peer,
            outside: Outside { announcer, watch, joined: 0 },
            record: Recorder::new(store, vm, record),
            report,
            inbox,
            post,
            waiter,
            next_tick: boot_now(),
            pulse,
            goodbye_within,
            encoding,
        })
    }

    /// Runs the guest until it ends or another host speaks for it. Its gate is shut then.
    ///
    /// # Errors
    /// When the guest cannot be run safely any more; nothing of it may go on then, so the caller ends the
    /// process, and the backup takes over.
    pub(crate) fn run(mut self) -> Result<(Stopped, Gate)> {
        loop {
            let readable = self.wait()?;
            self.pulse.beat();
            if readable[Source::Inbox as usize] {
                self.inbox.quiet();
            }
            if readable[Source::Machine as usize] {
                self.serve()?;
            }
            if readable[Source::Gate as usize] && self.guard.gate.take_filling() {
                self.brain.handle_gate_filling(boot_now());
            }
            while let Some(input) = self.inbox.next() {
                self.take(input)?;
            }
            let now = boot_now();
            match self.brain.poll_seal(now) {
                SealWhen::Now if !self.spare.is_empty() => self.seal()?,
                SealWhen::Look => self.look(now)?,
                SealWhen::Now | SealWhen::At(_) | SealWhen::NotYet => {}
            }
            self.sync_stride()?;
            if self.guard.flush_again {
                self.flush()?;
            }
            if now >= self.next_tick {
                self.tick(now)?;
            }
            if let Some(goodbye) = self.brain.poll_goodbye() {
                self.order(Order::Goodbye { epoch: goodbye.epoch, why: goodbye.why });
            }
            if let Some(stopped) = self.brain.poll_stopped(now) {
                return self.stop(stopped);
            }
        }
    }

    /// Waits for an event, at most until something is due.
    fn wait(&mut self) -> Result<[bool; 3]> {
        let now = boot_now();
        let mut until = self.next_tick;
        if !self.spare.is_empty() {
            match self.brain.poll_seal(now) {
                SealWhen::Now | SealWhen::Look => until = now,
                SealWhen::At(due) => until = until.min(due),
                SealWhen::NotYet => {}
            }
            if self.is_syncing() {
                until = now;
            }
        }
        if self.guard.flush_again {
            until = until.min(now + FLUSH_AGAIN);
        }
        self.waiter.wait(until.since(now))
    }

    /// Serves the machine's devices.
    fn serve(&mut self) -> Result<()> {
        let epoch = self.brain.open();
        // A backup that is there keeps what the guest is given.
        let is_kept = self.session.is_some();
        let mut relay = self.peer.as_mut().filter(|_| is_kept).map(|peer| &mut peer.relay);
        let mut given = |frame: &[u8]| {
            if let Some(relay) = &mut relay {
                relay.note(epoch, frame);
            }
        };
        let served = self.machine.service(&mut given);
        if let Some(relay) = relay {
            relay.hand_over();
        }
        let event = match served {
            Ok(event) => event,
            Err(e) => return self.explain(e, boot_now()),
        };
        match event {
            Event::Served => {
                self.hear_the_guest();
                Ok(())
            }
            Event::Ended(End::PowerOff) => {
                info!("the guest has powered off");
                self.end(GoodbyeWhy::PowerOff);
                Ok(())
            }
            Event::Ended(End::Reset) => self.reboot(),
            Event::Ended(End::Crash) => {
                warn!("the guest says that it cannot go on; its last words are above");
                self.end(GoodbyeWhy::Crashed);
                Ok(())
            }
            Event::Ended(End::Fault(why)) => bail!("the guest cannot run on on this host: {why}"),
        }
    }

    /// The guest has reset itself: it begins anew, in the epoch in which it did. To its backup that is one checkpoint,
    /// so it is protected all the while; only a sync that is under way begins anew with it.
    fn reboot(&mut self) -> Result<()> {
        if self.brain.is_ending() {
            return Ok(());
        }
        info!("the guest reboots");
        if let Some(session) = self.session.as_ref().filter(|ongoing| ongoing.sync.is_some()) {
            // Some of what it has carried is of the guest before.
            let session = session.session;
            self.lose(session, "the guest rebooted during the sync, which begins anew");
        }
        let pulse = &self.pulse;
        self.machine.reboot(&self.boot, &mut || pulse.beat())?;
        self.capture.hot.clear();
        self.capture.reset = true;
        Ok(())
    }

    fn take(&mut self, input: Input) -> Result<()> {
        match input {
            Input::Connected { session, welcome, bulk } => self.connect(session, &welcome, bulk),
            Input::Lost { session, why } => {
                self.lose(session, &why);
                Ok(())
            }
            Input::NoSession { why } => {
                self.report.reason(&why);
                Ok(())
            }
            Input::Refused { why: _, text, ancestry } => {
                let relation = self.brain.handle_refused(&ancestry);
                self.refused(relation, &text)
            }
            Input::Split { text } => {
                self.brain.fall_silent();
                self.refused(Relation::Split, &text)
            }
            Input::BackupLacks { what } => {
                self.report.backup_lacks(what);
                Ok(())
            }
            Input::Answered { session, sent } => self.answered(session, sent),
            Input::Encoded { session, epoch, digest } => {
                self.brain.handle_sent(session, epoch, digest);
                Ok(())
            }
            Input::Acked(ack) => self.acked(&ack),
            Input::Shipped(shipment) => {
                if shipment.payload != Payload::Sync {
                    let changed = shipment.verdicts.iter().filter(|verdict| verdict.changed);
                    self.brain.handle_changed(changed.count());
                }
                self.capture.hot.handle_verdicts(&shipment.verdicts);
                self.report.sent(&shipment);
                self.spare.put_back(shipment);
                Ok(())
            }
            Input::StandDown { ancestry } => self.newer_term(ancestry),
            Input::GoodbyeSaid => {
                self.brain.handle_goodbye_answered();
                Ok(())
            }
            Input::Asked(asked) => self.follow(asked),
            Input::Stop => {
                self.end(GoodbyeWhy::Stopped);
                Ok(())
            }
        }
    }

    /// The guest ends on purpose.
    fn end(&mut self, why: GoodbyeWhy) {
        self.brain.handle_end(why, boot_now() + self.goodbye_within + LAST_SEAL_WITHIN);
    }

    fn stop(mut self, stopped: Stopped) -> Result<(Stopped, Gate)> {
        self.guard.gate.close();
        if let Stopped::EndedUnheard(_) = stopped {
            warn!("the backup has not acknowledged the end of the guest: it may take over");
        }
        self.publish()?;
        Ok((stopped, self.guard.gate))
    }

    fn tick(&mut self, now: Moment) -> Result<()> {
        self.next_tick = now + TICK;
        self.look_after_gate(now)?;
        self.look_around();
        if self.guard.gate.mode() != Mode::Closed {
            self.outside.announcer.poll(now);
        }
        self.guard.gate.drain_log();
        self.publish()
    }

    /// Hears from the watch whether clients reach the guest.
    fn look_around(&mut self) {
        let Outside { announcer, watch, joined } = &mut self.outside;
        let Some(found) = watch.as_mut().and_then(Watch::news) else { return };
        if found.joined != *joined {
            *joined = found.joined;
            announcer.again();
        }
        self.report.clients(&found);
    }

    fn publish(&mut self) -> Result<()> {
        self.report.gate(&self.guard.gate)?;
        if let Some(Peer { relay, .. }) = &mut self.peer {
            relay.hand_over();
            self.report.relayed(relay.counters());
        }
        self.report_standing();
        Ok(())
    }

    fn report_standing(&mut self) {
        self.report.standing(&self.brain, boot_now());
    }

    fn order(&self, order: Order) {
        if let Some(peer) = &self.peer {
            // A control task that has ended makes no more sessions anyway.
            peer.orders.send(order).ok();
        }
    }
}
