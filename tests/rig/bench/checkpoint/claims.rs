//! What Remus says of its checkpoints, as inequalities over the medians.

use super::{
    figures::{Arm, Faults, Figure, Figures, Load, Part, Run},
    memory, pause, rate, wire,
};
use crate::report::Claim;

/// Pages up to which a pause is bound to its floor, and the claims' names.
const NEAR_FLOOR: [(u32, &str); 6] = [
    (0, "pause_over_floor_0"),
    (1, "pause_over_floor_1"),
    (256, "pause_over_floor_256"),
    (512, "pause_over_floor_512"),
    (1024, "pause_over_floor_1024"),
    (4096, "pause_over_floor_4096"),
];
pub(super) const OVER_FLOOR_MAX: f64 = 1.25;
const OVER_SMALL_MAX: f64 = 1.25;
/// Parts that do not make the whole within this much hide something.
const PARTS_OFF_MAX: f64 = 0.1;

/// The claims of the parts that were run, and that nothing went wrong. What was not measured holds nothing.
pub(super) fn claims(parts: &[Part], figures: &Figures, faults: &Faults) -> Vec<Claim> {
    let speed = parts.iter().flat_map(|part| match part {
        Part::Pause => pauses(figures),
        Part::Rate => rates(figures),
        Part::Latency => latencies(figures),
        Part::Throughput => throughput(figures),
        Part::Wire => {
            let ratio = figures.claimed(wire::run(pause::SPARSE), &Figure::WireRatio);
            vec![Claim::at_most("wire_sparse_over_raw", ratio, 0.10, "ratio")]
        }
        Part::Memory => memories(figures),
    });
    speed.chain(correctness(*faults)).collect()
}

fn pauses(figures: &Figures) -> Vec<Claim> {
    let protected = |pages| pause::run(Load::Pages(pages), Arm::Latency);
    let idle_us = figures.claimed(protected(0), &Figure::PauseP50Us);
    let mut claims = vec![Claim::at_most("pause_idle_p50", idle_us, 200.0, "us")];
    claims.extend(NEAR_FLOOR.map(|(pages, id)| {
        let over = figures.claimed(protected(pages), &Figure::OverFloor);
        Claim::at_most(id, over, OVER_FLOOR_MAX, "ratio")
    }));
    let sums = figures.runs().filter(|run| run.part == Part::Pause);
    let off = sums.filter_map(|run| Some((figures.get(run, &Figure::PartsSum)? - 1.0).abs()));
    if let Some(most) = off.reduce(f64::max) {
        claims.push(Claim::at_most("pause_parts_sum_off", most, PARTS_OFF_MAX, "ratio"));
    }
    claims
}

fn rates(figures: &Figures) -> Vec<Claim> {
    let at = |pages, arm, figure| figures.claimed(rate::run(Load::Pages(pages), arm), &figure);
    let work = |id, pages, bound| {
        Claim::at_least(id, at(pages, Arm::Latency, Figure::WorkRatio), bound, "ratio")
    };
    let hz = |id, pages, arm, bound| {
        Claim::at_least(id, at(pages, arm, Figure::CheckpointsPerS), bound, "1/s")
    };
    vec![
        work("work_1000_pages", 1000, 0.95),
        work("work_4000_pages", 4000, 0.88),
        // The bounds on work are for 40 checkpoints a second: with fewer they would be cheap.
        hz("rate_1000_pages", 1000, Arm::Latency, 39.0),
        hz("rate_4000_pages", 4000, Arm::Latency, 39.0),
        hz("rate_200_hz_100_pages", 100, Arm::Fixed(200), 195.0),
    ]
}

fn latencies(figures: &Figures) -> Vec<Claim> {
    let run = Run { part: Part::Latency, load: Load::Connections(1), arm: Arm::Latency };
    let ms = |figure| figures.claimed(run, &figure) / 1e3;
    vec![
        Claim::at_most("latency_added_p50", ms(Figure::AddedP50Us), 1.0, "ms"),
        Claim::at_most("latency_added_p99", ms(Figure::AddedP99Us), 10.0, "ms"),
    ]
}

/// Of the two modes that steer, the better.
fn throughput(figures: &Figures) -> Vec<Claim> {
    let better = |load| {
        let ratio = |arm| {
            figures.claimed(Run { part: Part::Throughput, load, arm }, &Figure::RequestsRatio)
        };
        ratio(Arm::Latency).max(ratio(Arm::Throughput))
    };
    vec![
        Claim::at_least("redis_benchmark_set", better(Load::Set), 0.50, "ratio"),
        Claim::at_least("redis_benchmark_get", better(Load::Get), 0.50, "ratio"),
    ]
}

fn memories(figures: &Figures) -> Vec<Claim> {
    [(1, "pause_1_vcpu_4_gib_over_256_mib"), (2, "pause_2_vcpus_4_gib_over_256_mib")]
        .map(|(vcpus, id)| {
            let over = figures.claimed(memory::run(memory::large(vcpus)), &Figure::OverSmall);
            Claim::at_most(id, over, OVER_SMALL_MAX, "ratio")
        })
        .into()
}

fn correctness(faults: Faults) -> [Claim; 6] {
    let Faults {
        replies_wrong,
        connections_lost,
        benchmarks_failed,
        frames_refused_by_lock,
        frames_dropped_full,
        protections_lost,
    } = faults;
    [
        Claim::none("replies_wrong", replies_wrong, "replies"),
        Claim::none("connections_lost", connections_lost, "connections"),
        Claim::none("redis_benchmark_failed", benchmarks_failed, "runs"),
        Claim::none("frames_refused_by_lock", frames_refused_by_lock, "frames"),
        Claim::none("frames_dropped_full", frames_dropped_full, "frames"),
        Claim::none("protection_lost", protections_lost, "guests"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::holds;

    #[test]
    fn what_was_not_measured_holds_nothing_and_what_was_not_asked_is_not_claimed() {
        let (figures, faults) = (Figures::default(), Faults::default());
        for part in Part::ALL {
            let claims = claims(&[part], &figures, &faults);
            assert!(claims.iter().all(|claim| claim.holds == claim.correctness), "{part:?}");
        }
        assert_eq!(claims(&[], &figures, &faults).len(), 6);
    }

    #[test]
    fn throughput_counts_in_the_better_mode() {
        let mut figures = Figures::default();
        for (arm, ratio) in [(Arm::Latency, 0.3), (Arm::Throughput, 0.6), (Arm::Fixed(40), 0.9)] {
            for load in [Load::Set, Load::Get] {
                let ratio = if load == Load::Set { ratio } else { ratio / 2.0 };
                let run = Run { part: Part::Throughput, load, arm };
                figures.add(run, [(Figure::RequestsRatio, ratio)]);
            }
        }
        let claims = claims(&[Part::Throughput], &figures, &Faults::default());
        assert!(holds(&claims, "redis_benchmark_set"));
        assert!(!holds(&claims, "redis_benchmark_get"));
    }

    #[test]
    fn added_latency_is_claimed_in_milliseconds() {
        let mut figures = Figures::default();
        let run = Run { part: Part::Latency, load: Load::Connections(1), arm: Arm::Latency };
        figures.add(run, [(Figure::AddedP50Us, 900.0), (Figure::AddedP99Us, 10_001.0)]);
        let claims = claims(&[Part::Latency], &figures, &Faults::default());
        assert!(holds(&claims, "latency_added_p50"));
        assert!(!holds(&claims, "latency_added_p99"));
    }

    #[test]
    fn parts_that_leave_something_out_fail_where_parts_are_told() {
        let run = pause::run(Load::Pages(1024), Arm::Latency);
        for (sum, whole) in [(0.97, true), (0.8, false), (1.2, false)] {
            let mut figures = Figures::default();
            figures.add(run, [(Figure::PartsSum, sum)]);
            let claims = claims(&[Part::Pause], &figures, &Faults::default());
            assert_eq!(holds(&claims, "pause_parts_sum_off"), whole, "{sum}");
        }
    }

    #[test]
    fn anything_lost_fails_even_a_quick_bench() {
        let faults = Faults { replies_wrong: 1, ..Faults::default() };
        let claims = claims(&[], &Figures::default(), &faults);
        assert!(!crate::bench::report::all_hold(&claims, true));
    }
}
