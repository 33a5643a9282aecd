//! What the reports of all benches have in common: the machine, the files, the verdict.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

use super::svg::Drawing;
use crate::{
    report::{Claim, kernel},
    sys,
};

/// The machine on which a bench ran.
#[derive(Debug, Serialize)]
pub(super) struct Host {
    kernel: String,
    cpu: String,
    cpus: usize,
}

impl Host {
    pub(super) fn this() -> Self {
        Self { kernel: kernel(), cpu: cpu_model(), cpus: sys::cpus().len() }
    }

    /// Of a drawing.
    pub(super) fn subtitle(&self, rounds: u32, quick: bool) -> String {
        let Self { kernel, cpu, cpus } = self;
        let quick = if quick { "; QUICK: figures mean little" } else { "" };
        let s = if rounds == 1 { "" } else { "s" };
        format!("Linux {kernel}, {cpus} CPUs, {cpu}; median of {rounds} round{s}{quick}")
    }
}

/// Whether every claim holds; after quick rounds, every one that is not about speed.
pub(super) fn all_hold(claims: &[Claim], quick: bool) -> bool {
    claims.iter().all(|claim| claim.holds || quick && !claim.correctness)
}

/// Whether the claim of this name holds.
#[cfg(test)]
pub(super) fn holds(claims: &[Claim], id: &str) -> bool {
    claims.iter().find(|claim| claim.id == id).unwrap_or_else(|| panic!("no claim {id}")).holds
}

/// Takes out of a quick bench's claims those about speed for which it has no figure: it has few points, and what it did
/// not look at it does not judge.
pub(super) fn keep_looked_at(claims: &mut Vec<Claim>, quick: bool) {
    claims.retain(|claim| !quick || claim.correctness || !claim.measured.is_nan());
}

/// For people: a line for each run, a title before the first of each group, then the claims.
pub(super) fn table<R: Copy, G: PartialEq>(
    runs: impl Iterator<Item = R>,
    group: impl Fn(R) -> G,
    title: impl Fn(R) -> String,
    row: impl Fn(R) -> String,
    claims: &[Claim],
) -> String {
    let mut lines = Vec::new();
    let mut last = None;
    for run in runs {
        let group = Some(group(run));
        if last != group {
            lines.push(format!("\n{}", title(run)));
            last = group;
        }
        lines.push(format!("  {}", row(run)));
    }
    lines.push(String::new());
    lines.extend(claims.iter().map(|claim| format!("  {claim}")));
    lines.join("\n") + "\n"
}

/// Writes `BENCH.json` and `BENCH.svg`.
pub(super) fn write(
    folder: &Path,
    bench: &str,
    report: &impl Serialize,
    drawing: &Drawing,
) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let json = serde_json::to_string_pretty(report).context("write the report as JSON")?;
    for (ending, content) in [("json", json + "\n"), ("svg", drawing.svg())] {
        let file = folder.join(bench).with_extension(ending);
        fs::write(&file, content).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let model = line.and_then(|line| line.split_once(':'));
    model.map_or("unknown", |(_, model)| model.trim()).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_bench_fails_for_what_was_lost_and_not_for_what_was_slow() {
        let slow = Claim::at_most("slow", 2.0, 1.0, "us");
        let lost = Claim::none("lost", 1, "frames");
        assert!(all_hold(std::slice::from_ref(&slow), true));
        assert!(!all_hold(&[slow], false));
        assert!(!all_hold(&[lost], true));
    }

    #[test]
    fn what_was_not_measured_holds_nothing() {
        assert!(!all_hold(&[Claim::at_most("absent", f64::NAN, 1.0, "us")], false));
        assert!(!all_hold(&[Claim::at_least("absent", f64::NAN, 1.0, "us")], false));
    }
}
