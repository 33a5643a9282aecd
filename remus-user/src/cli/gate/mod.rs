//! `remus gate`: a gate without our VMM, and gates that were left behind.
//!
//! `run` runs a gate for another checkpointer. The other verbs are for an operator: they find gates by their pins below
//! the run directory, whatever made them (`remus run`, `remus backup`, `remus gate run`), and whether it lives or not.

mod close;
mod list;
mod remove;
mod run;
mod seen;
mod show;

use std::path::PathBuf;

use clap::Subcommand;

use super::Failure;
use crate::config::RUN_DIR_DEFAULT;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run a gate on any tap for another checkpointer
    Run(run::Args),
    /// List the gates on this host, with or without a controller
    List(list::Args),
    /// Show everything about one gate
    Show(show::Args),
    /// Shut a gate: nothing that its guest sends gets out
    Close(close::Args),
    /// Remove a gate that has no controller from its tap
    Remove(remove::Args),
}

/// Where gates are looked for.
#[derive(clap::Args)]
struct Where {
    /// Directory of the sockets and pins of VMs and gates
    #[arg(long, value_name = "DIR", default_value = RUN_DIR_DEFAULT)]
    run_dir: PathBuf,
}

impl Args {
    /// Returns whether this is `remus gate run`.
    pub(super) fn holds_a_gate(&self) -> bool {
        match self.verb {
            Verb::Run(_) => true,
            Verb::List(_) | Verb::Show(_) | Verb::Close(_) | Verb::Remove(_) => false,
        }
    }
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    match args.verb {
        Verb::Run(args) => run::run(args),
        Verb::List(args) => Ok(list::run(&args)?),
        Verb::Show(args) => Ok(show::run(&args)?),
        Verb::Close(args) => Ok(close::run(&args)?),
        Verb::Remove(args) => Ok(remove::run(&args)?),
    }
}
