//! What is measured of a gate.

use std::borrow::Cow;

use remus_abi::gate::{Counter, Counters};
use serde::Serialize;

use super::{arm::Arm, frames::Size, sink::Arrived};
use crate::bench::figures;

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
    pub(super) fn plain_name(self) -> &'static str {
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
}

impl figures::Figure for Figure {
    fn name(&self) -> Cow<'static, str> {
        Cow::Borrowed(self.plain_name())
    }

    fn unit(&self) -> &'static str {
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

    fn is_count(&self) -> bool {
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
pub(super) type Figures = figures::Figures<Run, Figure>;

/// The sum of a count over all runs of an arm.
pub(super) fn count(figures: &Figures, arm: Arm, figure: Figure) -> f64 {
    figures.sum(|run| run.arm == arm, &figure)
}
