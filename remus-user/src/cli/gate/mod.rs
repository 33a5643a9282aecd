//! `remus gate`: a gate without our VMM, and gates that were left behind.
//!
//! `run` drives one for somebody else's checkpointer. The others are for an operator: they find gates by their
//! pins below the run directory, whoever made them (`remus run`, `remus backup`, `remus gate run`), alive or dead.

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
    /// Drive a gate on any tap for somebody else's checkpointer
    Run(run::Args),
    /// List the gates on this host, with or without a controller
    List(list::Args),
    /// Show everything about one gate
    Show(show::Args),
    /// Shut a gate: nothing of its guest gets out
    Close(close::Args),
    /// Take a gate that nobody controls off its tap
    Remove(remove::Args),
}

/// Where gates are looked for.
#[derive(clap::Args)]
struct Where {
    /// Where VMs and gates keep their sockets and pins
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
