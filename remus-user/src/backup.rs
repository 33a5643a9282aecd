//! The backup's shell: not joined up yet.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Result, bail};

use crate::config::{LinkName, Placement};

/// What `remus backup` was asked for, checked.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    pub listen: SocketAddr,
    pub run_dir: PathBuf,
    /// The tap to use here; else the one that the primary announces.
    pub tap: Option<LinkName>,
    /// The bridge to join here; else the one that the primary announces.
    pub bridge: Option<LinkName>,
    pub placement: Placement,
}

/// # Errors
/// Always: the parts are not joined up yet.
pub fn run(options: BackupOptions) -> Result<()> {
    bail!("cannot listen at {}: the backup's parts are not joined up in this build", options.listen)
}
