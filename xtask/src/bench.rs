//! `bench`: what a part of Remus costs, measured by the rig as root in namespaces of its own. `bench lab` has Linux
//! guests: where this machine has no hardware virtualization for them, it measures in the lab.
//!
//! A lab may die, so there it has one for each round of each part, and each adds its figures to those of the labs before.

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Parser;

use crate::{
    build, lab,
    run::{asks_help, become_rig, linux_wants_lab, rig},
    setup::Toolchain,
    tree::Tree,
};

/// What a part's round may take in the lab, in seconds.
const LAB_ROUND_S: u64 = 900;
/// How often a round is tried whose lab dies.
const LABS: u32 = 3;
/// Rounds when nothing is said. The rig has the same numbers.
const ROUNDS: u32 = 3;
const QUICK_ROUNDS: u32 = 1;
/// The parts of `bench lab` that share a lab, and their guests; the rig knows them by these names.
const TOGETHER: [&[&str]; 3] = [&["boot"], &["pause", "gap"], &["rate"]];
/// One that takes all its rounds at once.
const AT_ONCE: &str = "hold";
/// All of them.
const PARTS: [&str; 5] = ["boot", "pause", "gap", "rate", AT_ONCE];

/// Becomes the rig's bench of `part`. The report goes to `target/bench`.
pub(crate) fn run(
    tree: &Tree,
    toolchain: &Toolchain,
    part: &str,
    options: &[String],
) -> Result<ExitCode> {
    if part == "lab" && !asks_help(options) && linux_wants_lab(tree, "bench")? {
        let asked = Asked::of(options)?;
        build::run(tree, toolchain)?;
        return in_labs(tree, &asked);
    }
    become_rig(tree, toolchain, &["bench", part], options)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `bench lab` in a lab for each step. The exit status is the last one's, which has all figures, unless a step came
/// to no end in any of its labs.
fn in_labs(tree: &Tree, asked: &Asked) -> Result<ExitCode> {
    let (mut last, mut undone) = (0, 0);
    let mut onto = asked.onto;
    for step in asked.steps() {
        for lab in 1..=LABS {
            eprintln!("bench: {}", step.join(" "));
            let words = step.iter().cloned().chain(onto.then(|| "--onto".to_owned()));
            let command = rig(tree, &["bench", "lab"], &words.collect::<Vec<_>>());
            let mut options = lab::Options::of(command);
            options.timeout = LAB_ROUND_S;
            last = lab::run(tree, &options)?;
            if !matches!(last, lab::DIED | lab::TIMED_OUT) {
                onto = true;
                break;
            }
            if lab == LABS {
                eprintln!("bench: given up: {}", step.join(" "));
                undone = last;
            }
        }
    }
    Ok(ExitCode::from(if undone == 0 { last } else { undone }))
}

/// What `bench lab` was asked for. The rig, which knows these options better, is in the lab.
#[derive(Debug, Parser)]
#[command(
    no_binary_name = true,
    override_usage = "cargo xtask bench lab [--parts PART,...] [--rounds N] [--quick] [--onto]"
)]
struct Asked {
    #[arg(long, value_delimiter = ',', value_parser = PARTS, default_values = PARTS)]
    parts: Vec<String>,
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    #[arg(long)]
    quick: bool,
    #[arg(long)]
    onto: bool,
}

impl Asked {
    /// # Errors
    /// When the rig would not know an option, with those that it knows.
    fn of(options: &[String]) -> Result<Self> {
        let words = options.iter().filter(|option| *option != "--");
        // What it says has its cause in it.
        Self::try_parse_from(words).map_err(|error| anyhow!("{error}"))
    }

    /// Returns the rig's options for each lab, in their order.
    fn steps(&self) -> Vec<Vec<String>> {
        let rounds = self.rounds.unwrap_or(if self.quick { QUICK_ROUNDS } else { ROUNDS });
        let step = |parts: &[&str], rounds: u32| {
            let words = ["--parts", &parts.join(","), "--rounds", &rounds.to_string()];
            let quick = self.quick.then_some("--quick");
            words.into_iter().chain(quick).map(str::to_owned).collect()
        };
        let is_asked = |part: &str| self.parts.iter().any(|asked| asked == part);
        let asked = |group: &&[&'static str]| {
            group.iter().copied().filter(|part| is_asked(part)).collect::<Vec<_>>()
        };
        let groups: Vec<_> = TOGETHER.iter().map(asked).filter(|group| !group.is_empty()).collect();
        let each = (0..rounds).flat_map(|_| groups.iter().map(|group| step(group, 1)));
        let at_once = is_asked(AT_ONCE).then(|| step(&[AT_ONCE], rounds));
        each.chain(at_once).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(options: &[&str]) -> Result<Vec<String>> {
        let options: Vec<_> = options.iter().map(|option| (*option).to_owned()).collect();
        let asked = Asked::of(&options)?;
        Ok(asked.steps().iter().map(|step| step.join(" ")).collect())
    }

    #[test]
    fn each_round_of_a_part_has_a_lab_and_held_frames_have_one() {
        assert_eq!(
            asked(&["--parts=pause,gap,hold", "--rounds", "2"]).unwrap(),
            [
                "--parts pause,gap --rounds 1",
                "--parts pause,gap --rounds 1",
                "--parts hold --rounds 2"
            ]
        );
        assert_eq!(
            asked(&["--quick"]).unwrap(),
            [
                "--parts boot --rounds 1 --quick",
                "--parts pause,gap --rounds 1 --quick",
                "--parts rate --rounds 1 --quick",
                "--parts hold --rounds 1 --quick"
            ]
        );
        assert_eq!(asked(&["--", "--onto"]).unwrap().len(), 10);
    }

    #[test]
    fn what_the_rig_would_refuse_is_refused_before_a_lab_is_started() {
        for options in [&["--parts", "boots"][..], &["--rounds", "0"], &["--rounds"], &["--fast"]] {
            let error = asked(options).unwrap_err().to_string();
            assert!(error.contains("rounds") || error.contains("pause"), "{error}");
        }
    }
}
