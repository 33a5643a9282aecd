//! `remus gate show`: shows everything about one gate.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use remus_abi::counters::Counted;

use super::{
    Where,
    seen::{Controller, Seen, find},
};
use crate::{
    cli::print,
    net::Links,
    observe::{alarms, by_unit},
};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: Where,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Name of the gate, or of the tap that it is on
    #[arg(value_name = "NAME|TAP")]
    gate: String,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let run_dir = &args.place.run_dir;
    let (place, pinned) = find(run_dir, &args.gate)?;
    let seen = Seen::of(run_dir, &place, &pinned, &Links::open()?)?;
    let counters = pinned.counters()?;
    if args.json {
        let mut json = serde_json::to_value(&seen).context("write JSON")?;
        let counted: serde_json::Map<_, _> =
            counters.iter().map(|(c, n)| (c.name().to_owned(), n.into())).collect();
        json["counters"] = counted.into();
        return print(&format!("{json}\n"));
    }
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        writeln!(text, "{name:<11} {value}").expect("a String takes it");
    };
    line("gate", seen.name.clone());
    line("tap", format!("{} ({})", seen.tap.as_deref().unwrap_or("-"), seen.attached));
    line(
        "released",
        seen.uplink
            .as_deref()
            .map_or("back into the tap".to_owned(), |uplink| format!("by {uplink}")),
    );
    line("mode", seen.mode.to_owned());
    line("epochs", format!("term {}, {} open, {} committed", seen.term, seen.open, seen.committed));
    let held = seen.held;
    line(
        "held",
        format!(
            "{} frames ({} committed), {} bytes of {}",
            held.frames, held.committed, held.bytes, held.capacity
        ),
    );
    line("controller", Controller::shown(seen.controller));
    for alarm in alarms("counters", &counters) {
        line("ALARM", alarm);
    }
    for counted in by_unit(&counters) {
        line("counted", counted);
    }
    print(&text)
}
