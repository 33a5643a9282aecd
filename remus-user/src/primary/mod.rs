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
mod engine;
mod inbox;
mod report;
mod sender;
mod start;
mod sync;

use std::{thread, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use tokio::{
    select,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
};
use tracing::info;

pub(crate) use self::{
    announced::{Announced, decode_cpu, encode_cpu},
    engine::{Engine, Parts, Stopped},
    inbox::inbox,
    report::Report,
};
use self::{control::keep_sessions, inbox::Input, start::Permission};
use crate::{
    config::{Config, LEASE_MARGIN, LinkName},
    gate::{self, Gate},
    machine::{self, CpuProfile, Prepared, Shape},
    net::{Links, Mac, Tap, TapSpec},
    observe::{Shared, StatusSocket, VmDir, status::Role},
    os::{boot_now, fresh_instance, run_on},
    replication::{Pipeline, Policy},
    store::{Record, Standing, Store},
    wire::{Hello, Session, Timing, VmName},
};

/// MTU of the tap: what a gate's slot takes.
pub(crate) const MTU_BYTES: u32 = 1500;

/// What `remus run` was asked for, checked.
#[derive(Clone, Debug)]
pub struct PrimaryOptions {
    pub config: Config,
}

/// Runs the guest until it ends.
///
/// # Errors
/// When it cannot be started, cannot go on, or another host speaks for it; with what to do.
pub fn run(options: PrimaryOptions) -> Result<()> {
    let config = options.config;
    let vm = config.name.as_str().to_owned();
    let directory = VmDir::claim(&config.run_dir, &config.name)?;
    let store = Store::at(&Store::beside(&config.run_dir))?;
    let Permission { fenced, open } =
        start::permission(&vm, store.read(&vm)?, config.protection.start)?;
    let term = fenced.term();

    let links = Links::open()?;
    let tap = make_tap(&links, &config.net.tap, config.net.mac, &vm)?;
    let guarded = gate::Tap { name: config.net.tap.to_string(), ifindex: tap.index.0 };
    let pins = directory.path().join("bpf");
    let mut gate = Gate::install(guarded, &pins, config.gate.slots, term)?;

    let shape = shape_of(&config)?;
    let cpu = CpuProfile::of_host()?;
    let mut machine = Prepared::new(&shape, &cpu, &placement_of(&config), tap.fd)?;
    machine.load_elf(&config.machine.kernel, &config.machine.cmdline)?;
    let ram_pages = machine.memory().layout().pages();
    if let Some(bridge) = &config.net.bridge {
        links.join(tap.index, links.bridge(bridge.as_str())?.index)?;
    }
    links.up(tap.index)?;

    let timing = timing_of(&config);
    let policy = Policy { depth: config.protection.depth, ..Policy::new(&timing) };
    let brain = if open {
        // On disk before the guest is heard.
        store.write(&vm, Record { term, standing: Standing::Unprotected })?;
        gate.open(&fenced);
        Pipeline::start_unprotected(fenced, policy, boot_now())
    } else {
        Pipeline::start_shut(fenced, policy, boot_now())
    };
    let announced = Announced {
        shape,
        tap: config.net.tap.to_string(),
        bridge: config.net.bridge.as_ref().map(ToString::to_string),
        slots: config.gate.slots,
    };
    let hello = Hello {
        vm: VmName::new(&vm).map_err(|_| anyhow!("{vm} is no name for a VM on the wire"))?,
        session: Session::new(1).expect("a template; each session gets its own"),
        primary: fresh_instance(),
        term,
        ram_pages,
        timing,
        shape: announced.encode()?,
        cpu: encode_cpu(&cpu)?,
    };
    let shared = Shared::new(&vm, Role::Primary, term);
    let socket = StatusSocket::bind(&directory)?;
    let (inbox, post) = inbox()?;
    let (orders, orders_in) = mpsc::unbounded_channel();
    let parts = Parts {
        vm: vm.clone(),
        machine,
        gate,
        brain,
        lease: timing.lease,
        depth: config.protection.depth,
        store: store.clone(),
        report: Report::new(shared.clone()),
        inbox,
        post: post.clone(),
        orders: Some(orders),
    };
    let backup = config.protection.backup;
    let io_cpus = config.placement.io_cpus.clone();

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start tokio")?;
    let (ended_in, ended) = oneshot::channel();
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
        .context("start the engine thread")?;
    run_on(&io_cpus).context("place the control thread")?;
    info!(
        "VM {vm} runs in term {term}, its gate {}",
        if open { "open until a backup is there" } else { "shut" }
    );
    let result = runtime.block_on(async {
        tokio::spawn(socket.serve(shared));
        tokio::spawn(keep_sessions(backup, hello, post.clone(), orders_in));
        let mut terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
        let mut ended = ended;
        loop {
            select! {
                result = &mut ended => return result.map_err(|_| anyhow!("the engine thread has panicked"))?,
                _ = terminate.recv() => post.send(Input::Stop),
                _ = interrupt.recv() => post.send(Input::Stop),
            }
        }
    });
    runtime.shutdown_timeout(Duration::from_millis(100));
    let (stopped, gate) = result?;
    engine.join().map_err(|_| anyhow!("the engine thread has panicked"))?;
    match stopped {
        Stopped::Ended(why) => {
            store.write(&vm, Record { term, standing: Standing::Ended })?;
            gate.remove()?;
            links.delete(tap.index)?;
            info!("VM {vm} has ended: {why:?}");
            Ok(())
        }
        Stopped::StoodDown(newer) => {
            links.down(tap.index)?;
            links.leave(tap.index)?;
            bail!(
                "another host speaks for VM {vm} now, in term {newer} (this one was in {term}): nothing of it runs \
                 or speaks here any more. Use this host as that one's backup"
            )
        }
    }
}

/// The tap, adopted if it is the one that an earlier instance of this VM left with its gate.
pub(crate) fn make_tap(links: &Links, name: &LinkName, mac: Mac, vm: &str) -> Result<Tap> {
    let spec = TapSpec { name: name.as_str(), guest_mac: mac, mtu_bytes: MTU_BYTES, vm };
    links.ensure_tap(&spec, |found| Gate::guards(&found.name))
}

fn shape_of(config: &Config) -> Result<Shape> {
    let vcpus = u8::try_from(config.machine.vcpus).context("machine.vcpus is too many")?;
    Ok(Shape { memory_mib: config.machine.memory_mib, vcpus, mac: config.net.mac.0 })
}

fn placement_of(config: &Config) -> machine::Placement {
    let of = |n| config.placement.of_vcpu(n).map(|cpu| cpu as usize);
    machine::Placement { vcpu_cpus: (0..config.machine.vcpus as usize).map_while(of).collect() }
}

fn timing_of(config: &Config) -> Timing {
    let p = &config.protection;
    Timing {
        epoch_max: p.epoch,
        heartbeat: p.heartbeat,
        detect: p.detect,
        lease: p.lease,
        margin: LEASE_MARGIN,
    }
}
