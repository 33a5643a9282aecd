//! `remus gate run`: a gate for another checkpointer.

use std::{path::PathBuf, time::Duration};

use remus_abi::gate::BUFFER_MIB_DEFAULT;

use super::Where;
use crate::{
    checks,
    cli::Failure,
    gate::{Release, Settings},
    names::{LinkName, VmName},
    signals,
    standalone::{self, AtExit, StandaloneOptions},
};

#[derive(clap::Args)]
#[command(after_help = crate::cli::EXIT_CODES)]
pub(super) struct Args {
    /// The guest's tap in this network namespace; you have made it, or another VMM has it open
    #[arg(long)]
    tap: LinkName,
    /// Name of the gate on this host [default: the tap's name]
    #[arg(long)]
    name: Option<VmName>,
    #[command(flatten)]
    place: Where,
    /// Socket that takes requests [default: RUN_DIR/NAME/gate.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Size of the buffer for held frames in MiB, a power of two
    #[arg(long, value_name = "MIB", default_value_t = BUFFER_MIB_DEFAULT, value_parser = buffer_mib)]
    buffer_mib: u32,
    /// Release frames directly out of this interface instead of back into the tap: faster, but past bridge and firewall
    #[arg(long, value_name = "LINK")]
    release_uplink: Option<LinkName>,
    /// Release frames only under a lease, which the checkpointer renews by at most MS milliseconds at a time
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    lease_ms: Option<u64>,
    /// What to do with the gate on SIGTERM or SIGINT
    #[arg(long, value_enum, default_value_t = AtExit::Close)]
    at_exit: AtExit,
}

fn buffer_mib(text: &str) -> Result<u32, String> {
    let mib = text.parse().map_err(|_| "not a number".to_owned())?;
    let settings = Settings { buffer_mib: mib, ..Settings::default() };
    settings.validate().map_err(|e| e.to_string())?;
    Ok(mib)
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let name = match args.name {
        Some(name) => name,
        None => VmName::new(args.tap.as_str()).map_err(|_| {
            anyhow::anyhow!("{} cannot be a gate's name: give it one with --name", args.tap)
        })?,
    };
    let report = signals::interruptible(|| checks::gate(&args.place.run_dir));
    report.log_warnings();
    if !report.passed() {
        return Err(Failure::Preflight(report));
    }
    Ok(standalone::run(&StandaloneOptions {
        run_dir: args.place.run_dir,
        name,
        tap: args.tap,
        socket: args.socket,
        settings: Settings {
            buffer_mib: args.buffer_mib,
            release: args.release_uplink.map_or(Release::ReEntry, Release::Uplink),
            ..Settings::default()
        },
        lease_max: args.lease_ms.map(Duration::from_millis),
        at_exit: args.at_exit,
    })?)
}
