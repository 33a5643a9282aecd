//! `remus-rig`: see the library for what the rig is. `cargo xtask run` builds and starts it.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use rig::{
    bench::{
        checkpoint::{self, Part, floor},
        gate::{self, Arm, Places},
        lab,
    },
    host::Death,
    nest,
    outlet::Outlet,
    remus::{GateOptions, Machine, Programs, Software, Timing},
    story::{self, Plan},
    sys,
    topology::Topology,
};

/// Exit codes: 0 nothing was lost (bench: every claim holds), 1 it was not so or the run failed, 2 usage.
#[derive(Parser)]
#[command(name = "remus-rig", about = "Two hosts, a switch and a client in network namespaces")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Let a protected guest under load survive the death of its host, and report what was measured
    Run(RunOptions),
    /// Measure what a part of Remus costs, against the same work without it
    Bench {
        #[command(subcommand)]
        of: Bench,
    },
    /// The guest with nothing around it, which the checkpoint bench asks for the floor of a pause
    #[command(hide = true)]
    Floor(floor::Options),
    /// Only set the namespaces up, and keep them until Ctrl-C
    Up,
}

#[derive(Subcommand)]
enum Bench {
    /// The gate: throughput, CPU time, latency, holding, release
    Gate(GateBenchOptions),
    /// Checkpoints: pause, the guest's own work, requests, bytes on the wire, memory
    Checkpoint(CheckpointBenchOptions),
    /// A protected Linux guest beside QEMU microvm, QEMU COLO and sch_plug (`cargo xtask bench lab`)
    Lab(LabBenchOptions),
}

#[derive(Args)]
struct LabBenchOptions {
    /// What is measured
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = lab::Part::ALL)]
    parts: Vec<lab::Part>,
    /// Rounds, of which the median counts
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Short rounds with few points, one if nothing else is said: shows that it works, not how fast, and judges only
    /// that
    #[arg(long)]
    quick: bool,
    /// Adds its rounds to those of the runs before, and tells all of them
    #[arg(long)]
    onto: bool,
}

#[derive(Args)]
struct CheckpointBenchOptions {
    /// What is measured
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::ALL)]
    parts: Vec<Part>,
    /// Rounds, of which the median counts
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Short rounds with few points, one if nothing else is said: shows that it works, not how fast, and judges only
    /// that
    #[arg(long)]
    quick: bool,
}

#[derive(Args)]
struct GateBenchOptions {
    /// What is compared; the bridge alone is always among it
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Arm::ALL)]
    arms: Vec<Arm>,
    /// Rounds that count, after one that does not
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Short rounds, one if nothing else is said: shows that it works, not how fast, and judges only that
    #[arg(long)]
    quick: bool,
}

#[derive(Args)]
struct RunOptions {
    /// How the primary host dies
    #[arg(long, value_enum, default_value = "host", conflicts_with = "no_failover")]
    death: Death,
    /// Let it live: measure only
    #[arg(long)]
    no_failover: bool,
    /// Rounds, each with a guest, a death and a takeover of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repeat: u32,
    /// What runs in the VM
    #[arg(long, value_enum, default_value_t)]
    guest: Software,
    /// Pages that the demo guest dirties in each epoch
    #[arg(long, value_name = "PAGES_PER_EPOCH", default_value_t = 1000,
        value_parser = clap::value_parser!(u32).range(1..=30_000))]
    dirty: u32,
    /// CPUs of the guest; each of them dirties its part of the pages
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    vcpus: u8,
    /// RAM of the guest, in MiB; each host has to have it
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(64..=65_536))]
    memory: u32,
    /// The longest epoch, in milliseconds
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(2..=1000))]
    epoch_ms: u32,
    #[command(flatten)]
    gate: GateOptions,
    /// Seconds of load: the host dies at a random moment within them
    #[arg(long, default_value_t = 1.5, value_parser = seconds)]
    seconds: f64,
    /// Choose the same moments as the run with this seed
    #[arg(long)]
    seed: Option<u64>,
    /// Leave everything running after the round, and print how to enter it
    #[arg(long, conflicts_with = "repeat")]
    keep: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.1..=3600.0).contains(&value) { Ok(value) } else { Err("0.1 to 3600".to_owned()) }
}

fn main() -> ExitCode {
    match inner() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("remus-rig: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn inner() -> Result<ExitCode> {
    let verb = Arguments::parse().verb;
    // Looked up while /proc is still the one that everybody knows.
    let rig = std::env::current_exe().context("find the rig's own file")?;
    let outlet = Outlet::open(&rig)?;
    // The floor's process is started by a bench, within its nest.
    if !matches!(verb, Verb::Floor(_))
        && let Some(code) = nest::enter()?
    {
        // Outside of the nest, whose mounts may hide the way out, and however it has ended.
        outlet.pour()?;
        return Ok(code);
    }
    sys::leave_the_guests_cpu().context("leave the guest its CPU")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let as_it_should_be = match verb {
        Verb::Run(options) => {
            let programs = Programs::beside_the_rig(&rig)?;
            runtime.block_on(story::run(&plan(&options), &programs))?
        }
        Verb::Bench { of: Bench::Gate(options) } => {
            gate::run(&gate_plan(options), &Places::beside_the_rig(&rig)?)?
        }
        Verb::Bench { of: Bench::Checkpoint(options) } => {
            let programs = Programs::beside_the_rig(&rig)?;
            runtime.block_on(checkpoint::run(&checkpoint_plan(options), &programs, &rig))?
        }
        Verb::Bench { of: Bench::Lab(options) } => {
            let (programs, places) =
                (Programs::beside_the_rig(&rig)?, Places::beside_the_rig(&rig)?);
            runtime.block_on(lab::run(&lab_plan(options), &programs, &places))?
        }
        Verb::Floor(options) => {
            floor::serve(&options)?;
            true
        }
        Verb::Up => runtime.block_on(stay_up())?,
    };
    Ok(if as_it_should_be { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn stay_up() -> Result<bool> {
    let topology = Topology::build().await?;
    println!("up: Ctrl-C ends it. As root:");
    story::print_entrances(&topology);
    std::future::pending().await
}

fn gate_plan(options: GateBenchOptions) -> gate::Plan {
    let GateBenchOptions { mut arms, rounds, quick } = options;
    arms.push(Arm::None);
    arms.sort();
    arms.dedup();
    gate::Plan { arms, rounds: rounds.unwrap_or(if quick { 1 } else { 5 }), quick }
}

fn checkpoint_plan(options: CheckpointBenchOptions) -> checkpoint::Plan {
    let CheckpointBenchOptions { mut parts, rounds, quick } = options;
    parts.sort();
    parts.dedup();
    checkpoint::Plan { parts, rounds: rounds.unwrap_or(if quick { 1 } else { 5 }), quick }
}

fn lab_plan(options: LabBenchOptions) -> lab::Plan {
    let LabBenchOptions { mut parts, rounds, quick, onto } = options;
    parts.sort();
    parts.dedup();
    lab::Plan { parts, rounds: rounds.unwrap_or(if quick { 1 } else { 3 }), quick, onto }
}

fn plan(options: &RunOptions) -> Plan {
    Plan {
        death: (!options.no_failover).then_some(options.death),
        rounds: options.repeat,
        dirty_pages: options.dirty,
        guest: options.guest,
        machine: Machine { vcpus: options.vcpus, memory_mib: options.memory },
        timing: Timing { epoch_ms: options.epoch_ms, ..Timing::of_this_machine() },
        gate: options.gate,
        load: Duration::from_secs_f64(options.seconds),
        seed: options.seed,
        keep: options.keep,
    }
}
