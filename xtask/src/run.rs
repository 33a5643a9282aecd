//! `run`: the rig, raised to root when the caller is not; nothing but the built binary is.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result};

use crate::{build, invoke::is_root, setup::Toolchain, tree::Tree};

pub(crate) fn run(tree: &Tree, toolchain: &Toolchain, options: &[String]) -> Result<()> {
    become_rig(tree, toolchain, &["run"], options)
}

/// Builds, then becomes the rig, so that signals and the exit status are its own.
pub(crate) fn become_rig(
    tree: &Tree,
    toolchain: &Toolchain,
    verb: &[&str],
    options: &[String],
) -> Result<()> {
    build::run(tree, toolchain)?;
    let rig = tree.rig();
    let mut command = if is_root()? {
        Command::new(&rig)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("-E").arg(&rig);
        sudo
    };
    // The help that clap was told not to answer is the rig's.
    let options = options.iter().filter(|option| *option != "--");
    let error = command.args(verb).args(options).exec();
    Err(error).with_context(|| format!("start {}", rig.display()))
}
