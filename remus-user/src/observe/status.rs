//! The status document: what `remus status --json` prints, field by field.
//!
//! The unix socket `RUN_DIR/VM/status.sock` (mode 0600) takes one line, `status` or `status since EPOCH`, answers with one
//! JSON document of this shape, and closes. With `since`, the distributions are only over the epochs after EPOCH, as far as
//! they are remembered (the last 16384 are).

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

/// Whether a VM is protected, in the words of docs/protocol.md.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protection {
    /// No backup yet; the gate is shut.
    Waiting,
    /// The first whole checkpoint is on its way.
    Syncing,
    Protected,
    /// Checkpoints are committed, but clients are not served, or would not be after a takeover. The reason says why.
    Impaired,
    /// No acks: the gate is shut, the guest runs until the pipeline is full.
    Stalled,
    /// The guest runs with an open gate and no backup.
    Unprotected,
    /// A backup that took over: unprotected, in a term of its own.
    Promoted,
    /// The gate no longer guards: the guest is paused until it does again, or until the backup takes over.
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
    /// How long the VM has been protected, in milliseconds.
    pub protected_ms: u64,
    /// Milliseconds from the seal of an epoch to the release of its output, newest committed epoch.
    pub lag_ms: f64,
    pub pause_us: Distribution,
    /// Where a pause goes: the median of each part. See [`PauseParts`](super::PauseParts).
    pub pause_parts_us: BTreeMap<String, u64>,
    /// From the seal of an epoch to its commit ack.
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

/// Frames that the guest was given while it had a backup; the backup keeps those of epochs that are not committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Inbound {
    pub passed_on: u64,
    /// Frames that an epoch had no room for, or that the link did not take.
    pub left_out: u64,
}

/// What the gate holds, and what it has counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Gate {
    /// `closed`, `hold` or `open`.
    pub mode: String,
    /// Frames held now.
    pub waiting: u64,
    /// Bytes of the buffer that these frames take, and of the whole buffer.
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
    /// How long before the controller the kernel released, in microseconds: what each datagram won.
    pub lead_us: Distribution,
    /// A key for each, by its name.
    #[serde(flatten, with = "by_name")]
    pub counters: AckCounters,
}

/// What the process that answers has lost because no reader took it in time, or a file refused it. All its VMs share the
/// log.
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
    /// When the primary was last heard.
    pub last_heard_ns: u64,
    /// When the backup decided to promote: it suspects the primary, and the lease is over.
    pub decided_ns: u64,
    /// When the guest executed its first instruction here.
    pub running_ns: u64,
    /// When the gate was open in the new term, and the network had been told.
    pub open_ns: u64,
    /// The checkpoint that the guest goes on from.
    pub epoch: u64,
    /// Frames that the guest had been given after that checkpoint, and was given again here.
    pub given_again: u64,
    /// Frames that came for the guest between the primary's last sign of life and the guest's first instruction here, and
    /// that it was given then.
    pub overheard: u64,
}
