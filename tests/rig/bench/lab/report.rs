//! What came of the bench: `lab.json` and `lab.svg` in `target/bench`, and a table on standard output.

use std::{collections::BTreeMap, iter, path::Path};

use anyhow::Result;
use serde::Serialize;

use super::{
    claims::claims,
    drawing::drawing,
    figures::{Faults, Figure, Figures, Load, Part, Run},
    kept::Kept,
    protect::PAGES,
};
use crate::{
    bench::{
        figures::{Figure as _, Row},
        report::{self, Host},
        svg::short,
    },
    report::Claim,
    sys,
};

/// A figure that is not of this run.
#[derive(Debug, Serialize)]
pub(super) struct Elsewhere {
    what: &'static str,
    pub(super) load: Load,
    pub(super) pause_ms: f64,
    source: &'static str,
}

const SOURCE: &str = "measured once, by hand, in a lab of this kind (Debian's Linux 6.1 under QEMU 7.2's translator, \
                      emulated SVM), snapshots in memory; Debian does not package it, so it is not run here";
pub(super) const FIRECRACKER: [Elsewhere; 2] = [
    Elsewhere {
        what: "Firecracker 1.16, diff snapshot",
        load: Load::Idle,
        pause_ms: 24.0,
        source: SOURCE,
    },
    Elsewhere {
        what: "Firecracker 1.16, diff snapshot",
        load: Load::Pages(PAGES),
        pause_ms: 48.0,
        source: SOURCE,
    },
];

#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    bench: &'static str,
    version: &'static str,
    machine: Machine,
    /// The parts, and how many rounds there were of each.
    rounds: &'a BTreeMap<Part, u32>,
    /// Rounds were too short, and points too few, to trust a figure.
    quick: bool,
    claims: Vec<Claim>,
    #[serde(flatten)]
    faults: &'a Faults,
    rows: Vec<Row<'a, Run>>,
    elsewhere: [Elsewhere; 2],
    #[serde(skip)]
    figures: &'a Figures,
}

#[derive(Debug, Serialize)]
struct Machine {
    #[serde(flatten)]
    host: Host,
    /// Whether it is the lab, which is emulated.
    lab: bool,
    qemu: String,
    placement: &'static str,
    load: &'static str,
}

impl<'a> Report<'a> {
    pub(super) fn new(kept: &'a Kept, quick: bool, qemu: String) -> Self {
        let Kept { rounds, figures, faults } = kept;
        let parts: Vec<_> = rounds.keys().copied().collect();
        let mut claims = claims(&parts, figures);
        report::keep_looked_at(&mut claims, quick);
        Self {
            bench: "lab",
            version: env!("CARGO_PKG_VERSION"),
            machine: Machine {
                host: Host::this(),
                lab: sys::is_the_lab(),
                qemu,
                placement: "boot: nobody is bound to a CPU; pause, rate and gap: Remus's vCPU on one CPU and its other threads \
                            on the others, as the rig's config has it, QEMU's threads wherever the kernel lets them; clients \
                            on those too; hold: the writer on a CPU of its own, who releases on another",
                load: "rate: dirty.rs in the guest writes one word to each of so many pages every 25 ms, the same \
                       pages; gap: four connections that check each reply, the guest otherwise idle; hold: 10,000 \
                       frames from a tap, released at once",
            },
            rounds,
            quick,
            claims,
            faults,
            rows: figures.rows(),
            elsewhere: FIRECRACKER,
            figures,
        }
    }

    /// Whether every claim holds; after quick rounds, every one that is not about speed.
    pub(super) fn all_hold(&self) -> bool {
        report::all_hold(&self.claims, self.quick)
    }

    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let rounds = self.rounds.values().copied().max().unwrap_or(0);
        let subtitle = self.machine.host.subtitle(rounds, self.quick);
        report::write(folder, self.bench, self, &drawing(self.figures, subtitle))
    }

    /// For people: a line for each run, then the claims.
    pub(super) fn table(&self) -> String {
        let title = |run: Run| {
            let beside = self.elsewhere.iter().filter(|it| it.load == run.load);
            let beside = beside.filter(|_| run.part.has_pauses());
            let beside = beside.map(|Elsewhere { what, load, pause_ms, .. }| {
                format!("\n  {:<15}{what}: {pause_ms} ms, not of this run", load.name())
            });
            iter::once(run.part.title().to_owned()).chain(beside).collect()
        };
        let row = |run: Run| {
            let told = self.figures.of_run(run).map(|(figure, value)| figure.told(value));
            let told: Vec<_> = told.collect();
            format!("{:<15}{:<15}{}", run.load.name(), run.arm.name(), told.join(", "))
        };
        let runs = report::table(self.figures.runs(), |run| run.part, title, row, &self.claims);
        let failures: String =
            self.faults.failures.iter().map(|failure| format!("  ! {failure}\n")).collect();
        format!("{}; {}\n{runs}{failures}", self.machine.qemu, self.machine.placement)
    }
}

impl Part {
    fn has_pauses(self) -> bool {
        matches!(self, Self::Pause | Self::Rate)
    }

    fn title(self) -> &'static str {
        match self {
            Self::Boot => "boot: from the VMM's start to user space",
            Self::Pause => "pause of a checkpoint, guest idle",
            Self::Rate => "checkpoints of a guest that writes to a thousand pages every 25 ms",
            Self::Gap => "the primary's host dies",
            Self::Hold => "release of 10,000 held frames",
        }
    }
}

impl Figure {
    pub(super) fn told(self, value: f64) -> String {
        let label = match self {
            Self::UserspaceS => "user space after",
            Self::KernelS => "by the guest's clock",
            Self::PauseP50Ms => "p50",
            Self::PauseMaxMs => "max",
            Self::CheckpointsPerS => return format!("{value:.1} checkpoints a second"),
            Self::DirtyPages => return format!("{value:.0} pages each"),
            Self::GapMs => "longest gap",
            Self::FirstReplyMs => "first reply after",
            Self::DetectMs => "detected after",
            Self::ReleaseMs => "released in",
            Self::Hung => return format!("{value:.0} starts hung"),
            Self::RepliesLost => return format!("{value:.0} replies lost"),
            Self::RepliesWrong => return format!("{value:.0} wrong"),
            Self::ConnectionsLost => return format!("{value:.0} connections lost"),
            Self::Early => return format!("{value:.0} early"),
            Self::FramesLost => return format!("{value:.0} lost"),
            Self::OutOfOrder => return format!("{value:.0} out of order"),
            Self::Resent => return format!("{value:.0} sent again"),
        };
        format!("{label} {} {}", short(value), self.unit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::lab::{figures::Arm, protect};

    fn measured(parts: &[Part]) -> Kept {
        let mut kept = Kept::default();
        for (arm, ms) in [(Arm::Remus, 7.0), (Arm::Colo, 105.0)] {
            kept.figures.add(protect::idle(arm), [(Figure::PauseP50Ms, ms)]);
        }
        kept.count(parts);
        kept
    }

    #[test]
    fn a_quick_report_claims_only_what_it_measured_and_a_whole_one_misses_it() {
        let kept = measured(&[Part::Pause, Part::Rate]);
        let report = |quick| Report::new(&kept, quick, String::new());
        assert_eq!(report(true).claims.len(), 1);
        assert!(report(true).all_hold());
        assert_eq!(report(false).claims.len(), 3);
        assert!(!report(false).all_hold());
    }

    #[test]
    fn the_report_has_the_keys_that_its_readers_rely_on_and_says_what_is_not_its_own() {
        let mut kept = measured(&[Part::Pause]);
        kept.faults.failures.push("round 1, QEMU COLO: hung".to_owned());
        let report = Report::new(&kept, false, "QEMU 7.2".to_owned());
        let value = serde_json::to_value(&report).unwrap();
        for key in ["id", "measured", "bound", "unit", "holds"] {
            assert!(value["claims"][0].get(key).is_some(), "{key}");
        }
        assert_eq!(value["rounds"]["pause"], 1);
        assert_eq!(value["rows"][0]["part"], "pause");
        assert_eq!(value["rows"][0]["arm"], "remus");
        assert_eq!(value["failures"][0], "round 1, QEMU COLO: hung");
        assert!(value["elsewhere"][1]["source"].as_str().unwrap().contains("not run here"));
        let table = report.table();
        assert!(table.contains("24 ms, not of this run") && table.contains("! round 1"), "{table}");
    }
}
