//! What is measured of a protected guest.

use std::borrow::Cow;

use clap::ValueEnum;
use serde::Serialize;

use crate::{
    bench::figures,
    remus::{Machine, Mode, Options, Timing},
};

/// The parts of the bench, each of which can be run alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Pause against dirty pages, beside its floor
    Pause,
    /// The guest's own work rate against checkpoints a second
    Rate,
    /// Latency of requests in a closed loop
    Latency,
    /// redis-benchmark's requests a second
    Throughput,
    /// Bytes on the wire against dirty pages whole, and backup lag
    Wire,
    /// Pause against the size of the machine
    Memory,
}

impl Part {
    pub const ALL: [Self; 6] =
        [Self::Pause, Self::Rate, Self::Latency, Self::Throughput, Self::Wire, Self::Memory];
}

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Arm {
    /// The least that a pause can take.
    Floor,
    /// The same guest on the same host with its gate open.
    Unprotected,
    /// Protected, the default.
    Latency,
    Throughput,
    /// So many checkpoints a second, whatever happens.
    Fixed(u32),
}

impl Arm {
    pub(super) fn name(self) -> String {
        match self {
            Self::Floor => "floor".to_owned(),
            Self::Unprotected => "unprotected".to_owned(),
            Self::Latency => "latency".to_owned(),
            Self::Throughput => "throughput".to_owned(),
            Self::Fixed(hz) => format!("fixed {hz} Hz"),
        }
    }

    /// In drawings; told apart also by those who see few colours.
    pub(super) fn colour(self) -> &'static str {
        match self {
            Self::Floor => "#555555",
            Self::Unprotected => "#999999",
            Self::Latency => "#0072b2",
            Self::Throughput => "#e69f00",
            Self::Fixed(_) => "#009e73",
        }
    }

    /// The config of a primary of this arm: what is not the arm's own is the default.
    pub(super) fn options(self) -> Options {
        let mode = match self {
            Self::Floor | Self::Unprotected | Self::Latency => Mode::Latency,
            Self::Throughput => Mode::Throughput,
            Self::Fixed(_) => Mode::Fixed,
        };
        let timing = match self {
            Self::Fixed(hz) => Timing { epoch_ms: 1000 / hz, ..Timing::default() },
            Self::Floor | Self::Unprotected | Self::Latency | Self::Throughput => Timing::default(),
        };
        Options { mode, timing, ..Options::default() }
    }
}

/// What the guest does, or is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Load {
    /// Writes 64 bytes of each of so many pages, again and again.
    Pages(u32),
    /// Answers clients on so many connections, which wait for each reply.
    Connections(u32),
    /// Answers redis-benchmark.
    Set,
    Get,
    /// Writes so many bytes of each of a thousand pages.
    Bytes(u32),
    /// Writes to a thousand pages in a machine of this shape.
    Machine(Machine),
}

impl Load {
    pub(super) fn name(self) -> String {
        match self {
            Self::Pages(pages) => format!("{pages} pages"),
            Self::Connections(1) => "1 connection".to_owned(),
            Self::Connections(connections) => format!("{connections} connections"),
            Self::Set => "SET".to_owned(),
            Self::Get => "GET".to_owned(),
            Self::Bytes(bytes) => format!("{bytes} B a page"),
            Self::Machine(Machine { vcpus, memory_mib }) => {
                format!("{vcpus} vCPU, {memory_mib} MiB")
            }
        }
    }
}

/// What a row is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub(super) struct Run {
    pub(super) part: Part,
    pub(super) load: Load,
    pub(super) arm: Arm,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Figure {
    PauseP50Us,
    PauseP90Us,
    PauseP99Us,
    PauseMaxUs,
    /// To the floor of the same round.
    OverFloor,
    /// Of a pause, or of the floor: its number, and its name.
    Part(usize, String),
    /// Whole pauses that the sum of the parts makes.
    PartsSum,
    /// Pages in a checkpoint.
    DirtyPages,
    CheckpointsPerS,
    /// Pages that the work generator touches.
    WorkPerS,
    /// To the same guest's, unprotected.
    WorkRatio,
    LatencyP50Us,
    LatencyP99Us,
    /// Beyond the same guest's latency, unprotected.
    AddedP50Us,
    AddedP99Us,
    RequestsPerS,
    /// To the same guest's, unprotected.
    RequestsRatio,
    /// Checkpoints as sent, to their dirty pages whole.
    SentRatio,
    /// All bytes on the link, to the same.
    WireRatio,
    WireMbitPerS,
    /// From the seal to the commit ack.
    CommitP50Us,
    CommitP99Us,
    /// From the seal to the release.
    LagMs,
    /// From the backup's start until the guest is protected.
    ProtectMs,
    /// To the pause of a small machine with as many vCPUs, in the same round.
    OverSmall,
}

/// A figure of one run.
pub(super) type Measured = (Figure, f64);
pub(super) type Figures = figures::Figures<Run, Figure>;

impl figures::Figure for Figure {
    fn name(&self) -> Cow<'static, str> {
        let name = match self {
            Self::PauseP50Us => "pause_p50",
            Self::PauseP90Us => "pause_p90",
            Self::PauseP99Us => "pause_p99",
            Self::PauseMaxUs => "pause_max",
            Self::OverFloor => "pause_over_floor",
            Self::Part(_, name) => return format!("part_{name}").into(),
            Self::PartsSum => "parts_over_pause",
            Self::DirtyPages => "dirty_pages",
            Self::CheckpointsPerS => "checkpoints",
            Self::WorkPerS => "work",
            Self::WorkRatio => "work_ratio",
            Self::LatencyP50Us => "latency_p50",
            Self::LatencyP99Us => "latency_p99",
            Self::AddedP50Us => "added_p50",
            Self::AddedP99Us => "added_p99",
            Self::RequestsPerS => "requests",
            Self::RequestsRatio => "requests_ratio",
            Self::SentRatio => "sent_over_raw",
            Self::WireRatio => "wire_over_raw",
            Self::WireMbitPerS => "wire",
            Self::CommitP50Us => "commit_p50",
            Self::CommitP99Us => "commit_p99",
            Self::LagMs => "lag_p50",
            Self::ProtectMs => "until_protected",
            Self::OverSmall => "pause_over_small",
        };
        name.into()
    }

    fn unit(&self) -> &'static str {
        match self {
            Self::PauseP50Us
            | Self::PauseP90Us
            | Self::PauseP99Us
            | Self::PauseMaxUs
            | Self::Part(..)
            | Self::LatencyP50Us
            | Self::LatencyP99Us
            | Self::AddedP50Us
            | Self::AddedP99Us
            | Self::CommitP50Us
            | Self::CommitP99Us => "us",
            Self::OverFloor
            | Self::PartsSum
            | Self::WorkRatio
            | Self::RequestsRatio
            | Self::SentRatio
            | Self::WireRatio
            | Self::OverSmall => "ratio",
            Self::DirtyPages => "pages",
            Self::CheckpointsPerS | Self::RequestsPerS => "1/s",
            Self::WorkPerS => "pages/s",
            Self::WireMbitPerS => "Mbit/s",
            Self::LagMs | Self::ProtectMs => "ms",
        }
    }

    fn is_count(&self) -> bool {
        false
    }
}

/// What should not have happened, over the whole bench.
#[derive(Clone, Copy, Default, Debug, Serialize)]
pub(super) struct Faults {
    /// Replies other than the right one.
    pub(super) replies_wrong: u64,
    pub(super) connections_lost: u64,
    /// Runs of redis-benchmark that failed.
    pub(super) benchmarks_failed: u64,
    pub(super) frames_refused_by_lock: u64,
    pub(super) frames_dropped_full: u64,
    /// Guests that were not protected any more in the end.
    pub(super) protections_lost: u64,
}
