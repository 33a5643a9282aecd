//! The floor of a pause: what it takes to kick the same vCPU in the same state, to capture its state, and to copy as
//! many pages bare. Everything that the engine adds to that is Remus's own.
//!
//! It is measured in a [`process`] of its own that runs the demo guest with nothing around it, on the primary's
//! host, before the same round's primary runs there.

mod process;

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

pub use process::{Options, serve};

use super::bed::{Bed, START};
use crate::{
    guest::Guest,
    host::{Process, Share},
    remus::{Machine, ask},
    topology::{BRIDGE, CLIENT, GUEST},
};

const TAP: &str = "floor0";
/// For all the pauses of one request.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the process is asked: a line of JSON.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Request {
    /// That the guest writes at present, at least.
    pages: u32,
    pauses: u32,
}

/// And what it answers: medians, in microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Pauses {
    pub(super) pages: usize,
    pub(super) kick_us: f64,
    pub(super) state_us: f64,
    pub(super) copy_us: f64,
    pub(super) floor_us: f64,
}

/// A guest with nothing around it. It goes with its process.
pub(super) struct Floor {
    process: Process,
    socket: PathBuf,
    pub(super) guest: Guest,
}

impl Floor {
    pub(super) async fn start(bed: &mut Bed) -> Result<Self> {
        let folder = bed.stage.next_life().await?;
        let socket = folder.join("floor.sock");
        let host = &bed.stage.topology.primary;
        let mut command = Command::new(&bed.rig);
        command.arg("floor").args(["--tap", TAP]);
        command.args(["--memory-mib", &Machine::default().memory_mib.to_string()]);
        command.arg("--kernel").arg(&bed.stage.programs.guest).arg("--socket").arg(&socket);
        let (ip, port) = (GUEST.ip(), GUEST.port());
        command.args(["--cmdline", &format!("ip={ip}/24 gw={CLIENT} port={port}")]);
        let log = folder.join("floor.log");
        let mut process = host.spawn(command, Share::Host, &log)?;
        let until = Instant::now() + START;
        while !socket.exists() {
            if let Some(status) = process.ended()? {
                bail!("the floor's process ended ({status}): see {}", log.display());
            }
            if Instant::now() >= until {
                bail!("the floor's process does not answer: see {}", log.display());
            }
            sleep(Duration::from_millis(5)).await;
        }
        host.links().enslave(TAP, BRIDGE).await?;
        let client = bed.stage.topology.client.netns();
        let guest = Guest::wait(client, GUEST, START).await?;
        Ok(Self { process, socket, guest })
    }

    /// Pauses the guest while it writes `pages` pages.
    pub(super) async fn measure(&mut self, pages: u32, pauses: u32) -> Result<Pauses> {
        let mut line = serde_json::to_string(&Request { pages, pauses }).context("encode")?;
        line.push('\n');
        let asking = tokio::time::timeout(PATIENCE, ask(&self.socket, &line));
        let answer = asking.await.context("the floor takes too long")?;
        let answer = answer.context("ask the floor's process")?;
        serde_json::from_slice(&answer).context("the floor's process answers nothing: see its log")
    }

    pub(super) fn end(mut self) -> Result<()> {
        self.process.kill()
    }
}
