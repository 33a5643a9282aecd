//! Where the bench plays: the rig's hosts, and the lives of guests on them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use remus::observe::status::{Protection, Status};
use remus_abi::gate::Counter;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::figures::Faults;
use crate::{
    bench::stage::Stage,
    guest::{Guest, Progress},
    remus::{Daemon, Options, Programs, Software, start_backup, start_primary},
    topology::GUEST,
};

const BOOT: Duration = Duration::from_millis(50);
pub(super) const START: Duration = Duration::from_secs(20);
/// A first sync of 4 GiB is among what is waited for.
const PROTECT: Duration = Duration::from_secs(120);

pub(super) struct Bed {
    pub(super) stage: Stage,
    pub(super) rig: PathBuf,
    /// Everything that went wrong without ending the bench.
    pub(super) faults: Faults,
}

impl Bed {
    pub(super) async fn make(programs: &Programs, rig: &Path) -> Result<Self> {
        let stage = Stage::set(programs, Software::Demo).await?;
        Ok(Self { stage, rig: rig.to_owned(), faults: Faults::default() })
    }
}

/// A guest from its start, unprotected, to the end of its processes.
pub(super) struct Life {
    pub(super) folder: PathBuf,
    pub(super) primary: Daemon,
    backup: Option<Daemon>,
    pub(super) guest: Guest,
}

/// What a stretch of epochs cost.
pub(super) struct Stretch {
    pub(super) seconds: f64,
    pub(super) status: Status,
    /// Committed in it.
    pub(super) checkpoints: u64,
    pub(super) bytes_sent: u64,
    pub(super) bytes_raw: u64,
    /// All that went out on the replication link, headers and heartbeats included.
    pub(super) bytes_on_link: u64,
    /// Medians of the parts of a pause, in the order in which they come, where the primary tells them.
    pub(super) pause_parts_us: Vec<(String, f64)>,
    /// Pages a second that the guest's work generator got done.
    pub(super) work: f64,
}

/// The parts of a pause in the order in which they come.
const PARTS: [&str; 7] = ["kick", "park", "state", "log", "copy", "clear", "resume"];

/// Counters at a moment.
struct Mark {
    at: Instant,
    captured: u64,
    acked: u64,
    bytes_sent: u64,
    bytes_raw: u64,
    bytes_on_link: u64,
    progress: Progress,
}

impl Life {
    pub(super) async fn begin(bed: &mut Bed, options: &Options) -> Result<Self> {
        let folder = bed.stage.next_life().await?;
        let log = folder.join("primary.log");
        let host = &bed.stage.topology.primary;
        let mut primary = start_primary(host, &bed.stage.programs, options, &folder, &log)?;
        primary.wait_for(Protection::Unprotected, START).await?;
        // A question that comes before the guest is there is asked again only a second later: ARP's pace.
        sleep(BOOT).await;
        let guest = Guest::wait(bed.stage.topology.client.netns(), GUEST, START).await;
        if guest.is_err() {
            primary.still_runs()?;
        }
        Ok(Self { folder, primary, backup: None, guest: guest? })
    }

    /// Starts the backup and waits until it has the guest. Says how long that took.
    pub(super) async fn protect(&mut self, bed: &Bed) -> Result<Duration> {
        let log = self.folder.join("backup.log");
        let backup =
            start_backup(&bed.stage.topology.backup, &bed.stage.programs, &self.folder, &log)?;
        self.backup = Some(backup);
        let began = Instant::now();
        self.primary.wait_for(Protection::Protected, PROTECT).await?;
        Ok(began.elapsed())
    }

    /// Lets `time` pass and tells what it was like.
    pub(super) async fn stretch(&mut self, bed: &Bed, time: Duration) -> Result<Stretch> {
        let before = self.mark(bed).await?;
        sleep(time).await;
        let after = self.mark(bed).await?;
        let document: Value = self.primary.document(Some(before.captured)).await?;
        let pause_parts_us = parts(&document);
        let status = serde_json::from_value(document).context("understand the status")?;
        Ok(Stretch {
            seconds: (after.at - before.at).as_secs_f64(),
            status,
            checkpoints: after.acked - before.acked,
            bytes_sent: after.bytes_sent - before.bytes_sent,
            bytes_raw: after.bytes_raw - before.bytes_raw,
            bytes_on_link: after.bytes_on_link - before.bytes_on_link,
            pause_parts_us,
            work: before.progress.rate_until(after.progress),
        })
    }

    async fn mark(&mut self, bed: &Bed) -> Result<Mark> {
        let status = self.primary.status(None).await?;
        Ok(Mark {
            at: Instant::now(),
            captured: status.epochs.captured,
            acked: status.epochs.acked,
            bytes_sent: status.bytes_sent,
            bytes_raw: status.bytes_raw,
            bytes_on_link: bytes_sent_on(bed, "repl0")?,
            progress: self.guest.progress().await?,
        })
    }

    /// Ends the guest and counts what should not have happened to it.
    pub(super) async fn end(mut self, bed: &mut Bed) -> Result<()> {
        self.primary.still_runs()?;
        let status = self.primary.status(None).await?;
        let faults = &mut bed.faults;
        let gate = &status.gate.counters;
        faults.frames_refused_by_lock += gate.get(Counter::RefusedByLock);
        faults.frames_dropped_full += gate.get(Counter::DroppedFull);
        if let Some(backup) = &mut self.backup {
            backup.still_runs()?;
            faults.protections_lost += u64::from(status.protection != Protection::Protected);
        }
        self.primary.process.kill()?;
        if let Some(mut backup) = self.backup {
            backup.process.kill()?;
        }
        Ok(())
    }
}

/// The status's `pause_parts_us`, medians by the parts' names; nothing of a primary that does not tell it.
fn parts(status: &Value) -> Vec<(String, f64)> {
    let told = status.get("pause_parts_us").and_then(Value::as_object);
    let part = |(name, us): (&String, &Value)| Some((name.clone(), us.as_f64()?));
    let mut parts: Vec<_> = told.into_iter().flatten().filter_map(part).collect();
    // A JSON object has no order; a name that is not known comes last.
    let place = |name: &str| PARTS.iter().position(|part| *part == name).unwrap_or(PARTS.len());
    parts.sort_by_key(|(name, _)| place(name.as_str()));
    parts
}

/// Bytes that the primary's host has sent on one of its links.
fn bytes_sent_on(bed: &Bed, link: &str) -> Result<u64> {
    let text = {
        let _entered = bed.stage.topology.primary.netns().enter()?;
        fs::read_to_string("/proc/thread-self/net/dev").context("read the links' counters")?
    };
    sent_by(&text, link).with_context(|| format!("no counters of {link}"))
}

/// The ninth column of the link's line in /proc/net/dev.
fn sent_by(text: &str, link: &str) -> Option<u64> {
    let columns =
        text.lines().find_map(|line| line.trim().strip_prefix(link)?.strip_prefix(':'))?;
    columns.split_ascii_whitespace().nth(8)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_in_the_order_of_a_pause_and_only_where_they_are_told() {
        let status = serde_json::json!({
            "pause_us": 9,
            "pause_parts_us": { "copy": 4, "kick": 1.5, "new": 2, "state": 3 },
        });
        let wanted = [("kick", 1.5), ("state", 3.0), ("copy", 4.0), ("new", 2.0)];
        assert_eq!(parts(&status), wanted.map(|(name, us)| (name.to_owned(), us)));
        assert!(parts(&serde_json::json!({ "pause_parts_us": null })).is_empty());
        assert!(parts(&serde_json::json!({})).is_empty());
    }

    #[test]
    fn what_a_link_sent_is_read_from_its_own_line() {
        let text = "Inter-|   Receive                 |  Transmit\n \
                    face |bytes packets errs drop fifo frame compressed multicast|bytes packets\n    \
                    lo: 1 2 3 4 5 6 7 8 9 10\n repl0: 11 12 13 14 15 16 17 18 19 20\n";
        assert_eq!(sent_by(text, "repl0"), Some(19));
        assert_eq!(sent_by(text, "lo"), Some(9));
        assert_eq!(sent_by(text, "repl"), None);
    }
}
