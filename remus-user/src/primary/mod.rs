//! `remus run`: a guest on this host, and its checkpoints on their way to a backup.
//!
//! The order of a start, and why:
//! 1. The VM's directory is claimed: one instance on a host.
//! 2. The record says in which term to run, and whether the gate may open before a backup has committed.
//! 3. Tap (down, in no bridge), then the gate on it, closed: no frame passes at any moment without a gate.
//! 4. The machine, loaded. Then bridge and link: what the guest will say is the gate's to judge by then.
//! 5. The engine's thread starts the guest; the control task looks for the backup.
//!
//! It ends when the guest does, or when another host speaks for it.

mod announced;
mod control;
mod datagrams;
mod engine;
mod inbox;
mod relay;
mod report;
mod sender;
mod start;
mod sync;

use std::{
    fs::OpenOptions, net::SocketAddr, os::unix::fs::OpenOptionsExt, sync::Arc, thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use remus_abi::Term;
use tokio::{
    runtime::{Builder, Runtime},
    select,
    signal::unix::{SignalKind, signal},
    sync::{
        mpsc::{self, UnboundedReceiver},
        oneshot,
    },
};
use tracing::{info, warn};

pub(crate) use self::{
    announced::{Announced, decode_cpu, encode_cpu},
    engine::{Engine, Parts, Stopped},
    inbox::{Input, Post, inbox},
    report::Report,
};
use self::{
    control::{Order, keep_sessions},
    datagrams::Datagrams,
    relay::{Relayed, relay},
    start::Permission,
};
use crate::{
    checkpoint::{BootImage, HotSet, QUIET_EPOCHS_DEFAULT, STATE_VERSION},
    config::{Config, LEASE_MARGIN, ReleaseTrigger},
    gate::{Gate, Trigger},
    machine::{self, Console, CpuProfile, DiskShape, Shape, fault_cost},
    observe::{Shared, StatusSocket, VmDir, status::Role},
    os::{boot_now, fresh_instance, run_on},
    replication::{Fenced, Pipeline, Policy},
    standby::{Plan, Standby, Wiring, offloads_under},
    store::{Record, Standing, Store},
    terminal::{self, Terminal},
    wire::{Hello, Session, Timing},
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
    let vm = config.name.as_str();
    let Permission { fenced, open } =
        start::permission(vm, store.read(vm)?, config.protection.start)?;
    let term = fenced.term();

    let mut standby = Standby::prepare(plan_of(&config, term)?, &directory.path().join("bpf"))?;
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
    if open {
        // On disk before the guest is heard.
        store.write(vm, Record { term, standing: Standing::Unprotected, owner: None })?;
        standby.gate.open(&fenced);
        standby.wiring.announce();
    }
    info!(
        "VM {vm} runs in term {term}, its gate {}",
        if open { "open until a backup is there" } else { "shut" }
    );
    let (stopped, gate, wiring) =
        Shell::new(&config, &directory, &store, standby, boot, fenced, open)?.run()?;
    match stopped {
        Stopped::Ended(why) => {
            store.write(vm, Record { term, standing: Standing::Ended, owner: None })?;
            wiring.remove(gate)?;
            info!("VM {vm} has ended: {why:?}");
            Ok(())
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

/// Whether what this host knows of the VM allows it to start here, and in which term: what [`run`] asks first. `None` when
/// there is no record of it.
///
/// # Errors
/// When another host may speak for the guest, or the record cannot be read; with what to do.
pub(crate) fn may_start(config: &Config) -> Result<Option<Term>> {
    if !config.state_dir.is_dir() {
        return Ok(None);
    }
    let vm = config.name.as_str();
    let record = Store::at(&config.state_dir)?.read(vm)?;
    let is_known = record.is_some();
    let permission = start::permission(vm, record, config.protection.start)?;
    Ok(is_known.then_some(permission.fenced.term()))
}

/// The threads of a primary and what goes between them.
struct Shell {
    runtime: Runtime,
    parts: Parts,
    wiring: Wiring,
    io_cpus: Vec<u32>,
    socket: StatusSocket,
    shared: Arc<Shared>,
    backup: SocketAddr,
    hello: Hello,
    datagrams: Datagrams,
    post: Post,
    orders: UnboundedReceiver<Order>,
    relayed: Relayed,
}

impl Shell {
    fn new(
        config: &Config,
        directory: &VmDir,
        store: &Store,
        standby: Standby,
        boot: BootImage,
        fenced: Fenced,
        open: bool,
    ) -> Result<Self> {
        let vm = config.name.as_str();
        let (term, timing) = (fenced.term(), timing_of(config));
        let hello = hello_of(config, &standby, term)?;
        let policy = Policy {
            tempo: config.protection.tempo,
            depth: config.protection.depth,
            ..Policy::new(&timing)
        };
        let cool_after = cool_after_on(&standby.plan().cpu);
        let brain = if open {
            Pipeline::start_unprotected(fenced, policy, boot_now())
        } else {
            Pipeline::start_shut(fenced, policy, boot_now())
        };
        let shared = Shared::new(vm, Role::Primary, term);
        let (inbox, post) = inbox()?;
        let (orders_out, orders) = mpsc::unbounded_channel();
        let (relay, relayed) = relay(term);
        let Standby { machine, gate, wiring, .. } = standby;
        let datagrams = Datagrams::new(trigger_of(config, &gate), timing.lease);
        let parts = Parts {
            vm: vm.to_owned(),
            machine,
            boot,
            gate,
            brain,
            lease: timing.lease,
            depth: policy.depth,
            pause_max: config.protection.pause_max,
            cool_after,
            encoding: config.protection.encoding,
            store: store.clone(),
            report: Report::new(Arc::clone(&shared)),
            inbox,
            post: post.clone(),
            orders: Some(orders_out),
            relay: Some(relay),
        };
        Ok(Self {
            runtime: Builder::new_current_thread().enable_all().build().context("start tokio")?,
            parts,
            wiring,
            io_cpus: config.placement.io_cpus.clone(),
            socket: StatusSocket::bind(directory)?,
            shared,
            backup: config.protection.backup,
            hello,
            datagrams,
            post,
            orders,
            relayed,
        })
    }

    /// Starts the engine, and is the control thread until that has stopped.
    fn run(self) -> Result<(Stopped, Gate, Wiring)> {
        let Self {
            runtime,
            parts,
            wiring,
            io_cpus,
            socket,
            shared,
            backup,
            hello,
            datagrams,
            post,
            orders,
            relayed,
        } = self;
        let (ended_in, mut ended) = oneshot::channel();
        let engine_cpus = io_cpus.clone();
        let engine = move || {
            let result = Engine::start(parts).and_then(|engine| {
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
        run_on(&io_cpus).context("place the control thread")?;
        let result = runtime.block_on(async {
            tokio::spawn(socket.serve(shared));
            let sessions = keep_sessions(backup, hello, datagrams, relayed, post.clone(), orders);
            tokio::spawn(sessions);
            let mut terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
            let mut interrupt = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
            loop {
                select! {
                    result = &mut ended => return result.map_err(|_| anyhow!("the engine has panicked"))?,
                    _ = terminate.recv() => post.send(Input::Stop),
                    _ = interrupt.recv() => post.send(Input::Stop),
                }
            }
        });
        runtime.shutdown_timeout(Duration::from_millis(100));
        let (stopped, gate) = result?;
        engine.join().map_err(|_| anyhow!("the engine has panicked"))?;
        Ok((stopped, gate, wiring))
    }
}

fn plan_of(config: &Config, term: Term) -> Result<Plan> {
    let vcpus = u8::try_from(config.machine.vcpus).context("machine.vcpus is too many")?;
    Ok(Plan {
        vm: config.name.as_str().to_owned(),
        shape: Shape {
            memory_mib: config.machine.memory_mib,
            vcpus,
            mac: config.net.mac.0,
            mtu_bytes: config.net.mtu_bytes,
            offloads: offloads_under(config.gate.engine),
            disks: disks_of(config)?,
        },
        cpu: CpuProfile::of_host()?,
        placement: placement_of(config),
        tap: config.net.tap.clone(),
        bridge: config.net.bridge.clone(),
        gate: config.gate.clone(),
        term,
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
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        let file = file.with_context(|| format!("the console's log {}", path.display()))?;
        // For as long as the guest lives.
        console.attach(&path.display().to_string(), file).map(drop)?;
    }
    let name = config.name.as_str();
    terminal.map(|terminal| terminal.attach(console.clone(), name)).transpose()
}

fn hello_of(config: &Config, standby: &Standby, term: Term) -> Result<Hello> {
    let Plan { shape, cpu, tap, bridge, gate, .. } = standby.plan();
    let announced = Announced {
        state: STATE_VERSION,
        shape: shape.clone(),
        tap: tap.to_string(),
        bridge: bridge.as_ref().map(ToString::to_string),
        gate: gate.clone(),
    };
    Ok(Hello {
        vm: config.name.clone(),
        session: Session::new(1).expect("a template; each session gets its own"),
        primary: fresh_instance(),
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

fn placement_of(config: &Config) -> machine::Placement {
    let of = |n| config.placement.of_vcpu(n).map(|cpu| cpu as usize);
    let vcpu_cpus = (0..config.machine.vcpus as usize).map_while(of).collect();
    let device_cpus = config.placement.io_cpus.iter().map(|cpu| *cpu as usize).collect();
    machine::Placement { vcpu_cpus, device_cpus }
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
