//! How long a guest stands still for a checkpoint, against the pages that it has dirtied, beside the floor.

use std::time::Duration;

use anyhow::Result;

use super::{
    Bench,
    bed::{Life, Stretch},
    figures::{Arm, Figure, Load, Measured, Part, Run},
    floor::{Floor, Pauses},
};

/// Bytes written in each page.
pub(super) const SPARSE: u32 = 64;
/// The paper's line, in microseconds: to a pause, and to each of its pages.
pub(super) const PAPER_US: (f64, f64) = (600.0, 3.7);
const POINTS: [u32; 7] = [0, 1, 256, 512, 1024, 4096, 16384];
const QUICK_POINTS: [u32; 2] = [0, 1024];
const FLOOR_PAUSES: u32 = 30;

pub(super) const fn run(load: Load, arm: Arm) -> Run {
    Run { part: Part::Pause, load, arm }
}

impl Bench<'_> {
    pub(super) async fn pause(&mut self) -> Result<()> {
        let points: &[u32] = if self.plan.quick { &QUICK_POINTS } else { &POINTS };
        let pauses = if self.plan.quick { FLOOR_PAUSES / 2 } else { FLOOR_PAUSES };
        let mut floor = Floor::start(self.bed).await?;
        let mut floors_us = Vec::new();
        for &pages in points {
            start_work(&mut floor.guest, pages).await?;
            let measured = floor.measure(pages, pauses).await?;
            floors_us.push(measured.floor_us);
            self.figures.add(run(Load::Pages(pages), Arm::Floor), floor_figures(measured));
        }
        floor.end()?;

        // Ascending, since a page that was hot stays in every checkpoint for a second.
        let mut life = Life::begin(self.bed, &Arm::Latency.options()).await?;
        life.protect(self.bed).await?;
        for (&pages, floor_us) in points.iter().zip(floors_us) {
            start_work(&mut life.guest, pages).await?;
            tokio::time::sleep(warm_up(pages)).await;
            let stretch = life.stretch(self.bed, self.stretch()).await?;
            let mut measured = pause_figures(&stretch);
            measured.push((Figure::OverFloor, stretch.status.pause_us.p50 as f64 / floor_us));
            self.say(&format!(
                "{pages} pages: paused {} us, floor {floor_us:.0} us",
                stretch.status.pause_us.p50
            ));
            self.figures.add(run(Load::Pages(pages), Arm::Latency), measured);
        }
        life.end(self.bed).await
    }
}

async fn start_work(guest: &mut crate::guest::Guest, pages: u32) -> Result<()> {
    if pages == 0 { guest.stop_work().await } else { guest.start_work(pages, SPARSE, 0).await }
}

/// Until pages in use are hot, those of before are not, and each has had its fault.
pub(super) fn warm_up(pages: u32) -> Duration {
    let cooling = if pages <= 1 { Duration::from_millis(800) } else { Duration::ZERO };
    cooling + Duration::from_millis(600) + Duration::from_micros(60) * pages
}

pub(super) fn pause_figures(stretch: &Stretch) -> Vec<Measured> {
    let Stretch { seconds, status, checkpoints, pause_parts_us, .. } = stretch;
    let pause = status.pause_us;
    let mut measured = vec![
        (Figure::PauseP50Us, pause.p50 as f64),
        (Figure::PauseP90Us, pause.p90 as f64),
        (Figure::PauseP99Us, pause.p99 as f64),
        (Figure::PauseMaxUs, pause.max as f64),
        (Figure::DirtyPages, status.dirty_pages.p50 as f64),
        (Figure::CheckpointsPerS, *checkpoints as f64 / seconds),
        (Figure::CommitP50Us, status.commit_us.p50 as f64),
    ];
    let parts = pause_parts_us.iter().enumerate();
    measured.extend(parts.map(|(n, (name, us))| (Figure::Part(n, name.clone()), *us)));
    if !pause_parts_us.is_empty() {
        let sum: f64 = pause_parts_us.iter().map(|(_, us)| us).sum();
        measured.push((Figure::PartsSum, sum / pause.p50 as f64));
    }
    measured
}

fn floor_figures(pauses: Pauses) -> Vec<Measured> {
    let Pauses { pages, kick_us, state_us, copy_us, floor_us } = pauses;
    let parts = [("kick", kick_us), ("state", state_us), ("copy", copy_us)];
    let parts = parts.into_iter().enumerate();
    let parts = parts.map(|(n, (name, us))| (Figure::Part(n, name.to_owned()), us));
    let whole = [(Figure::PauseP50Us, floor_us), (Figure::DirtyPages, pages as f64)];
    whole.into_iter().chain(parts).collect()
}
