//! `remus run`: a VM on this host.

use std::path::PathBuf;

use super::Failure;
use crate::{
    checks,
    config::{Config, EXAMPLE},
    primary::{self, PrimaryOptions},
    signals,
    terminal::Terminal,
};

#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct Args {
    /// Config of the VM
    #[arg(value_name = "CONFIG.toml", required_unless_present = "print_example")]
    config: Option<PathBuf>,
    /// Make this terminal the guest's console; Ctrl-] leaves the console, and the VM runs on
    #[arg(long)]
    console: bool,
    /// Print an example config that explains every key, and exit
    #[arg(long, conflicts_with = "config")]
    print_example: bool,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let Some(path) = args.config else {
        return Ok(super::print(EXAMPLE)?);
    };
    let (config, terminal, report) = signals::interruptible(|| -> Result<_, Failure> {
        let config = Config::load(&path)?;
        let terminal = args.console.then(Terminal::of_this_process).transpose()?;
        let report = checks::primary(&config);
        Ok((config, terminal, report))
    })?;
    report.log_warnings();
    if !report.passed() {
        return Err(Failure::Preflight(report));
    }
    Ok(primary::run(PrimaryOptions { config, terminal })?)
}
