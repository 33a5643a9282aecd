//! The bench as a drawing, with the paper's axes beside ours.

use super::{
    claims::OVER_FLOOR_MAX,
    figures::{Arm, Figure, Figures, Load, Part, Run},
    memory,
    pause::{PAPER_US, SPARSE},
    rate,
    requests::CONNECTIONS,
    wire,
};
use crate::bench::svg::{
    Drawing, Panel, Plot,
    bars::{Bar, Bars, Group, Limit},
    curves::{Axis, Curve, Curves, Scale},
};

const PAPER: (&str, &str) = ("the paper (2008)", "#cc79a7");
const CLIENTS: [Arm; 4] = [Arm::Unprotected, Arm::Latency, Arm::Throughput, Arm::Fixed(40)];
/// Where an axis of logarithms has its 0.
const NO_PAGES: f64 = 0.5;

pub(super) fn drawing(figures: &Figures, subtitle: String) -> Drawing {
    let panels = vec![
        panel("Pause, us, against dirty pages", Plot::Curves(pauses(figures))),
        panel("Guest's own work, %, against checkpoints/s", Plot::Curves(rates(figures))),
        panel("Latency of a request, p50, ms", latencies(figures, &Figure::LatencyP50Us)),
        panel("Latency of a request, p99, ms", latencies(figures, &Figure::LatencyP99Us)),
        panel("redis-benchmark -c 50 -P 16, thousands/s", throughput(figures)),
        panel("On the wire, % of dirty pages whole", wires(figures)),
        panel("Pause at 1000 pages, us, by machine", memories(figures)),
    ];
    let mut legend = vec![PAPER, ("floor", Arm::Floor.colour())];
    let names = ["unprotected", "latency mode (default)", "throughput mode", "fixed rate"];
    legend.extend(names.into_iter().zip(CLIENTS.map(Arm::colour)));
    Drawing {
        title: "Checkpoints, against the floor of a pause and the same guest unprotected"
            .to_owned(),
        subtitle,
        legend,
        panels: panels.into_iter().filter(|panel| !panel.is_empty()).collect(),
    }
}

fn panel(title: &str, plot: Plot) -> Panel {
    Panel { title: title.to_owned(), plot }
}

fn pauses(figures: &Figures) -> Curves {
    let curve = |arm: Arm| {
        let points = figures.runs().filter_map(|run| {
            let Run { part: Part::Pause, load: Load::Pages(pages), arm: of } = run else {
                return None;
            };
            let us = figures.get(run, &Figure::PauseP50Us).filter(|_| of == arm)?;
            Some((f64::from(pages).max(NO_PAGES), us))
        });
        Curve { colour: arm.colour(), dashed: false, points: points.collect() }
    };
    let ours = curve(Arm::Latency);
    // Nothing of ours, nothing to set beside it.
    let (base, page) = PAPER_US;
    let paper = ours.points.iter().map(|&(pages, _)| (pages, base + page * pages)).collect();
    let paper = Curve { colour: PAPER.1, dashed: true, points: paper };
    let bound = curve(Arm::Floor);
    let bound = bound.points.iter().map(|&(pages, us)| (pages, us * OVER_FLOOR_MAX)).collect();
    let bound = Curve { colour: Arm::Floor.colour(), dashed: true, points: bound };
    let mut x = Axis::new(Scale::Log, [1.0, 16.0, 256.0, 1024.0, 4096.0, 16384.0]);
    x.ticks.insert(0, (NO_PAGES, "0".to_owned()));
    let y = Axis::new(Scale::Log, [30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5]);
    Curves { x, y, curves: vec![paper, bound, curve(Arm::Floor), ours] }
}

fn rates(figures: &Figures) -> Curves {
    let ours = figures.runs().filter_map(|run| {
        let Run { part: Part::Rate, load: Load::Pages(1000), arm: Arm::Fixed(hz) } = run else {
            return None;
        };
        Some((f64::from(hz), figures.get(run, &Figure::WorkRatio)? * 100.0))
    });
    let ours: Vec<_> = ours.collect();
    let paper = rate::PAPER.iter().filter(|_| !ours.is_empty());
    let paper = paper.map(|&(hz, ratio)| (hz, ratio * 100.0)).collect();
    Curves {
        x: Axis::new(Scale::Log, [10.0, 20.0, 30.0, 40.0, 100.0, 200.0]),
        y: Axis::new(Scale::Linear, [0.0, 25.0, 50.0, 75.0, 100.0]),
        curves: vec![
            Curve { colour: PAPER.1, dashed: true, points: paper },
            Curve { colour: Arm::Fixed(0).colour(), dashed: false, points: ours },
        ],
    }
}

fn latencies(figures: &Figures, figure: &Figure) -> Plot {
    bars(CONNECTIONS.map(|connections| {
        let load = Load::Connections(connections);
        let run = |arm| Run { part: Part::Latency, load, arm };
        let bar = |arm: Arm| Some((arm, figures.get(run(arm), figure)? / 1e3, None));
        (load.name(), CLIENTS.into_iter().filter_map(bar).collect())
    }))
}

fn throughput(figures: &Figures) -> Plot {
    bars([Load::Set, Load::Get].map(|load| {
        let run = |arm| Run { part: Part::Throughput, load, arm };
        let told = |arm| Some(figures.get(run(arm), &Figure::RequestsPerS)? / 1e3);
        let half = told(Arm::Unprotected).map(|all| all / 2.0);
        let bar = |arm: Arm| {
            let value = told(arm)?;
            let bound = half.filter(|_| arm != Arm::Unprotected);
            Some((arm, value, bound.map(|at| Limit { at, holds: value >= at })))
        };
        (load.name(), CLIENTS.into_iter().filter_map(bar).collect())
    }))
}

fn wires(figures: &Figures) -> Plot {
    let runs = figures.runs().filter(|run| run.part == Part::Wire);
    bars(runs.filter_map(|run| {
        let percent = figures.get(run, &Figure::WireRatio)? * 100.0;
        let at = 10.0;
        let sparse = run == wire::run(SPARSE);
        let limit = sparse.then_some(Limit { at, holds: percent <= at });
        Some((run.load.name(), vec![(run.arm, percent, limit)]))
    }))
}

fn memories(figures: &Figures) -> Plot {
    bars(memory::MACHINES.into_iter().flatten().filter_map(|machine| {
        let run = memory::run(machine);
        let us = figures.get(run, &Figure::PauseP50Us)?;
        Some((run.load.name(), vec![(run.arm, us, None)]))
    }))
}

/// Groups without a bar are left out.
fn bars(groups: impl IntoIterator<Item = (String, Vec<(Arm, f64, Option<Limit>)>)>) -> Plot {
    let group = |(label, bars): (String, Vec<(Arm, f64, Option<Limit>)>)| {
        let bar = |(arm, value, limit): (Arm, f64, Option<Limit>)| Bar {
            colour: arm.colour(),
            value,
            limit,
        };
        Group { label, bars: bars.into_iter().map(bar).collect() }
    };
    let groups = groups.into_iter().map(group).filter(|group| !group.bars.is_empty());
    Plot::Bars(Bars { groups: groups.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::checkpoint::pause;

    #[test]
    fn the_paper_is_drawn_only_beside_ours() {
        let mut figures = Figures::default();
        assert!(drawing(&figures, String::new()).panels.is_empty());
        let run = pause::run(Load::Pages(0), Arm::Latency);
        figures.add(run, [(Figure::PauseP50Us, 240.0)]);
        let drawn = pauses(&figures);
        let (base, page) = PAPER_US;
        assert_eq!(drawn.curves[0].points, [(NO_PAGES, base + page * NO_PAGES)]);
        assert_eq!(drawing(&figures, String::new()).panels.len(), 1);
    }
}
