//! `remus-rig bench checkpoint`: what protection costs a guest and its clients.
//!
//! The rig's two hosts run the real `remus` with its default configuration, and the demo guest. Each part of the
//! bench begins with guests of its own ([`bed`]), and asks a guest the same before it is protected and after, or
//! asks the [`floor`] of the same round; so ratios and differences are taken within a round ([`memory`] says why it
//! does otherwise). What is told is the median of the rounds. Arms take turns in being first.
//!
//! What ran where: the vCPU on one CPU, alone; everything else of both hosts, the clients and the bench itself on the
//! others, the same in all arms. Clients and hosts have the same priority there.
//!
//! [`pause`], [`rate`], [`requests`], [`wire`] and [`memory`] are the parts, [`figures`] names what they measure,
//! [`claims`] judges it, [`report`] and [`drawing`] tell it.
//!
//! Deliberately absent: failover (`remus-rig run` has it), a network with delay or loss, and other hypervisors.

mod bed;
mod claims;
mod closed_loop;
mod drawing;
mod figures;
pub mod floor;
mod memory;
mod pause;
mod rate;
mod redis_benchmark;
mod report;
mod requests;
mod wire;

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use tokio::time::Instant;

pub use figures::Part;

use self::{bed::Bed, figures::Figures, report::Report};
use super::{come_first, stage::reports};
use crate::remus::Programs;

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In order, each once.
    pub parts: Vec<Part>,
    pub rounds: u32,
    /// Shorter rounds with few points: for a machine that only has to show that all of it works.
    pub quick: bool,
}

/// A bench under way.
struct Bench<'a> {
    plan: &'a Plan,
    bed: &'a mut Bed,
    figures: &'a mut Figures,
    round: u32,
    began: Instant,
}

/// Runs the plan. `rig` is the rig's own file, which runs once more as the floor. Says whether every claim holds, or,
/// of a quick one, every claim that nothing went wrong.
pub async fn run(plan: &Plan, programs: &Programs, rig: &Path) -> Result<bool> {
    come_first()?;
    let mut bed = Bed::make(programs, rig).await?;
    let mut figures = Figures::default();
    let began = Instant::now();
    for round in 1..=plan.rounds {
        println!("round {round} of {}", plan.rounds);
        let mut bench = Bench { plan, bed: &mut bed, figures: &mut figures, round, began };
        bench.round().await.with_context(|| format!("round {round}"))?;
    }
    let report = Report::new(&figures, &bed.faults, plan);
    let folder = reports(programs)?;
    report.write(&folder)?;
    println!("\n{}\n  {}", report.table(), folder.join("checkpoint.json").display());
    Ok(report.all_hold())
}

impl Bench<'_> {
    async fn round(&mut self) -> Result<()> {
        for &part in &self.plan.parts {
            let done = match part {
                Part::Pause => self.pause().await,
                Part::Rate => self.rate().await,
                // These two share their guests.
                Part::Latency => self.requests(true, self.asked(Part::Throughput)).await,
                Part::Throughput if self.asked(Part::Latency) => Ok(()),
                Part::Throughput => self.requests(false, true).await,
                Part::Wire => self.wire().await,
                Part::Memory => self.memory().await,
            };
            done.with_context(|| format!("part {part:?}"))?;
        }
        Ok(())
    }

    fn asked(&self, part: Part) -> bool {
        self.plan.parts.contains(&part)
    }

    /// How long a stretch of epochs is looked at.
    fn stretch(&self) -> Duration {
        Duration::from_millis(if self.plan.quick { 500 } else { 1500 })
    }

    fn say(&self, what: &str) {
        println!("[{:6.1}s] {what}", self.began.elapsed().as_secs_f64());
    }
}
