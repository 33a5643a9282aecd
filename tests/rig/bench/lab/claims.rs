//! What Remus says of itself beside its peers, as inequalities over the medians.

use super::{
    boot,
    figures::{Arm, Figure, Figures, Part, Run},
    gap, protect,
};
use crate::report::Claim;

pub(super) const BOOT_OVER_MICROVM_MAX: f64 = 1.5;
pub(super) const PAUSE_OVER_COLO_MAX: f64 = 0.1;
pub(super) const RATE_MIN: f64 = 20.0;
pub(super) const GAP_MS_MAX: f64 = 650.0;

/// The claims of the parts that were run, and that nothing of ours went wrong in them. What was not measured holds
/// nothing.
pub(super) fn claims(parts: &[Part], figures: &Figures) -> Vec<Claim> {
    parts.iter().flat_map(|part| of(*part, figures)).collect()
}

fn of(part: Part, figures: &Figures) -> Vec<Claim> {
    match part {
        Part::Boot => [
            ("boot_1_vcpu_over_microvm", 1),
            ("boot_2_vcpus_over_microvm", 2),
            ("boot_4_vcpus_over_microvm", 4),
        ]
        .map(|(id, vcpus)| {
            let [ours, theirs] = [Arm::Remus, Arm::Microvm].map(|arm| boot::run(vcpus, arm));
            let over = figures.claimed_ratio(ours, theirs, &Figure::UserspaceS);
            Claim::at_most(id, over, BOOT_OVER_MICROVM_MAX, "ratio")
        })
        .into(),
        Part::Pause => vec![over_colo("pause_idle_over_colo", protect::idle, figures)],
        Part::Rate => {
            let rate = figures.claimed(protect::at_work(Arm::Remus), &Figure::CheckpointsPerS);
            vec![
                over_colo("pause_1000_pages_over_colo", protect::at_work, figures),
                Claim::at_least("rate_1000_pages", rate, RATE_MIN, "1/s"),
            ]
        }
        Part::Gap => {
            let run = gap::run(Arm::Remus);
            vec![
                Claim::at_most("gap_p50", figures.claimed(run, &Figure::GapMs), GAP_MS_MAX, "ms"),
                none("replies_lost", figures, Part::Gap, Figure::RepliesLost, "replies"),
                none("replies_contradicted", figures, Part::Gap, Figure::RepliesWrong, "replies"),
                none(
                    "connections_lost",
                    figures,
                    Part::Gap,
                    Figure::ConnectionsLost,
                    "connections",
                ),
            ]
        }
        Part::Hold => vec![
            none("frames_early", figures, Part::Hold, Figure::Early, "frames"),
            none("frames_lost", figures, Part::Hold, Figure::FramesLost, "frames"),
            none("frames_out_of_order", figures, Part::Hold, Figure::OutOfOrder, "frames"),
        ],
    }
}

fn over_colo(id: &'static str, run: impl Fn(Arm) -> Run, figures: &Figures) -> Claim {
    let over = figures.claimed_ratio(run(Arm::Remus), run(Arm::Colo), &Figure::PauseP50Ms);
    Claim::at_most(id, over, PAUSE_OVER_COLO_MAX, "ratio")
}

/// That something did not happen to us in a part that was looked at.
fn none(
    id: &'static str,
    figures: &Figures,
    part: Part,
    figure: Figure,
    unit: &'static str,
) -> Claim {
    let ours = |run: &Run| run.part == part && run.arm.is_ours();
    let looked = figures.runs().any(|run| ours(&run));
    let count = if looked { figures.sum(ours, &figure) } else { f64::NAN };
    Claim { correctness: true, ..Claim::at_most(id, count, 0.0, unit) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::holds;

    #[test]
    fn what_was_not_measured_holds_nothing_and_what_was_not_asked_is_not_claimed() {
        let figures = Figures::default();
        for part in Part::ALL {
            assert!(claims(&[part], &figures).iter().all(|claim| !claim.holds), "{part:?}");
        }
        assert!(claims(&[], &figures).is_empty());
    }

    #[test]
    fn ours_is_set_beside_the_peers_of_the_same_round() {
        let mut figures = Figures::default();
        for (ours, theirs) in [(10.0, 105.0), (20.0, 250.0), (9.0, 80.0)] {
            for (arm, pause) in [(Arm::Remus, ours), (Arm::Colo, theirs)] {
                figures.add(protect::idle(arm), [(Figure::PauseP50Ms, pause)]);
            }
        }
        figures.add(protect::at_work(Arm::Remus), [(Figure::CheckpointsPerS, 19.0)]);
        let judged = claims(&[Part::Pause, Part::Rate], &figures);
        assert!(holds(&judged, "pause_idle_over_colo"));
        assert!(!holds(&judged, "pause_1000_pages_over_colo"));
        assert!(!holds(&judged, "rate_1000_pages"));
    }

    #[test]
    fn what_a_peer_loses_is_no_fault_of_ours() {
        let mut figures = Figures::default();
        let lost = |arm| (gap::run(arm), [(Figure::GapMs, 600.0), (Figure::RepliesLost, 2.0)]);
        let (run, measured) = lost(Arm::Colo);
        figures.add(run, measured);
        figures.add(gap::run(Arm::Remus), [(Figure::GapMs, 600.0), (Figure::RepliesLost, 0.0)]);
        assert!(claims(&[Part::Gap], &figures).iter().all(|claim| claim.holds));
        let (run, measured) = lost(Arm::Remus);
        figures.add(run, measured);
        let judged = claims(&[Part::Gap], &figures);
        assert!(!holds(&judged, "replies_lost") && holds(&judged, "gap_p50"));
    }
}
