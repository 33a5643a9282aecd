//! A guest that QEMU's COLO protects, on the rig's hosts: both run it, the primary compares what both say, and where
//! they differ, or a time is over, a checkpoint makes the secondary equal again.
//!
//! ```text
//!    guest ─► mirror ────────── 9003 ──────────► redirector f1 ─► guest (secondary)
//!      │                                                           │
//!      ▼ redirector                                                ▼ redirector f2
//!    compare ◄───────────────── 9004 ──────────────────────────────┘
//!      │ same, or after a checkpoint
//!      ▼ tap
//! ```
//!
//! The secondary's tap joins its bridge when the secondary takes over: until then nothing may reach that guest but what
//! the mirror sends. COLO has no detector; whoever drives it says that the other side is lost.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    host::{Host, Process, Share},
    qemu::Spec,
    qmp::{Event, Qmp},
    remus::{Programs, TAP},
    topology::{BACKUP, BRIDGE, PRIMARY, Topology},
};

const MEMORY_MIB: u32 = 256;
/// Of the machine types only this one works with COLO; HPET's state makes checkpoints fail.
const MACHINE: &str = "pc,hpet=off";
const MIGRATION_PORT: u16 = 9998;
const LISTENS: Duration = Duration::from_secs(30);
/// The secondary's sockets try again each second.
const CONNECTED: Duration = Duration::from_millis(2500);
const FIRST_CHECKPOINT: Duration = Duration::from_secs(120);

/// A guest that runs on the primary alone.
pub struct Alone<'a> {
    topology: &'a Topology,
    programs: &'a Programs,
    words: String,
    folder: PathBuf,
    primary: Side,
}

/// A protected guest.
pub struct Colo<'a> {
    topology: &'a Topology,
    pub primary: Side,
    pub secondary: Side,
}

/// A QEMU and the connection to it.
pub struct Side {
    pub process: Process,
    qmp: Qmp,
}

/// A stretch of time under COLO.
#[derive(Clone, Debug)]
pub struct Stretch {
    pub seconds: f64,
    /// How long the guest stood still for each checkpoint.
    pub pauses_us: Vec<f64>,
}

impl<'a> Alone<'a> {
    /// Starts the primary's QEMU with its guest, whose kernel is told `words`.
    pub async fn start(
        topology: &'a Topology,
        programs: &'a Programs,
        words: &str,
        folder: &Path,
    ) -> Result<Self> {
        let (local, wire) = ("127.0.0.1", PRIMARY.to_string());
        let listen = |name: &str, host: &str, port: u16| {
            format!("socket,id={name},host={host},port={port},server=on,wait=off")
        };
        let connect = |name: &str, port: u16| format!("socket,id={name},host={local},port={port}");
        let chardevs = [
            listen("mirror0", &wire, 9003),
            listen("compare1", &wire, 9004),
            listen("compare0", local, 9001),
            connect("compare0-0", 9001),
            listen("compare_out", local, 9005),
            connect("compare_out0", 9005),
        ];
        let more: Vec<_> =
            chardevs.into_iter().flat_map(|it| ["-chardev".to_owned(), it]).collect();
        let primary = Side::start(&topology.primary, programs, words, folder, &more).await?;
        topology.primary.links().enslave(TAP, BRIDGE).await?;
        let (words, folder) = (words.to_owned(), folder.to_owned());
        Ok(Self { topology, programs, words, folder, primary })
    }

    /// An error when its QEMU has ended.
    pub fn still_runs(&mut self) -> Result<()> {
        self.primary.still_runs()
    }

    /// Starts the secondary and waits until both run, with at least `delay_ms` between checkpoints that nothing but
    /// time asks for.
    pub async fn protect(self, delay_ms: u32) -> Result<Colo<'a>> {
        let Self { topology, programs, words, folder, mut primary } = self;
        let (there, incoming) = (PRIMARY, format!("tcp:{}:{MIGRATION_PORT}", BACKUP.ip()));
        let filter = |kind: &str, id: &str, options: &str| {
            ["-object".to_owned(), format!("{kind},id={id},netdev=net0,{options},{VNET}")]
        };
        let mut more = Vec::new();
        for (name, port) in [("red0", 9003), ("red1", 9004)] {
            let socket = format!("socket,id={name},host={there},port={port},reconnect=1");
            more.extend(["-chardev".to_owned(), socket]);
        }
        more.extend(filter("filter-redirector", "f1", "queue=tx,indev=red0"));
        more.extend(filter("filter-redirector", "f2", "queue=rx,outdev=red1"));
        more.extend(filter("filter-rewriter", "rew0", "queue=all"));
        more.extend(["-incoming".to_owned(), incoming.clone()]);
        let mut secondary = Side::start(&topology.backup, programs, &words, &folder, &more).await?;
        sleep(CONNECTED).await;

        let filters = [
            ("filter-mirror", "m0", json!({ "queue": "tx", "outdev": "mirror0" })),
            ("filter-redirector", "redire0", json!({ "queue": "rx", "indev": "compare_out" })),
            ("filter-redirector", "redire1", json!({ "queue": "rx", "outdev": "compare0" })),
        ];
        for (kind, id, mut properties) in filters {
            properties["netdev"] = json!("net0");
            primary.add(kind, id, properties, true).await?;
        }
        primary.add("iothread", "iothread1", json!({}), false).await?;
        let compare = json!({
            "primary_in": "compare0-0", "secondary_in": "compare1", "outdev": "compare_out0",
            "iothread": "iothread1",
        });
        primary.add("colo-compare", "comp0", compare, true).await?;

        let colo = json!({ "capabilities": [{ "capability": "x-colo", "state": true }] });
        for side in [&mut secondary, &mut primary] {
            side.qmp.execute("migrate-set-capabilities", colo.clone()).await?;
        }
        let parameters = json!({ "x-checkpoint-delay": delay_ms, "max-bandwidth": 4_u64 << 30 });
        primary.qmp.execute("migrate-set-parameters", parameters).await?;
        primary.qmp.execute("migrate", json!({ "uri": incoming })).await?;
        primary.wait_for_colo().await?;
        Ok(Colo { topology, primary, secondary })
    }
}

/// Frames have virtio-net's header in front, on all of their way.
const VNET: &str = "vnet_hdr_support=on";

impl Side {
    async fn start(
        host: &Host,
        programs: &Programs,
        words: &str,
        folder: &Path,
        more: &[String],
    ) -> Result<Self> {
        let spec = Spec {
            machine: MACHINE,
            vcpus: 1,
            memory_mib: MEMORY_MIB,
            linux: &programs.linux,
            words,
            nic: "virtio-net-pci,romfile=",
        };
        let socket = folder.join(format!("{}.qmp", host.name()));
        let mut command = spec.command();
        // A comma in a path is doubled, or it would end the option.
        let path = socket.to_string_lossy().replace(',', ",,");
        command.args(["-qmp", &format!("unix:{path},server=on,wait=off")]).args(more);
        let log = folder.join(format!("{}.log", host.name()));
        let process = host.spawn(command, Share::Host, &log)?;
        Ok(Self { process, qmp: Qmp::connect(&socket, LISTENS).await? })
    }

    async fn add(
        &mut self,
        kind: &str,
        id: &str,
        mut properties: serde_json::Value,
        vnet: bool,
    ) -> Result<()> {
        properties["qom-type"] = json!(kind);
        properties["id"] = json!(id);
        if vnet {
            properties["vnet_hdr_support"] = json!(true);
        }
        self.qmp.execute("object-add", properties).await.map(drop)
    }

    async fn wait_for_colo(&mut self) -> Result<()> {
        let until = Instant::now() + FIRST_CHECKPOINT;
        loop {
            let told = self.qmp.execute("query-migrate", json!({})).await?;
            match told["status"].as_str() {
                Some("colo") => return Ok(()),
                Some("failed" | "completed" | "cancelled") => bail!("QEMU does not COLO: {told}"),
                _ if Instant::now() >= until => bail!("no COLO after {FIRST_CHECKPOINT:?}: {told}"),
                _ => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// An error when it has ended.
    pub fn still_runs(&mut self) -> Result<()> {
        let ended = self.process.ended()?;
        ensure!(ended.is_none(), "QEMU ended ({ended:?})");
        Ok(())
    }
}

impl Colo<'_> {
    /// Lets `time` pass and tells how often, and how long, the guest stood still.
    pub async fn stretch(&mut self, time: Duration) -> Result<Stretch> {
        let (began, before) = (Instant::now(), self.primary.qmp.events().len());
        sleep(time).await;
        let seconds = began.elapsed().as_secs_f64();
        let events = self.primary.qmp.events();
        self.primary.still_runs()?;
        self.secondary.still_runs()?;
        Ok(Stretch { seconds, pauses_us: pauses_us(&events[before..]) })
    }

    /// Tells the secondary that the primary is lost, and lets its guest out.
    pub async fn take_over(&mut self) -> Result<()> {
        self.topology.backup.links().enslave(TAP, BRIDGE).await?;
        for filter in ["f2", "f1"] {
            self.secondary.qmp.execute("object-del", json!({ "id": filter })).await?;
        }
        self.secondary.qmp.execute("x-colo-lost-heartbeat", json!({})).await.map(drop)
    }
}

/// How long a guest stood still, each time: from STOP to the RESUME behind it.
fn pauses_us(events: &[Event]) -> Vec<f64> {
    let mut stopped_us = None;
    let mut pauses = Vec::new();
    for Event { name, at_us } in events {
        match name.as_str() {
            "STOP" => stopped_us = stopped_us.or(Some(*at_us)),
            "RESUME" => {
                let pause = stopped_us.take().map(|stopped_us| at_us.saturating_sub(stopped_us));
                pauses.extend(pause.map(|us| us as f64));
            }
            _ => {}
        }
    }
    pauses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_lies_between_a_stop_and_the_resume_behind_it() {
        let event = |(name, at_us): &(&str, u64)| Event { name: (*name).to_owned(), at_us: *at_us };
        let of = |events: &[(&str, u64)]| pauses_us(&events.iter().map(event).collect::<Vec<_>>());
        assert_eq!(of(&[("STOP", 10), ("RESUME", 25), ("STOP", 30), ("RESUME", 31)]), [15.0, 1.0]);
        // Begun before anybody looked, and not over when nobody looks any more.
        assert_eq!(of(&[("RESUME", 5), ("STOP", 10), ("RESUME", 12), ("STOP", 20)]), [2.0]);
        // Stopped is stopped, however often it is said; other events are not about it.
        assert_eq!(
            of(&[("STOP", 1), ("STOP", 4), ("JOB", 5), ("RESUME", 9), ("RESUME", 11)]),
            [8.0]
        );
        assert!(of(&[]).is_empty());
    }
}
