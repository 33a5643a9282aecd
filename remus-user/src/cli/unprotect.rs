//! `remus unprotect`: a VM whose backup is gone goes on without one.

use std::path::PathBuf;

use super::Failure;
use crate::{
    config::RUN_DIR_DEFAULT,
    names::VmName,
    observe::{Order, order},
    outlet::say,
};

const AFTER_HELP: &str = "\
A primary that loses its backup holds all output, since the backup may take over. It goes on by itself when that backup comes
back. When the backup's host is off and stays off, this verb lets the VM go on without it: what clients wait for leaves
at once, and the VM runs unprotected until a backup answers at the configured address.

If that host is NOT off, it may have taken over, and then two hosts speak for the VM. Look at it, or cut its power, before.";

#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// The VM, which runs on this host
    vm: VmName,
    /// The backup's host, which is off and stays off: your word for it is what makes this safe
    #[arg(long, value_name = "HOST", value_parser = host)]
    other_host_is_off: String,
    /// Where VMs keep their sockets
    #[arg(long, value_name = "DIR", default_value = RUN_DIR_DEFAULT)]
    run_dir: PathBuf,
}

fn host(name: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_graphic();
    if name.is_empty() || name.len() > Order::HOST_MAX || !name.chars().all(is_plain) {
        return Err(format!("name a host, in 1 to {} letters, digits and signs", Order::HOST_MAX));
    }
    Ok(name.to_owned())
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let Args { vm, other_host_is_off, run_dir } = args;
    let done = order(&run_dir, &vm, &Order::Unprotect { host_off: other_host_is_off })?;
    say(&done);
    Ok(())
}
