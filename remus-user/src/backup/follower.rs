//! The follower of one VM: its thread, from the first hello to the takeover, and the guest's engine after that.

use std::{io, os::fd::AsRawFd, path::PathBuf, sync::Arc, thread, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::task::AbortHandle;
use tracing::{error, info, warn};

use super::{
    handle::{Call, Calls, Handle, handle},
    receiver::{BesideRam, Receiver},
};
use crate::{
    config::BackupOptions,
    link::{self, AckDatagrams, Polled},
    names::VmName,
    observe::{
        Asked, Order, Shared, StatusSocket, VmDir,
        status::{Protection, Role},
    },
    os::{boot_now, fresh_instance},
    replication::{Backup, Detector, Known, NotPromotable, Readiness, Suspicion},
    standby::Standby,
    store::{Record, Standing, Store},
    watch::{Found, Watch},
    wire::{Attach, Features, Lacks, Lane, Moment, Session, TermId, Timing},
};

/// Numbers of the links, for the detector.
pub(super) const CONTROL: u8 = 0;
pub(super) const BULK: u8 = 1;
/// Reads of the bulk connection, of a mebibyte at most, before the other is looked at again.
pub(super) const READS_MAX: usize = 8;
/// Without a session there is nothing to keep time for.
const IDLE: Duration = Duration::from_secs(1);
/// How often it is looked at what a takeover would lack.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Starts the thread that follows `vm`. Called within the daemon's runtime, which serves its status.
///
/// # Errors
/// When another process on this host has the VM, or its record cannot be read.
pub(super) fn start(vm: VmName, options: Arc<BackupOptions>) -> Result<Handle> {
    let directory = VmDir::claim(&options.run_dir, &vm)?;
    let store = Store::at(&options.state_dir)?;
    let claim = store.claim(&vm)?;
    let (known, spoke) = known_of(&vm, store.read(&vm)?)?;
    let me = store.instance(fresh_instance)?;
    let shared = Shared::new(&vm, Role::Backup, known.newest);
    let socket = StatusSocket::bind(&directory)?;
    let status = tokio::spawn(socket.serve(Arc::clone(&shared), refuse_order)).abort_handle();
    let (handle, calls) = handle()?;
    let follower = Follower {
        vm,
        pins: directory.path().join("bpf"),
        options,
        calls,
        store,
        shared,
        brain: Backup::new(me, known),
        standby: None,
        session: None,
        beside: BesideRam::default(),
        recorded: None,
        spoke,
        takeover: None,
        delayed: None,
        watch: None,
        found: Found::default(),
        lacks: String::new(),
        next_look: boot_now(),
    };
    let run = move || {
        let vm = follower.vm.clone();
        match follower.run() {
            Ok(()) => info!("VM {vm} is followed no more"),
            Err(e) => error!("VM {vm}: {e:#}"),
        }
        end_status(&status);
        drop(claim);
        drop(directory);
    };
    thread::Builder::new().name("follower".to_owned()).spawn(run).context("start a follower")?;
    Ok(handle)
}

/// A backup has nothing that could go on without another host, and a guest that it took over runs without one.
fn refuse_order(asked: Asked) {
    let why = match asked.order {
        Order::Unprotect { .. } => {
            "this host is the VM's backup, or has taken it over: it waits for no other host"
        }
    };
    asked.answer(Err(why.to_owned()));
}

fn end_status(status: &AbortHandle) {
    status.abort();
}

/// What this host's record says: what it knows of the VM, and the newest term in which it spoke itself.
///
/// # Errors
/// When this host has spoken for the guest last, and the record cannot say who it was in that term: nobody can show then
/// to come from there.
fn known_of(vm: &VmName, record: Option<Record>) -> Result<(Known, Option<TermId>)> {
    let Some(record) = record else { return Ok((Known::default(), None)) };
    let Record { id, term, standing, nonce, ancestry, spoke } = record;
    let known = match standing {
        // Whether it was heard is not known to a backup that has been restarted.
        Standing::Backup => {
            let ancestry = ancestry.spoken_in(TermId { term, nonce });
            Known { id, newest: term, owner: nonce, ancestry }
        }
        Standing::Ended => Known { id, newest: term, owner: nonce, ancestry },
        // It never spoke in that term; the id of a VM that has never been heard is no more than an attempt.
        Standing::Starting => {
            let id = id.filter(|_| ancestry.newest().is_some());
            Known { id, newest: term.prev(), owner: None, ancestry }
        }
        Standing::Unprotected | Standing::Protected | Standing::Promoted if nonce.is_none() => {
            bail!(
                "this host spoke for VM {vm} last, in term {term}: if no guest of it runs here any more, forget \
                 the record (remus clean {vm} --record)"
            )
        }
        Standing::Unprotected | Standing::Protected | Standing::Promoted => {
            Known { id, newest: term, owner: nonce, ancestry }
        }
    };
    Ok((known, spoke))
}

pub(super) struct Follower {
    pub(super) vm: VmName,
    pub(super) options: Arc<BackupOptions>,
    pub(super) pins: PathBuf,
    pub(super) calls: Calls,
    pub(super) store: Store,
    pub(super) shared: Arc<Shared>,
    pub(super) brain: Backup,
    /// As long as there is a machine, and with it a watch, a whole image may be in it.
    pub(super) standby: Option<Standby>,
    pub(super) watch: Option<Watch>,
    pub(super) session: Option<FollowedSession>,
    pub(super) beside: BesideRam,
    /// What is on disk for certain.
    pub(super) recorded: Option<Record>,
    /// The newest term in which this host spoke.
    pub(super) spoke: Option<TermId>,
    /// What is put on record when the primary that is followed is taken over from.
    pub(super) takeover: Option<Record>,
    pub(super) delayed: Option<Delayed>,
    found: Found,
    /// What a takeover would lack, in words.
    pub(super) lacks: String,
    next_look: Moment,
}

/// A takeover that cannot be put on record.
pub(super) struct Delayed {
    pub(super) until: Moment,
    pub(super) why: String,
}

/// A session, or what is left of it: the detector goes on until there is another.
pub(super) struct FollowedSession {
    pub(super) session: Session,
    pub(super) features: Features,
    pub(super) timing: Timing,
    pub(super) detector: Detector,
    pub(super) control: Option<Polled>,
    pub(super) bulk: Option<Polled>,
    /// Acks go this way too, where the primary asked for it.
    pub(super) datagrams: Option<AckDatagrams>,
    pub(super) receiver: Receiver,
    /// A checkpoint of this session is committed.
    pub(super) protected: bool,
    /// What the primary was told that a takeover would lack.
    pub(super) told: String,
    /// Heartbeats come, and say that the primary's engine hangs.
    pub(super) hangs: bool,
}

/// How the following of a VM goes on.
enum Next {
    Follow,
    TakeOver {
        suspicion: Suspicion,
        decided: Moment,
    },
    /// The guest ended on purpose.
    End,
}

impl Follower {
    fn run(mut self) -> Result<()> {
        self.shared.stand(Protection::Waiting, "");
        loop {
            self.wait()?;
            while let Some(call) = self.calls.next() {
                self.open(call);
            }
            match self.listen()? {
                Next::Follow => {}
                Next::TakeOver { suspicion, decided } => {
                    return self.take_over(suspicion, decided);
                }
                Next::End => return self.end(),
            }
        }
    }

    /// Waits for bytes or calls, at most until the detector wants its tick.
    fn wait(&self) -> Result<()> {
        let fd = |polled: &Option<Polled>| polled.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let (control, bulk, tick) = match &self.session {
            Some(f) => (fd(&f.control), fd(&f.bulk), f.detector.poll_timeout().since(boot_now())),
            None => (-1, -1, IDLE),
        };
        let mut fds = [self.calls.as_raw_fd(), control, bulk].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        let tick = libc::timespec {
            tv_sec: tick.as_secs().cast_signed(),
            tv_nsec: tick.subsec_nanos().into(),
        };
        // SAFETY: an array of pollfds and a span that live during the call; negative descriptors are passed over.
        let ready = unsafe { libc::ppoll(fds.as_mut_ptr(), 3, &raw const tick, std::ptr::null()) };
        if ready < 0 {
            let e = io::Error::last_os_error();
            if e.kind() != io::ErrorKind::Interrupted {
                return Err(e).context("wait for the primary");
            }
        }
        Ok(())
    }

    /// Takes a connection in. One that cannot be used costs nothing but itself.
    fn open(&mut self, call: Call) {
        match call {
            Call::Hello { hello, stream } => self.greet(&hello, stream),
            Call::Attached { session, stream } => {
                let Some(following) = self.session.as_mut().filter(|f| f.session == session) else {
                    return;
                };
                let attached = stream
                    .polled(Lane::BulkToBackup)
                    .map_err(anyhow::Error::from)
                    .and_then(|mut bulk| {
                        bulk.frames.agree(following.features);
                        self.brain.handle_attach(&Attach { session })?;
                        Ok(bulk)
                    });
                match attached {
                    Ok(bulk) => following.bulk = Some(bulk),
                    Err(e) => warn!("VM {}: bulk connection: {e:#}", self.vm),
                }
            }
        }
    }

    /// Hears all that was said, then judges the silence.
    fn listen(&mut self) -> Result<Next> {
        if let Err(e) = self.hear() {
            self.lose(&format!("{e:#}"));
        }
        let now = boot_now();
        if self.brain.poll_readiness(now) == Readiness::Not(NotPromotable::GuestEnded) {
            return Ok(Next::End);
        }
        if now >= self.next_look {
            self.next_look = now + LOOK_EVERY;
            self.look_around();
        }
        let Some(following) = &mut self.session else { return Ok(Next::Follow) };
        let Some(suspicion) = following.detector.handle_tick(now) else { return Ok(Next::Follow) };
        match self.brain.poll_readiness(now) {
            Readiness::Now if self.put_on_record(now) => {
                Ok(Next::TakeOver { suspicion, decided: now })
            }
            Readiness::Now => Ok(Next::Follow),
            // The next tick suspects again, if it is still silent.
            Readiness::After(_) | Readiness::Not(NotPromotable::Lease(_)) => Ok(Next::Follow),
            Readiness::Not(why @ (NotPromotable::NoImage | NotPromotable::GuestEnded)) => {
                self.lose(&format!("{}, and {why}", suspicion.why()));
                self.session = None;
                Ok(Next::Follow)
            }
        }
    }

    /// Sees what a takeover would lack now; says so in the status, and to the primary.
    fn look_around(&mut self) {
        let (Some(standby), Some(watch)) = (&mut self.standby, &mut self.watch) else { return };
        if let Some(found) = watch.news() {
            if let Some(ports) = &found.ports
                && self.session.is_some()
            {
                standby.wiring.overhear(Some(ports));
            }
            self.found = found;
        }
        let gate = standby.gate.verify().err().map(|lost| lost.to_string()).unwrap_or_default();
        let may_be_swapped = match standby.machine.memory().may_be_swapped() {
            true => "the guest's memory may be swapped out, and a takeover would wait for it",
            false => "",
        };
        let all = [gate.as_str(), may_be_swapped, &self.found.refusals()];
        let all: Vec<_> = all.into_iter().filter(|words| !words.is_empty()).collect();
        let lacks = all.join("; ");
        let has_changed = lacks != self.lacks;
        self.lacks = lacks;
        let Some(following) = &mut self.session else { return };
        if has_changed && following.protected && following.control.is_some() {
            stand_protected(&self.shared, &self.lacks);
        }
        if following.told != self.lacks
            && let Some(control) = &mut following.control
        {
            following.told.clone_from(&self.lacks);
            let lacks = Lacks::new(&self.lacks);
            // A connection that is broken is found out by whoever reads it.
            control.send(|out| _ = lacks.encode(out)).ok();
        }
    }

    /// The session is over. The detector goes on: a primary that does not come back is taken over from.
    pub(super) fn lose(&mut self, why: &str) {
        let Some(following) = &mut self.session else { return };
        if following.control.is_none() && following.bulk.is_none() {
            return;
        }
        warn!("VM {}: session {} is lost: {why}", self.vm, following.session);
        if link::are_ended_by_peer(following.control.iter().chain(&following.bulk)) {
            following.detector.handle_closed(CONTROL);
            following.detector.handle_closed(BULK);
        }
        following.control = None;
        following.bulk = None;
        following.datagrams = None;
        self.brain.handle_session_lost();
        self.shared.stand(Protection::Stalled, why);
    }
}

/// Protected, as far as a takeover lacks nothing.
pub(super) fn stand_protected(shared: &Shared, lacks: &str) {
    let protection = match lacks {
        "" => Protection::Protected,
        _ => Protection::Impaired,
    };
    shared.stand(protection, lacks);
}
