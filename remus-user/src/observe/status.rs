//! The status document: what `remus status --json` prints, field by field.
//!
//! The unix socket `RUN_DIR/VM/status.sock` (mode 0600) takes one line, `status` or `status since EPOCH`,
//! answers with one JSON document of this shape, and closes. With `since`, the distributions are taken over
//! the epochs after EPOCH alone (of those still remembered, at least the last 4096).

use std::collections::BTreeMap;

use remus_abi::{ack::AckCounters, gate::Counters};
use serde::{Deserialize, Serialize};

use super::by_name;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Primary,
    Backup,
}

/// How a VM stands: the words of docs/protocol.md.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protection {
    /// No backup yet; the gate is shut.
    Waiting,
    /// The first whole checkpoint is on its way.
    Syncing,
    Protected,
    /// Checkpoints are committed, and clients are not served, or would not be after a takeover: the reason says why.
    Impaired,
    /// No acks: the gate is shut, the guest runs until the pipeline is full.
    Stalled,
    /// The guest runs with an open gate and no backup.
    Unprotected,
    /// A backup that took over: unprotected, in a term of its own.
    Promoted,
    /// The gate guards no more: the guest is paused until it does, or the backup takes over.
    #[serde(rename = "gate-lost")]
    GateLost,
    /// The guest ended on purpose, or another host speaks for it now.
    Stopped,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub vm: String,
    pub role: Role,
    pub protection: Protection,
    pub term: u32,
    /// Invariant 1: `released <= acked <= captured < open`.
    pub epochs: Epochs,
    /// Checkpoints committed in this term.
    pub checkpoints: u64,
    /// Milliseconds spent protected.
    pub protected_ms: u64,
    /// Milliseconds from the seal of an epoch to the release of its output, newest committed epoch.
    pub lag_ms: f64,
    pub pause_us: Distribution,
    /// Where a pause goes: the median of each part. See [`PauseParts`](super::PauseParts).
    pub pause_parts_us: BTreeMap<String, u64>,
    /// From the seal to the commit ack.
    pub commit_us: Distribution,
    pub dirty_pages: Distribution,
    /// Checkpoint bytes as sent, and as they would be if every dirty page were sent whole.
    pub bytes_sent: u64,
    pub bytes_raw: u64,
    pub inbound: Inbound,
    pub gate: Gate,
    pub trigger: Trigger,
    #[serde(default)]
    pub lost: Lost,
    /// Set once a backup has taken over.
    pub failover: Option<Failover>,
    /// Why protection is not what it should be, for people; empty when all is well.
    pub reason: String,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Epochs {
    pub open: u64,
    pub captured: u64,
    pub acked: u64,
    pub released: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Distribution {
    pub count: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub max: u64,
}

/// Frames that the guest was given while it had a backup, which keeps those of epochs that are not committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Inbound {
    pub passed_on: u64,
    /// More than an epoch has room for, or than the link took.
    pub left_out: u64,
}

/// What the gate holds, and what it has counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Gate {
    /// `closed`, `hold` or `open`.
    pub mode: String,
    /// Frames held now.
    pub waiting: u64,
    /// What they take of the buffer, and the buffer, in bytes.
    pub waiting_bytes: u64,
    pub capacity_bytes: u64,
    /// How long released frames had waited in the gate, in microseconds. A sample: the gate times one in sixteen.
    pub residence_us: Distribution,
    /// A key for each, by its name.
    #[serde(flatten, with = "by_name")]
    pub counters: Counters,
}

/// What the kernel did with acks that came as datagrams. All 0 where the controller alone releases.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Trigger {
    /// The sum of the counters that are alarms: datagrams that name the session and are not its backup's, or make no sense.
    pub refused: u64,
    /// From the kernel's release to when the controller was about to, microseconds: what each datagram won.
    pub lead_us: Distribution,
    /// A key for each, by its name.
    #[serde(flatten, with = "by_name")]
    pub counters: AckCounters,
}

/// What the process that answers has lost because nobody took it in time, or a file refused it. All its VMs share the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Lost {
    /// Lines of its log.
    pub log_lines: u64,
    /// Bytes that guests have said on their consoles.
    pub console_bytes: u64,
}

/// A takeover, in CLOCK_BOOTTIME nanoseconds of the backup host.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Failover {
    /// Last word from the primary.
    pub last_heard_ns: u64,
    /// The decision to promote (suspicion, and the lease is over).
    pub decided_ns: u64,
    /// First instruction of the guest here.
    pub running_ns: u64,
    /// The gate is open in the new term and the network was told.
    pub open_ns: u64,
    /// The checkpoint that the guest goes on from.
    pub epoch: u64,
    /// Frames that the guest had been given after it, and was given again here.
    pub given_again: u64,
    /// Frames that came for it after the primary's last sign of life, before it ran here, and that it was given then.
    pub overheard: u64,
}
