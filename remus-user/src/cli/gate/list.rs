//! `remus gate list`: a table of gates.

use anyhow::{Context, Result};

use super::{
    Where,
    seen::{Controller, Seen, lost, places},
};
use crate::{
    cli::{nothing_below, print},
    gate::Pinned,
    net::Links,
    outlet::say,
};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: Where,
    /// Print JSON: one document per gate, one per line
    #[arg(long)]
    json: bool,
}

const HEAD: [&str; 9] =
    ["NAME", "TAP", "ATTACHED", "MODE", "TERM", "OPEN", "COMMITTED", "HELD", "CONTROLLER"];

pub(super) fn run(args: &Args) -> Result<()> {
    let run_dir = &args.place.run_dir;
    let links = Links::open()?;
    let mut seen = Vec::new();
    for place in places(run_dir)? {
        match Pinned::find(&place.pins)? {
            Some(pinned) => seen.push(Seen::of(run_dir, &place, &pinned, &links)?),
            None => say(&format!("{}: {}", place.name.as_str(), lost(&place))),
        }
    }
    if args.json && !seen.is_empty() {
        for gate in &seen {
            print(&format!("{}\n", serde_json::to_string(gate).context("write JSON")?))?;
        }
        return Ok(());
    }
    if seen.is_empty() {
        say(&nothing_below(run_dir, "gate")?);
        return Ok(());
    }
    print(&table(&seen))
}

fn table(seen: &[Seen]) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(seen.iter().map(row));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let line = |row: &[String; HEAD.len()]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn row(gate: &Seen) -> [String; HEAD.len()] {
    [
        gate.name.clone(),
        gate.tap.clone().unwrap_or_else(|| "-".to_owned()),
        gate.attached.to_owned(),
        gate.mode.to_owned(),
        gate.term.to_string(),
        gate.open.to_string(),
        gate.committed.to_string(),
        gate.held.frames.to_string(),
        Controller::shown(gate.controller),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::gate::seen::Held;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let gate = Seen {
            name: "a-long-name".to_owned(),
            tap: None,
            attached: "gone",
            uplink: None,
            mode: "hold",
            term: 2,
            open: 1_000_000_000_000,
            committed: 7,
            held: Held { frames: 12, bytes: 8000, capacity: 1 << 25, committed: 0 },
            controller: Some(Controller { pid: Some(42) }),
        };
        assert_eq!(
            table(&[gate]),
            "NAME         TAP  ATTACHED  MODE  TERM  OPEN           COMMITTED  HELD  CONTROLLER\n\
             a-long-name  -    gone      hold  2     1000000000000  7          12    process 42\n"
        );
    }
}
