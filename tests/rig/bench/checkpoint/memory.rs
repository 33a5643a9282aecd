//! That a checkpoint costs what is dirty, not what the machine has.
//!
//! Machines of 4 GiB take long to begin and to protect. So each has one guest in the whole bench, and as many
//! stretches of its epochs as there are rounds.

use anyhow::Result;
use tokio::time::sleep;

use super::{
    Bench,
    bed::Life,
    figures::{Arm, Figure, Load, Part, Run},
    pause::{SPARSE, pause_figures, warm_up},
};
use crate::{
    bench::figures::median,
    remus::{Machine, Options},
};

const PAGES: u32 = 1000;
/// With each number of vCPUs the small machine first. Two vCPUs have the one CPU that a single one has.
pub(super) const MACHINES: [[Machine; 2]; 2] = [[small(1), large(1)], [small(2), large(2)]];
const QUICK: [[Machine; 2]; 1] = [[small(2), large(2)]];

const fn small(vcpus: u8) -> Machine {
    Machine { vcpus, memory_mib: 256 }
}

pub(super) const fn large(vcpus: u8) -> Machine {
    Machine { vcpus, memory_mib: 4096 }
}

pub(super) const fn run(machine: Machine) -> Run {
    Run { part: Part::Memory, load: Load::Machine(machine), arm: Arm::Latency }
}

impl Bench<'_> {
    pub(super) async fn memory(&mut self) -> Result<()> {
        if self.round > 1 {
            return Ok(());
        }
        let pairs: &[[Machine; 2]] = if self.plan.quick { &QUICK } else { &MACHINES };
        for &[small, large] in pairs {
            let small_us = self.pauses_of(small, &[]).await?;
            self.pauses_of(large, &small_us).await?;
        }
        Ok(())
    }

    /// Says the pauses of its stretches, in microseconds. Those of the small machine are what they are set beside.
    async fn pauses_of(&mut self, machine: Machine, small_us: &[f64]) -> Result<Vec<f64>> {
        let options = Options { machine, ..Arm::Latency.options() };
        let mut life = Life::begin(self.bed, &options).await?;
        let protect = life.protect(self.bed).await?;
        self.figures.add(run(machine), [(Figure::ProtectMs, protect.as_secs_f64() * 1e3)]);
        life.guest.start_work(PAGES, SPARSE, 0).await?;
        sleep(warm_up(PAGES)).await;
        let mut pauses_us = Vec::new();
        for stretch in 0..self.plan.rounds as usize {
            let epochs = life.stretch(self.bed, self.stretch() * 2 / 3).await?;
            let pause_us = epochs.status.pause_us.p50 as f64;
            let mut measured = pause_figures(&epochs);
            let over = small_us.get(stretch).map(|small_us| pause_us / small_us);
            measured.extend(over.map(|over| (Figure::OverSmall, over)));
            self.figures.add(run(machine), measured);
            pauses_us.push(pause_us);
        }
        self.say(&format!(
            "{}: paused {:.0} us, protected after {protect:.1?}",
            Load::Machine(machine).name(),
            median(&pauses_us)
        ));
        life.end(self.bed).await?;
        Ok(pauses_us)
    }
}
