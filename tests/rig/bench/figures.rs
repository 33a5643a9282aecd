//! What was measured: a row for each kind of run, with its figures of every round.

use std::collections::BTreeMap;

use remus::gate::Counters;
use remus_abi::gate::Counter;
use serde::Serialize;

use super::{arm::Arm, frames::Size, sink::Arrived};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Figure {
    /// Frames that arrived at the sink.
    SinkKpps,
    SinkGbps,
    /// Frames that the writer wrote: how much it got of its CPU, and of the gate's patience.
    OfferedKpps,
    LatencyP50Us,
    LatencyP99Us,
    /// From the commit until the last frame was at the sink, for each frame.
    ReleaseUs,
    /// From an epoch's commit until all that it covers has left the gate.
    FlushUsPerEpoch,
    FramesPerEpoch,
    /// CPU time of the writer's thread for each frame written: the system call and what the kernel does in it.
    WriterCpuNs,
    /// CPU time of the controller's thread, with the softirqs that run in it, for each frame released.
    GateCpuNs,
    /// Busy time of all CPUs for each frame that arrived; at full speed this has the frames that were dropped.
    AllCpusNs,
    /// Time of a program that does nothing, as the kernel's test tells it.
    EmptyNs,
    /// Beyond that, time of the program that judges a fresh frame, its copy included where the engine copies.
    StampNs,
    /// Beyond that, time of the program that judges a frame on its way out.
    LockNs,
    /// Calls of flush that a release took.
    Flushes,
    /// Counts, added up over the rounds. All but the last two are 0 in a gate that works, and none is dropped where
    /// its controller is not kept waiting for a CPU.
    Early,
    Lost,
    OutOfOrder,
    RefusedByLock,
    DroppedFull,
    Resent,
}

/// A figure of one run.
pub(super) type Measured = (Figure, f64);

impl Figure {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::SinkKpps => "sink_kpps",
            Self::SinkGbps => "sink_gbps",
            Self::OfferedKpps => "offered_kpps",
            Self::LatencyP50Us => "latency_p50",
            Self::LatencyP99Us => "latency_p99",
            Self::ReleaseUs => "release_per_frame",
            Self::FlushUsPerEpoch => "flush_per_epoch",
            Self::FramesPerEpoch => "frames_per_epoch",
            Self::WriterCpuNs => "writer_cpu_per_frame",
            Self::GateCpuNs => "gate_cpu_per_frame",
            Self::AllCpusNs => "all_cpus_per_frame",
            Self::EmptyNs => "empty",
            Self::StampNs => "stamp",
            Self::LockNs => "lock",
            Self::Flushes => "flushes",
            Self::Early => "early",
            Self::Lost => "lost",
            Self::OutOfOrder => "out_of_order",
            Self::RefusedByLock => "refused_by_lock",
            Self::DroppedFull => "dropped_full",
            Self::Resent => "resent",
        }
    }

    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::SinkKpps | Self::OfferedKpps => "kpps",
            Self::SinkGbps => "Gb/s",
            Self::LatencyP50Us | Self::LatencyP99Us | Self::ReleaseUs | Self::FlushUsPerEpoch => {
                "us"
            }
            Self::WriterCpuNs
            | Self::GateCpuNs
            | Self::AllCpusNs
            | Self::EmptyNs
            | Self::StampNs
            | Self::LockNs => "ns",
            Self::Flushes => "calls",
            Self::FramesPerEpoch
            | Self::Early
            | Self::Lost
            | Self::OutOfOrder
            | Self::RefusedByLock
            | Self::DroppedFull
            | Self::Resent => "frames",
        }
    }

    /// Whether rounds are added up. Of all others the median counts.
    fn is_count(self) -> bool {
        matches!(
            self,
            Self::Early
                | Self::Lost
                | Self::OutOfOrder
                | Self::RefusedByLock
                | Self::DroppedFull
                | Self::Resent
        )
    }
}

/// What became of a held run's frames, by the sink's count and by the gate's own counters before and after it. What
/// the gate dropped because it was full is not lost: it says so.
pub(super) fn outcome(
    written: u32,
    arrived: &Arrived,
    before: &Counters,
    after: &Counters,
) -> [Measured; 6] {
    let grew = |counter| after.get(counter).saturating_sub(before.get(counter)) as f64;
    let dropped = grew(Counter::DroppedFull);
    [
        (Figure::Early, arrived.early as f64),
        (Figure::Lost, f64::from(written) - arrived.frames as f64 - dropped),
        (Figure::OutOfOrder, arrived.out_of_order as f64),
        (Figure::RefusedByLock, grew(Counter::RefusedByLock)),
        (Figure::DroppedFull, dropped),
        (Figure::Resent, grew(Counter::Resent)),
    ]
}

/// What a row is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub(super) struct Run {
    pub phase: Phase,
    pub size: Size,
    pub arm: Arm,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// As fast as it goes.
    Open,
    /// 20 thousand frames a second.
    Latency,
    /// Held for epochs of so many milliseconds.
    HoldMs(u32),
    /// So many frames at once.
    Release(u32),
    /// The programs alone.
    Judge,
}

/// All rows, in the order of phase, size and arm.
#[derive(Debug, Default)]
pub(super) struct Figures {
    rows: BTreeMap<Run, BTreeMap<Figure, Vec<f64>>>,
}

#[derive(Debug, Serialize)]
pub(super) struct Row<'a> {
    #[serde(flatten)]
    run: Run,
    figures: Vec<Told<'a>>,
}

/// A figure as the report tells it.
#[derive(Debug, Serialize)]
struct Told<'a> {
    name: &'static str,
    unit: &'static str,
    /// The median of the rounds, or the sum where frames are counted that should not be there.
    value: f64,
    min: f64,
    max: f64,
    rounds: &'a [f64],
}

impl<'a> Told<'a> {
    fn new(figure: Figure, rounds: &'a [f64]) -> Self {
        Self {
            name: figure.name(),
            unit: figure.unit(),
            value: told(figure, rounds),
            min: rounds.iter().copied().fold(f64::INFINITY, f64::min),
            max: rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            rounds,
        }
    }
}

impl Figures {
    /// Adds what a run of this round measured.
    pub(super) fn add(&mut self, run: Run, measured: impl IntoIterator<Item = Measured>) {
        let row = self.rows.entry(run).or_default();
        for (figure, value) in measured {
            row.entry(figure).or_default().push(value);
        }
    }

    /// The median of the rounds, or the sum of a count; `None` where there was no such run.
    pub(super) fn get(&self, run: Run, figure: Figure) -> Option<f64> {
        Some(told(figure, self.rounds(run, figure)?))
    }

    /// The median of the ratios of two runs of the same round.
    pub(super) fn ratio(&self, of: Run, to: Run, figure: Figure) -> Option<f64> {
        let (of, to) = (self.rounds(of, figure)?, self.rounds(to, figure)?);
        let ratios: Vec<f64> = of.iter().zip(to).map(|(of, to)| of / to).collect();
        Some(median(&ratios))
    }

    /// The sum of a count over all runs of an arm.
    pub(super) fn count(&self, arm: Arm, figure: Figure) -> f64 {
        let rows = self.rows.iter().filter(|(run, _)| run.arm == arm);
        rows.filter_map(|(_, row)| row.get(&figure)).flatten().sum()
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.rows.keys().copied()
    }

    /// For the report.
    pub(super) fn rows(&self) -> Vec<Row<'_>> {
        let mut rows = Vec::new();
        for (&run, figures) in &self.rows {
            let figures = figures.iter().map(|(figure, rounds)| Told::new(*figure, rounds));
            rows.push(Row { run, figures: figures.collect() });
        }
        rows
    }

    fn rounds(&self, run: Run, figure: Figure) -> Option<&[f64]> {
        Some(self.rows.get(&run)?.get(&figure)?)
    }
}

fn told(figure: Figure, rounds: &[f64]) -> f64 {
    if figure.is_count() { rounds.iter().sum() } else { median(rounds) }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n.is_multiple_of(2) => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        n => sorted[n / 2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATED: Run = Run { phase: Phase::Open, size: Size::B1500, arm: Arm::Reentry };
    const BARE: Run = Run { arm: Arm::None, ..GATED };

    #[test]
    fn a_ratio_is_taken_within_each_round() {
        let mut figures = Figures::default();
        // A machine that gets slower: the medians' ratio would be 0.75.
        for (gated, bare) in [(900.0, 1000.0), (360.0, 400.0), (270.0, 300.0)] {
            figures.add(GATED, [(Figure::SinkKpps, gated)]);
            figures.add(BARE, [(Figure::SinkKpps, bare)]);
        }
        assert_eq!(figures.ratio(GATED, BARE, Figure::SinkKpps), Some(0.9));
        assert_eq!(figures.get(GATED, Figure::SinkKpps), Some(360.0));
        assert_eq!(figures.ratio(GATED, BARE, Figure::ReleaseUs), None);
    }

    #[test]
    fn what_should_not_be_there_is_added_up() {
        let mut figures = Figures::default();
        for lost in [0.0, 2.0, 0.0] {
            figures.add(GATED, [(Figure::Lost, lost)]);
        }
        assert_eq!(figures.get(GATED, Figure::Lost), Some(2.0));
        assert_eq!(figures.count(Arm::Reentry, Figure::Lost), 2.0);
    }
}
