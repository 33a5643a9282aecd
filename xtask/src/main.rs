//! `cargo xtask VERB`: everything that a developer, a reader of the README and the CI run, one file per verb.
//!
//! Every verb calls `setup` first, so that no other preparation exists. Builds and unprivileged tests run as
//! the caller; only built binaries are raised with sudo. A command that fails is shown as it was run.

mod bench;
mod build;
mod invoke;
mod lint;
mod run;
mod setup;
mod test;
mod tree;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use tree::Tree;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set up, build, run, test, measure and lint Remus")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Bring what the build needs and this machine lacks; does nothing when all is there
    Setup,
    /// Build the gate's eBPF object, the demo guest, and the binaries `remus` and `remus-rig`
    Build,
    /// Build, then let a protected guest survive the death of its host (`run -- --help` lists the options)
    #[command(disable_help_flag = true)]
    Run {
        /// Options of `remus-rig run`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Build, then run the tests: all, those of one folder of tests/, or those whose name contains FILTER
    Test {
        /// `sim`, `netns`, `kvm`, or a part of a test's name
        filter: Option<String>,
    },
    /// Build, then measure what a part of Remus costs (`bench PART --help` lists the options)
    #[command(disable_help_flag = true)]
    Bench {
        /// `gate` or `checkpoint`
        part: String,
        /// Options of `remus-rig bench PART`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Format, clippy and rustdoc, each with warnings as errors, for every target
    Lint,
}

fn main() -> ExitCode {
    match perform() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform() -> Result<()> {
    let verb = Arguments::parse().verb;
    let tree = Tree::find()?;
    let toolchain = setup::run(&tree)?;
    match verb {
        Verb::Setup => {
            println!("setup: all is there");
            Ok(())
        }
        Verb::Build => build::run(&tree, &toolchain),
        Verb::Run { options } => run::run(&tree, &toolchain, &options),
        Verb::Test { filter } => test::run(&tree, &toolchain, filter.as_deref()),
        Verb::Bench { part, options } => bench::run(&tree, &toolchain, &part, &options),
        Verb::Lint => lint::run(&tree, &toolchain),
    }
}
