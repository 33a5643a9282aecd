//! `bench`: what a part of Remus costs, measured by the rig as root in namespaces of its own. `bench lab` has Linux
//! guests: where this machine has no hardware virtualization for them, it measures in the lab.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    run::{self, InLab},
    setup::Toolchain,
    tree::Tree,
};

/// What `bench lab` may take in the lab for each of its rounds, in seconds, and for all else.
const LAB_ROUND_S: u64 = 1200;
const LAB_S: u64 = 300;
/// Its rounds when nothing is said. The rig has the same number.
const LAB_ROUNDS: u64 = 3;

/// Becomes the rig's bench of `part`. The report goes to `target/bench`.
pub(crate) fn run(
    tree: &Tree,
    toolchain: &Toolchain,
    part: &str,
    options: &[String],
) -> Result<ExitCode> {
    let verb = ["bench", part];
    if part == "lab" && !run::asks_help(options) {
        let rounds = run::value_of(options, "--rounds").and_then(|n| n.parse().ok());
        let limit_s = LAB_ROUND_S.saturating_mul(rounds.unwrap_or(LAB_ROUNDS));
        // Guests of several vCPUs, and nothing else.
        let one_thread = run::value_of(options, "--parts") == Some("boot");
        let in_lab = InLab { limit_s: limit_s.saturating_add(LAB_S), one_thread };
        return run::with_linux(tree, toolchain, &verb, options, in_lab);
    }
    run::become_rig(tree, toolchain, &verb, options)?;
    Ok(ExitCode::SUCCESS)
}
