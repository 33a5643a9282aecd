//! A round, told in order.

use std::time::Duration;

use anyhow::Result;
use remus::observe::status::{Protection, Status};
use remus_abi::{ack::AckCounter, gate::Counter};
use tokio::time::{Instant, sleep};

use super::{Plan, Random, Stage, death::judge_beacons, measure::BASELINE, print_entrances};
use crate::{
    guest::Guest,
    progress::Display,
    remus::{Daemon, Options, Programs, Software, start_backup, start_primary},
    report::Round,
    sniffer::Sniffer,
    sys,
    topology::GUEST,
};

const BOOT: Duration = Duration::from_millis(50);
const START: Duration = Duration::from_secs(20);
const PROTECT: Duration = Duration::from_secs(30);
const LAB_TAKES_LONGER: Duration = Duration::from_secs(150);
const PER_GIB: Duration = Duration::from_secs(10);

pub(super) struct RoundRun<'a> {
    pub(super) plan: &'a Plan,
    pub(super) programs: &'a Programs,
    pub(super) stage: &'a Stage<'a>,
    pub(super) display: &'a mut Display,
    pub(super) random: &'a mut Random,
}

impl RoundRun<'_> {
    pub(super) async fn tell(&mut self, number: u32) -> Result<Round> {
        let mut round = Round::default();
        let topology = self.stage.topology;
        let sniffer =
            Sniffer::start(&topology.switch, self.stage.primary_port, self.stage.backup_port)?;

        let log = self.stage.log("primary");
        let folder = &self.stage.folder;
        let Plan { guest: software, machine, timing, gate, .. } = *self.plan;
        let options = Options { machine, timing, gate, guest: software, ..Options::default() };
        let mut primary = start_primary(&topology.primary, self.programs, &options, folder, &log)?;
        let mut guest = self.guest_answers(&mut primary).await?;
        self.display.step("the guest answers, unprotected");
        let demo = software == Software::Demo;
        if demo {
            round.guest_work_before = self.measure_work(&mut guest, &primary, BASELINE).await?;
        }
        let benchmark_rate = self.benchmark_rate().await?;

        let mut backup =
            start_backup(&topology.backup, self.programs, folder, &self.stage.log("backup"))?;
        let began = Instant::now();
        let protected = primary.wait_for(Protection::Protected, PROTECT + self.touching());
        tokio::select! {
            status = protected => drop(status?),
            ended = ends(&mut backup) => ended?,
        }
        let took = began.elapsed().as_millis();
        self.display.step(&format!("protected, {took} ms after the backup was started"));

        self.measure_idle(&primary, &mut round).await?;
        if !demo {
            // Whatever it lost while it booted on ticks alone (there is no CMOS clock to set it by) is its own.
            round.guest_clock_off_ms = guest.clock_off_ms().await?;
        }
        if demo {
            self.measure_protected_work(&mut guest, &primary, &mut round).await?;
        }
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
                let promoted = backup.status(None).await?.gate.counters;
                round.frames_refused_by_lock += promoted.get(Counter::RefusedByLock);
                if demo {
                    judge_beacons(&sniffer, &mut round)?;
                } else {
                    round.beacons.frames_of_the_dead = sniffer.seen()?.frames_of_the_dead;
                    self.judge_linux(&mut guest, &mut round).await?;
                }
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
        primary.wait_for(Protection::Unprotected, START + self.touching()).await?;
        sleep(BOOT).await;
        tokio::select! {
            guest = Guest::wait(&client, GUEST, START + self.touching()) => guest,
            ended = ends(primary) => Err(ended.expect_err("ends only with an error")),
        }
    }

    /// How much longer a large guest may take to begin, or to be copied.
    fn touching(&self) -> Duration {
        let slow = if sys::is_the_lab() { LAB_TAKES_LONGER } else { Duration::ZERO };
        PER_GIB * (self.plan.machine.memory_mib >> 10) + slow
    }

    /// Leaves everything as it is until the user ends us.
    async fn keep(&mut self) {
        self.display.step("kept: Ctrl-C ends it. As root:");
        print_entrances(self.stage.topology);
        std::future::pending().await
    }
}

/// The primary's counters as it last told them.
pub(super) fn count(round: &mut Round, status: &Status) {
    round.checkpoints = status.checkpoints;
    round.bytes_sent = status.bytes_sent;
    round.bytes_raw = status.bytes_raw;
    let gate = &status.gate.counters;
    round.frames_held = gate.get(Counter::Held);
    round.frames_released = gate.get(Counter::Released);
    round.frames_refused_by_lock = gate.get(Counter::RefusedByLock);
    round.kernel_releases = status.trigger.counters.get(AckCounter::Taken);
    round.release_lead_us = status.trigger.lead_us;
}

/// Returns, with an error, when the daemon ends.
async fn ends(daemon: &mut Daemon) -> Result<()> {
    loop {
        daemon.still_runs()?;
        sleep(Duration::from_millis(20)).await;
    }
}
