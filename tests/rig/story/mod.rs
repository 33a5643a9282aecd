//! What `remus-rig run` does: a guest is protected, measured and loaded, its host dies, and the load goes on.
//!
//! A round is one guest's life, from its start to the last read-back after the takeover; `--repeat` runs
//! several on the same cables. [`round`] tells it, in the order in which things happen; [`measure`] has the
//! phases before the load, [`death`] the load, the death and what comes after.

mod death;
mod measure;
mod round;

use std::{
    fs,
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    host::Death,
    links::Links,
    nest,
    netns::NetNs,
    progress::Display,
    remus::{GateOptions, Machine, Programs, Software, Timing},
    report::{Asked, Report},
    sys::boottime_ns,
    topology::{BACKUP_PORT, PRIMARY_PORT, Topology},
};
pub(crate) use measure::WORK;
use round::RoundRun;

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `None`: the host lives on.
    pub death: Option<Death>,
    pub rounds: u32,
    pub dirty_pages: u32,
    pub guest: Software,
    pub machine: Machine,
    pub timing: Timing,
    pub gate: GateOptions,
    /// How long the load runs before the host dies at the latest, or at all if it does not die.
    pub load: Duration,
    pub seed: Option<u64>,
    pub keep: bool,
}

/// Runs the plan. Says whether nothing was lost.
pub async fn run(plan: &Plan, programs: &Programs) -> Result<bool> {
    programs.check(plan.guest)?;
    let seed = plan.seed.unwrap_or_else(|| RandomState::new().hash_one(boottime_ns()));
    let id = format!("{}-{}", boottime_ns() / 1_000_000, nest::outside_pid().unwrap_or(0));
    let folder = programs.runs.join(&id);
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;

    let mut display = Display::new();
    let mut topology = Topology::build().await?;
    let built = format!("a client, a switch, two hosts; files in {}", folder.display());
    display.step(&format!("{built}, seed {seed}"));

    let mut rounds = Vec::new();
    let mut random = Random(seed);
    for number in 1..=plan.rounds {
        if plan.rounds > 1 {
            display.step(&format!("round {number} of {}", plan.rounds));
        }
        if number > 1 {
            topology.hosts_reborn().await?;
        }
        let folder = folder.join(format!("round-{number}"));
        let stage = Stage::set(&topology, &folder).await?;
        let mut round =
            RoundRun { plan, programs, stage: &stage, display: &mut display, random: &mut random };
        let told = round.tell(number).await;
        rounds
            .push(told.with_context(|| format!("round {number} (logs in {})", folder.display()))?);
    }

    let asked = Asked {
        id,
        death: plan.death,
        timing: plan.timing,
        gate: plan.gate,
        dirty_pages: plan.dirty_pages,
        guest: plan.guest,
        machine: plan.machine,
        seed,
    };
    let report = Report::new(&asked, rounds);
    report.write(&folder)?;
    println!("\n{}\n  {}", report.table(), folder.join("report.json").display());
    Ok(report.nothing_lost())
}

/// Where a round plays: the hosts, and the files that it writes.
struct Stage<'a> {
    topology: &'a Topology,
    folder: PathBuf,
    /// The switch's ports, for the sniffer.
    primary_port: u32,
    backup_port: u32,
}

impl<'a> Stage<'a> {
    async fn set(topology: &'a Topology, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let ports = Links::open(&topology.switch)?;
        Ok(Self {
            topology,
            folder: folder.to_owned(),
            primary_port: ports.index(PRIMARY_PORT).await?,
            backup_port: ports.index(BACKUP_PORT).await?,
        })
    }

    fn log(&self, of: &str) -> PathBuf {
        self.folder.join(format!("{of}.log"))
    }

    fn client(&self) -> Result<NetNs> {
        self.topology.client.netns().another()
    }
}

/// How to enter each host.
pub fn print_entrances(topology: &Topology) {
    if let Some(pid) = nest::outside_pid() {
        for host in [&topology.client, &topology.primary, &topology.backup] {
            println!("  {:<8} {}", host.name(), host.nsenter(pid));
        }
    }
}

/// A small generator of moments (splitmix64): a run's seed is in its report, so that it can be told again.
struct Random(u64);

impl Random {
    /// In `0.0..1.0`.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
