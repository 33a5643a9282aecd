//! `remus status`: shows the state of the VMs on this host.

use std::path::PathBuf;

use anyhow::Context;
use remus_abi::Epoch;

use super::Failure;
use crate::{
    config::RUN_DIR_DEFAULT,
    names::VmName,
    observe::{query, render, running},
    outlet::say,
};

#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct Args {
    /// Directory of the VMs' sockets
    #[arg(long, value_name = "DIR", default_value = RUN_DIR_DEFAULT)]
    run_dir: PathBuf,
    /// Print JSON: one document per VM, one per line
    #[arg(long)]
    json: bool,
    /// Compute statistics only from epochs after N; the last 16384 are kept
    #[arg(long, value_name = "N", value_parser = epoch)]
    since_epoch: Option<Epoch>,
    /// Name of the VM [default: every VM on this host]
    vm: Option<VmName>,
}

fn epoch(text: &str) -> Result<Epoch, String> {
    text.parse().ok().and_then(Epoch::new).ok_or_else(|| format!("an epoch is 0 to {}", Epoch::MAX))
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let here = || running(&args.run_dir);
    let names = match &args.vm {
        Some(vm) => vec![vm.clone()],
        None => here()?,
    };
    if names.is_empty() {
        say(&super::nothing_below(&args.run_dir, "running VM")?);
        return Ok(());
    }
    let mut text = String::new();
    let mut unanswered = Vec::new();
    for vm in &names {
        match query(&args.run_dir, vm, args.since_epoch) {
            Ok(status) if args.json => {
                text += &serde_json::to_string(&status).context("write the status as JSON")?;
                text.push('\n');
            }
            Ok(status) => text += &render(&status),
            Err(e) => unanswered.push(format!("{e:#}")),
        }
    }
    super::print(&text)?;
    if unanswered.is_empty() {
        return Ok(());
    }
    Err(anyhow::anyhow!("{}", unanswered.join("; ")).into())
}
