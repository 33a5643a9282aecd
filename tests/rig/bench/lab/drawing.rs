//! The bench as a drawing: ours beside the peers'.

use super::{
    claims::{BOOT_OVER_MICROVM_MAX, GAP_MS_MAX, PAUSE_OVER_COLO_MAX, RATE_MIN},
    figures::{Arm, Figure, Figures, Load, Part, Run},
    report::FIRECRACKER,
};
use crate::bench::svg::{
    Drawing, Panel, Plot,
    bars::{Bar, Bars, Group, Limit},
};

const ARMS: [Arm; 5] = [Arm::Remus, Arm::Uplink, Arm::Microvm, Arm::Colo, Arm::Plug];
const PROTECTED: [Part; 2] = [Part::Pause, Part::Rate];
const FIRECRACKERS: (&str, &str) = ("Firecracker, not of this run", "#999999");

pub(super) fn drawing(figures: &Figures, subtitle: String) -> Drawing {
    let panels = vec![
        panel(figures, "From the VMM's start to user space, s", &[Part::Boot], Figure::UserspaceS),
        panel(figures, "Pause of a checkpoint, p50, ms", &PROTECTED, Figure::PauseP50Ms),
        panel(figures, "Checkpoints a second", &PROTECTED, Figure::CheckpointsPerS),
        panel(figures, "Client's longest gap, ms", &[Part::Gap], Figure::GapMs),
        panel(figures, "From the death to the first reply, ms", &[Part::Gap], Figure::FirstReplyMs),
        panel(figures, "Release of 10,000 frames, ms", &[Part::Hold], Figure::ReleaseMs),
    ];
    let mut legend: Vec<_> = ARMS.iter().map(|arm| (arm.name(), arm.colour())).collect();
    legend.push(FIRECRACKERS);
    Drawing {
        title: "A stock Linux guest, protected, beside others' ways".to_owned(),
        subtitle,
        legend,
        panels: panels.into_iter().filter(|panel| !panel.is_empty()).collect(),
    }
}

/// A group for each load that was measured, with a bar for each arm.
fn panel(figures: &Figures, title: &str, parts: &[Part], figure: Figure) -> Panel {
    let runs = figures.runs().filter(|run| parts.contains(&run.part));
    let mut loads: Vec<(Part, Load)> = runs.map(|run| (run.part, run.load)).collect();
    loads.dedup();
    let groups = loads
        .into_iter()
        .map(|(part, load)| Group { label: load.name(), bars: bars(figures, part, load, figure) });
    let groups = groups.filter(|group| !group.bars.is_empty()).collect();
    Panel { title: title.to_owned(), plot: Plot::Bars(Bars { groups }) }
}

fn bars(figures: &Figures, part: Part, load: Load, figure: Figure) -> Vec<Bar> {
    let value = |arm| figures.get(Run { part, load, arm }, &figure);
    let bar = |arm: Arm| {
        let limit = if arm == Arm::Remus { limit(value, figure, load) } else { None };
        Some(Bar { colour: arm.colour(), value: value(arm)?, limit })
    };
    let mut bars: Vec<Bar> = ARMS.into_iter().filter_map(bar).collect();
    if figure == Figure::PauseP50Ms && !bars.is_empty() {
        let theirs = FIRECRACKER.iter().filter(|elsewhere| elsewhere.load == load);
        bars.extend(theirs.map(|elsewhere| Bar {
            colour: FIRECRACKERS.1,
            value: elsewhere.pause_ms,
            limit: None,
        }));
    }
    bars
}

/// The bound on our bar, where there is one.
fn limit(value: impl Fn(Arm) -> Option<f64>, figure: Figure, load: Load) -> Option<Limit> {
    let ours = value(Arm::Remus)?;
    match figure {
        Figure::UserspaceS => Some(at_most(ours, value(Arm::Microvm)? * BOOT_OVER_MICROVM_MAX)),
        Figure::PauseP50Ms => Some(at_most(ours, value(Arm::Colo)? * PAUSE_OVER_COLO_MAX)),
        Figure::GapMs => Some(at_most(ours, GAP_MS_MAX)),
        Figure::CheckpointsPerS if load != Load::Idle => {
            Some(Limit { at: RATE_MIN, holds: ours >= RATE_MIN })
        }
        _ => None,
    }
}

fn at_most(value: f64, at: f64) -> Limit {
    Limit { at, holds: value <= at }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::lab::protect;

    #[test]
    fn what_is_not_of_this_run_is_drawn_only_beside_ours() {
        let mut figures = Figures::default();
        assert!(drawing(&figures, String::new()).panels.is_empty());
        for (arm, ms) in [(Arm::Remus, 7.0), (Arm::Colo, 105.0)] {
            figures.add(protect::idle(arm), [(Figure::PauseP50Ms, ms)]);
        }
        let drawn = bars(&figures, Part::Pause, Load::Idle, Figure::PauseP50Ms);
        assert_eq!(drawn.iter().map(|bar| bar.value).collect::<Vec<_>>(), [7.0, 105.0, 24.0]);
        let limit = drawn[0].limit.unwrap();
        assert!(limit.holds && (limit.at - 10.5).abs() < 1e-9 && drawn[1].limit.is_none());
        assert_eq!(drawing(&figures, String::new()).panels.len(), 1);
    }
}
