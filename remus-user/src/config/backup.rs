//! What a backup is asked for, on its command line.

use std::{net::SocketAddr, path::PathBuf};

use super::Placement;
use crate::names::LinkName;

/// What `remus backup` was asked for, checked.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    pub listen: SocketAddr,
    pub run_dir: PathBuf,
    pub state_dir: PathBuf,
    /// The tap to use here; else the one that the primary announces.
    pub tap: Option<LinkName>,
    /// The bridge to join here; else the one that the primary announces.
    pub bridge: Option<LinkName>,
    /// The directory from which primaries may name disks; none may without one.
    pub disks: Option<PathBuf>,
    pub placement: Placement,
}
