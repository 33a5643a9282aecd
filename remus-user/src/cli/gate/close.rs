//! `remus gate close`: the emergency brake.
//!
//! It is allowed while a controller lives: shutting a gate is safe whoever does it, and an operator who sees a guest talk
//! that must not talk has no time to look for its controller. The controller notices, and may open the gate again.

use anyhow::Result;

use super::{Where, seen::find};
use crate::{
    observe::{Holder, holder},
    outlet::say,
};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: Where,
    /// Name of the gate, or of the tap that it is on
    #[arg(value_name = "NAME|TAP")]
    gate: String,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let (place, pinned) = find(&args.place.run_dir, &args.gate)?;
    pinned.close();
    let (name, held) = (place.name.as_str(), pinned.held()?.frames);
    say(&format!("gate {name} is closed; {held} frames stay in it"));
    match holder(&args.place.run_dir, &place.name)? {
        Holder::Nobody => {}
        Holder::Process(Some(pid)) => {
            say(&format!(
                "process {pid} controls it and may open it again: end that process to be sure"
            ));
        }
        Holder::Process(None) => say("a live process controls it and may open it again"),
    }
    Ok(())
}
