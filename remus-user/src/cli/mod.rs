//! The command line: one file per verb, one place where errors are printed and become exit codes.
//!
//! An error is printed once, as `remus: error: ` and its chain on one line; the message also says what to do. Help, tables
//! and JSON go to stdout, everything else goes to stderr through the log's outlet, so that no reader that is slow or gone
//! keeps a process from ending.

mod backup;
mod clean;
mod gate;
mod generate;
mod logging;
mod preflight;
mod run;
mod status;
mod unprotect;

use std::{fmt::Write as _, os::fd::AsFd, path::Path, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::{
    checks::Report,
    config::{ConfigError, RUN_DIR_DEFAULT},
    outlet, signals,
};

const EXIT_CODES: &str = "\
Exit codes:
  0  done (a VM ended on purpose, a backup was told to stop)
  1  failed
  2  wrong usage or config
  3  preflight refused: this machine lacks something

Logs go to stderr; --log or RUST_LOG choose how much (error, warn, info, debug, or target=level,...).";

#[derive(Parser)]
#[command(name = "remus", version, about = "Virtual machines that survive the death of their host")]
#[command(after_help = EXIT_CODES, max_term_width = 110)]
struct Cli {
    /// Log filter: a level, or target=level,... [default: RUST_LOG if it is set, else info]
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run a VM on this host, protected by a backup
    Run(run::Args),
    /// Stand by to take over the VMs of other hosts
    Backup(backup::Args),
    /// Show the state of the VMs on this host
    Status(status::Args),
    /// Let a VM go on whose backup is gone for good
    Unprotect(unprotect::Args),
    /// Remove what a VM that is gone left on this host
    Clean(clean::Args),
    /// Run a gate for another checkpointer; inspect and repair gates after a crash
    Gate(gate::Args),
    /// Check whether this machine has what `run` and `backup` need
    Preflight(preflight::Args),
    /// Generate man pages and shell completions, for packagers
    Generate(generate::Args),
}

/// Why a verb failed; each reason has its exit code.
enum Failure {
    Failed(anyhow::Error),
    Config(ConfigError),
    /// `run` or `backup` was refused; the report is not printed yet.
    Preflight(Report),
    /// `preflight` has printed its report, which has this number of refusals.
    Refusals(usize),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

/// Runs the `remus` binary, from the process's arguments to its exit code.
pub fn main() -> ExitCode {
    // Prints by itself and exits 0 (help, version) or 2 (usage).
    let cli = Cli::parse();
    // Before there is any other thread: new threads inherit this one's mask.
    if cli.verb.holds_a_guest()
        && let Err(e) = signals::settle()
    {
        outlet::say(&format!("remus: error: {e:#}"));
        return ExitCode::FAILURE;
    }
    if let Err(e) = logging::start(cli.log.as_deref()) {
        outlet::say(&format!("remus: error: {e:#}"));
        return ExitCode::from(2);
    }
    outlet::report_panics();
    let done = match cli.verb {
        Verb::Run(args) => run::run(args),
        Verb::Backup(args) => backup::run(args),
        Verb::Status(args) => status::run(&args),
        Verb::Unprotect(args) => unprotect::run(args),
        Verb::Clean(args) => clean::run(&args),
        Verb::Gate(args) => gate::run(args),
        Verb::Preflight(args) => preflight::run(&args),
        Verb::Generate(args) => generate::run(&args),
    };
    match done {
        Ok(()) => {
            outlet::finish();
            ExitCode::SUCCESS
        }
        Err(failure) => {
            outlet::say(&failure.message());
            ExitCode::from(failure.code())
        }
    }
}

impl Verb {
    /// Returns whether the process is to hold a guest, or the gate of one, as long as it lives.
    fn holds_a_guest(&self) -> bool {
        match self {
            Self::Run(_) | Self::Backup(_) => true,
            Self::Gate(args) => args.holds_a_gate(),
            Self::Status(_)
            | Self::Unprotect(_)
            | Self::Clean(_)
            | Self::Preflight(_)
            | Self::Generate(_) => false,
        }
    }
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Config(_) => 2,
            Self::Preflight(_) | Self::Refusals(_) => 3,
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Failed(error) => format!("remus: error: {error:#}\n"),
            Self::Config(error) => format!("remus: error: {error}\n"),
            Self::Preflight(report) => {
                let mut text = String::from("remus: error: this machine is not ready:\n");
                for check in report.refused() {
                    // Writing to a String does not fail.
                    writeln!(text, "  {}: {}\n    {}", check.name, check.found, check.remedy)
                        .expect("a String takes it");
                }
                text
            }
            Self::Refusals(1) => "remus: error: this machine is not ready: 1 refusal\n".into(),
            Self::Refusals(n) => format!("remus: error: this machine is not ready: {n} refusals\n"),
        }
    }
}

/// Returns what to tell an operator who looks below a run directory in which nothing is.
///
/// # Errors
/// When the directory does not exist, unless it is the default one, which no boot begins with.
fn nothing_below(run_dir: &Path, what: &str) -> anyhow::Result<String> {
    let shown = run_dir.display();
    if run_dir.is_dir() {
        return Ok(format!("there is no {what} below {shown}"));
    }
    if run_dir == Path::new(RUN_DIR_DEFAULT) {
        return Ok(format!("there is no {shown}: no VM has run here since boot"));
    }
    anyhow::bail!(
        "there is no directory {shown}: --run-dir names the one that VMs were started with"
    )
}

/// Writes to stdout and waits for its reader. A reader that has gone (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::{ErrorKind, stdout};
    // To the descriptor itself: what is left in the buffer of `stdout` when the process ends is lost silently.
    let stdout = std::fs::File::from(stdout().as_fd().try_clone_to_owned().context("stdout")?);
    match outlet::write_patiently(&stdout, text.as_bytes()) {
        Err(e) if e.error.kind() != ErrorKind::BrokenPipe => {
            Err(e.error).context("write to standard output")
        }
        Err(_) | Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_documents_exit_codes() {
        Cli::command().debug_assert();
        let help = Cli::command().render_help().to_string();
        assert!(help.contains("3  preflight refused"), "{help}");
    }

    #[test]
    fn a_chain_is_printed_in_one_line() {
        let error = anyhow::anyhow!("no such device").context("attach hold to tap0");
        let failure = Failure::from(error);
        assert_eq!(failure.message(), "remus: error: attach hold to tap0: no such device\n");
        assert_eq!(failure.code(), 1);
    }
}
