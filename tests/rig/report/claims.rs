//! What Remus says of itself, as inequalities over what a run measured.

use std::fmt;

use serde::Serialize;

use super::{
    Report, Round,
    bounds::{Bounds, Load},
};
use crate::remus::Software;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Relation {
    #[serde(rename = "<=")]
    AtMost,
    #[serde(rename = ">=")]
    AtLeast,
}

/// One thing that Remus says of itself, and whether it was so.
#[derive(Clone, Debug, Serialize)]
pub struct Claim {
    pub id: &'static str,
    pub measured: f64,
    pub relation: Relation,
    pub bound: f64,
    pub unit: &'static str,
    pub holds: bool,
    /// Whether a failure means that something was lost, not that it was slow.
    pub correctness: bool,
}

impl Claim {
    /// That something is fast, or small, enough.
    pub(crate) fn at_most(id: &'static str, measured: f64, bound: f64, unit: &'static str) -> Self {
        let relation = Relation::AtMost;
        let holds = measured <= bound;
        Self { id, measured, relation, bound, unit, holds, correctness: false }
    }

    pub(crate) fn at_least(
        id: &'static str,
        measured: f64,
        bound: f64,
        unit: &'static str,
    ) -> Self {
        let relation = Relation::AtLeast;
        let holds = measured >= bound;
        Self { id, measured, relation, bound, unit, holds, correctness: false }
    }

    /// That something did not happen.
    pub(crate) fn none(id: &'static str, measured: u64, unit: &'static str) -> Self {
        Self { correctness: true, ..Self::at_most(id, measured as f64, 0.0, unit) }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let relation = match self.relation {
            Relation::AtMost => "<=",
            Relation::AtLeast => ">=",
        };
        let verdict = if self.holds { "holds" } else { "FAILS" };
        let Self { id, measured, bound, unit, .. } = self;
        write!(f, "{verdict}  {id:<28} {measured:.3} {relation} {bound} {unit}")
    }
}

impl Report {
    pub(super) fn claim(&self) -> Vec<Claim> {
        let (at_most, at_least, none) = (Claim::at_most, Claim::at_least, Claim::none);
        let count = |field: fn(&Round) -> u64| self.rounds.iter().map(field).sum::<u64>();
        let mut claims = vec![
            none("replies_lost", self.replies_lost, "replies"),
            none("replies_contradicted", self.replies_contradicted, "replies"),
            none("connections_lost", self.connections_lost, "connections"),
            none(
                "redis_benchmark_failed",
                count(|round| {
                    let over = round.benchmark.ran_over_the_death || round.death_after_ms.is_none();
                    u64::from(round.benchmark.exit_code != Some(0) || !over)
                }),
                "rounds",
            ),
            none("frames_refused_by_lock", self.frames_refused_by_lock, "frames"),
        ];
        if self.death.is_some() {
            claims.push(at_most("client_gap_p50", self.client_gap_ms_p50, 650.0, "ms"));
            claims.push(at_most("client_gap_max", self.client_gap_ms, 1500.0, "ms"));
        }
        if self.guest == Software::Linux {
            let step = |round: &Round| round.guest_clock_step_ms.abs();
            let step = self.rounds.iter().map(step).fold(0.0, f64::max);
            let said = count(|round| round.guest_complaints.len() as u64);
            let dead = count(|round| round.beacons.frames_of_the_dead);
            claims.push(none("frames_of_the_dead", dead, "frames"));
            claims.push(none("guest_complaints", said, "lines"));
            claims.push(at_most("guest_clock_step", step, 100.0, "ms"));
            // The rest is about what only the demo guest does.
            return claims;
        }
        if self.death.is_some() {
            claims.extend([
                none(
                    "output_ahead_of_commit",
                    count(|round| round.beacons.ahead_of_promoted),
                    "beacons",
                ),
                none(
                    "frames_of_the_dead",
                    count(|round| round.beacons.frames_of_the_dead),
                    "frames",
                ),
                none(
                    "sniffer_blind",
                    count(|round| {
                        round.beacons.missed_by_sniffer + round.beacons.kinds_missing.len() as u64
                    }),
                    "frames and kinds",
                ),
            ]);
        }
        let bounds = Bounds::of(&Load::of(self));
        let rate = self.checkpoints_per_second;
        let [idle_us, pause_us] = [&self.pause_idle_us, &self.pause_us].map(|us| us.p50 as f64);
        claims.extend([
            at_least("checkpoint_rate", rate, bounds.checkpoints_per_second, "1/s"),
            at_most("pause_idle_p50", idle_us, bounds.pause_idle_us, "us"),
            at_most("pause_p50", pause_us, bounds.pause_us, "us"),
        ]);
        let work = |bound| at_least("guest_work_ratio", self.guest_work_ratio, bound, "ratio");
        claims.extend(bounds.guest_work_ratio.map(work));
        claims
    }

    /// Whether nothing was lost, contradicted or let out too early.
    pub fn nothing_lost(&self) -> bool {
        self.claims.iter().all(|claim| claim.holds || !claim.correctness)
    }
}
