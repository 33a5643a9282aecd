//! `remus run`: a guest on this host, and its checkpoints on their way to a backup.
//!
//! The order of a start, and why:
//! 1. The VM's directory is claimed: one instance on a host.
//! 2. The record says in which term to run; that this is a start is noted, which spends no term yet.
//! 3. Tap (down, in no bridge), then the gate on it, closed: no frame passes at any moment without a gate.
//! 4. The machine, loaded. Then bridge and link: what the guest will say is the gate's to judge by then.
//! 5. The control task looks for the backup. Where the gate may open before a backup has a checkpoint, the backup's first
//!    word is waited for a moment: it may know that another host speaks.
//! 6. The engine's thread starts the guest.
//!
//! It ends when the guest does, or when another host speaks for it.

use std::{sync::Arc, thread, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use remus_abi::Term;
use tokio::{
    runtime::{Builder, Runtime},
    select,
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};
use tracing::{info, warn};

use crate::{
    checkpoint::{BootImage, HotSet, QUIET_EPOCHS_DEFAULT, STATE_VERSION},
    checks::{self, open_console_log, wiring::Part},
    config::{Config, LEASE_MARGIN, ReleaseTrigger, Start},
    engine::{Engine, Input, Order, Peer, Pulse, Report, Setup, relay},
    gate::{Gate, Held, Trigger},
    link::Patience,
    machine::{Console, CpuProfile, DiskShape, Shape, fault_cost},
    observe::{Shared, StatusSocket, VmDir, status::Role},
    os::{Inbox, Post, boot_now, inbox, run_on},
    replication::{Pipeline, Policy, Stopped},
    signals::{self, Ends},
    standby::{Announced, Plan, Standby, Wiring, encode_cpu, offloads_under},
    store::{self, Beginning, Names, Permission, Standing, Store},
    supervisor::{Datagrams, EngineEnd, keep_sessions},
    terminal::{self, Terminal},
    watch::{Subject, Watch},
    wire::{Features, Hello, Refusal, Session, Timing},
};

/// What it costs to copy a page in a pause and to compare it after that: some 0.35 and 0.2 us.
const PAGE_CARRIED: Duration = Duration::from_nanos(550);

/// What `remus run` was asked for, checked.
#[derive(Debug)]
pub struct PrimaryOptions {
    pub config: Config,
    /// To be the guest's console.
    pub terminal: Option<Terminal>,
}

/// Runs the guest until it ends.
///
/// # Errors
/// When it cannot be started, cannot go on, or another host speaks for it; with what to do.
pub fn run(options: PrimaryOptions) -> Result<()> {
    let PrimaryOptions { config, terminal } = options;
    let directory = VmDir::claim(&config.run_dir, &config.name)?;
    let store = Store::at(&config.state_dir)?;
    let vm = &config.name;
    let _claim = store.claim(vm)?;
    let before = store.read(vm)?;
    let permission = store::permission(vm, before.clone(), Names::FRESH)?;
    let record = permission.record();
    if before.as_ref() != Some(&record) {
        store.write(vm, &record)?;
    }
    let term = permission.fenced.term();

    let mut standby = Standby::prepare(plan_of(&config)?, &directory.path().join("bpf"))?;
    let begun = (|| {
        standby.machine.load(config.machine.software())?;
        let boot = standby.machine.boot_image()?;
        let attached = attach_console(&config, &standby.machine.console(), terminal)?;
        standby.wiring.connect()?;
        Ok((boot, attached))
    })();
    // The terminal is as it was when this function ends.
    let (boot, _attached) = match begun {
        Ok(begun) => begun,
        Err(e) => {
            standby.remove()?;
            return Err(e);
        }
    };
    if signals::end_is_asked_for() {
        info!("VM {vm} is told to end before it has run");
        return standby.remove();
    }
    let shell = Shell::new(&config, &directory, &store, standby, boot, permission)?;
    let (stopped, gate, wiring) = shell.run()?;
    match stopped {
        Stopped::Ended(why) => {
            // A start that was accepted by nobody and heard by nobody has spent no term.
            let spoken = store.read(vm)?.filter(|now| *now != record);
            if let Some(spoken) = spoken {
                store.write(vm, &spoken.ended())?;
            }
            wiring.remove(gate)?;
            info!("VM {vm} has ended: {why:?}");
            Ok(())
        }
        Stopped::EndedUnheard(why) => {
            wiring.remove(gate)?;
            bail!(
                "VM {vm} has ended here ({why:?}), and its backup at {} has not acknowledged that: it may take the guest \
                 over, or has. Look there (remus status); this host does not start the VM again by itself",
                config.protection.backup
            )
        }
        Stopped::StoodDown(newer) => {
            wiring.disconnect()?;
            bail!(
                "another host speaks for VM {vm} now, in term {newer} (this one was in {term}): nothing of it runs or \
                 speaks here any more. Look there how it stands (remus status). This host cannot protect it while it \
                 runs there: see \"After a takeover\" in docs/operating.md"
            )
        }
    }
}

/// How long a guest that may be heard without a backup waits for the backup's first word. It may be that another host
/// speaks for the guest.
const ASK_FIRST: Duration = Duration::from_millis(500);

/// The threads of a primary and what goes between them.
struct Shell<'a> {
    config: &'a Config,
    store: &'a Store,
    runtime: Runtime,
    standby: Standby,
    boot: BootImage,
    permission: Permission,
    watch: Watch,
    socket: StatusSocket,
    shared: Arc<Shared>,
    inbox: Inbox<Input>,
    post: Post<Input>,
}

impl<'a> Shell<'a> {
    fn new(
        config: &'a Config,
        directory: &VmDir,
        store: &'a Store,
        standby: Standby,
        boot: BootImage,
        permission: Permission,
    ) -> Result<Self> {
        let vm = &config.name;
        let shared = Shared::new(vm, Role::Primary, permission.fenced.term());
        let (inbox, post) = inbox()?;
        let subject = Subject {
            vm: vm.clone(),
            wanted: checks::wanted(config),
            tap: standby.wiring.tap(),
            store: store.clone(),
        };
        Ok(Self {
            config,
            store,
            runtime: Builder::new_current_thread().enable_all().build().context("start tokio")?,
            standby,
            boot,
            permission,
            watch: Watch::start(subject, Part::Speaks)?,
            socket: StatusSocket::bind(directory)?,
            shared,
            inbox,
            post,
        })
    }

    /// Looks for the backup, starts the engine, and is the control thread until that has stopped.
    fn run(self) -> Result<(Stopped, Gate, Wiring)> {
        let Self {
            config,
            store,
            runtime,
            standby,
            boot,
            permission,
            watch,
            socket,
            shared,
            mut inbox,
            post,
        } = self;
        let mut record = permission.record();
        let Permission { fenced, start } = permission;
        let (vm, term, timing) = (&config.name, fenced.term(), timing_of(config));
        // Before a backup has a checkpoint.
        let open = config.protection.start == Start::Unprotected;
        let io_cpus = &config.placement.io_cpus;
        let hello = hello_of(config, &standby, term, &start)?;
        let datagrams = Datagrams::new(trigger_of(config, &standby.gate), timing.lease);
        let (orders_out, orders) = mpsc::unbounded_channel();
        let (relay, relayed) = relay(term);
        let (backup, pulse) = (config.protection.backup, Pulse::new());
        let to_engine = post.clone();
        runtime.spawn(socket.serve(Arc::clone(&shared), move |asked| {
            to_engine.send(Input::Asked(asked));
        }));
        let engine_end = EngineEnd { post: post.clone(), orders, relayed, pulse: pulse.clone() };
        runtime.spawn(keep_sessions(backup, hello, datagrams, engine_end));

        let Standby { machine, mut gate, wiring, mut announcer, .. } = standby;
        gate.begin_term(&fenced, Held::Discard)?;
        if open {
            let (asked, why) = runtime.block_on(another_speaks(inbox))?;
            inbox = asked;
            if let Some(why) = why {
                wiring.remove(gate)?;
                bail!("VM {vm} is not started: {why}");
            }
            // On disk before the guest is heard.
            record = record.speaking(Standing::Unprotected);
            store.write(vm, &record)?;
            gate.open(&fenced);
            // The next hello says so; a control task that has ended says nothing any more.
            orders_out.send(Order::Spoken).ok();
            announcer.poll(boot_now());
        }
        info!(
            "VM {vm} runs in term {term}, its gate {}",
            if open { "open until a backup is there" } else { "shut" }
        );
        let policy = Policy {
            tempo: config.protection.tempo,
            depth: config.protection.depth,
            ..Policy::new(&timing)
        };
        let brain = if open {
            Pipeline::start_unprotected(fenced, policy, boot_now())
        } else {
            Pipeline::start_shut(fenced, policy, boot_now())
        };
        let brain = brain.in_line(start.nonce, start.ancestry);
        let setup = Setup {
            vm: vm.clone(),
            cool_after: cool_after_on(&CpuProfile::of_host()?),
            machine,
            boot,
            gate,
            announcer,
            watch: Some(watch),
            brain,
            goodbye_within: Patience::of(&timing).goodbye(),
            pause_max: config.protection.pause_max,
            encoding: config.protection.encoding,
            store: store.clone(),
            record,
            report: Report::new(shared),
            inbox,
            post: post.clone(),
            pulse,
            peer: Some(Peer { orders: orders_out, relay }),
        };
        let (ended_in, mut ended) = oneshot::channel();
        let engine_cpus = io_cpus.clone();
        let engine = move || {
            let result = Engine::start(setup).and_then(|engine| {
                // After the vCPU threads were started: they are placed apart.
                run_on(&engine_cpus).context("place the engine thread")?;
                engine.run()
            });
            // The receiver waits for it as long as the process lives.
            ended_in.send(result).ok();
        };
        let engine = thread::Builder::new()
            .name("engine".to_owned())
            .spawn(engine)
            .context("start the engine")?;
        run_on(io_cpus).context("place the control thread")?;
        let result = runtime.block_on(async {
            let mut ends = Ends::new()?;
            loop {
                select! {
                    result = &mut ended => return result.map_err(|_| anyhow!("the engine has panicked"))?,
                    () = ends.next() => post.send(Input::Stop),
                }
            }
        });
        runtime.shutdown_timeout(Duration::from_millis(100));
        let (stopped, gate) = result?;
        engine.join().map_err(|_| anyhow!("the engine has panicked"))?;
        Ok((stopped, gate, wiring))
    }
}

/// Whether the backup's first word is that another host speaks for the guest: why, if so. Nobody is waited for longer than
/// [`ASK_FIRST`]: a backup that is away says nothing.
async fn another_speaks(mut inbox: Inbox<Input>) -> Result<(Inbox<Input>, Option<String>)> {
    let waited = spawn_blocking(move || {
        inbox.wait(ASK_FIRST);
        inbox
    });
    let inbox = waited.await.context("wait for the backup")?;
    let why = match inbox.peek() {
        Some(Input::Refused {
            why: Refusal::OtherPrimary | Refusal::OtherVm | Refusal::Split | Refusal::OutdatedTerm,
            text,
            ..
        }) => Some(text.clone()),
        Some(Input::StandDown { ancestry }) => {
            let term = ancestry.newest().map_or(Term::NONE, |newest| newest.term);
            Some(format!(
                "another host speaks for it, in term {term}. Let it run there, or end it there first"
            ))
        }
        Some(_) | None => None,
    };
    Ok((inbox, why))
}

fn plan_of(config: &Config) -> Result<Plan> {
    let vcpus = u8::try_from(config.machine.vcpus).context("machine.vcpus is too many")?;
    Ok(Plan {
        vm: config.name.clone(),
        shape: Shape {
            memory_mib: config.machine.memory_mib,
            vcpus,
            mac: config.net.mac.0,
            mtu_bytes: config.net.mtu_bytes,
            offloads: offloads_under(config.gate.engine),
            disks: disks_of(config)?,
        },
        cpu: CpuProfile::of_host()?,
        placement: config.placement.of_machine(config.machine.vcpus as usize),
        tap: config.net.tap.clone(),
        bridge: config.net.bridge.clone(),
        gate: config.gate.clone(),
    })
}

/// What this host has of the disks that the config names.
fn disks_of(config: &Config) -> Result<Vec<DiskShape>> {
    config.disks.iter().map(|disk| DiskShape::of(&disk.path, &disk.id, true)).collect()
}

/// Where what the guest says goes, from its first word on.
fn attach_console(
    config: &Config,
    console: &Console,
    terminal: Option<Terminal>,
) -> Result<Option<terminal::Attached>> {
    if let Some(path) = &config.console.log {
        // For as long as the guest lives.
        console.attach(&path.display().to_string(), open_console_log(path)?).map(drop)?;
    }
    let name = config.name.as_str();
    terminal.map(|terminal| terminal.attach(console.clone(), name)).transpose()
}

fn hello_of(config: &Config, standby: &Standby, term: Term, start: &Beginning) -> Result<Hello> {
    let Plan { shape, cpu, tap, bridge, gate, .. } = standby.plan();
    let announced = Announced {
        state: STATE_VERSION,
        shape: shape.clone(),
        tap: tap.to_string(),
        bridge: bridge.as_ref().map(ToString::to_string),
        gate: gate.clone(),
    };
    Ok(Hello {
        features: Features::OURS,
        vm: config.name.clone(),
        session: Session::new(1).expect("a template; each session gets its own"),
        id: start.id,
        nonce: start.nonce,
        ancestry: start.ancestry.clone(),
        term,
        ram_pages: standby.machine.memory().layout().pages(),
        timing: timing_of(config),
        acks_to: None,
        shape: announced.encode()?,
        cpu: encode_cpu(cpu)?,
    })
}

/// How long a page that stays as it is stays writable, from what a fault costs on this host.
fn cool_after_on(cpu: &CpuProfile) -> u8 {
    match fault_cost(cpu) {
        Ok(fault) => {
            let epochs = HotSet::cool_after(fault, PAGE_CARRIED);
            info!("a write-protect fault costs {fault:?} here: pages cool after {epochs} epochs");
            epochs
        }
        Err(e) => {
            warn!("what a write-protect fault costs is not known: {e:#}");
            QUIET_EPOCHS_DEFAULT
        }
    }
}

/// The kernel's part in releasing, where the config wants it. A kernel that refuses costs no protection.
fn trigger_of(config: &Config, gate: &Gate) -> Option<Trigger> {
    match config.trigger {
        ReleaseTrigger::Controller => None,
        ReleaseTrigger::Kernel => match gate.trigger() {
            Ok(trigger) => Some(trigger),
            Err(e) => {
                warn!("acks release by way of the controller only: {e:#}");
                None
            }
        },
    }
}

fn timing_of(config: &Config) -> Timing {
    let p = &config.protection;
    Timing {
        epoch_max: p.tempo.epoch_max,
        heartbeat: p.heartbeat,
        detect: p.detect,
        lease: p.lease,
        margin: LEASE_MARGIN,
    }
}
