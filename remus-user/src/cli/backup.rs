//! `remus backup`: the host that takes over.

use std::{net::SocketAddr, path::PathBuf};

use super::Failure;
use crate::{
    backup, checks,
    config::{BackupOptions, Placement, RUN_DIR_DEFAULT, state_dir_beside},
    names::LinkName,
    signals,
};

#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct Args {
    /// Address to listen on; preferably that of a dedicated link
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
    /// Directory of the VMs' sockets and pins
    #[arg(long, value_name = "DIR", default_value = RUN_DIR_DEFAULT)]
    run_dir: PathBuf,
    /// Directory of records that must survive a reboot [default: /var/lib/remus; with --run-dir, RUN_DIR/state]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Tap to use on this host [default: the one in the primary's config]
    #[arg(long, value_name = "NAME")]
    tap: Option<LinkName>,
    /// Bridge that the tap joins on this host [default: the one in the primary's config]
    #[arg(long, value_name = "NAME")]
    bridge: Option<LinkName>,
    /// Directory of the disks that primaries may name; a disk has the same path on both hosts [default: no disks]
    #[arg(long, value_name = "DIR")]
    disks: Option<PathBuf>,
    /// CPUs for the vCPU threads: one for all of them, or one for each [default: any]
    #[arg(long, value_name = "CPU,...", value_delimiter = ',')]
    vcpu_cpus: Vec<u32>,
    /// CPUs for all other threads [default: any]
    #[arg(long, value_name = "CPU,...", value_delimiter = ',')]
    io_cpus: Vec<u32>,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let Args { listen, run_dir, state_dir, tap, bridge, disks, vcpu_cpus, io_cpus } = args;
    let placement = Placement { vcpu_cpus, io_cpus };
    let state_dir = state_dir.unwrap_or_else(|| state_dir_beside(&run_dir));
    let options = BackupOptions { listen, run_dir, state_dir, tap, bridge, disks, placement };
    let report = signals::interruptible(|| checks::backup(&options));
    report.log_warnings();
    if !report.passed() {
        return Err(Failure::Preflight(report));
    }
    Ok(backup::run(options)?)
}
