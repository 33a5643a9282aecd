//! `cargo xtask VERB`: everything that a developer, a reader of the README and the CI run, one file per verb.
//!
//! Every verb calls `setup` first, so that no other preparation exists. Builds and unprivileged tests run as
//! the caller; only built binaries are raised with sudo. A command that fails is shown as it was run.

mod bench;
mod build;
mod invoke;
mod lab;
mod lint;
mod run;
mod setup;
mod test;
mod tree;

use std::process::ExitCode;

use anyhow::{Result, bail};
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
        /// `sim`, `netns`, `kvm`, `faults`, a part of a test's name; or `lab`, for the tests of the lab in the lab
        filter: Option<String>,
        /// Of the lab's tests those whose name contains this
        #[arg(requires = "filter")]
        name: Option<String>,
    },
    /// Run a command in the lab: a stock Debian kernel under QEMU, with AMD SVM emulated, on this machine's files
    ///
    /// The exit status is the command's; 124 if it took too long, 125 if the lab died.
    Lab(lab::Options),
    /// Make a guest of stock parts, and print where its kernel, its initramfs and its disk are
    Guest {
        kind: lab::guest::Kind,
        /// Also when it is made of the same as the one that is there
        #[arg(long)]
        fresh: bool,
    },
    /// Build, then measure what a part of Remus costs (`bench PART --help` lists the options)
    #[command(disable_help_flag = true)]
    Bench {
        /// `gate`, `checkpoint` or `lab`
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
        Ok(status) => status,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform() -> Result<ExitCode> {
    let verb = Arguments::parse().verb;
    let tree = Tree::find()?;
    let toolchain = setup::run(&tree)?;
    match verb {
        Verb::Setup => println!("setup: all is there"),
        Verb::Build => build::run(&tree, &toolchain)?,
        Verb::Run { options } => return run::run(&tree, &toolchain, &options),
        Verb::Test { filter, name } => match (filter.as_deref(), name.as_deref()) {
            (Some("lab"), name) => return lab::suite::run(&tree, &toolchain, name),
            (_, Some(name)) => {
                bail!("a second word ({name}) only says which of the lab's tests to run")
            }
            (filter, None) => test::run(&tree, &toolchain, filter)?,
        },
        Verb::Lab(options) => return Ok(ExitCode::from(lab::run(&tree, &options)?)),
        Verb::Guest { kind, fresh } => lab::guest::run(&tree, kind, fresh)?,
        Verb::Bench { part, options } => return bench::run(&tree, &toolchain, &part, &options),
        Verb::Lint => lint::run(&tree, &toolchain)?,
    }
    Ok(ExitCode::SUCCESS)
}
