//! The phases before the load: what the guest does alone, what protection costs it idle and at work.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

use super::{death::BENCHMARK_END, round::RoundRun};
use crate::{guest::Guest, remus::Daemon, report::Round};

pub(super) const WORK_BYTES: u32 = 64;
pub(super) const BASELINE: Duration = Duration::from_millis(1500);
const IDLE: Duration = Duration::from_millis(1500);
/// Until the pages in use have become hot.
const WARM_UP: Duration = Duration::from_millis(700);
/// How long the guest's work under protection is looked at.
pub(crate) const WORK: Duration = Duration::from_secs(2);

impl RoundRun<'_> {
    /// Pages a second that the guest works through when nothing holds it back.
    pub(super) async fn measure_work(
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
    pub(super) async fn benchmark_rate(&self) -> Result<f64> {
        const REQUESTS: u64 = 2000;
        let began = Instant::now();
        let mut benchmark = self.benchmark(REQUESTS, "set")?;
        let code = benchmark.finish(BENCHMARK_END).await?;
        if code != Some(0) {
            bail!("redis-benchmark fails against the unprotected guest: see client.log");
        }
        Ok(REQUESTS as f64 / began.elapsed().as_secs_f64())
    }

    pub(super) async fn measure_idle(&mut self, primary: &Daemon, round: &mut Round) -> Result<()> {
        let since = primary.status(None).await?.epochs.captured;
        self.display.watch(primary.socket(), IDLE).await;
        round.pause_idle_us = primary.status(Some(since)).await?.pause_us;
        let pause = round.pause_idle_us.p50;
        self.display.step(&format!("idle: paused {pause} us an epoch (p50)"));
        Ok(())
    }

    pub(super) async fn measure_protected_work(
        &mut self,
        guest: &mut Guest,
        primary: &Daemon,
        round: &mut Round,
    ) -> Result<()> {
        guest.start_work(self.plan.dirty_pages, WORK_BYTES, 0).await?;
        self.display.watch(primary.socket(), WARM_UP).await;
        let began = Instant::now();
        let first = primary.status(None).await?.epochs;
        let vcpus_before = guest.progress_of_vcpus().await?;
        let before = guest.progress().await?;
        self.display.watch(primary.socket(), WORK).await;
        round.guest_work_protected = before.rate_until(guest.progress().await?);
        let vcpus_now = guest.progress_of_vcpus().await?;
        let status = primary.status(Some(first.captured)).await?;
        let seconds = began.elapsed().as_secs_f64();
        guest.stop_work().await?;

        let committed = status.epochs.acked.saturating_sub(first.acked);
        round.checkpoints_per_second = committed as f64 / seconds;
        let pages =
            vcpus_now.iter().zip(&vcpus_before).map(|(now, before)| now.saturating_sub(*before));
        round.guest_work_of_vcpus = pages.map(|pages| pages as f64 / seconds).collect();
        round.guest_work_ratio = round.guest_work_protected / round.guest_work_before;
        round.pause_us = status.pause_us;
        round.dirty_pages = status.dirty_pages;
        round.commit_us = status.commit_us;
        self.display.step(&format!(
            "at work: {:.1} checkpoints/s, {} dirty pages, paused {} us (p50), {:.1} % of its speed{}",
            round.checkpoints_per_second,
            status.dirty_pages.p50,
            status.pause_us.p50,
            round.guest_work_ratio * 100.0,
            by_vcpu(&round.guest_work_of_vcpus)
        ));
        Ok(())
    }
}

/// What each of several vCPUs did of the work.
fn by_vcpu(rates: &[f64]) -> String {
    let all: f64 = rates.iter().sum();
    let parts: Vec<_> = rates.iter().map(|rate| format!("{:.0} %", rate / all * 100.0)).collect();
    if parts.len() < 2 { String::new() } else { format!("; its vCPUs did {}", parts.join(", ")) }
}
