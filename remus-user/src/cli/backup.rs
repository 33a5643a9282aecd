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
    /// Where VMs keep their sockets and pins
    #[arg(long, value_name = "DIR", default_value = RUN_DIR_DEFAULT)]
    run_dir: PathBuf,
    /// Where records that must outlive a reboot are kept [default: /var/lib/remus, or RUN_DIR/state for another RUN_DIR]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The tap to use here [default: what the primary's config says]
    #[arg(long, value_name = "NAME")]
    tap: Option<LinkName>,
    /// The bridge that the tap joins here [default: what the primary's config says]
    #[arg(long, value_name = "NAME")]
    bridge: Option<LinkName>,
    /// The directory with the disks that primaries name: the same file, at the same path [default: no disks]
    #[arg(long, value_name = "DIR")]
    disks: Option<PathBuf>,
    /// CPUs for vCPU threads: one for all, or one each [default: anywhere]
    #[arg(long, value_name = "CPU,...", value_delimiter = ',')]
    vcpu_cpus: Vec<u32>,
    /// CPUs for all other threads [default: anywhere]
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
