//! `remus gate remove`: takes a gate that has no controller off its tap.

use std::fs;

use anyhow::{Result, bail};

use super::{Where, seen::find};
use crate::{
    net::{IfIndex, Links},
    observe::VmDir,
    outlet::say,
    standalone::SOCKET,
};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: Where,
    /// Remove the gate even if it holds frames; they are discarded
    #[arg(long)]
    force: bool,
    /// Name of the gate, or of the tap that it is on
    #[arg(value_name = "NAME|TAP")]
    gate: String,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let run_dir = &args.place.run_dir;
    let (place, pinned) = find(run_dir, &args.gate)?;
    let name = place.name.as_str();
    // From here on no process can become its controller.
    let directory = VmDir::claim(run_dir, &place.name)?;
    let held = pinned.held()?;
    if held.frames > 0 && !args.force {
        bail!(
            "gate {name} holds {} frames ({} bytes, {} frames of committed epochs): `remus gate run` takes it over with \
             these frames; --force discards them",
            held.frames,
            held.bytes,
            held.committed
        );
    }
    let view = pinned.view();
    let tap = Links::open()?.at(IfIndex(view.tap_index))?;
    let tap = match tap {
        Some(tap) if pinned.attachment(Some(&tap.name))?.is_on_tap() => Some(tap.name),
        Some(_) | None => None,
    };
    pinned.remove()?;
    // A controller that was killed has left it. No process has the directory, since this one has claimed it.
    fs::remove_file(directory.path().join(SOCKET)).ok();
    match tap {
        Some(tap) => {
            say(&format!("gate {name} is off {tap}: whatever {tap} sends passes from now on"))
        }
        None => say(&format!("gate {name} is removed")),
    }
    if held.frames > 0 {
        say(&format!("{} held frames were discarded", held.frames));
    }
    Ok(())
}
