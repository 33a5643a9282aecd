//! What a client sees: the latency of requests in a closed loop, and redis-benchmark's throughput.

use std::time::Duration;

use anyhow::Result;

use super::{
    Bench,
    bed::Life,
    closed_loop::{Measured, closed_loop},
    figures::{Arm, Figure, Load, Part, Run},
    redis_benchmark::{Rates, redis_benchmark},
};
use crate::{bench::in_turn, topology::GUEST};

const ARMS: [Arm; 3] = [Arm::Latency, Arm::Throughput, Arm::Fixed(40)];
const QUICK_ARMS: [Arm; 1] = [Arm::Latency];
pub(super) const CONNECTIONS: [u32; 2] = [1, 50];
const QUICK_REQUESTS: u32 = 8000;

/// How many requests redis-benchmark makes: a quarter of a second of them at least, where 700,000 are answered in one.
const fn requests(arm: Arm) -> u32 {
    match arm {
        Arm::Floor | Arm::Unprotected | Arm::Latency => 200_000,
        // Whoever waits for each epoch gets no more than 800 answers in one.
        Arm::Throughput | Arm::Fixed(_) => 40_000,
    }
}

/// What a client saw of the guest as it stood then.
struct Seen {
    latencies: Vec<(u32, Measured)>,
    rates: Option<Rates>,
}

impl Bench<'_> {
    /// Both parts in one life for each arm: unprotected first, then protected.
    pub(super) async fn requests(&mut self, latency: bool, throughput: bool) -> Result<()> {
        let arms: &[Arm] = if self.plan.quick { &QUICK_ARMS } else { &ARMS };
        for &arm in in_turn(self.round, arms) {
            let mut life = Life::begin(self.bed, &arm.options()).await?;
            let before = self.see(&life, Arm::Unprotected, latency, throughput).await?;
            life.protect(self.bed).await?;
            let after = self.see(&life, arm, latency, throughput).await?;
            self.add(arm, &before, &after);
            life.end(self.bed).await?;
        }
        Ok(())
    }

    async fn see(
        &mut self,
        life: &Life,
        arm: Arm,
        latency: bool,
        throughput: bool,
    ) -> Result<Seen> {
        let mut seen = Seen { latencies: Vec::new(), rates: None };
        for connections in CONNECTIONS.into_iter().filter(|_| latency) {
            let time = match (self.plan.quick, connections) {
                (true, _) => Duration::from_millis(500),
                // A percentile wants samples, and one connection has few.
                (false, 1) => Duration::from_millis(2000),
                (false, _) => Duration::from_millis(1000),
            };
            let client = self.bed.stage.topology.client.netns().another()?;
            let measured = closed_loop(client, GUEST, connections, time).await?;
            self.bed.faults.replies_wrong += measured.wrong;
            self.bed.faults.connections_lost += measured.lost;
            seen.latencies.push((connections, measured));
        }
        if throughput {
            let requests = if self.plan.quick { QUICK_REQUESTS } else { requests(arm) };
            let log = life.folder.join(format!("redis-benchmark-{}.csv", arm.name()));
            match redis_benchmark(self.bed, requests, &log).await {
                Ok(rates) => seen.rates = Some(rates),
                Err(error) => {
                    self.say(&format!("{error:#}"));
                    self.bed.faults.benchmarks_failed += 1;
                }
            }
        }
        Ok(seen)
    }

    fn add(&mut self, arm: Arm, alone: &Seen, protected: &Seen) {
        for ((connections, alone), (_, seen)) in alone.latencies.iter().zip(&protected.latencies) {
            let run = |arm| Run { part: Part::Latency, load: Load::Connections(*connections), arm };
            self.figures.add(run(Arm::Unprotected), figures(alone));
            let mut measured = figures(seen).to_vec();
            measured.extend([
                (Figure::AddedP50Us, seen.p50_us - alone.p50_us),
                (Figure::AddedP99Us, seen.p99_us - alone.p99_us),
            ]);
            self.figures.add(run(arm), measured);
            self.say(&format!(
                "{}, {connections} connections: p50 {:.0} us, p99 {:.0} us; unprotected {:.0} and {:.0} us",
                arm.name(),
                seen.p50_us,
                seen.p99_us,
                alone.p50_us,
                alone.p99_us
            ));
        }
        if let (Some(alone), Some(seen)) = (alone.rates, protected.rates) {
            for (load, alone, seen) in
                [(Load::Set, alone.set, seen.set), (Load::Get, alone.get, seen.get)]
            {
                let run = |arm| Run { part: Part::Throughput, load, arm };
                self.figures.add(run(Arm::Unprotected), [(Figure::RequestsPerS, alone)]);
                let ratio = (Figure::RequestsRatio, seen / alone);
                self.figures.add(run(arm), [(Figure::RequestsPerS, seen), ratio]);
                self.say(&format!(
                    "{}, redis-benchmark {}: {seen:.0} of {alone:.0} requests/s",
                    arm.name(),
                    load.name()
                ));
            }
        }
    }
}

fn figures(measured: &Measured) -> [(Figure, f64); 3] {
    [
        (Figure::LatencyP50Us, measured.p50_us),
        (Figure::LatencyP99Us, measured.p99_us),
        (Figure::RequestsPerS, measured.requests_per_s),
    ]
}
