//! What came of a run: `report.json`, the claims that it proves or fails, and the table that people read.
//!
//! A run has one or more rounds, each with a death of its own. Counts are added up. A measurement of
//! performance is the median of the rounds' values, except a maximum, which is the greatest; every round's
//! own figures are in `rounds`.

mod bounds;
mod claims;
mod table;

use std::{fs, path::Path};

use anyhow::{Context, Result};
use remus::observe::status::Distribution;
use serde::Serialize;

pub use claims::{Claim, Relation};

use crate::{
    host::Death,
    remus::{GateOptions, Machine, Software, Timing},
};

/// What one round measured. Times are CLOCK_BOOTTIME; `None` where the host did not die.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Round {
    pub checkpoints: u64,
    /// While the guest dirtied its pages.
    pub checkpoints_per_second: f64,
    pub pause_idle_us: Distribution,
    pub pause_us: Distribution,
    pub dirty_pages: Distribution,
    pub commit_us: Distribution,
    pub bytes_sent: u64,
    pub bytes_raw: u64,
    pub frames_held: u64,
    pub frames_released: u64,
    pub frames_refused_by_lock: u64,
    /// Acks on whose word the kernel released by itself.
    pub kernel_releases: u64,
    /// From such a release to when the controller was about to.
    pub release_lead_us: Distribution,
    /// Pages a second that the guest worked through before it was protected, and then.
    pub guest_work_before: f64,
    pub guest_work_protected: f64,
    pub guest_work_ratio: f64,
    /// The second by vCPU.
    pub guest_work_of_vcpus: Vec<f64>,
    /// How long the load had run when the host died.
    pub death_after_ms: Option<f64>,
    /// From the first link that went down until the last had, and the signal was sent.
    pub death_took_ms: Option<f64>,
    /// From the first link that went down to the decision to promote.
    pub detect_ms: Option<f64>,
    /// From the decision to the guest's first instruction.
    pub activate_ms: Option<f64>,
    /// From the first link that went down until the gate is open and the guest runs.
    pub service_back_ms: Option<f64>,
    /// Frames that the primary had given to the guest in vain, and that the backup gave it again.
    pub frames_given_again: u64,
    /// Frames that came to the backup for the guest while it ran nowhere.
    pub frames_overheard: u64,
    /// The longest time without a reply on any connection of the checking client.
    pub client_gap_ms: f64,
    /// The same for each connection.
    pub gaps: Vec<ReplyGap>,
    pub connections_kept: u64,
    pub connections_lost: u64,
    pub replies: u64,
    pub replies_lost: u64,
    pub replies_contradicted: u64,
    pub benchmark: Benchmark,
    pub beacons: Beacons,
    /// Of a Linux guest: how far its clock was ahead of the host's before the takeover, how much further it was after it,
    /// and what its kernel warned of since.
    pub guest_clock_off_ms: f64,
    pub guest_clock_step_ms: f64,
    pub guest_complaints: Vec<String>,
    /// Contradictions and reasons for lost connections, in words.
    pub findings: Vec<String>,
}

/// A connection's longest time without a reply.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct ReplyGap {
    /// When it began, after the death (negative: before it), or after the load began.
    pub from_ms: f64,
    pub ms: f64,
}

/// redis-benchmark, which ran over the death.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Benchmark {
    pub requests: u64,
    pub seconds: f64,
    /// Nothing when it had to be killed.
    pub exit_code: Option<i32>,
    /// Whether it was running when the host died.
    pub ran_over_the_death: bool,
}

/// What the sniffer on the switch saw.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Beacons {
    pub seen_from_primary: u64,
    pub seen_from_backup: u64,
    pub newest_from_primary: Option<u64>,
    pub oldest_from_backup: Option<u64>,
    /// Output seen that the promoted guest does not remember.
    pub ahead_of_promoted: u64,
    pub frames_of_the_dead: u64,
    pub kinds_missing: Vec<&'static str>,
    pub missed_by_sniffer: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Percentiles {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub max: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub id: String,
    pub version: &'static str,
    pub kernel: String,
    pub cpus: usize,
    /// What ran where, the same in all phases.
    pub placement: &'static str,
    pub death: Option<Death>,
    pub timing: Timing,
    #[serde(flatten)]
    pub gate: GateOptions,
    pub dirty_pages_asked: u32,
    pub guest: Software,
    #[serde(flatten)]
    pub machine: Machine,
    pub seed: u64,

    pub checkpoints: u64,
    pub checkpoints_per_second: f64,
    pub pause_us: Percentiles,
    pub pause_idle_us: Percentiles,
    pub dirty_pages: Percentiles,
    pub bytes_sent: u64,
    pub bytes_raw: u64,
    pub frames_held: u64,
    pub frames_released: u64,
    pub frames_refused_by_lock: u64,
    pub kernel_releases: u64,
    pub release_lead_us: Percentiles,
    pub commit_us: Percentiles,
    pub detect_ms: Option<f64>,
    pub activate_ms: Option<f64>,
    pub service_back_ms: Option<f64>,
    /// In how many rounds service was back within 200 ms of the death, before the client's first retry.
    pub service_back_within_200_ms: u64,
    pub frames_given_again: u64,
    pub frames_overheard: u64,
    pub client_gap_ms: f64,
    pub client_gap_ms_p50: f64,
    pub connections_kept: u64,
    pub connections_lost: u64,
    pub replies: u64,
    pub replies_lost: u64,
    pub replies_contradicted: u64,
    pub guest_work_ratio: f64,
    pub claims: Vec<Claim>,
    pub rounds: Vec<Round>,
}

/// What a run was asked to do.
#[derive(Clone, Debug)]
pub struct Asked {
    pub id: String,
    pub death: Option<Death>,
    pub timing: Timing,
    pub gate: GateOptions,
    pub dirty_pages: u32,
    pub guest: Software,
    pub machine: Machine,
    pub seed: u64,
}

impl Report {
    pub fn new(asked: &Asked, rounds: Vec<Round>) -> Self {
        let sum = |field: fn(&Round) -> u64| rounds.iter().map(field).sum::<u64>();
        let middle = |field: fn(&Round) -> f64| median(rounds.iter().map(field).collect());
        let middle_of = |field: fn(&Round) -> Option<f64>| {
            let known: Vec<f64> = rounds.iter().filter_map(field).collect();
            (!known.is_empty()).then(|| median(known))
        };
        let worst_gap = rounds.iter().map(|round| round.client_gap_ms).fold(0.0, f64::max);
        let soon = |round: &&Round| round.service_back_ms.is_some_and(|ms| ms <= 200.0);
        let mut report = Self {
            id: asked.id.clone(),
            version: env!("CARGO_PKG_VERSION"),
            kernel: kernel(),
            cpus: crate::sys::cpus().len(),
            placement: "vCPU 0 alone on one CPU; its other vCPUs, daemons, clients and the rig on the others",
            death: asked.death,
            timing: asked.timing,
            gate: asked.gate,
            dirty_pages_asked: asked.dirty_pages,
            guest: asked.guest,
            machine: asked.machine,
            seed: asked.seed,
            checkpoints: sum(|round| round.checkpoints),
            checkpoints_per_second: middle(|round| round.checkpoints_per_second),
            pause_us: Percentiles::of(rounds.iter().map(|round| round.pause_us)),
            pause_idle_us: Percentiles::of(rounds.iter().map(|round| round.pause_idle_us)),
            dirty_pages: Percentiles::of(rounds.iter().map(|round| round.dirty_pages)),
            bytes_sent: sum(|round| round.bytes_sent),
            bytes_raw: sum(|round| round.bytes_raw),
            frames_held: sum(|round| round.frames_held),
            frames_released: sum(|round| round.frames_released),
            frames_refused_by_lock: sum(|round| round.frames_refused_by_lock),
            kernel_releases: sum(|round| round.kernel_releases),
            release_lead_us: Percentiles::of(rounds.iter().map(|round| round.release_lead_us)),
            commit_us: Percentiles::of(rounds.iter().map(|round| round.commit_us)),
            detect_ms: middle_of(|round| round.detect_ms),
            activate_ms: middle_of(|round| round.activate_ms),
            service_back_ms: middle_of(|round| round.service_back_ms),
            service_back_within_200_ms: rounds.iter().filter(soon).count() as u64,
            frames_given_again: sum(|round| round.frames_given_again),
            frames_overheard: sum(|round| round.frames_overheard),
            client_gap_ms: worst_gap,
            client_gap_ms_p50: middle(|round| round.client_gap_ms),
            connections_kept: sum(|round| round.connections_kept),
            connections_lost: sum(|round| round.connections_lost),
            replies: sum(|round| round.replies),
            replies_lost: sum(|round| round.replies_lost),
            replies_contradicted: sum(|round| round.replies_contradicted),
            guest_work_ratio: middle(|round| round.guest_work_ratio),
            claims: Vec::new(),
            rounds,
        };
        report.claims = report.claim();
        report
    }

    /// Writes `report.json` into the run's folder and, as the last run's, beside it.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("encode the report")?;
        let beside = folder.parent().context("the run is in no folder")?;
        for file in [folder.join("report.json"), beside.join("report.json")] {
            fs::write(&file, &text).with_context(|| format!("write {}", file.display()))?;
        }
        Ok(())
    }
}

impl Percentiles {
    /// Medians of the rounds' percentiles, and the greatest of their maxima.
    fn of(rounds: impl Iterator<Item = Distribution>) -> Self {
        let rounds: Vec<_> = rounds.collect();
        let middle = |field: fn(&Distribution) -> u64| {
            let mut values: Vec<u64> = rounds.iter().map(field).collect();
            values.sort_unstable();
            values.get(values.len() / 2).copied().unwrap_or(0)
        };
        Self {
            p50: middle(|distribution| distribution.p50),
            p90: middle(|distribution| distribution.p90),
            p99: middle(|distribution| distribution.p99),
            max: rounds.iter().map(|distribution| distribution.max).max().unwrap_or(0),
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => values[n / 2 - 1].midpoint(values[n / 2]),
    }
}

pub(crate) fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(death: Option<Death>) -> Asked {
        let (timing, gate) = (Timing::default(), GateOptions::default());
        Asked {
            id: "t".into(),
            death,
            timing,
            gate,
            dirty_pages: 1000,
            guest: Software::Demo,
            machine: Machine::default(),
            seed: 1,
        }
    }

    fn good() -> Round {
        Round {
            benchmark: Benchmark { exit_code: Some(0), ..Benchmark::default() },
            ..Round::default()
        }
    }

    #[test]
    fn slowness_fails_a_claim_and_not_the_run() {
        let report = Report::new(&asked(Some(Death::Host)), vec![good()]);
        let rate = report.claims.iter().find(|claim| claim.id == "checkpoint_rate").unwrap();
        assert!(!rate.holds);
        assert!(report.nothing_lost());
    }

    #[test]
    fn a_run_with_more_vcpus_is_judged_by_bounds_for_them() {
        let idle = |vcpus, p50| {
            let machine = Machine { vcpus, ..Machine::default() };
            let pause_idle_us = Distribution { p50, ..Distribution::default() };
            let round = Round { pause_idle_us, ..good() };
            let report = Report::new(&Asked { machine, ..asked(None) }, vec![round]);
            let claim = report.claims.iter().find(|claim| claim.id == "pause_idle_p50").unwrap();
            claim.holds
        };
        assert!(idle(1, 250) && !idle(1, 251));
        assert!(idle(2, 300) && !idle(2, 10_000));
    }

    #[test]
    fn anything_lost_in_any_round_fails_the_run() {
        let spoil: [fn(&mut Round); 7] = [
            |round| round.replies_lost = 1,
            |round| round.replies_contradicted = 1,
            |round| round.connections_lost = 1,
            |round| round.benchmark.exit_code = None,
            |round| round.frames_refused_by_lock = 1,
            |round| round.beacons.ahead_of_promoted = 1,
            |round| round.beacons.frames_of_the_dead = 1,
        ];
        for spoil in spoil {
            let mut bad = good();
            spoil(&mut bad);
            let report = Report::new(&asked(Some(Death::Host)), vec![good(), bad, good()]);
            assert!(!report.nothing_lost());
        }
    }

    #[test]
    fn the_gap_reported_is_the_worst_and_the_one_claimed_the_median() {
        let rounds = [200.0, 900.0, 300.0].map(|client_gap_ms| Round { client_gap_ms, ..good() });
        let report = Report::new(&asked(Some(Death::Host)), rounds.to_vec());
        assert_eq!((report.client_gap_ms, report.client_gap_ms_p50), (900.0, 300.0));
    }

    #[test]
    fn the_report_has_the_keys_that_its_readers_rely_on() {
        let report = Report::new(&asked(Some(Death::Host)), vec![good()]);
        let value = serde_json::to_value(&report).unwrap();
        for key in [
            "checkpoints",
            "checkpoints_per_second",
            "pause_us",
            "dirty_pages",
            "bytes_sent",
            "bytes_raw",
            "frames_held",
            "frames_released",
            "frames_refused_by_lock",
            "commit_us",
            "detect_ms",
            "activate_ms",
            "client_gap_ms",
            "connections_kept",
            "connections_lost",
            "replies",
            "replies_lost",
            "replies_contradicted",
            "guest_work_ratio",
            "claims",
            "rounds",
        ] {
            assert!(value.get(key).is_some(), "{key}");
        }
        for key in ["id", "measured", "bound", "unit", "holds"] {
            assert!(value["claims"][0].get(key).is_some(), "{key}");
        }
    }
}
