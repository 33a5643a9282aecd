//! `remus generate`: man pages and shell completions. Both are generated from the command line of this very binary, so
//! neither can be out of date. A package runs this verb when it is built.

use std::{fs, path::PathBuf};

use anyhow::Context;
use clap::{CommandFactory, Subcommand};
use clap_complete::Shell;

use super::{Cli, Failure};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Write the man pages: one for remus and one for each subcommand
    Man {
        /// Directory to write to, created if it is missing; man pages that are there are replaced
        dir: PathBuf,
    },
    /// Print a completion script
    Completion { shell: Shell },
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    match &args.what {
        What::Man { dir } => {
            fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
            clap_mangen::generate_to(Cli::command(), dir)
                .with_context(|| format!("write man pages to {}", dir.display()))?;
        }
        What::Completion { shell } => super::print(&completion(*shell))?,
    }
    Ok(())
}

fn completion(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "remus", &mut script);
    String::from_utf8(script).expect("the command line is text")
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_verb_has_a_man_page_that_tells_its_options() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("share/man/man1");
        let args = Args { what: What::Man { dir: dir.clone() } };
        assert!(run(&args).is_ok());
        // Over what is there, as a package that is built again.
        assert!(run(&args).is_ok());
        let page = |name: &str| fs::read_to_string(dir.join(name)).expect(name);
        for verb in Cli::command().get_subcommands() {
            page(&format!("remus-{}.1", verb.get_name()));
        }
        assert!(page("remus.1").contains("Exit codes"));
        assert!(page("remus-gate-run.1").contains(".SH OPTIONS"));
        assert!(page("remus-status.1").contains("since\\-epoch"));
    }

    #[test]
    fn every_shell_is_told_every_verb() {
        for &shell in Shell::value_variants() {
            let script = completion(shell);
            for verb in Cli::command().get_subcommands() {
                assert!(script.contains(verb.get_name()), "{shell}: {}", verb.get_name());
            }
        }
    }

    #[test]
    fn a_directory_that_cannot_be_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let args = Args { what: What::Man { dir: file.path().join("man1") } };
        let failure = run(&args).unwrap_err();
        assert_eq!(failure.code(), 1);
        assert!(failure.message().contains("man1"), "{}", failure.message());
    }
}
