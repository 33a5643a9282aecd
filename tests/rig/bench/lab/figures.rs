//! What is measured of a Linux guest, and of those who hold its output.

use std::borrow::Cow;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::bench::figures;

/// The parts of the bench, each of which can be run alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// From the start of the VMM to the guest's user space, beside QEMU microvm
    Boot,
    /// Pauses of an idle guest, beside QEMU COLO
    Pause,
    /// Pauses, and checkpoints a second, of a guest that writes to a thousand pages every 25 ms, beside QEMU COLO
    Rate,
    /// How long a client gets no answer when the host dies, beside QEMU COLO
    Gap,
    /// Release of ten thousand held frames, beside sch_plug
    Hold,
}

impl Part {
    pub const ALL: [Self; 5] = [Self::Boot, Self::Pause, Self::Rate, Self::Gap, Self::Hold];
}

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Arm {
    Remus,
    /// Its gate released straight out of an uplink, not back into the tap.
    Uplink,
    Microvm,
    Colo,
    Plug,
}

impl Arm {
    /// Whether its faults are ours.
    pub(super) fn is_ours(self) -> bool {
        match self {
            Self::Remus | Self::Uplink => true,
            Self::Microvm | Self::Colo | Self::Plug => false,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Remus => "Remus",
            Self::Uplink => "Remus, uplink",
            Self::Microvm => "QEMU microvm",
            Self::Colo => "QEMU COLO",
            Self::Plug => "sch_plug",
        }
    }

    /// In drawings; told apart also by those who see few colours.
    pub(super) fn colour(self) -> &'static str {
        match self {
            Self::Remus => "#0072b2",
            Self::Uplink => "#56b4e9",
            Self::Microvm => "#e69f00",
            Self::Colo => "#cc79a7",
            Self::Plug => "#009e73",
        }
    }
}

/// What the guest is, or does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Load {
    Vcpus(u8),
    /// What Linux and redis-server do when nobody asks anything.
    Idle,
    /// It also writes to so many pages every 25 ms, the same ones.
    Pages(u32),
    /// Ten thousand frames of so many bytes.
    Frames(usize),
}

impl Load {
    pub(super) fn name(self) -> String {
        match self {
            Self::Vcpus(1) => "1 vCPU".to_owned(),
            Self::Vcpus(vcpus) => format!("{vcpus} vCPUs"),
            Self::Idle => "idle".to_owned(),
            Self::Pages(pages) => format!("{pages} pages"),
            Self::Frames(bytes) => format!("{bytes} B frames"),
        }
    }
}

/// What a row is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) part: Part,
    pub(super) load: Load,
    pub(super) arm: Arm,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(super) enum Figure {
    /// From the start of the VMM's process to the guest's first word from user space.
    UserspaceS,
    /// The same since the guest's kernel began, as the guest says.
    KernelS,
    /// Starts after which nothing came.
    Hung,
    PauseP50Ms,
    PauseMaxMs,
    CheckpointsPerS,
    /// Pages in a checkpoint.
    DirtyPages,
    /// Of the connection that waited longest: from its last reply before the death to the first one after it.
    GapMs,
    /// From the death to the first reply on any connection.
    FirstReplyMs,
    /// From the death until the backup decided that it was one.
    DetectMs,
    /// Requests that nobody answered, connections that broke, replies that were wrong.
    RepliesLost,
    ConnectionsLost,
    RepliesWrong,
    /// From the release until the last frame had arrived.
    ReleaseMs,
    Early,
    FramesLost,
    OutOfOrder,
    /// Given to the stack again, because the gate took them for lost.
    Resent,
}

/// A figure of one run.
pub(super) type Measured = (Figure, f64);
pub(super) type Figures = figures::Figures<Run, Figure>;

impl figures::Figure for Figure {
    fn name(&self) -> Cow<'static, str> {
        let name = match self {
            Self::UserspaceS => "userspace",
            Self::KernelS => "kernel",
            Self::Hung => "hung",
            Self::PauseP50Ms => "pause_p50",
            Self::PauseMaxMs => "pause_max",
            Self::CheckpointsPerS => "checkpoints",
            Self::DirtyPages => "dirty_pages",
            Self::GapMs => "gap",
            Self::FirstReplyMs => "first_reply",
            Self::DetectMs => "detect",
            Self::RepliesLost => "replies_lost",
            Self::ConnectionsLost => "connections_lost",
            Self::RepliesWrong => "replies_wrong",
            Self::ReleaseMs => "release",
            Self::Early => "early",
            Self::FramesLost => "frames_lost",
            Self::OutOfOrder => "out_of_order",
            Self::Resent => "resent",
        };
        name.into()
    }

    fn unit(&self) -> &'static str {
        match self {
            Self::UserspaceS | Self::KernelS => "s",
            Self::Hung => "starts",
            Self::PauseP50Ms
            | Self::PauseMaxMs
            | Self::GapMs
            | Self::FirstReplyMs
            | Self::DetectMs
            | Self::ReleaseMs => "ms",
            Self::CheckpointsPerS => "1/s",
            Self::DirtyPages => "pages",
            Self::RepliesLost | Self::RepliesWrong => "replies",
            Self::ConnectionsLost => "connections",
            Self::Early | Self::FramesLost | Self::OutOfOrder | Self::Resent => "frames",
        }
    }

    fn is_count(&self) -> bool {
        match self {
            Self::Hung
            | Self::RepliesLost
            | Self::ConnectionsLost
            | Self::RepliesWrong
            | Self::Early
            | Self::FramesLost
            | Self::OutOfOrder
            | Self::Resent => true,
            Self::UserspaceS
            | Self::KernelS
            | Self::PauseP50Ms
            | Self::PauseMaxMs
            | Self::CheckpointsPerS
            | Self::DirtyPages
            | Self::GapMs
            | Self::FirstReplyMs
            | Self::DetectMs
            | Self::ReleaseMs => false,
        }
    }
}

/// What did not come about, over the whole bench, in words.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub(super) struct Faults {
    pub(super) failures: Vec<String>,
}
