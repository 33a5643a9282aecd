//! What came of a bench: `gate.json` and `gate.svg` in `target/bench`, and a table on standard output.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::{
    BURSTS, EPOCHS_MS, SIZES,
    arm::Arm,
    claims::{bounds, claims},
    figures::{Figure, Figures, Phase, Run},
    frames::Size,
};
use crate::{
    bench::{
        figures::{Figure as _, Row},
        report::{self, Host},
        svg::{
            Drawing, Panel, Plot,
            bars::{Bar, Bars, Group, Limit},
            short,
        },
    },
    report::Claim,
};

#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    bench: &'static str,
    version: &'static str,
    machine: Machine,
    arms: &'a [Arm],
    rounds: u32,
    /// Rounds were too short to trust a figure.
    quick: bool,
    claims: Vec<Claim>,
    rows: Vec<Row<'a, Run>>,
    #[serde(skip)]
    figures: &'a Figures,
}

#[derive(Debug, Serialize)]
struct Machine {
    #[serde(flatten)]
    host: Host,
    placement: &'static str,
    cpu_time: &'static str,
    load: &'static str,
}

impl<'a> Report<'a> {
    pub(super) fn new(figures: &'a Figures, arms: &'a [Arm], rounds: u32, quick: bool) -> Self {
        Self {
            bench: "gate",
            version: env!("CARGO_PKG_VERSION"),
            machine: Machine {
                host: Host::this(),
                placement: "the writer on a CPU of its own, with what the kernel does in its writes; the controller on \
                            another, with the softirqs of its flushes; the same in all arms",
                cpu_time: "writer and gate: CLOCK_THREAD_CPUTIME_ID of their threads, softirqs that run at the \
                           end of their system calls included; all CPUs: busy time in /proc/stat, whoever caused \
                           it; stamp and lock: BPF_PROG_TEST_RUN, \
                           repeated, less an empty program",
                load: "a write(2) a frame into a tap with virtio-net headers; bridge; veth; a sink at its far end",
            },
            arms,
            rounds,
            quick,
            claims: claims(arms, figures),
            rows: figures.rows(),
            figures,
        }
    }

    pub(super) fn all_hold(&self) -> bool {
        report::all_hold(&self.claims, self.quick)
    }

    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        report::write(folder, self.bench, self, &self.drawing())
    }

    /// For people: a line for each run, then the claims.
    pub(super) fn table(&self) -> String {
        let title = |run: Run| format!("{}, {}", run.phase.title(), run.size.name());
        let row = |run: Run| {
            let told = run.phase.columns().iter().filter_map(|&figure| {
                let value = self.figures.get(run, &figure)?;
                Some(format!("{} {} {}", figure.label(), short(value), figure.unit()))
            });
            let mut told: Vec<_> = told.collect();
            let none = Run { arm: Arm::None, ..run };
            let compared = match run.phase {
                Phase::Open => Some(Figure::SinkKpps),
                Phase::Release(_) => Some(Figure::ReleaseUs),
                Phase::Latency | Phase::HoldMs(_) | Phase::Judge => None,
            };
            if run.arm != Arm::None
                && let Some(ratio) = compared.and_then(|of| self.figures.ratio(run, none, &of))
            {
                told.push(format!("{ratio:.2} of none"));
            }
            format!("{:<9}{}", run.arm.name(), told.join(", "))
        };
        let group = |run: Run| (run.phase, run.size);
        report::table(self.figures.runs(), group, title, row, &self.claims)
    }

    fn drawing(&self) -> Drawing {
        let groups_of = |phase, sizes: &[Size], figure: Figure| {
            let group = |&size: &Size| self.group(size.name().to_owned(), phase, size, figure);
            sizes.iter().map(group).collect::<Vec<_>>()
        };
        let copied = [Size::B64, Size::B1500];
        let pairs = |numbers: [u32; 2]| {
            copied.into_iter().flat_map(move |size| numbers.map(|number| (size, number)))
        };
        let releases = pairs(BURSTS).map(|(size, frames)| {
            let label = format!("{}, {}k", size.name(), frames / 1000);
            self.group(label, Phase::Release(frames), size, Figure::ReleaseUs)
        });
        let epochs = pairs(EPOCHS_MS).map(|(size, ms)| {
            let label = format!("{}, {ms} ms", size.name());
            self.group(label, Phase::HoldMs(ms), size, Figure::FlushUsPerEpoch)
        });
        let latencies = copied.into_iter().flat_map(|size| {
            [(Figure::LatencyP50Us, "p50"), (Figure::LatencyP99Us, "p99")].map(|(figure, name)| {
                self.group(format!("{}, {name}", size.name()), Phase::Latency, size, figure)
            })
        });
        let panel = |title: &str, mut groups: Vec<Group>| {
            groups.retain(|group| !group.bars.is_empty());
            Panel { title: title.to_owned(), plot: Plot::Bars(Bars { groups }) }
        };
        let panels = vec![
            panel("Open throughput, kpps", groups_of(Phase::Open, &copied, Figure::SinkKpps)),
            panel("Open throughput, Gb/s", groups_of(Phase::Open, &SIZES[1..], Figure::SinkGbps)),
            panel("Release at once, us a frame", releases.collect()),
            panel("Flush at an epoch's end, us", epochs.collect()),
            panel("Latency at 20 kpps, us", latencies.collect()),
            panel(
                "CPU time of the gate's thread, ns a frame, open",
                groups_of(Phase::Open, &SIZES, Figure::GateCpuNs),
            ),
            panel("Stamp + lock, ns a frame", groups_of(Phase::Judge, &copied, Figure::LockNs)),
        ];
        let panels = panels.into_iter().filter(|panel| !panel.is_empty()).collect();
        Drawing {
            title: "The gate, against the same bridge without one".to_owned(),
            subtitle: self.machine.host.subtitle(self.rounds, self.quick),
            legend: self.arms.iter().map(|arm| (arm.name(), arm.colour())).collect(),
            panels,
        }
    }

    /// The bars of all arms that have this figure.
    fn group(&self, label: String, phase: Phase, size: Size, figure: Figure) -> Group {
        let bar = |&arm: &Arm| {
            let run = Run { phase, size, arm };
            let value = match phase {
                Phase::Judge => {
                    self.figures.get(run, &Figure::StampNs)? + self.figures.get(run, &figure)?
                }
                Phase::Open | Phase::Latency | Phase::HoldMs(_) | Phase::Release(_) => {
                    self.figures.get(run, &figure)?
                }
            };
            Some(Bar { colour: arm.colour(), value, limit: self.limit(run, figure) })
        };
        Group { label, bars: self.arms.iter().filter_map(bar).collect() }
    }

    fn limit(&self, run: Run, of: Figure) -> Option<Limit> {
        let none = Run { arm: Arm::None, ..run };
        bounds(run.arm).iter().find_map(|bound| {
            let (figure, at) = bound.says.limit(self.figures.get(none, &of))?;
            let about = (bound.phase, bound.size, figure) == (run.phase, run.size, of);
            about.then(|| Limit { at, holds: bound.claim(self.figures).holds })
        })
    }
}

impl Phase {
    fn title(self) -> String {
        match self {
            Self::Open => "open".to_owned(),
            Self::Latency => "latency at 20 kpps".to_owned(),
            Self::HoldMs(ms) => format!("held for {ms} ms"),
            Self::Release(frames) => format!("release of {frames}"),
            Self::Judge => "stamp and lock".to_owned(),
        }
    }

    /// The figures that people look at first.
    fn columns(self) -> &'static [Figure] {
        match self {
            Self::Open => &[
                Figure::OfferedKpps,
                Figure::SinkKpps,
                Figure::SinkGbps,
                Figure::WriterCpuNs,
                Figure::GateCpuNs,
                Figure::AllCpusNs,
            ],
            Self::Latency => &[Figure::LatencyP50Us, Figure::LatencyP99Us, Figure::Lost],
            Self::HoldMs(_) => &[
                Figure::FramesPerEpoch,
                Figure::FlushUsPerEpoch,
                Figure::GateCpuNs,
                Figure::Early,
                Figure::Lost,
                Figure::OutOfOrder,
                Figure::DroppedFull,
            ],
            Self::Release(_) => &[
                Figure::ReleaseUs,
                Figure::GateCpuNs,
                Figure::Resent,
                Figure::Early,
                Figure::Lost,
                Figure::OutOfOrder,
                Figure::DroppedFull,
            ],
            Self::Judge => &[Figure::StampNs, Figure::LockNs, Figure::EmptyNs],
        }
    }
}

impl Figure {
    fn label(self) -> &'static str {
        match self {
            Self::OfferedKpps => "offered",
            Self::SinkKpps | Self::SinkGbps => "sink",
            Self::LatencyP50Us => "p50",
            Self::LatencyP99Us => "p99",
            Self::ReleaseUs => "a frame",
            Self::FlushUsPerEpoch => "flush",
            Self::FramesPerEpoch => "epoch",
            Self::WriterCpuNs => "writer",
            Self::GateCpuNs => "gate",
            Self::AllCpusNs => "all CPUs",
            Self::OutOfOrder => "out of order",
            Self::EmptyNs
            | Self::StampNs
            | Self::LockNs
            | Self::Flushes
            | Self::Early
            | Self::Lost
            | Self::RefusedByLock
            | Self::DroppedFull
            | Self::Resent => self.plain_name(),
        }
    }
}
