//! The primary's shell: not joined up yet.

use anyhow::{Result, bail};

use crate::config::Config;

/// What `remus run` was asked for, checked.
#[derive(Clone, Debug)]
pub struct PrimaryOptions {
    pub config: Config,
}

/// # Errors
/// Always: the parts are not joined up yet.
pub fn run(options: PrimaryOptions) -> Result<()> {
    bail!(
        "VM {} cannot run: the primary's parts are not joined up in this build",
        options.config.name
    )
}
