//! The follower of one VM: its thread, from the first hello to the takeover, and the guest's engine after that.

use std::{io, os::fd::AsRawFd, path::PathBuf, sync::Arc, thread, time::Duration};

use anyhow::{Context, Result, anyhow, bail, ensure};
use remus_abi::{Stamp, Term};
use tokio::task::AbortHandle;
use tracing::{error, info, warn};

use super::{
    BackupOptions, disks,
    image::{Beside, Image},
    mailbox::{Letter, Letters, Mailbox, mailbox},
};
use crate::{
    checkpoint::{EncoderSettings, QUIET_EPOCHS_DEFAULT},
    config::LinkName,
    failover,
    link::{self, AckDatagrams, Arrived, Polled},
    machine::{self, CpuProfile, Layout},
    observe::{
        Shared, StatusSocket, VmDir,
        status::{Failover, Protection, Role},
    },
    os::{boot_now, fresh_instance},
    primary::{Announced, Engine, Parts, Report, Stopped, decode_cpu, inbox},
    replication::{
        Backup, Detector, NotPromotable, Pipeline, Policy, Promotion, Readiness, Suspicion,
    },
    standby::{Plan, Standby, offloads_under},
    store::{Record, Standing, Store},
    wire::{Hello, Instance, Lane, Refusal, Refuse, Session, Timing, ToBackup, ToPrimary, VmName},
};

/// Numbers of the links, for the detector.
const CONTROL: u8 = 0;
const BULK: u8 = 1;
/// Reads of the bulk connection, of a mebibyte at most, before the other is looked at again.
const READS_MAX: usize = 8;
/// Without a session there is nothing to keep time for.
const IDLE: Duration = Duration::from_secs(1);

/// Starts the thread that follows `vm`. Called within the daemon's runtime, which serves its status.
///
/// # Errors
/// When another process on this host has the VM, or its record cannot be read.
pub(super) fn start(vm: VmName, options: Arc<BackupOptions>) -> Result<Mailbox> {
    let directory = VmDir::claim(&options.run_dir, &vm)?;
    let store = Store::at(&options.state_dir)?;
    let (newest, owner) = newest_known(vm.as_str(), store.read(vm.as_str())?)?;
    let me = store.instance(fresh_instance)?;
    let shared = Shared::new(vm.as_str(), Role::Backup, newest);
    let socket = StatusSocket::bind(&directory)?;
    let status = tokio::spawn(socket.serve(Arc::clone(&shared))).abort_handle();
    let (mailbox, letters) = mailbox()?;
    let follower = Follower {
        vm,
        pins: directory.path().join("bpf"),
        options,
        letters,
        store,
        shared,
        brain: Backup::new(me, newest, owner),
        standby: None,
        session: None,
        beside: Beside::default(),
    };
    let run = move || {
        let vm = follower.vm.clone();
        match follower.run() {
            Ok(()) => info!("VM {vm} is followed no more"),
            Err(e) => error!("VM {vm}: {e:#}"),
        }
        end_status(&status);
        drop(directory);
    };
    thread::Builder::new().name("follower".to_owned()).spawn(run).context("start a follower")?;
    Ok(mailbox)
}

fn end_status(status: &AbortHandle) {
    status.abort();
}

/// What this host's record says: the newest term it has heard of, and who speaks in it.
///
/// # Errors
/// When this host has itself spoken for the guest last: it cannot follow before that is settled.
fn newest_known(vm: &str, record: Option<Record>) -> Result<(Term, Option<Instance>)> {
    let Some(Record { term, standing, owner }) = record else { return Ok((Term::NONE, None)) };
    match standing {
        Standing::Backup | Standing::Ended => Ok((term, owner)),
        Standing::Unprotected | Standing::Protected | Standing::Promoted => bail!(
            "this host spoke for VM {vm} last, in term {term}: if no guest of it runs here any more, remove {vm}.json \
             from this host's state directory"
        ),
    }
}

struct Follower {
    vm: VmName,
    options: Arc<BackupOptions>,
    pins: PathBuf,
    letters: Letters,
    store: Store,
    shared: Arc<Shared>,
    brain: Backup,
    standby: Option<Standby>,
    session: Option<Following>,
    beside: Beside,
}

/// A session, or what is left of it: the detector goes on until there is another.
struct Following {
    session: Session,
    timing: Timing,
    detector: Detector,
    control: Option<Polled>,
    bulk: Option<Polled>,
    /// Acks go this way too, where the primary asked for it.
    datagrams: Option<AckDatagrams>,
    image: Image,
    /// A checkpoint of this session is committed.
    protected: bool,
}

/// How the following of a VM goes on.
enum Next {
    Follow,
    TakeOver(Suspicion),
    /// The guest ended on purpose.
    End,
}

impl Follower {
    fn run(mut self) -> Result<()> {
        self.shared.stand(Protection::Waiting, "");
        loop {
            self.wait()?;
            while let Some(letter) = self.letters.next() {
                self.open(letter)?;
            }
            match self.listen()? {
                Next::Follow => {}
                Next::TakeOver(suspicion) => return self.take_over(suspicion),
                Next::End => return self.end(),
            }
        }
    }

    /// Waits for bytes or letters, at most until the detector wants its tick.
    fn wait(&self) -> Result<()> {
        let fd = |polled: &Option<Polled>| polled.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let (control, bulk, tick) = match &self.session {
            Some(f) => (fd(&f.control), fd(&f.bulk), f.detector.poll_timeout().since(boot_now())),
            None => (-1, -1, IDLE),
        };
        let mut fds = [self.letters.as_raw_fd(), control, bulk].map(|fd| libc::pollfd {
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

    fn open(&mut self, letter: Letter) -> Result<()> {
        match letter {
            Letter::Hello { hello, stream } => match self.welcome(&hello) {
                Ok(welcome) => self.begin(&hello, stream, &welcome),
                Err(refuse) => {
                    warn!("VM {}: a primary is refused: {}", self.vm, refuse.text);
                    // It will ask again.
                    link::refuse(stream, refuse).ok();
                    Ok(())
                }
            },
            Letter::Attached { session, stream } => {
                let Some(following) = self.session.as_mut().filter(|f| f.session == session) else {
                    return Ok(());
                };
                match self.brain.handle_attach(&crate::wire::Attach { session }) {
                    Ok(()) => following.bulk = Some(Polled::new(stream, Lane::BulkToBackup)?),
                    Err(e) => warn!("VM {}: bulk connection: {e}", self.vm),
                }
                Ok(())
            }
        }
    }

    /// Judges a hello: what this host has, then what the brain says. The machine is built before the answer.
    fn welcome(&mut self, hello: &Hello) -> Result<ToPrimary, Refuse> {
        // Asked on a copy first: a primary that is refused must not cost this host the machine with its image.
        self.brain.clone().handle_hello(hello)?;
        let newest = self.brain.newest();
        let refuse = |why, text: String| Refuse::new(why, newest, &text);
        let announced = Announced::decode(&hello.shape)
            .map_err(|e| refuse(Refusal::Shape, format!("{e:#}")))?;
        let cpu = decode_cpu(&hello.cpu).map_err(|e| refuse(Refusal::Cpu, format!("{e:#}")))?;
        let plan = self
            .plan(announced, cpu, hello)
            .map_err(|e| refuse(Refusal::Shape, format!("{e:#}")))?;
        let host = CpuProfile::of_host().map_err(|e| refuse(Refusal::Cpu, format!("{e:#}")))?;
        let lacks = host.lacks(&plan.cpu);
        if !lacks.is_empty() {
            return Err(refuse(
                Refusal::Cpu,
                format!("this host's CPU lacks what the guest has: {}", lacks.join(", ")),
            ));
        }
        let ram_pages = Layout::of_mib(plan.shape.memory_mib).pages();
        if hello.ram_pages != ram_pages {
            let text = format!(
                "{} pages of RAM are announced, the shape has {ram_pages}",
                hello.ram_pages
            );
            return Err(refuse(Refusal::Shape, text));
        }
        if !self.standby.as_ref().is_some_and(|standby| standby.serves(&plan)) {
            // The old one's memory goes before the new one's is asked for.
            self.standby = None;
            let needed = u64::from(plan.shape.memory_mib) << 20;
            let free = available_memory().unwrap_or(u64::MAX);
            if needed > free {
                let text = format!(
                    "the VM wants {} MiB, this host has {} MiB left",
                    needed >> 20,
                    free >> 20
                );
                return Err(refuse(Refusal::Memory, text));
            }
            let standby = Standby::prepare(plan, &self.pins)
                .map_err(|e| refuse(Refusal::NotReady, format!("{e:#}")))?;
            self.standby = Some(standby);
        }
        self.brain.handle_hello(hello).map(ToPrimary::Welcome)
    }

    fn plan(&self, announced: Announced, cpu: CpuProfile, hello: &Hello) -> Result<Plan> {
        let Announced { state: _, shape, tap, bridge, gate } = announced;
        shape.validate()?;
        gate.validate()?;
        ensure!(
            shape.offloads == offloads_under(gate.engine),
            "the primary's network device offers what its gate's engine cannot keep"
        );
        let name = |name: String| LinkName::new(&name).map_err(|e| anyhow!("{name}: {e}"));
        let cpus = &self.options.placement;
        let of = |n| cpus.of_vcpu(n).map(|cpu| cpu as usize);
        let vcpu_cpus = (0..usize::from(shape.vcpus)).map_while(of).collect();
        let device_cpus = cpus.io_cpus.iter().map(|cpu| *cpu as usize).collect();
        for disk in &shape.disks {
            disks::check(disk, self.options.disks.as_deref())?;
        }
        Ok(Plan {
            vm: self.vm.as_str().to_owned(),
            shape,
            cpu,
            placement: machine::Placement { vcpu_cpus, device_cpus },
            tap: self.options.tap.clone().map_or_else(|| name(tap), Ok)?,
            bridge: match (self.options.bridge.clone(), bridge) {
                (Some(ours), _) => Some(ours),
                (None, theirs) => theirs.map(name).transpose()?,
            },
            gate,
            term: Term::new(hello.term.get() + 1).context("terms are used up")?,
        })
    }

    /// A session begins; the one before, if there is one, is over.
    fn begin(
        &mut self,
        hello: &Hello,
        stream: std::net::TcpStream,
        welcome: &ToPrimary,
    ) -> Result<()> {
        // On disk before it is answered: after a crash this host must not believe that it knows of no term.
        let record = Record {
            term: self.brain.newest(),
            standing: Standing::Backup,
            owner: self.brain.owner(),
        };
        if let Err(e) = self.store.write(self.vm.as_str(), record) {
            self.brain.handle_session_lost();
            warn!("VM {}: a primary is refused: {e:#}", self.vm);
            let text = "this backup cannot write its record to disk";
            link::refuse(stream, Refuse::new(Refusal::NotReady, self.brain.newest(), text)).ok();
            return Ok(());
        }
        let standby = self.standby.as_mut().expect("built before the welcome");
        standby.wiring.overhear();
        let vcpus = usize::from(standby.plan().shape.vcpus);
        let ram_pages = standby.machine.memory().layout().pages();
        let datagrams = hello.acks_to.and_then(|to| match AckDatagrams::beside(&stream, &to) {
            Ok(datagrams) => Some(datagrams),
            Err(e) => {
                warn!("VM {}: acks go by the bulk connection only: {e}", self.vm);
                None
            }
        });
        let mut control = Polled::new(stream, Lane::ControlToBackup)?;
        if control.send(|out| welcome.encode(out)).is_err() {
            self.brain.handle_session_lost();
            return Ok(());
        }
        info!("VM {}: session {} in term {}", self.vm, hello.session, hello.term);
        self.session = Some(Following {
            session: hello.session,
            timing: hello.timing,
            detector: Detector::new(&hello.timing, 2, boot_now()),
            control: Some(control),
            bulk: None,
            datagrams,
            image: Image::new(ram_pages, vcpus, hello.session),
            protected: false,
        });
        self.shared.begin_term(hello.term);
        self.shared.stand(Protection::Syncing, "");
        Ok(())
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
        let Some(following) = &mut self.session else { return Ok(Next::Follow) };
        let Some(suspicion) = following.detector.handle_tick(now) else { return Ok(Next::Follow) };
        match self.brain.poll_readiness(now) {
            Readiness::Now => Ok(Next::TakeOver(suspicion)),
            // The next tick suspects again, if it is still silent.
            Readiness::After(_) | Readiness::Not(NotPromotable::Lease(_)) => Ok(Next::Follow),
            Readiness::Not(why @ (NotPromotable::NoImage | NotPromotable::GuestEnded)) => {
                self.lose(&format!("the primary is silent ({:?}), and {why}", suspicion.why()));
                self.session = None;
                Ok(Next::Follow)
            }
        }
    }

    /// Reads both links until nothing is there. An error is the end of the session.
    fn hear(&mut self) -> Result<()> {
        let Self {
            session: Some(following),
            standby: Some(standby),
            brain,
            beside,
            shared,
            vm: _,
            ..
        } = self
        else {
            return Ok(());
        };
        let Following { detector, control, bulk, datagrams, image, protected, .. } = following;
        let mut is_heard = false;
        if let Some(control) = control {
            loop {
                while let Some(frame) = control.frames.next_frame()? {
                    is_heard = true;
                    let now = boot_now();
                    let answer = match ToBackup::decode(&frame)? {
                        ToBackup::Heartbeat(heartbeat) => {
                            Some(ToPrimary::HeartbeatAck(brain.handle_heartbeat(now, &heartbeat)?))
                        }
                        ToBackup::Goodbye(goodbye) => {
                            Some(ToPrimary::GoodbyeAck(brain.handle_goodbye(&goodbye)?))
                        }
                        ToBackup::Inbound(inbound) => {
                            brain.handle_inbound(&inbound)?;
                            beside.kept.take(&inbound);
                            None
                        }
                        ToBackup::Hello(_) => bail!("a second Hello"),
                    };
                    detector.handle_heard(now, CONTROL);
                    if let Some(answer) = answer {
                        control.answer(|out| answer.encode(out)).context("answer the primary")?;
                    }
                }
                match control.read() {
                    Arrived::Bytes => {}
                    Arrived::Nothing => break,
                    Arrived::End => bail!("the primary closed its control connection"),
                    Arrived::Broken => bail!("the control connection broke"),
                }
            }
        }
        if let Some(bulk) = bulk {
            let memory = standby.machine.memory();
            // Not without end: heartbeats are to be answered while a primary sends as fast as this host reads.
            for _ in 0..READS_MAX {
                while let Some(frame) = bulk.frames.next_frame()? {
                    is_heard = true;
                    let ack = image.take(&frame, brain, memory, beside)?;
                    detector.handle_heard(boot_now(), BULK);
                    if let Some(ack) = ack {
                        // First the one that a thread at the other end need not wake up for.
                        if let Some(datagrams) = datagrams {
                            datagrams.say(&ack);
                        }
                        bulk.send(|out| {
                            ack.encode(out);
                        })
                        .context("ack")?;
                        image.apply(memory, beside)?;
                        shared.applied(Stamp::new(ack.term, ack.epoch));
                        if !std::mem::replace(protected, true) {
                            shared.stand(Protection::Protected, "");
                        }
                    }
                }
                match bulk.read() {
                    Arrived::Bytes => {}
                    Arrived::Nothing => break,
                    Arrived::End => bail!("the primary closed its bulk connection"),
                    Arrived::Broken => bail!("the bulk connection broke"),
                }
            }
        }
        if is_heard {
            standby.wiring.forget_overheard();
        }
        Ok(())
    }

    /// The session is over. The detector goes on: a primary that does not come back is taken over from.
    fn lose(&mut self, why: &str) {
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

    /// From here on this thread is the guest's engine.
    fn take_over(self, suspicion: Suspicion) -> Result<()> {
        let Self { vm, store, shared, brain, standby, session, beside, letters, .. } = self;
        let decided = boot_now();
        let Following { timing, control, .. } = session.expect("a detector suspected");
        let promotion = brain.promote(decided, suspicion).map_err(|not| anyhow!("{}", not.why))?;
        let Promotion { epoch, of, suspicion, fenced, promoted } = promotion;
        warn!(
            "VM {vm}: the primary is silent ({:?}): this host takes over from epoch {epoch} of term {of}, in term {}",
            suspicion.why(),
            fenced.term()
        );
        letters.set_promoted(promoted);
        let mut standby = standby.expect("a session has one");
        let Beside { state, boot, kept } = beside;
        let boot = boot.context("a committed checkpoint without what the guest begins with")?;
        let given_again = kept.after(of, epoch);
        let overheard =
            failover::take_over(&mut standby, &state, given_again.clone(), &fenced, &store)?;
        let open = boot_now();

        let term = fenced.term();
        let (inbox, post) = inbox()?;
        letters.set_engine(post.clone());
        let policy = Policy::new(&timing);
        let Standby { machine, gate, wiring, .. } = standby;
        let engine = Engine::start(Parts {
            vm: vm.as_str().to_owned(),
            machine,
            boot,
            gate,
            brain: Pipeline::start_unprotected(fenced, policy, decided),
            lease: timing.lease,
            depth: policy.depth,
            // It has no backup to pause for.
            pause_max: timing.epoch_max,
            cool_after: QUIET_EPOCHS_DEFAULT,
            encoding: EncoderSettings::default(),
            store: store.clone(),
            report: Report::new(Arc::clone(&shared)),
            inbox,
            post,
            orders: None,
            relay: None,
        })?;
        let running = boot_now();
        // An old primary that only stood still reads this when it wakes.
        if let Some(mut control) = control {
            control.send(|out| ToPrimary::StandDown(promoted.stand_down()).encode(out)).ok();
        }
        shared.begin_term(term);
        shared.took_over(Failover {
            last_heard_ns: suspicion.last_heard().0,
            decided_ns: decided.0,
            running_ns: running.0,
            open_ns: open.0,
            epoch: epoch.get(),
            given_again: given_again.count() as u64,
            overheard: overheard as u64,
        });
        info!(
            "VM {vm}: the guest runs here, {} us after the decision",
            running.since(decided).as_micros()
        );
        match engine.run()? {
            (Stopped::Ended(why), gate) => {
                store
                    .write(vm.as_str(), Record { term, standing: Standing::Ended, owner: None })?;
                info!("VM {vm} has ended: {why:?}");
                wiring.remove(gate)
            }
            (Stopped::StoodDown(newer), _) => {
                bail!("another host speaks for it now, in term {newer}")
            }
        }
    }

    /// The guest ended on purpose.
    fn end(self) -> Result<()> {
        let Self { vm, store, brain, standby, .. } = self;
        store.write(
            vm.as_str(),
            Record { term: brain.newest(), standing: Standing::Ended, owner: None },
        )?;
        standby.map_or(Ok(()), Standby::remove)
    }
}

/// Bytes of memory that the host can give, as the kernel estimates (MemAvailable in /proc/meminfo).
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}
