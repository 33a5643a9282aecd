//! The engine thread: the guest's devices, its epochs, and its gate, in one loop.
//!
//! One thread, because of one order that must hold: when the open epoch is raised, every frame that the guest
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

mod ending;
mod epoch;
mod loss;
mod session;

use std::{collections::VecDeque, io, os::fd::AsRawFd, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use remus_abi::{Stamp, Term, gate::Mode};
use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, info, warn};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use self::{ending::Ending, epoch::Worked, session::Link};
use super::{
    control::Order,
    inbox::{Inbox, Input, Post},
    relay::Relay,
    report::Report,
    sender::{Cargo, Shipment},
    sync::Sync,
};
use crate::{
    checkpoint::{BootImage, DirtyBook, EncoderSettings, HotSet, Page, PageSet, PauseBudget},
    gate::{Flushed, Gate, Lost},
    machine::{End, Event, Machine, Prepared},
    os::boot_now,
    replication::{Pipeline, PrimaryLease, Relation, SealWhen},
    standby::Announcer,
    store::{Record, Store},
    watch::Watch,
    wire::{Ancestry, GoodbyeWhy, Moment},
};

/// Pages that a fresh staging has room for; it grows when an epoch dirties more.
const STAGING_PAGES: usize = 2048;
/// Shipments beyond the pipeline's depth: one being filled, one being compared.
const SPARE_SHIPMENTS: usize = 2;
/// How often the gate is verified and the status is published.
const TICK: Duration = Duration::from_millis(10);
/// How soon frames that are still under way are looked after.
const FLUSH_AGAIN: Duration = Duration::from_millis(1);
/// The descriptors of the event loop.
const INBOX: u64 = 0;
const MACHINE: u64 = 1;
const GATE: u64 = 2;

/// What an engine is made of.
pub(crate) struct Parts {
    pub(crate) vm: String,
    /// Loaded or restored, and not yet running.
    pub(crate) machine: Prepared,
    /// What its guest begins with after a reset.
    pub(crate) boot: BootImage,
    pub(crate) gate: Gate,
    pub(crate) announcer: Announcer,
    /// Sees whether clients reach the guest; a guest without it is not doubted.
    pub(crate) watch: Option<Watch>,
    pub(crate) brain: Pipeline,
    /// How long an answer of the backup lets the gate release.
    pub(crate) lease: Duration,
    /// How long a goodbye is worth an answer.
    pub(crate) goodbye_within: Duration,
    pub(crate) depth: usize,
    /// What a pause may take.
    pub(crate) pause_max: Duration,
    /// Epochs after which a page that stays as it is is protected again.
    pub(crate) cool_after: u8,
    pub(crate) encoding: EncoderSettings,
    pub(crate) store: Store,
    /// What is on disk of this VM.
    pub(crate) record: Record,
    pub(crate) report: Report,
    pub(crate) inbox: Inbox,
    pub(crate) post: Post,
    /// To the control task; `None` for a guest that has no backup to look for.
    pub(crate) orders: Option<UnboundedSender<Order>>,
    pub(crate) relay: Option<Relay>,
}

/// Why an engine has stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stopped {
    /// The guest ended, or the operator ended it, and no backup can go on with it.
    Ended(GoodbyeWhy),
    /// The same, but the backup that may hold a checkpoint has not acknowledged that: it may go on with the guest.
    EndedUnheard(GoodbyeWhy),
    /// Another host speaks for the guest, in this term.
    StoodDown(Term),
}

pub(crate) struct Engine {
    vm: String,
    machine: Machine,
    boot: Arc<BootImage>,
    gate: Gate,
    announcer: Announcer,
    watch: Option<Watch>,
    /// How often the tap has joined its bridge again.
    joined: u32,
    brain: Pipeline,
    goodbye_within: Duration,
    depth: usize,
    encoding: EncoderSettings,
    store: Store,
    report: Report,
    inbox: Inbox,
    post: Post,
    orders: Option<UnboundedSender<Order>>,
    relay: Option<Relay>,
    lease: PrimaryLease,
    epoll: Epoll,
    book: DirtyBook,
    hot: HotSet,
    budget: PauseBudget,
    harvest: PageSet,
    cool: PageSet,
    stride: Vec<Page>,
    #[expect(clippy::vec_box, reason = "they travel in their boxes, and come back in them")]
    spare: Vec<Box<Shipment>>,
    /// How many there are in all. None before the first session: a takeover does not wait for their memory.
    shipments: usize,
    link: Option<Link>,
    sync: Option<Sync>,
    /// When each un-acked checkpoint was sealed.
    sealed_at: VecDeque<(Stamp, Moment)>,
    /// The newest committed checkpoint, and when it was sealed.
    committed: Option<(Stamp, Moment)>,
    /// The guest was reset since the last checkpoint.
    reset: bool,
    recorded: Record,
    worked: Worked,
    /// Frames that the guest had sent when the brain was last told, and when an epoch last ended.
    said: u64,
    sent_before: u64,
    flush_again: bool,
    next_tick: Moment,
    ending: Option<Ending>,
    stood_down: Option<Term>,
    /// Why the gate, which is open, could not hold.
    doubt: Option<Lost>,
    /// When the gate was last put back.
    gate_back_at: Option<Moment>,
}

impl Engine {
    /// Lets the guest of `parts` run.
    ///
    /// # Errors
    /// When its gate is not in front of its tap, or a part of the machine does not start.
    pub(crate) fn start(parts: Parts) -> Result<Self> {
        let Parts {
            vm,
            machine,
            boot,
            mut gate,
            announcer,
            watch,
            brain,
            lease,
            goodbye_within,
            depth,
            pause_max,
            cool_after,
            encoding,
            store,
            record,
            report,
            inbox,
            post,
            orders,
            relay,
        } = parts;
        // Lines that nobody would see are not written in the kernel either.
        gate.set_debug(tracing::enabled!(tracing::Level::DEBUG));
        fine_timers()?;
        match gate.verify() {
            // Nothing is held: a guest that runs unprotected does not wait for a gate.
            Err(lost) if brain.gate_is_open() => warn!("the gate, which is open, is lost: {lost}"),
            verified => verified?,
        }
        debug!("the gate is sound");
        let machine = machine.start()?;
        debug!("the vCPUs are on their way");
        let epoll = Epoll::new().context("make an epoll instance")?;
        let waited_for =
            [(INBOX, inbox.as_raw_fd()), (MACHINE, machine.as_raw_fd()), (GATE, gate.as_raw_fd())];
        for (token, fd) in waited_for {
            epoll
                .ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))
                .context("wait for the machine, the gate and the other threads")?;
        }
        let ram_pages = machine.memory().layout().pages();
        Ok(Self {
            lease: PrimaryLease::new(brain.term(), lease),
            vm,
            machine,
            boot: Arc::new(boot),
            gate,
            announcer,
            watch,
            joined: 0,
            brain,
            goodbye_within,
            depth,
            encoding,
            store,
            report,
            inbox,
            post,
            orders,
            relay,
            epoll,
            book: DirtyBook::new(ram_pages),
            hot: HotSet::new(ram_pages, cool_after),
            budget: PauseBudget::new(pause_max),
            harvest: PageSet::new(ram_pages),
            cool: PageSet::new(ram_pages),
            stride: Vec::new(),
            spare: Vec::new(),
            shipments: 0,
            link: None,
            sync: None,
            sealed_at: VecDeque::new(),
            committed: None,
            reset: false,
            recorded: record,
            worked: Worked::new(boot_now()),
            said: 0,
            sent_before: 0,
            flush_again: false,
            next_tick: boot_now(),
            ending: None,
            stood_down: None,
            doubt: None,
            gate_back_at: None,
        })
    }

    /// Runs the guest until it ends or another host speaks for it. Its gate is shut then.
    ///
    /// # Errors
    /// When the guest cannot be run safely any more; nothing of it may go on then, so the caller ends the
    /// process, and the backup takes over.
    pub(crate) fn run(mut self) -> Result<(Stopped, Gate)> {
        let mut events = vec![EpollEvent::default(); 16];
        loop {
            let ready = self.wait(&mut events)?;
            for event in &events[..ready] {
                match event.data() {
                    INBOX => self.inbox.quiet(),
                    MACHINE => self.serve()?,
                    GATE => {
                        if self.gate.take_filling() {
                            self.brain.handle_gate_filling(boot_now());
                        }
                    }
                    token => unreachable!("a descriptor {token} that nobody added"),
                }
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
            if self.flush_again {
                self.flush()?;
            }
            if now >= self.next_tick {
                self.tick(now)?;
            }
            self.go_on_ending()?;
            if let Some(stopped) = self.poll_stopped(now) {
                self.gate.close();
                self.publish()?;
                return Ok((stopped, self.gate));
            }
        }
    }

    /// Waits for an event, at most until something is due.
    fn wait(&mut self, events: &mut [EpollEvent]) -> Result<usize> {
        let now = boot_now();
        let mut until = self.next_tick;
        if !self.spare.is_empty() {
            match self.brain.poll_seal(now) {
                SealWhen::Now | SealWhen::Look => until = now,
                SealWhen::At(due) => until = until.min(due),
                SealWhen::NotYet => {}
            }
            if self.sync.as_ref().is_some_and(Sync::is_under_way) {
                until = now;
            }
        }
        if self.flush_again {
            until = until.min(now + FLUSH_AGAIN);
        }
        wait_for(&self.epoll, events, until.since(now)).context("wait for events")
    }

    /// Serves the machine's devices.
    fn serve(&mut self) -> Result<()> {
        let epoch = self.brain.open();
        // A backup that is there keeps what the guest is given.
        let mut relay = self.relay.as_mut().filter(|_| self.link.is_some());
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
        if self.ending.is_some() {
            return Ok(());
        }
        info!("the guest reboots");
        if self.sync.is_some()
            && let Some(session) = self.link.as_ref().map(|link| link.session)
        {
            // Some of what it has carried is of the guest before.
            self.lost(session, "the guest rebooted during the sync, which begins anew");
        }
        self.machine.reboot(&self.boot)?;
        self.hot.clear();
        self.reset = true;
        Ok(())
    }

    fn take(&mut self, input: Input) -> Result<()> {
        match input {
            Input::Connected { session, welcome, bulk } => self.connected(session, &welcome, bulk),
            Input::Lost { session, why } => {
                self.lost(session, &why);
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
                if shipment.cargo != Cargo::Sync {
                    let changed = shipment.verdicts.iter().filter(|verdict| verdict.changed);
                    self.brain.handle_changed(changed.count());
                }
                self.hot.handle_verdicts(&shipment.verdicts);
                self.report.sent(&shipment);
                self.spare.push(shipment);
                Ok(())
            }
            Input::StandDown { ancestry } => self.newer_term(ancestry),
            Input::GoodbyeSaid => {
                self.brain.handle_goodbye_answered();
                Ok(())
            }
            Input::Stop => {
                self.end(GoodbyeWhy::Stopped);
                Ok(())
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        let acked = self.brain.acked();
        match self.gate.flush()? {
            Flushed::All => {
                self.flush_again = false;
                if self.brain.released() < acked {
                    self.brain.handle_released(acked);
                    if let Some((stamp, sealed_at)) = self.committed {
                        self.report.released(stamp, boot_now().since(sealed_at));
                    }
                }
            }
            Flushed::Pending => self.flush_again = true,
            // The next answer of the backup renews the lease, and flushes.
            Flushed::Refused => self.flush_again = false,
        }
        Ok(())
    }

    /// Another host speaks for the guest: nothing more leaves from here, ever.
    fn newer_term(&mut self, theirs: Ancestry) -> Result<()> {
        let newer = theirs.newest().map_or(Term::NONE, |newest| newest.term);
        match self.brain.handle_newer_term(&theirs) {
            Relation::Descendant => {
                self.gate.close();
                self.stood_down = Some(newer);
                self.record(self.recorded.clone().stood_down(theirs))?;
            }
            Relation::Split => {
                let text = format!(
                    "another host speaks in term {newer}, which does not come from this one's"
                );
                self.refused(Relation::Split, &text)?;
            }
            Relation::Same | Relation::Ancestor => {}
        }
        Ok(())
    }

    /// A backup refuses this host, for a reason that `text` says. Where terms were spoken in that do not lead to this
    /// guest's, nothing of it leaves until an operator has chosen.
    pub(super) fn refused(&mut self, relation: Relation, text: &str) -> Result<()> {
        match relation {
            Relation::Same | Relation::Ancestor => self.report.reason(text),
            Relation::Descendant | Relation::Split => {
                if let Some(session) = self.link.as_ref().map(|link| link.session) {
                    self.lost(session, text);
                }
                if self.gate.mode() != Mode::Closed {
                    warn!("the gate is shut, and the guest goes on unheard: {text}");
                    self.gate.close();
                }
                self.report.reason(&format!("{text}. Until then the gate of this host is shut"));
                self.publish()?;
            }
        }
        Ok(())
    }

    fn tick(&mut self, now: Moment) -> Result<()> {
        self.next_tick = now + TICK;
        self.look_after_gate(now)?;
        self.look_around();
        if self.gate.mode() != Mode::Closed {
            self.announcer.poll(now);
        }
        self.gate.drain_log();
        self.publish()
    }

    /// Hears from the watch whether clients reach the guest.
    fn look_around(&mut self) {
        let Some(found) = self.watch.as_mut().and_then(Watch::news) else { return };
        if found.joined != self.joined {
            self.joined = found.joined;
            self.announcer.again();
        }
        self.report.clients(&found);
    }

    fn publish(&mut self) -> Result<()> {
        self.report.gate(&self.gate)?;
        if let Some(relay) = &mut self.relay {
            relay.hand_over();
            self.report.relayed(relay.counters());
        }
        self.report_standing();
        Ok(())
    }

    fn report_standing(&mut self) {
        let now = boot_now();
        let unacked = self.sealed_at.front().map(|(_, sealed)| now.since(*sealed));
        self.report.standing(&self.brain, self.lease.holds(now), unacked);
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // A control task that has ended makes no more sessions anyway.
            orders.send(order).ok();
        }
    }

    /// Writes the record, if it says something new.
    fn record(&mut self, record: Record) -> Result<()> {
        if self.recorded != record {
            self.store.write(&self.vm, &record)?;
            self.recorded = record;
        }
        Ok(())
    }
}

/// Waits for events for at most `span`, to the nanosecond: `epoll_wait` only counts milliseconds.
fn wait_for(epoll: &Epoll, events: &mut [EpollEvent], span: Duration) -> io::Result<usize> {
    let span = libc::timespec {
        tv_sec: span.as_secs().cast_signed(),
        tv_nsec: span.subsec_nanos().into(),
    };
    let room = i32::try_from(events.len()).expect("a few events");
    // SAFETY: EpollEvent is a transparent epoll_event; the array and the span live during the call.
    let ready = unsafe {
        libc::epoll_pwait2(
            epoll.as_raw_fd(),
            events.as_mut_ptr().cast(),
            room,
            &raw const span,
            std::ptr::null(),
        )
    };
    match usize::try_from(ready) {
        Ok(ready) => Ok(ready),
        Err(_) => match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::Interrupted => Ok(0),
            e => Err(e),
        },
    }
}

/// Timers of this thread fire when they are due, not up to 50 us later.
fn fine_timers() -> Result<()> {
    // SAFETY: a plain value for this thread.
    let result = unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1usize) };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("set the timer slack");
    }
    Ok(())
}
