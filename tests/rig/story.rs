//! What `remus-rig run` does: a guest is protected, measured and loaded, its host dies, and the load goes on.
//!
//! A round is one guest's life, from its start to the last read-back after the takeover; `--repeat` runs
//! several on the same cables. The phases of a round are functions below, in the order in which they happen.

use std::{
    fs,
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use remus::observe::status::{Failover, Protection, Status};
use tokio::time::{Instant, sleep};

use crate::{
    client::{Client, Outcome},
    guest::Guest,
    host::{Death, Died, Process, Share},
    links::Links,
    nest,
    netns::NetNs,
    progress::Display,
    remus::{Daemon, Programs, Timing, start_backup, start_primary},
    report::{Asked, Beacons, Benchmark, ReplyGap, Report, Round},
    sniffer::Sniffer,
    sys::boottime_ns,
    topology::{BACKUP_PORT, GUEST, PRIMARY_PORT, Topology},
};

const CONNECTIONS: usize = 8;
const BENCHMARK_CLIENTS: u32 = 20;
const WORK_BYTES: u32 = 64;
const BEACON_MS: u32 = 10;

const BOOT: Duration = Duration::from_millis(50);
const START: Duration = Duration::from_secs(20);
const PROTECT: Duration = Duration::from_secs(30);
const TAKEOVER: Duration = Duration::from_secs(10);
const BENCHMARK_END: Duration = Duration::from_secs(30);

const BASELINE: Duration = Duration::from_millis(1500);
const IDLE: Duration = Duration::from_millis(1500);
/// Until the pages in use have become hot.
const WARM_UP: Duration = Duration::from_millis(700);
const WORK: Duration = Duration::from_secs(2);
const AFTERWARDS: Duration = Duration::from_secs(3);
const WAKE_AFTER: Duration = Duration::from_secs(1);

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `None`: the host lives on.
    pub death: Option<Death>,
    pub rounds: u32,
    pub dirty_pages: u32,
    pub timing: Timing,
    /// How long the load runs before the host dies at the latest, or at all if it does not die.
    pub load: Duration,
    pub seed: Option<u64>,
    pub keep: bool,
}

/// Runs the plan. Says whether nothing was lost.
pub async fn run(plan: &Plan, programs: &Programs) -> Result<bool> {
    programs.check()?;
    let seed = plan.seed.unwrap_or_else(|| RandomState::new().hash_one(boottime_ns()));
    let id = format!("{}-{}", boottime_ns() / 1_000_000, nest::outside_pid().unwrap_or(0));
    let folder = programs.runs.join(&id);
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;

    let mut display = Display::new();
    let mut topology = Topology::build().await?;
    let built = format!("a client, a switch, two hosts; files in {}", folder.display());
    display.step(&format!("{built}, seed {seed}"));

    let mut rounds = Vec::new();
    let mut random = Random(seed);
    for number in 1..=plan.rounds {
        if plan.rounds > 1 {
            display.step(&format!("round {number} of {}", plan.rounds));
        }
        if number > 1 {
            topology.hosts_reborn().await?;
        }
        let folder = folder.join(format!("round-{number}"));
        let stage = Stage::set(&topology, &folder).await?;
        let mut round =
            RoundRun { plan, programs, stage: &stage, display: &mut display, random: &mut random };
        let told = round.tell(number).await;
        rounds
            .push(told.with_context(|| format!("round {number} (logs in {})", folder.display()))?);
    }

    let asked =
        Asked { id, death: plan.death, timing: plan.timing, dirty_pages: plan.dirty_pages, seed };
    let report = Report::new(&asked, rounds);
    report.write(&folder)?;
    println!("\n{}\n  {}", report.table(), folder.join("report.json").display());
    Ok(report.nothing_lost())
}

/// Where a round plays: the hosts, and the files that it writes.
struct Stage<'a> {
    topology: &'a Topology,
    folder: PathBuf,
    /// The switch's ports, for the sniffer.
    primary_port: u32,
    backup_port: u32,
}

impl<'a> Stage<'a> {
    async fn set(topology: &'a Topology, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let ports = Links::open(&topology.switch)?;
        Ok(Self {
            topology,
            folder: folder.to_owned(),
            primary_port: ports.index(PRIMARY_PORT).await?,
            backup_port: ports.index(BACKUP_PORT).await?,
        })
    }

    fn log(&self, of: &str) -> PathBuf {
        self.folder.join(format!("{of}.log"))
    }

    fn client(&self) -> Result<NetNs> {
        self.topology.client.netns().another()
    }
}

struct RoundRun<'a> {
    plan: &'a Plan,
    programs: &'a Programs,
    stage: &'a Stage<'a>,
    display: &'a mut Display,
    random: &'a mut Random,
}

/// The load while it runs.
struct Load {
    client: Client,
    benchmark: Process,
    requests: u64,
    began: Instant,
    began_ns: u64,
    /// Whether the benchmark ran when the host died.
    benchmark_ran: bool,
}

/// What is known of a death once the guest runs again.
struct Takeover {
    died: Died,
    after: Duration,
    failover: Failover,
    /// The last that the primary said of itself.
    last_words: Status,
}

impl RoundRun<'_> {
    async fn tell(&mut self, number: u32) -> Result<Round> {
        let mut round = Round::default();
        let topology = self.stage.topology;
        let sniffer =
            Sniffer::start(&topology.switch, self.stage.primary_port, self.stage.backup_port)?;

        let log = self.stage.log("primary");
        let folder = &self.stage.folder;
        let mut primary =
            start_primary(&topology.primary, self.programs, self.plan.timing, folder, &log)?;
        let mut guest = self.guest_answers(&mut primary).await?;
        self.display.step("the guest answers, unprotected");
        round.guest_work_before = self.measure_work(&mut guest, &primary, BASELINE).await?;
        let benchmark_rate = self.benchmark_rate().await?;

        let mut backup =
            start_backup(&topology.backup, self.programs, folder, &self.stage.log("backup"))?;
        let began = Instant::now();
        let protected = primary.wait_for(Protection::Protected, PROTECT);
        tokio::select! {
            status = protected => drop(status?),
            ended = ends(&mut backup) => ended?,
        }
        let took = began.elapsed().as_millis();
        self.display.step(&format!("protected, {took} ms after the backup was started"));

        self.measure_idle(&primary, &mut round).await?;
        self.measure_protected_work(&mut guest, &primary, &mut round).await?;
        let mut load = self.load(&mut guest, benchmark_rate, number).await?;
        match self.plan.death {
            None => {
                self.display.watch(primary.socket(), self.plan.load).await;
                primary.still_runs()?;
                backup.still_runs()?;
                count(&mut round, &primary.status(None).await?);
                self.judge_load(load, None, &mut round).await?;
            }
            Some(death) => {
                let takeover = self.death(death, &mut load, &mut primary, &mut backup).await?;
                let died_ns = takeover.died.began_ns;
                takeover.measure(&mut round);
                self.aftermath(death, &mut primary, &backup).await?;
                self.judge_load(load, Some(died_ns), &mut round).await?;
                backup.still_runs()?;
                let promoted = backup.status(None).await?.gate;
                round.frames_refused_by_lock += promoted.refused_by_lock;
                judge_beacons(&sniffer, &mut round)?;
            }
        }
        if self.plan.keep {
            self.keep().await;
        }
        primary.process.kill()?;
        backup.process.kill()?;
        Ok(round)
    }

    async fn guest_answers(&mut self, primary: &mut Daemon) -> Result<Guest> {
        let client = self.stage.client()?;
        // A question that comes before the guest is there is asked again only a second later: ARP's pace.
        primary.wait_for(Protection::Unprotected, START).await?;
        sleep(BOOT).await;
        tokio::select! {
            guest = Guest::wait(&client, GUEST, START) => guest,
            ended = ends(primary) => Err(ended.expect_err("ends only with an error")),
        }
    }

    /// Pages a second that the guest works through when nothing holds it back.
    async fn measure_work(
        &mut self,
        guest: &mut Guest,
        daemon: &Daemon,
        time: Duration,
    ) -> Result<f64> {
        guest.start_work(self.plan.dirty_pages, WORK_BYTES, 0).await?;
        self.display.watch(daemon.socket(), WARM_UP).await;
        let before = guest.progress().await?;
        self.display.watch(daemon.socket(), time).await;
        let rate = before.rate_until(guest.progress().await?);
        guest.stop_work().await?;
        Ok(rate)
    }

    /// Requests a second that redis-benchmark gets out of the unprotected guest: no load of it is faster.
    async fn benchmark_rate(&self) -> Result<f64> {
        const REQUESTS: u64 = 2000;
        let began = Instant::now();
        let mut benchmark = self.benchmark(REQUESTS, "set")?;
        let code = wait(&mut benchmark, BENCHMARK_END).await?;
        if code != Some(0) {
            bail!("redis-benchmark fails against the unprotected guest: see client.log");
        }
        Ok(REQUESTS as f64 / began.elapsed().as_secs_f64())
    }

    fn benchmark(&self, requests: u64, tests: &str) -> Result<Process> {
        let mut command = Command::new("redis-benchmark");
        command.args(["-h", &GUEST.ip().to_string(), "-p", &GUEST.port().to_string(), "-t", tests]);
        command.args(["-c", &BENCHMARK_CLIENTS.to_string(), "-n", &requests.to_string(), "--csv"]);
        command.stdin(Stdio::null());
        self.stage.topology.client.spawn(command, Share::Load, &self.stage.log("client"))
    }

    async fn measure_idle(&mut self, primary: &Daemon, round: &mut Round) -> Result<()> {
        let since = primary.status(None).await?.epochs.captured;
        self.display.watch(primary.socket(), IDLE).await;
        round.pause_idle_us = primary.status(Some(since)).await?.pause_us;
        let pause = round.pause_idle_us.p50;
        self.display.step(&format!("idle: paused {pause} us an epoch (p50)"));
        Ok(())
    }

    async fn measure_protected_work(
        &mut self,
        guest: &mut Guest,
        primary: &Daemon,
        round: &mut Round,
    ) -> Result<()> {
        guest.start_work(self.plan.dirty_pages, WORK_BYTES, 0).await?;
        self.display.watch(primary.socket(), WARM_UP).await;
        let began = Instant::now();
        let first = primary.status(None).await?.epochs;
        let before = guest.progress().await?;
        self.display.watch(primary.socket(), WORK).await;
        round.guest_work_protected = before.rate_until(guest.progress().await?);
        let status = primary.status(Some(first.captured)).await?;
        let seconds = began.elapsed().as_secs_f64();
        guest.stop_work().await?;

        let committed = status.epochs.acked.saturating_sub(first.acked);
        round.checkpoints_per_second = committed as f64 / seconds;
        round.guest_work_ratio = round.guest_work_protected / round.guest_work_before;
        round.pause_us = status.pause_us;
        round.dirty_pages = status.dirty_pages;
        round.commit_us = status.commit_us;
        self.display.step(&format!(
            "at work: {:.1} checkpoints/s, {} dirty pages, paused {} us (p50), {:.1} % of its speed",
            round.checkpoints_per_second,
            status.dirty_pages.p50,
            status.pause_us.p50,
            round.guest_work_ratio * 100.0
        ));
        Ok(())
    }

    /// The work goes on at a steady rate; beacons, redis-benchmark and the checking client join it.
    async fn load(&mut self, guest: &mut Guest, benchmark_rate: f64, number: u32) -> Result<Load> {
        let Plan { dirty_pages, timing, load, .. } = *self.plan;
        let rate = u64::from(dirty_pages) * 1000 / u64::from(timing.epoch_ms);
        let rate = u32::try_from(rate).context("that many pages a second")?;
        guest.start_work(dirty_pages, WORK_BYTES, rate).await?;
        guest.start_beacon(BEACON_MS).await?;
        let name = format!("round{number}");
        let client = Client::start(self.stage.client()?, GUEST, CONNECTIONS, &name).await?;
        // Enough for the whole load at a speed that it will not reach: SET and GET share it.
        let requests = (benchmark_rate * load.as_secs_f64() * 0.75).max(1000.0).round();
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

    async fn death(
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
             later, guest runs {:.1} ms later",
            failover.epoch,
            ms(failover.decided_ns, died.began_ns),
            ms(failover.open_ns, failover.decided_ns),
            ms(failover.running_ns, failover.decided_ns),
        ));
        Ok(takeover)
    }

    /// Life goes on; a primary that was only stopped wakes up in it.
    async fn aftermath(
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
    async fn judge_load(
        &mut self,
        mut load: Load,
        died_ns: Option<u64>,
        round: &mut Round,
    ) -> Result<()> {
        let exit_code = wait(&mut load.benchmark, BENCHMARK_END).await?;
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
            let crate::client::Contradiction { asked, answered, expected, .. } = contradiction;
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

    /// Leaves everything as it is until the user ends us.
    async fn keep(&mut self) {
        self.display.step("kept: Ctrl-C ends it. As root:");
        print_entrances(self.stage.topology);
        std::future::pending().await
    }
}

/// How to enter each host.
pub fn print_entrances(topology: &Topology) {
    if let Some(pid) = nest::outside_pid() {
        for host in [&topology.client, &topology.primary, &topology.backup] {
            println!("  {:<8} {}", host.name(), host.nsenter(pid));
        }
    }
}

impl Takeover {
    fn measure(&self, round: &mut Round) {
        let Self { died: Died { began_ns, over_ns }, after, failover, last_words } = self;
        round.death_took_ms = Some(ms(*over_ns, *began_ns));
        round.death_after_ms = Some(after.as_secs_f64() * 1e3);
        round.detect_ms = Some(ms(failover.decided_ns, *began_ns));
        round.activate_ms = Some(ms(failover.running_ns, failover.decided_ns));
        let serves_ns = failover.open_ns.max(failover.running_ns);
        round.service_back_ms = Some(ms(serves_ns, *began_ns));
        count(round, last_words);
    }
}

/// The primary's counters as it last told them.
fn count(round: &mut Round, status: &Status) {
    round.checkpoints = status.checkpoints;
    round.bytes_sent = status.bytes_sent;
    round.bytes_raw = status.bytes_raw;
    round.frames_held = status.gate.held;
    round.frames_released = status.gate.released;
    round.frames_refused_by_lock = status.gate.refused_by_lock;
}

fn judge_beacons(sniffer: &Sniffer, round: &mut Round) -> Result<()> {
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

/// Returns, with an error, when the daemon ends.
async fn ends(daemon: &mut Daemon) -> Result<()> {
    loop {
        daemon.still_runs()?;
        sleep(Duration::from_millis(20)).await;
    }
}

/// The exit code of a process that ends by itself, `None` when it had to be killed or died of a signal.
async fn wait(process: &mut Process, patience: Duration) -> Result<Option<i32>> {
    let until = Instant::now() + patience;
    loop {
        if let Some(status) = process.ended()? {
            return Ok(status.code());
        }
        if Instant::now() >= until {
            process.kill()?;
            return Ok(None);
        }
        sleep(Duration::from_millis(5)).await;
    }
}

fn ms(later_ns: u64, earlier_ns: u64) -> f64 {
    (later_ns as f64 - earlier_ns as f64) / 1e6
}

/// A small generator of moments (splitmix64): a run's seed is in its report, so that it can be told again.
struct Random(u64);

impl Random {
    /// In `0.0..1.0`.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
