//! `remus clean`: removes what a VM that is gone left on this host: its gate, the pins and their mount, its tap, its
//! directory.
//!
//! A host that crashed as a primary keeps all of that on purpose, so that nothing that the guest sent gets out. Without
//! this verb an operator would need several tools, in the right order: the tap goes first, so that it never stands
//! without its gate.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::{Failure, nothing_below};
use crate::{
    config::{RUN_DIR_DEFAULT, state_dir_beside},
    gate::{self, Attachment, Pinned},
    names::VmName,
    net::{IfIndex, Link, Links, tap_alias, tap_user},
    observe::{Holder, VmDir, holder},
    outlet::say,
    standalone,
    store::{Standing, Store},
};

#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct Args {
    /// Directory of the VMs' sockets and pins
    #[arg(long, value_name = "DIR", default_value = RUN_DIR_DEFAULT)]
    run_dir: PathBuf,
    /// Directory of records that must survive a reboot [default: /var/lib/remus; with --run-dir, RUN_DIR/state]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Also remove the record of which host spoke last for the VM. Do so only if the VM runs on no host, or only on the other
    /// one: without the record, this host starts the VM as if it had never run
    #[arg(long)]
    record: bool,
    /// Name of the VM
    vm: VmName,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    Ok(clean(args)?)
}

fn clean(args: &Args) -> Result<()> {
    let Args { run_dir, state_dir, record, vm } = args;
    let state_dir = state_dir.clone().unwrap_or_else(|| state_dir_beside(run_dir));
    let record_file = state_dir.join(format!("{vm}.json"));
    let links = Links::open()?;
    let taps = links.aliased(&tap_alias(vm.as_str()))?;
    let directory = run_dir.join(vm.as_str());
    let is_left = fs::symlink_metadata(&directory).is_ok();
    if !is_left && taps.is_empty() && !record_file.exists() {
        nothing_below(run_dir, "VM")?;
        bail!(
            "VM {vm} has left nothing here: it has no tap, and there is no {}",
            directory.display()
        );
    }
    if let Holder::Process(pid) = holder(run_dir, vm)? {
        let by = pid.map_or_else(|| "a live process".to_owned(), |pid| format!("process {pid}"));
        bail!(
            "{by} has VM {vm}: that process runs the VM, or follows it for another host. Stop that process first"
        );
    }
    if is_left || !taps.is_empty() {
        take_down(run_dir, vm, &links, &taps)?;
    }
    if *record {
        forget_record(&state_dir, &record_file, vm)
    } else {
        if record_file.exists() {
            say(&format!(
                "{} stays: it says who spoke last for VM {vm} (--record removes it)",
                record_file.display()
            ));
        }
        Ok(())
    }
}

fn take_down(run_dir: &Path, vm: &VmName, links: &Links, taps: &[Link]) -> Result<()> {
    for tap in taps {
        if let Some(user) = tap_user(&tap.name)? {
            bail!(
                "tap {} of VM {vm} is open in {user}: does the VM run below another run directory than {}?",
                tap.name,
                run_dir.display()
            );
        }
    }
    // Nobody can start it from here on.
    let claimed = VmDir::claim(run_dir, vm)?;
    let pins = claimed.path().join("bpf");
    let pinned = Pinned::find(&pins);
    if let Ok(Some(pinned)) = &pinned {
        refuse_others_gate(pinned, vm, links, taps)?;
    }
    for tap in taps {
        links.delete(tap.index)?;
        say(&format!("tap {} is deleted", tap.name));
        if gate::sweep_queue(&tap.name)? {
            say(&format!("the rules of {} in nf_tables are removed", tap.name));
        }
    }
    match pinned {
        Ok(None) => {}
        Ok(Some(pinned)) => {
            let held = pinned.held()?.frames;
            pinned.remove()?;
            say(&format!("the gate is removed; the {held} frames that it held are discarded"));
        }
        Err(e) => say(&format!("the gate cannot be read, and is removed with its pins: {e:#}")),
    }
    if gate::sweep_pins(&pins)? {
        say(&format!("{} is unmounted and removed", pins.display()));
    }
    for socket in ["status.sock", standalone::SOCKET] {
        match fs::remove_file(claimed.path().join(socket)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("remove {socket} of VM {vm}"));
            }
            Ok(()) | Err(_) => {}
        }
    }
    let directory = claimed.path().to_owned();
    drop(claimed);
    if directory.exists() {
        bail!(
            "{} stays, since it contains something that remus did not put there",
            directory.display()
        );
    }
    say(&format!("{} is removed", directory.display()));
    Ok(())
}

/// Refuses a gate of `remus gate run`, which has the same kind of directory, in front of somebody else's tap.
fn refuse_others_gate(pinned: &Pinned, vm: &VmName, links: &Links, taps: &[Link]) -> Result<()> {
    let tap = links.at(IfIndex(pinned.view().tap_index))?;
    let attachment = pinned.attachment(tap.as_ref().map(|tap| tap.name.as_str()))?;
    match (attachment, tap) {
        (Attachment::Elsewhere, _) => bail!(
            "the tap of VM {vm} is in another network namespace: run this there (ip netns exec)"
        ),
        (Attachment::First | Attachment::Behind(_), Some(tap)) => {
            if !taps.iter().any(|ours| ours.index == tap.index) {
                bail!(
                    "{vm} is a gate in front of {}, which is no VM's tap: remus gate remove {vm}",
                    tap.name
                );
            }
            Ok(())
        }
        (Attachment::First | Attachment::Behind(_), None) | (Attachment::Gone, _) => Ok(()),
    }
}

fn forget_record(state_dir: &Path, file: &Path, vm: &VmName) -> Result<()> {
    if !file.exists() {
        say(&format!("there is no {}: this host knows nothing of VM {vm}", file.display()));
        return Ok(());
    }
    let said = match Store::at(state_dir)?.read(vm) {
        Ok(Some(record)) => {
            let term = record.term;
            match record.standing {
                Standing::Ended => format!("VM {vm} ended in term {term}"),
                Standing::Starting => {
                    format!("a start of VM {vm} in term {term} came to nothing")
                }
                Standing::Unprotected => {
                    format!("VM {vm} ran here without a backup in term {term}")
                }
                Standing::Protected => format!(
                    "VM {vm} ran here in term {term} with a backup, which may have taken it over: look there before you \
                     start it here"
                ),
                Standing::Backup => format!(
                    "another host spoke for VM {vm} in term {term}: do not start it here while it runs there"
                ),
                Standing::Promoted => format!("this host took VM {vm} over in term {term}"),
            }
        }
        Ok(None) | Err(_) => "it could not be read".to_owned(),
    };
    fs::remove_file(file).with_context(|| format!("remove {}", file.display()))?;
    Store::at(state_dir)?.forget_reserved(vm);
    say(&format!("{} is removed; it said: {said}", file.display()));
    say(
        "the next start here is a very first start, in term 1. A host that remembers a newer term refuses it, so remove the record \
         there too",
    );
    Ok(())
}
