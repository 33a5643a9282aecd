//! The load, the death in the middle of it, and the judgement of what was seen.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use remus::observe::status::{Failover, Status};
use tokio::time::{Instant, sleep};

use super::{
    Plan,
    measure::WORK_BYTES,
    round::{RoundRun, count},
};
use crate::{
    client::{Client, Contradiction, Outcome},
    guest::Guest,
    host::{Death, Died, Process, Share},
    remus::{Daemon, Software},
    report::{Beacons, Benchmark, ReplyGap, Round},
    sniffer::Sniffer,
    sys::boottime_ns,
    topology::GUEST,
};

const CONNECTIONS: usize = 8;
const BENCHMARK_CLIENTS: u32 = 20;
const BEACON_MS: u32 = 10;
const TAKEOVER: Duration = Duration::from_secs(10);
pub(super) const BENCHMARK_END: Duration = Duration::from_secs(30);
const AFTERWARDS: Duration = Duration::from_secs(3);
const WAKE_AFTER: Duration = Duration::from_secs(1);

/// The load while it runs.
pub(super) struct Load {
    client: Client,
    benchmark: Process,
    requests: u64,
    began: Instant,
    began_ns: u64,
    /// Whether the benchmark ran when the host died.
    benchmark_ran: bool,
}

/// What is known of a death once the guest runs again.
pub(super) struct Takeover {
    pub(super) died: Died,
    after: Duration,
    failover: Failover,
    /// The last that the primary said of itself.
    last_words: Status,
}

impl RoundRun<'_> {
    /// The work goes on at a steady rate; beacons, redis-benchmark and the checking client join it.
    pub(super) async fn load(
        &mut self,
        guest: &mut Guest,
        benchmark_rate: f64,
        number: u32,
    ) -> Result<Load> {
        let Plan { dirty_pages, timing, load, .. } = *self.plan;
        let rate = u64::from(dirty_pages) * 1000 / u64::from(timing.epoch_ms);
        let rate = u32::try_from(rate).context("that many pages a second")?;
        if self.plan.guest == Software::Demo {
            guest.start_work(dirty_pages, WORK_BYTES, rate).await?;
            guest.start_beacon(BEACON_MS).await?;
        }
        let name = format!("round{number}");
        let client = Client::start(self.stage.client()?, GUEST, CONNECTIONS, &name).await?;
        // Over a death redis-benchmark must still run: enough for the whole load at a speed that it will not reach, which SET
        // and GET share. Where nobody dies it must have ended: as much as a protected guest answers in that time.
        let share = if self.plan.death.is_some() { 0.75 } else { 0.05 };
        let requests = (benchmark_rate * load.as_secs_f64() * share).max(1000.0).round();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at least 1000"
        )]
        let requests = requests as u64;
        let benchmark = self.benchmark(requests, "set,get")?;
        self.display.step(&format!(
            "load: {CONNECTIONS} checking connections, redis-benchmark with {BENCHMARK_CLIENTS}"
        ));
        Ok(Load {
            client,
            benchmark,
            requests: requests * 2,
            began: Instant::now(),
            began_ns: boottime_ns(),
            benchmark_ran: false,
        })
    }

    pub(super) fn benchmark(&self, requests: u64, tests: &str) -> Result<Process> {
        let mut command = Command::new("redis-benchmark");
        command.args(["-h", &GUEST.ip().to_string(), "-p", &GUEST.port().to_string(), "-t", tests]);
        command.args(["-c", &BENCHMARK_CLIENTS.to_string(), "-n", &requests.to_string(), "--csv"]);
        command.stdin(Stdio::null());
        self.stage.topology.client.spawn(command, Share::Load, &self.stage.log("client"))
    }

    pub(super) async fn death(
        &mut self,
        death: Death,
        load: &mut Load,
        primary: &mut Daemon,
        backup: &mut Daemon,
    ) -> Result<Takeover> {
        let shortest = Duration::from_millis(300).min(self.plan.load);
        let wait = shortest + (self.plan.load - shortest).mul_f64(self.random.unit());
        self.display.watch(primary.socket(), wait.saturating_sub(load.began.elapsed())).await;
        primary.still_runs()?;
        backup.still_runs()?;
        let host = &self.stage.topology.primary;
        let armed = host.arm().await?;
        let last_words = primary.status(None).await?;
        load.benchmark_ran = load.benchmark.ended()?.is_none();
        let after = load.began.elapsed();
        let died = host.die(death, &armed, &mut primary.process).await?;
        self.display.step(&format!(
            "the primary dies ({death:?}), {} replies so far",
            load.client.replies()
        ));

        let until = Instant::now() + TAKEOVER;
        let failover = loop {
            backup.still_runs()?;
            match backup.status(None).await {
                Ok(Status { failover: Some(failover), .. }) if failover.open_ns != 0 => {
                    break failover;
                }
                Ok(status) if Instant::now() >= until => {
                    let (is, why) = (status.protection, status.reason);
                    bail!("the backup has not taken over in {TAKEOVER:?}: it is {is:?} ({why})")
                }
                Err(error) if Instant::now() >= until => return Err(error),
                Ok(_) | Err(_) => sleep(Duration::from_millis(10)).await,
            }
        };
        let takeover = Takeover { died, after, failover, last_words };
        self.display.step(&format!(
            "the backup has taken over at epoch {}: decided {:.0} ms after the death, gate open {:.1} ms \
             later, guest runs {:.1} ms later and is \
             given {} frames again, {} that came meanwhile",
            failover.epoch,
            ms(failover.decided_ns, died.began_ns),
            ms(failover.open_ns, failover.decided_ns),
            ms(failover.running_ns, failover.decided_ns),
            failover.given_again,
            failover.overheard,
        ));
        Ok(takeover)
    }

    /// Life goes on; a primary that was only stopped wakes up in it.
    pub(super) async fn aftermath(
        &mut self,
        death: Death,
        primary: &mut Daemon,
        backup: &Daemon,
    ) -> Result<()> {
        match death {
            Death::Host | Death::Process => {
                self.display.watch(backup.socket(), AFTERWARDS).await;
            }
            Death::Stop => {
                self.display.watch(backup.socket(), WAKE_AFTER).await;
                primary.process.signal(libc::SIGCONT)?;
                self.display.step("the old primary wakes up");
                self.display.watch(backup.socket(), AFTERWARDS - WAKE_AFTER).await;
            }
        }
        Ok(())
    }

    /// Ends the load and judges every reply.
    pub(super) async fn judge_load(
        &mut self,
        mut load: Load,
        died_ns: Option<u64>,
        round: &mut Round,
    ) -> Result<()> {
        let exit_code = load.benchmark.finish(BENCHMARK_END).await?;
        round.benchmark = Benchmark {
            requests: load.requests,
            seconds: load.began.elapsed().as_secs_f64(),
            exit_code,
            ran_over_the_death: load.benchmark_ran,
        };
        let Outcome { connections_kept, connections_lost, verdict, gaps } =
            load.client.finish().await;
        let origin_ns = died_ns.unwrap_or(load.began_ns);
        let gaps = gaps.into_iter().map(|gap| ReplyGap {
            from_ms: ms(gap.from_ns, origin_ns),
            ms: ms(gap.to_ns, gap.from_ns),
        });
        round.gaps = gaps.collect();
        round.client_gap_ms = round.gaps.iter().map(|gap| gap.ms).fold(0.0, f64::max);
        round.connections_kept = connections_kept as u64;
        round.connections_lost = connections_lost.len() as u64;
        round.replies = verdict.replies;
        round.replies_lost = verdict.unanswered;
        round.replies_contradicted = verdict.contradictions.len() as u64;
        let lost = connections_lost.into_iter().map(|why| format!("connection lost: {why}"));
        let wrong = verdict.contradictions.into_iter().map(|contradiction| {
            let Contradiction { asked, answered, expected, .. } = contradiction;
            format!("{asked}: answered {answered}, right was {expected}")
        });
        round.findings = lost.chain(wrong).take(50).collect();
        self.display.step(&format!(
            "{} replies, {} lost, {} contradicted; {} connections kept; longest gap {:.0} ms",
            round.replies,
            round.replies_lost,
            round.replies_contradicted,
            round.connections_kept,
            round.client_gap_ms
        ));
        Ok(())
    }
}

impl Takeover {
    pub(super) fn measure(&self, round: &mut Round) {
        let Self { died: Died { began_ns, over_ns }, after, failover, last_words } = self;
        round.death_took_ms = Some(ms(*over_ns, *began_ns));
        round.death_after_ms = Some(after.as_secs_f64() * 1e3);
        round.detect_ms = Some(ms(failover.decided_ns, *began_ns));
        round.activate_ms = Some(ms(failover.running_ns, failover.decided_ns));
        let serves_ns = failover.open_ns.max(failover.running_ns);
        round.frames_given_again = failover.given_again;
        round.frames_overheard = failover.overheard;
        round.service_back_ms = Some(ms(serves_ns, *began_ns));
        count(round, last_words);
    }
}

impl RoundRun<'_> {
    /// What a stock Linux says of having been moved: its clock, and its console.
    pub(super) async fn judge_linux(&self, guest: &mut Guest, round: &mut Round) -> Result<()> {
        round.guest_clock_step_ms = guest.clock_off_ms().await? - round.guest_clock_off_ms;
        let log = self.stage.log("backup");
        let log = fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
        // The console's lines are logged under the name `guest`. After its boot it is silent when all is well.
        let said = log.lines().filter_map(|line| line.split_once(" guest: "));
        round.guest_complaints = said.map(|(_, words)| words.to_owned()).collect();
        Ok(())
    }
}

pub(super) fn judge_beacons(sniffer: &Sniffer, round: &mut Round) -> Result<()> {
    let seen = sniffer.seen()?;
    let verdict = seen.judge();
    round.beacons = Beacons {
        seen_from_primary: verdict.seen_from_primary,
        seen_from_backup: verdict.seen_from_backup,
        newest_from_primary: verdict.newest_from_primary,
        oldest_from_backup: verdict.oldest_from_backup,
        ahead_of_promoted: verdict.ahead_total(),
        frames_of_the_dead: seen.frames_of_the_dead,
        kinds_missing: verdict.kinds_missing,
        missed_by_sniffer: seen.missed,
    };
    Ok(())
}

fn ms(later_ns: u64, earlier_ns: u64) -> f64 {
    (later_ns as f64 - earlier_ns as f64) / 1e6
}
