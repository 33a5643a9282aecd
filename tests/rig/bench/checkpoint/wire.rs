//! What goes over the wire for a checkpoint, and how far the backup lags behind.

use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep};

use super::{
    Bench,
    bed::{Life, Stretch},
    figures::{Arm, Figure, Load, Part, Run},
    pause::{SPARSE, warm_up},
};
use crate::bench::figures::median;

const PAGES: u32 = 1000;
const BYTES: [u32; 3] = [SPARSE, 512, 4096];
/// The guest that answers nobody sends a beacon this often, so that there is something to release.
const BEACON_MS: u32 = 10;

pub(super) const fn run(bytes: u32) -> Run {
    Run { part: Part::Wire, load: Load::Bytes(bytes), arm: Arm::Latency }
}

impl Bench<'_> {
    pub(super) async fn wire(&mut self) -> Result<()> {
        let bytes: &[u32] = if self.plan.quick { &[SPARSE] } else { &BYTES };
        let mut life = Life::begin(self.bed, &Arm::Latency.options()).await?;
        life.protect(self.bed).await?;
        for &bytes in bytes {
            life.guest.start_work(PAGES, bytes, 0).await?;
            sleep(warm_up(PAGES)).await;
            let stretch = life.stretch(self.bed, self.stretch()).await?;
            let Stretch { seconds, status, bytes_sent, bytes_raw, bytes_on_link, .. } = &stretch;
            let raw = *bytes_raw as f64;
            self.figures.add(
                run(bytes),
                [
                    (Figure::SentRatio, *bytes_sent as f64 / raw),
                    (Figure::WireRatio, *bytes_on_link as f64 / raw),
                    (Figure::WireMbitPerS, *bytes_on_link as f64 * 8.0 / 1e6 / seconds),
                    (Figure::DirtyPages, status.dirty_pages.p50 as f64),
                    (Figure::CommitP50Us, status.commit_us.p50 as f64),
                    (Figure::CommitP99Us, status.commit_us.p99 as f64),
                ],
            );
            self.say(&format!(
                "{bytes} B a page: {:.2} % of raw on the wire, committed after {} us",
                *bytes_on_link as f64 / raw * 100.0,
                status.commit_us.p50
            ));
        }
        // Beacons end epochs early where the mode says so: lag is measured by itself.
        life.guest.start_work(PAGES, SPARSE, 0).await?;
        life.guest.start_beacon(BEACON_MS).await?;
        sleep(warm_up(PAGES)).await;
        let lag_ms = self.lag_ms(&life).await?;
        self.say(&format!("backup lag: {lag_ms:.2} ms"));
        self.figures.add(run(SPARSE), [(Figure::LagMs, lag_ms)]);
        life.end(self.bed).await
    }

    /// The median of what the primary says again and again.
    async fn lag_ms(&self, life: &Life) -> Result<f64> {
        let until = Instant::now() + self.stretch();
        let mut told = Vec::new();
        while Instant::now() < until {
            told.push(life.primary.status(None).await?.lag_ms);
            sleep(Duration::from_millis(27)).await;
        }
        Ok(median(&told))
    }
}
