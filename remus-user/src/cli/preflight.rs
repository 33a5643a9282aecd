//! `remus preflight`: prints what [`checks`] finds on this machine.

use std::{fmt::Write as _, path::PathBuf};

use super::Failure;
use crate::{
    checks::{self, Outcome, Report},
    config::Config,
};

#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct Args {
    /// Also check what this VM needs
    #[arg(value_name = "CONFIG.toml")]
    config: Option<PathBuf>,
    /// Print JSON: {"ready": bool, "checks": [{name, outcome, found, remedy}]}
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let report = match &args.config {
        Some(path) => checks::primary(&Config::load(path)?),
        None => Report::new(checks::everywhere(None)),
    };
    let text = if args.json {
        let mut json = serde_json::to_string_pretty(&report).map_err(anyhow::Error::from)?;
        json.push('\n');
        json
    } else {
        table(&report)
    };
    super::print(&text)?;
    match report.refused().count() {
        0 => Ok(()),
        refusals => Err(Failure::Refusals(refusals)),
    }
}

/// Returns the report as aligned lines for people.
fn table(report: &Report) -> String {
    let width = report.checks.iter().map(|c| c.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for check in &report.checks {
        let mark = match check.outcome {
            Outcome::Ok => "ok",
            Outcome::Warning => "WARNING",
            Outcome::Refused => "REFUSED",
        };
        writeln!(text, "{mark:<8} {:<width$}  {}", check.name, check.found)
            .expect("a String takes it");
        if !check.remedy.is_empty() {
            writeln!(text, "{:<8} {:<width$}    -> {}", "", "", check.remedy)
                .expect("a String takes it");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::Check;

    #[test]
    fn one_refusal_refuses_and_a_warning_does_not() {
        let warned = Report::new(vec![Check::ok("a", "x"), Check::warning("b", "slow", "do")]);
        assert!(warned.passed());
        let refused =
            Report::new(vec![Check::ok("a", "x"), Check::refused("b", "none", "get one")]);
        assert!(!refused.passed());
        assert_eq!(table(&refused), "ok       a  x\nREFUSED  b  none\n              -> get one\n");
        assert_eq!(
            Failure::Preflight(refused).message(),
            "remus: error: this machine is not ready:\n  b: none\n    get one\n"
        );
    }
}
