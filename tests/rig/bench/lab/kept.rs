//! The rounds of a bench that goes on in another run: `target/bench/lab-rounds.json`.
//!
//! The lab may die, and what it has measured until then shall not. So `cargo xtask bench lab` gives each round a lab of its
//! own, and each run adds its rounds to those that it finds (`--onto`).

use std::{collections::BTreeMap, fs, io, path::Path};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    Plan,
    figures::{Faults, Figure, Figures, Part, Run},
};
use crate::bench::figures::Entry;

const FILE: &str = "lab-rounds.json";

/// What was measured until now.
#[derive(Default)]
pub(super) struct Kept {
    /// How many rounds there were of each part.
    pub(super) rounds: BTreeMap<Part, u32>,
    pub(super) figures: Figures,
    pub(super) faults: Faults,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    quick: bool,
    rounds: BTreeMap<Part, u32>,
    figures: Vec<Entry<Run, Figure>>,
    faults: Faults,
}

impl Kept {
    /// What `plan` goes on from: nothing, unless it asks for what is in `folder`.
    pub(super) fn begin(plan: &Plan, folder: &Path) -> Result<Self> {
        if !plan.onto {
            return Ok(Self::default());
        }
        let file = folder.join(FILE);
        let stored = match fs::read(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            stored => stored.with_context(|| format!("read {}", file.display()))?,
        };
        let Stored { quick, rounds, figures, faults } = serde_json::from_slice(&stored)
            .with_context(|| {
                format!("{} is of another release: leave --onto out", file.display())
            })?;
        ensure!(
            quick == plan.quick,
            "--onto adds quick rounds to quick ones only, and others to others: {} has {}",
            file.display(),
            if quick { "quick ones" } else { "others" }
        );
        Ok(Self { rounds, figures: Figures::of(figures), faults })
    }

    pub(super) fn write(&self, quick: bool, folder: &Path) -> Result<()> {
        let Self { rounds, figures, faults } = self;
        let (rounds, faults) = (rounds.clone(), faults.clone());
        let stored = Stored { quick, rounds, figures: figures.entries(), faults };
        let file = folder.join(FILE);
        let json = serde_json::to_string(&stored).context("write the rounds as JSON")?;
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        fs::write(&file, json + "\n").with_context(|| format!("write {}", file.display()))
    }

    /// The number of the next round of `parts`, from 1.
    pub(super) fn next_round(&self, parts: &[Part]) -> u32 {
        1 + parts.iter().filter_map(|part| self.rounds.get(part)).max().unwrap_or(&0)
    }

    /// Of these parts there was a round more.
    pub(super) fn count(&mut self, parts: &[Part]) {
        parts.iter().for_each(|part| *self.rounds.entry(*part).or_default() += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::lab::{figures::Arm, protect};

    fn plan(onto: bool, quick: bool) -> Plan {
        Plan { parts: vec![Part::Pause], rounds: 1, quick, onto }
    }

    #[test]
    fn rounds_are_added_to_those_of_another_run() {
        let folder = tempfile::tempdir().unwrap();
        let run = protect::idle(Arm::Remus);
        for (round, ms) in [(1, 3.0), (2, 1.0), (3, 2.0)] {
            let mut kept = Kept::begin(&plan(round > 1, false), folder.path()).unwrap();
            assert_eq!(kept.next_round(&[Part::Pause, Part::Gap]), round);
            kept.figures.add(run, [(Figure::PauseP50Ms, ms)]);
            kept.faults.failures.push(format!("round {round}"));
            kept.count(&[Part::Pause]);
            kept.write(false, folder.path()).unwrap();
        }
        let kept = Kept::begin(&plan(true, false), folder.path()).unwrap();
        assert_eq!(kept.figures.get(run, &Figure::PauseP50Ms), Some(2.0));
        assert_eq!(kept.faults.failures.len(), 3);
        let refused = Kept::begin(&plan(true, true), folder.path()).err().unwrap().to_string();
        assert!(refused.contains("quick"), "{refused}");
        assert_eq!(Kept::begin(&plan(false, true), folder.path()).unwrap().rounds.len(), 0);
    }
}
