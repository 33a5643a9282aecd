//! A primary asks for a session: what it asks for is judged whole before anything changes here.
//!
//! A refusal must cost nothing: not the session that goes on, not the machine with the image of the guest, not the term
//! that is on record. So the brain is asked on a copy, the machine at hand stays as long as its image could be promoted,
//! and the copy takes the brain's place only once the record is on disk.

use anyhow::{Result, anyhow, ensure};
use tracing::{info, warn};

use super::{
    disks,
    follower::{FollowedSession, Follower},
    receiver::Receiver,
};
use crate::{
    checks::{
        memory::{self, Needs},
        wiring::{Part, Wanted},
    },
    gate,
    link::Accepted,
    machine::{CpuProfile, Layout},
    names::LinkName,
    net::Mac,
    observe::status::Protection,
    os::{boot_now, fresh_nonce},
    replication::{Backup, Detector, Known},
    standby::{Announced, Plan, Standby, decode_cpu, offloads_under},
    store::{Record, Standing},
    watch::{Subject, Watch},
    wire::{Features, Hello, Lane, Refusal, Refuse, TermId, ToPrimary},
};

impl Follower {
    /// Welcomes a primary, or refuses it.
    pub(super) fn greet(&mut self, hello: &Hello, stream: Accepted) {
        match self.welcome(hello) {
            Ok(welcome) => self.begin(hello, stream, &welcome),
            Err(refuse) => {
                warn!("VM {}: a primary is refused: {}", self.vm, refuse.text);
                // The primary will ask again.
                stream.refuse(refuse).ok();
            }
        }
    }

    /// Judges a hello: what the brain says, then what this host has. The machine is built before the answer.
    fn welcome(&mut self, hello: &Hello) -> Result<ToPrimary, Refuse> {
        let mut brain = self.brain.clone();
        let welcome = brain.handle_hello(hello)?;
        let plan = self.judge(hello)?;
        self.prepare(plan)?;
        self.record(&brain)?;
        self.brain = brain;
        Ok(ToPrimary::Welcome(welcome))
    }

    /// What the hello asks for, if this host can have it.
    fn judge(&self, hello: &Hello) -> Result<Plan, Refuse> {
        let refuse = |why, text: String| self.refusal(why, &text);
        let announced = Announced::decode(&hello.shape)
            .map_err(|e| refuse(Refusal::Shape, format!("{e:#}")))?;
        let cpu = decode_cpu(&hello.cpu).map_err(|e| refuse(Refusal::Cpu, format!("{e:#}")))?;
        let plan =
            self.plan(announced, cpu).map_err(|e| refuse(Refusal::Shape, format!("{e:#}")))?;
        let host = CpuProfile::of_host().map_err(|e| refuse(Refusal::Cpu, format!("{e:#}")))?;
        let lacks = host.lacks(&plan.cpu);
        if !lacks.is_empty() {
            let text = format!("this host's CPU lacks what the guest has: {}", lacks.join(", "));
            return Err(refuse(Refusal::Cpu, text));
        }
        let ram_pages = Layout::of_mib(plan.shape.memory_mib).pages();
        if hello.ram_pages != ram_pages {
            let text = format!(
                "{} pages of RAM are announced, the shape has {ram_pages}",
                hello.ram_pages
            );
            return Err(refuse(Refusal::Shape, text));
        }
        Ok(plan)
    }

    fn refusal(&self, why: Refusal, text: &str) -> Refuse {
        self.brain.refusal(why, text)
    }

    fn plan(&self, announced: Announced, cpu: CpuProfile) -> Result<Plan> {
        let Announced { state: _, shape, tap, bridge, gate } = announced;
        shape.validate()?;
        gate.validate()?;
        ensure!(
            shape.offloads == offloads_under(gate.engine),
            "the primary's network device offers what its gate's engine cannot keep"
        );
        let name = |name: String| LinkName::new(&name).map_err(|e| anyhow!("{name}: {e}"));
        let placement = self.options.placement.of_machine(shape.vcpus.into());
        for disk in &shape.disks {
            disks::check(disk, self.options.disks.as_deref())?;
        }
        Ok(Plan {
            vm: self.vm.clone(),
            shape,
            cpu,
            placement,
            tap: self.options.tap.clone().map_or_else(|| name(tap), Ok)?,
            bridge: match (self.options.bridge.clone(), bridge) {
                (Some(ours), _) => Some(ours),
                (None, theirs) => theirs.map(name).transpose()?,
            },
            gate,
        })
    }

    /// Makes the machine that `plan` asks for, unless it is there.
    fn prepare(&mut self, plan: Plan) -> Result<(), Refuse> {
        if self.standby.as_ref().is_some_and(|standby| standby.serves(&plan)) {
            return Ok(());
        }
        if let Some((term, _)) = self.brain.committed() {
            let text = format!(
                "this host keeps the guest of term {term} in a machine of another shape, and does not give it up"
            );
            return Err(self.refusal(Refusal::Shape, &text));
        }
        // Of a machine that is no longer wanted the memory comes back.
        let given_up = self.standby.as_ref().map_or(0, |standby| standby.plan().shape.memory_mib);
        let needs = Needs { ram_mib: plan.shape.memory_mib, buffer_mib: plan.gate.buffer_mib };
        memory::admission(needs, given_up).map_err(|text| self.refusal(Refusal::Memory, &text))?;
        // The session of that machine is of no use without it; it has brought no image yet.
        self.lose("the primary asks for another machine");
        (self.session, self.watch, self.standby) = (None, None, None);
        let not_ready = |e: anyhow::Error| self.refusal(Refusal::NotReady, &format!("{e:#}"));
        let standby = Standby::prepare(plan, &self.pins).map_err(&not_ready)?;
        let subject = self.subject(&standby);
        self.watch = Some(Watch::start(subject, Part::Waits).map_err(&not_ready)?);
        self.standby = Some(standby);
        Ok(())
    }

    fn subject(&self, standby: &Standby) -> Subject {
        let Plan { tap, bridge, shape, gate, .. } = standby.plan();
        let uplink = match &gate.release {
            gate::Release::Uplink(uplink) => Some(uplink.clone()),
            gate::Release::ReEntry => None,
        };
        Subject {
            vm: self.vm.clone(),
            wanted: Wanted {
                tap: tap.clone(),
                bridge: bridge.clone(),
                mac: Mac(shape.mac),
                uplink,
            },
            tap: standby.wiring.tap(),
            store: self.store.clone(),
        }
    }

    /// On disk before the primary is answered: after a crash this host must not believe that it knows of no term.
    fn record(&mut self, brain: &Backup) -> Result<(), Refuse> {
        let record = self.record_of(brain, Standing::Backup);
        if self.recorded.as_ref() == Some(&record) {
            return Ok(());
        }
        if let Err(e) = self.store.write(&self.vm, &record) {
            warn!("VM {}: {e:#}", self.vm);
            let text = "this backup cannot write its record to disk; its log says why";
            return Err(self.refusal(Refusal::NotReady, text));
        }
        self.recorded = Some(record);
        Ok(())
    }

    /// What `brain` knows, as a record.
    pub(super) fn record_of(&self, brain: &Backup, standing: Standing) -> Record {
        let Known { id, newest, owner, ancestry } = brain.known().clone();
        Record { id, term: newest, standing, nonce: owner, ancestry, spoke: self.spoke }
    }

    /// The record of a takeover from the primary that is followed: the same whenever it comes, so that it can be kept
    /// ready on disk. From which epoch is said by later records.
    fn takeover(&self) -> Record {
        let followed = self.record_of(&self.brain, Standing::Backup);
        let primary = TermId { term: followed.term, nonce: followed.nonce };
        let ancestry = followed.ancestry.clone().spoken_in(primary);
        let promoted = Record { ancestry, ..followed };
        promoted.starting(primary.term.next(), fresh_nonce()).speaking(Standing::Promoted)
    }

    /// A session begins; the one before, if there is one, is over.
    fn begin(&mut self, hello: &Hello, stream: Accepted, welcome: &ToPrimary) {
        let takeover = self.takeover();
        let standby = self.standby.as_mut().expect("built before the welcome");
        standby.wiring.overhear(None);
        let watch = self.watch.as_ref().expect("it is there as long as the machine");
        watch.reserve(takeover.clone());
        self.takeover = Some(takeover);
        let vcpus = usize::from(standby.plan().shape.vcpus);
        let ram_pages = standby.machine.memory().layout().pages();
        let datagrams = hello.acks_to.and_then(|to| match stream.datagrams(&to) {
            Ok(datagrams) => Some(datagrams),
            Err(e) => {
                warn!("VM {}: acks go by the bulk connection only: {e}", self.vm);
                None
            }
        });
        self.calls.await_bulk_of(hello.session);
        let features = Features::shared_with(hello.features);
        let answered = stream.polled(Lane::ControlToBackup).and_then(|mut control| {
            control.frames.agree(features);
            control.send(|out| _ = welcome.encode(out))?;
            Ok(control)
        });
        let control = match answered {
            Ok(control) => control,
            Err(e) => {
                warn!("VM {}: a session ends before it has begun: {e}", self.vm);
                self.brain.handle_session_lost();
                return;
            }
        };
        info!("VM {}: session {} in term {}", self.vm, hello.session, hello.term);
        self.session = Some(FollowedSession {
            session: hello.session,
            features,
            timing: hello.timing,
            detector: Detector::new(&hello.timing, 2, boot_now()),
            control: Some(control),
            bulk: None,
            datagrams,
            receiver: Receiver::new(ram_pages, vcpus, hello.session),
            protected: false,
            told: String::new(),
            hangs: false,
        });
        self.delayed = None;
        self.shared.begin_term(hello.term);
        self.shared.stand(Protection::Syncing, "");
    }
}
