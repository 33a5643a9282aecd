//! `bench`: what a part of Remus costs, measured by the rig as root in namespaces of its own.

use anyhow::Result;

use crate::{run, setup::Toolchain, tree::Tree};

/// Becomes the rig's bench of `part`. The report goes to `target/bench`.
pub(crate) fn run(
    tree: &Tree,
    toolchain: &Toolchain,
    part: &str,
    options: &[String],
) -> Result<()> {
    run::become_rig(tree, toolchain, &["bench", part], options)
}
