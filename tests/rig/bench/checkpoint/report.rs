//! What came of the bench: `checkpoint.json` and `checkpoint.svg` in `target/bench`, and a table on standard output.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::{
    Plan,
    claims::claims,
    drawing::drawing,
    figures::{Faults, Figure, Figures, Part, Run},
};
use crate::{
    bench::{
        figures::{Figure as _, Row},
        report::{self, Host},
        svg::short,
    },
    report::Claim,
};

#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    bench: &'static str,
    version: &'static str,
    machine: Machine,
    parts: &'a [Part],
    rounds: u32,
    /// Rounds were too short, and points too few, to trust a figure.
    quick: bool,
    claims: Vec<Claim>,
    faults: Faults,
    rows: Vec<Row<'a, Run>>,
    #[serde(skip)]
    figures: &'a Figures,
}

#[derive(Debug, Serialize)]
struct Machine {
    #[serde(flatten)]
    host: Host,
    placement: &'static str,
    configuration: &'static str,
    floor: &'static str,
}

impl<'a> Report<'a> {
    pub(super) fn new(figures: &'a Figures, faults: &Faults, plan: &'a Plan) -> Self {
        let mut claims = claims(&plan.parts, figures, faults);
        report::keep_looked_at(&mut claims, plan.quick);
        Self {
            bench: "checkpoint",
            version: env!("CARGO_PKG_VERSION"),
            machine: Machine {
                host: Host::this(),
                placement: "vCPUs on one CPU; everything else of both hosts, the clients, redis-benchmark and the \
                            bench itself on the others, all with one priority; the same in all arms",
                configuration: "the default, all features on; arm fixed N Hz: mode and epoch_ms; part memory: \
                                memory_mib and vcpus",
                floor: "the same guest with nothing around it, in a process of its own on the primary's host: kick, \
                        state, and a non-temporal copy of the pages that it writes",
            },
            parts: &plan.parts,
            rounds: plan.rounds,
            quick: plan.quick,
            claims,
            faults: *faults,
            rows: figures.rows(),
            figures,
        }
    }

    /// Whether every claim holds; after quick rounds, every one that is not about speed.
    pub(super) fn all_hold(&self) -> bool {
        report::all_hold(&self.claims, self.quick)
    }

    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let subtitle = self.machine.host.subtitle(self.rounds, self.quick);
        report::write(folder, self.bench, self, &drawing(self.figures, subtitle))
    }

    /// For people: a line for each run, then the claims.
    pub(super) fn table(&self) -> String {
        let row = |run: Run| {
            let told: Vec<_> = self
                .figures
                .of_run(run)
                .filter(|(figure, _)| figure.is_for_people())
                .map(|(figure, value)| figure.told(value))
                .collect();
            let (load, arm) = (run.load.name(), run.arm.name());
            format!("{load:<19}{arm:<13}{}", told.join(", "))
        };
        let title = |run: Run| run.part.title().to_owned();
        let runs = report::table(self.figures.runs(), |run| run.part, title, row, &self.claims);
        format!("{}\n{runs}", self.machine.placement)
    }
}

impl Part {
    fn title(self) -> &'static str {
        match self {
            Self::Pause => "pause against dirty pages",
            Self::Rate => "the guest's own work against checkpoints a second",
            Self::Latency => "latency of requests, closed loop",
            Self::Throughput => "redis-benchmark -c 50 -P 16",
            Self::Wire => "bytes on the wire, 1000 pages an epoch",
            Self::Memory => "pause against the size of the machine, 1000 pages",
        }
    }
}

impl Figure {
    /// The others are in the report only.
    fn is_for_people(&self) -> bool {
        !matches!(self, Self::PauseP90Us | Self::PauseMaxUs)
    }

    fn told(&self, value: f64) -> String {
        let label = match self {
            Self::PauseP50Us => "pause p50".into(),
            Self::PauseP99Us => "p99".into(),
            Self::OverFloor => return format!("{value:.2} of the floor"),
            Self::Part(_, name) => return format!("{name} {}", short(value)),
            Self::WorkRatio | Self::RequestsRatio => {
                return format!("{:.1} % of unprotected", value * 100.0);
            }
            Self::SentRatio => return format!("sent {:.2} % of raw", value * 100.0),
            Self::WireRatio => return format!("on the wire {:.2} %", value * 100.0),
            Self::OverSmall => return format!("{value:.2} of the small machine's"),
            Self::DirtyPages => return format!("{value:.0} pages"),
            Self::RequestsPerS | Self::CheckpointsPerS => return format!("{value:.1} a second"),
            Self::WireMbitPerS => "which is".into(),
            Self::LatencyP50Us => "p50".into(),
            Self::LatencyP99Us => "p99".into(),
            Self::AddedP50Us => "added p50".into(),
            Self::AddedP99Us => "added p99".into(),
            Self::CommitP50Us => "commit p50".into(),
            Self::CommitP99Us => "commit p99".into(),
            Self::LagMs => "lag".into(),
            Self::ProtectMs => "protected after".into(),
            Self::WorkPerS => return format!("{value:.0} touches a second"),
            Self::PartsSum | Self::PauseP90Us | Self::PauseMaxUs => self.name(),
        };
        format!("{label} {} {}", short(value), self.unit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::checkpoint::{
        figures::{Arm, Load},
        pause,
    };

    #[test]
    fn a_quick_report_claims_only_what_it_measured_and_a_whole_one_misses_it() {
        let mut figures = Figures::default();
        let run = pause::run(Load::Pages(1024), Arm::Latency);
        figures.add(run, [(Figure::OverFloor, 1.1)]);
        let mut plan = Plan { parts: vec![Part::Pause], rounds: 1, quick: true };
        let ids = |plan: &Plan| -> Vec<_> {
            let report = Report::new(&figures, &Faults::default(), plan);
            report.claims.iter().filter(|claim| !claim.correctness).map(|claim| claim.id).collect()
        };
        assert_eq!(ids(&plan), ["pause_over_floor_1024"]);
        assert!(Report::new(&figures, &Faults::default(), &plan).all_hold());
        plan.quick = false;
        assert_eq!(ids(&plan).len(), 7);
        assert!(!Report::new(&figures, &Faults::default(), &plan).all_hold());
    }

    #[test]
    fn the_report_has_the_keys_that_its_readers_rely_on() {
        let mut figures = Figures::default();
        let run = pause::run(Load::Pages(0), Arm::Latency);
        figures.add(run, [(Figure::PauseP50Us, 150.0), (Figure::Part(0, "kick".into()), 60.0)]);
        let plan = Plan { parts: vec![Part::Pause], rounds: 1, quick: false };
        let report = Report::new(&figures, &Faults::default(), &plan);
        let value = serde_json::to_value(&report).unwrap();
        for key in ["id", "measured", "bound", "unit", "holds"] {
            assert!(value["claims"][0].get(key).is_some(), "{key}");
        }
        assert_eq!(value["rows"][0]["part"], "pause");
        assert_eq!(value["rows"][0]["figures"][0]["name"], "pause_p50");
        assert!(value["machine"]["placement"].is_string());
        assert!(report.table().contains("kick 60"), "{}", report.table());
    }
}
