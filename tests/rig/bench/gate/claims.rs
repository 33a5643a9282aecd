//! What the gate says of itself, as inequalities over the medians.

use super::{
    BURSTS,
    arm::Arm,
    figures::{Figure, Figures, Phase, Run, count},
    frames::Size,
};
use crate::report::Claim;

/// A claim on an arm's speed.
pub(super) struct Bound {
    pub(super) id: &'static str,
    pub(super) arm: Arm,
    pub(super) phase: Phase,
    pub(super) size: Size,
    pub(super) says: Says,
}

#[derive(Clone, Copy)]
pub(super) enum Says {
    /// Of the bridge alone in the same round, at the sink.
    OfNone(f64),
    /// Time for each released frame, of what each frame of the same burst takes through the bridge alone in the same round.
    ReleaseOfNone(f64),
    Gbps(f64),
    /// Nanoseconds a frame, of both programs that judge it.
    JudgeNs(f64),
}

const COPYING_SIZES: [Size; 2] = [Size::B64, Size::B1500];

/// The bounds on this arm.
pub(super) fn bounds(arm: Arm) -> Vec<Bound> {
    let open = |id, size, says| Bound { id, arm, phase: Phase::Open, size, says };
    let releases = |ids: [&'static str; 4], share| {
        let runs = COPYING_SIZES.into_iter().flat_map(|size| BURSTS.map(|frames| (size, frames)));
        ids.into_iter().zip(runs).map(move |(id, (size, frames))| Bound {
            id,
            arm,
            phase: Phase::Release(frames),
            size,
            says: Says::ReleaseOfNone(share),
        })
    };
    let judge = |id| Bound { phase: Phase::Judge, ..open(id, Size::B64, Says::JudgeNs(80.0)) };
    match arm {
        Arm::None | Arm::Plug => Vec::new(),
        Arm::Reentry => {
            let mut bounds = vec![
                open("reentry_open_1500", Size::B1500, Says::OfNone(0.85)),
                judge("reentry_stamp_and_lock"),
            ];
            bounds.extend(releases(
                [
                    "reentry_release_64_10k",
                    "reentry_release_64_100k",
                    "reentry_release_1500_10k",
                    "reentry_release_1500_100k",
                ],
                0.65,
            ));
            bounds
        }
        Arm::Uplink => {
            let mut bounds = vec![
                open("uplink_open_1500", Size::B1500, Says::OfNone(1.0)),
                judge("uplink_stamp_and_lock"),
            ];
            bounds.extend(releases(
                [
                    "uplink_release_64_10k",
                    "uplink_release_64_100k",
                    "uplink_release_1500_10k",
                    "uplink_release_1500_100k",
                ],
                0.45,
            ));
            bounds
        }
        Arm::NfQueue => vec![
            open("nfqueue_open_64k_gso", Size::Gso64K, Says::Gbps(30.0)),
            judge("nfqueue_stamp_and_lock"),
        ],
    }
}

/// Ids of what must be 0 behind an arm's gate.
const fn faults(arm: Arm) -> Option<[(&'static str, Figure); 5]> {
    match arm {
        // What another's loses is no claim of ours.
        Arm::None | Arm::Plug => None,
        Arm::Reentry => Some([
            ("reentry_early", Figure::Early),
            ("reentry_lost", Figure::Lost),
            ("reentry_out_of_order", Figure::OutOfOrder),
            ("reentry_refused_by_lock", Figure::RefusedByLock),
            ("reentry_dropped_full", Figure::DroppedFull),
        ]),
        Arm::Uplink => Some([
            ("uplink_early", Figure::Early),
            ("uplink_lost", Figure::Lost),
            ("uplink_out_of_order", Figure::OutOfOrder),
            ("uplink_refused_by_lock", Figure::RefusedByLock),
            ("uplink_dropped_full", Figure::DroppedFull),
        ]),
        Arm::NfQueue => Some([
            ("nfqueue_early", Figure::Early),
            ("nfqueue_lost", Figure::Lost),
            ("nfqueue_out_of_order", Figure::OutOfOrder),
            ("nfqueue_refused_by_lock", Figure::RefusedByLock),
            ("nfqueue_dropped_full", Figure::DroppedFull),
        ]),
    }
}

impl Bound {
    pub(super) fn claim(&self, figures: &Figures) -> Claim {
        let run = Run { phase: self.phase, size: self.size, arm: self.arm };
        // What was not measured holds nothing.
        let measured = |figure| figures.claimed(run, &figure);
        match self.says {
            Says::OfNone(bound) => {
                let none = Run { arm: Arm::None, ..run };
                let ratio = figures.claimed_ratio(run, none, &Figure::SinkKpps);
                Claim::at_least(self.id, ratio, bound, "ratio")
            }
            Says::ReleaseOfNone(bound) => {
                let none = Run { arm: Arm::None, ..run };
                let ratio = figures.claimed_ratio(run, none, &Figure::ReleaseUs);
                Claim::at_most(self.id, ratio, bound, "ratio")
            }
            Says::Gbps(bound) => {
                Claim::at_least(self.id, measured(Figure::SinkGbps), bound, "Gb/s")
            }
            Says::JudgeNs(bound) => {
                let both = measured(Figure::StampNs) + measured(Figure::LockNs);
                Claim::at_most(self.id, both, bound, "ns")
            }
        }
    }
}

impl Says {
    /// The figure that the bound is on, and where it lies; `none` is the same figure of the bridge alone.
    pub(super) fn limit(self, none: Option<f64>) -> Option<(Figure, f64)> {
        match self {
            Self::OfNone(share) => Some((Figure::SinkKpps, share * none?)),
            Self::ReleaseOfNone(share) => Some((Figure::ReleaseUs, share * none?)),
            Self::Gbps(gbps) => Some((Figure::SinkGbps, gbps)),
            Self::JudgeNs(ns) => Some((Figure::LockNs, ns)),
        }
    }
}

/// One claim for each figure that the gate is to reach, and for each kind of fault.
pub(super) fn claims(arms: &[Arm], figures: &Figures) -> Vec<Claim> {
    let speed = arms.iter().flat_map(|&arm| bounds(arm)).map(|bound| bound.claim(figures));
    let faults = arms.iter().flat_map(|&arm| {
        let of_arm = faults(arm).into_iter().flatten();
        of_arm.map(move |(id, figure)| Claim {
            correctness: figure != Figure::DroppedFull,
            ..Claim::at_most(id, count(figures, arm, figure), 0.0, "frames")
        })
    });
    speed.chain(faults).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Phase = Phase::Release(BURSTS[0]);

    fn claim_of(figures: &Figures) -> Claim {
        let claims = claims(&[Arm::Reentry], figures);
        claims.into_iter().find(|claim| claim.id == "reentry_release_1500_10k").unwrap()
    }

    #[test]
    fn a_release_is_claimed_as_a_share_of_the_bridge_alone_in_its_own_round() {
        let measured = |rounds: [(f64, f64); 3]| {
            let mut figures = Figures::default();
            let run = |arm| Run { phase: AT, size: Size::B1500, arm };
            for (alone_us, release_us) in rounds {
                figures.add(run(Arm::None), [(Figure::ReleaseUs, alone_us)]);
                figures.add(run(Arm::Reentry), [(Figure::ReleaseUs, release_us)]);
            }
            claim_of(&figures)
        };
        // What slows a round down by four does so for both.
        let claim = measured([(0.8, 0.48), (3.2, 1.92), (1.0, 0.6)]);
        assert!((claim.measured - 0.6).abs() < 1e-9 && claim.holds, "{claim}");
        // Fast, and yet more than its share.
        assert!(!measured([(0.8, 0.64); 3]).holds);
    }

    #[test]
    fn without_the_bridge_alone_no_claim_on_a_release_holds() {
        let mut figures = Figures::default();
        let run = Run { phase: AT, size: Size::B1500, arm: Arm::Reentry };
        figures.add(run, [(Figure::ReleaseUs, 0.01)]);
        assert!(!claim_of(&figures).holds);
    }
}
