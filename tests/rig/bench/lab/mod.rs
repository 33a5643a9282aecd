//! `remus-rig bench lab`: what protection of a stock Linux guest costs, beside others' ways to the same end, all of them
//! in one run on one machine.
//!
//! The hosts are the rig's, the guest is Debian's cloud kernel with redis-server (`cargo xtask guest linux`). Peers are
//! what Debian ships: QEMU microvm for the boot, QEMU COLO for protection, sch_plug for held output. Each part takes
//! turns with its peer, several rounds of it; what is told is the median of the rounds. Where KVM has no hardware behind
//! it, `cargo xtask bench lab` runs all of it in the lab, which is emulated: compare there, and take no figure by itself.
//!
//! A guest that does not boot, or is not protected in time, ends neither the round nor the bench: it is told, and the
//! round has no figure of it, nor of its peer.
//!
//! [`boot`], [`protect`], [`gap`] and [`hold`] are the parts ([`remus`] and [`colo`] are one life of a protected guest
//! each), [`figures`] names what they measure, [`claims`] judges it, [`report`] and [`drawing`] tell it.
//!
//! Deliberately absent: hypervisors that Debian does not package, and a network with delay or loss.

mod boot;
mod claims;
mod colo;
mod drawing;
mod figures;
mod gap;
mod hold;
mod kept;
mod protect;
mod remus;
mod report;

use std::{mem, time::Duration};

use anyhow::{Context, Result};
use tokio::time::Instant;

pub use figures::Part;

use self::{
    figures::{Faults, Figures},
    kept::Kept,
    report::Report,
};
use super::{
    come_first, gate,
    stage::{Stage, reports},
};
use crate::{
    qemu,
    remus::{Programs, Software},
    sys,
};

/// How long a guest may take to begin, and to be protected, where that takes long; and elsewhere.
const LAB_PATIENCE: Duration = Duration::from_secs(180);
const PATIENCE: Duration = Duration::from_secs(30);

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In order, each once.
    pub parts: Vec<Part>,
    pub rounds: u32,
    /// Shorter rounds with few points: for a machine that only has to show that all of it works.
    pub quick: bool,
    /// Its rounds come beside those of the runs before.
    pub onto: bool,
}

/// A bench under way.
struct Bench<'a> {
    plan: &'a Plan,
    stage: Stage,
    places: &'a gate::Places,
    figures: Figures,
    faults: Faults,
    round: u32,
    began: Instant,
}

/// Runs the plan. Says whether every claim holds, or, of a quick one, every claim that nothing went wrong.
pub async fn run(plan: &Plan, programs: &Programs, places: &gate::Places) -> Result<bool> {
    // In the lab nothing else runs but the kernel's own threads, and most softirqs run in those: before them the bench
    // must not come, or frames and heartbeats wait for it.
    if !sys::is_the_lab() {
        come_first()?;
    }
    let folder = reports(programs)?;
    let mut kept = Kept::begin(plan, &folder)?;
    let mut bench = Bench {
        plan,
        stage: Stage::set(programs, Software::Linux).await?,
        places,
        figures: mem::take(&mut kept.figures),
        faults: mem::take(&mut kept.faults),
        round: 0,
        began: Instant::now(),
    };
    for _ in 0..plan.rounds {
        bench.round = kept.next_round(&plan.parts);
        bench.say(&format!("round {}", bench.round));
        bench.round().await.with_context(|| format!("round {}", bench.round))?;
        kept.count(&plan.parts);
    }
    if bench.asks(Part::Hold) {
        bench.hold();
    }
    (kept.figures, kept.faults) = (bench.figures, bench.faults);
    kept.write(plan.quick, &folder)?;
    let report = Report::new(&kept, plan.quick, qemu::version()?);
    report.write(&folder)?;
    println!("\n{}\n  {}", report.table(), folder.join("lab.json").display());
    Ok(report.all_hold())
}

impl Bench<'_> {
    async fn round(&mut self) -> Result<()> {
        if self.asks(Part::Boot) {
            self.boot().await?;
        }
        // The first and the last of these share their guests.
        if [Part::Pause, Part::Rate, Part::Gap].into_iter().any(|part| self.asks(part)) {
            self.protect().await?;
        }
        Ok(())
    }

    fn asks(&self, part: Part) -> bool {
        self.plan.parts.contains(&part)
    }

    fn say(&self, what: &str) {
        println!("[{:6.1}s] {what}", self.began.elapsed().as_secs_f64());
    }

    /// Something did not come about, and the bench goes on without it.
    fn fails(&mut self, what: &str, error: &anyhow::Error) {
        let failure = format!("round {}, {what}: {error:#}", self.round);
        self.say(&failure);
        self.faults.failures.push(failure);
    }
}

fn patience() -> Duration {
    if sys::is_the_lab() { LAB_PATIENCE } else { PATIENCE }
}
