//! Where a bench of whole guests plays: the rig's hosts, as new for each guest, and a folder for what its processes
//! write.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    remus::{Programs, Software},
    sys,
    topology::Topology,
};

pub(super) struct Stage {
    pub(super) topology: Topology,
    pub(super) programs: Programs,
    folder: PathBuf,
    lives: u32,
}

impl Stage {
    pub(super) async fn set(programs: &Programs, guest: Software) -> Result<Self> {
        programs.check(guest)?;
        let folder = programs.runs.join(format!("bench-{}", sys::boottime_ns() / 1_000_000));
        let topology = Topology::build().await?;
        Ok(Self { topology, programs: programs.clone(), folder, lives: 0 })
    }

    /// Hosts as new, and a folder for what the next guest's processes write.
    pub(super) async fn next_life(&mut self) -> Result<PathBuf> {
        if self.lives > 0 {
            self.topology.hosts_reborn().await?;
        }
        self.lives += 1;
        let folder = self.folder.join(self.lives.to_string());
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(folder)
    }
}

/// `target/bench`, beside `target/run`.
pub(super) fn reports(programs: &Programs) -> Result<PathBuf> {
    let target = programs.runs.parent().map(Path::to_owned);
    Ok(target.context("the runs are in no folder")?.join("bench"))
}
