//! What is left of the guest's own speed, against checkpoints a second.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use super::{
    Bench,
    bed::{Life, Stretch},
    figures::{Arm, Figure, Load, Part, Run},
    pause::{SPARSE, pause_figures, warm_up},
};
use crate::bench::{figures::median, in_turn};

/// The paper's kernel build took so much longer: checkpoints a second, and the build's speed of the unprotected one's.
pub(super) const PAPER: [(f64, f64); 4] =
    [(10.0, 1.0 / 1.31), (20.0, 1.0 / 1.52), (30.0, 1.0 / 1.80), (40.0, 1.0 / 2.03)];
/// Pages that the guest works on: of one after the other in the same life.
const CASES: [(Arm, &[u32]); 7] = [
    (Arm::Latency, &[1000, 4000]),
    (Arm::Fixed(10), &[1000]),
    (Arm::Fixed(20), &[1000]),
    (Arm::Fixed(30), &[1000]),
    (Arm::Fixed(40), &[1000]),
    (Arm::Fixed(100), &[1000]),
    (Arm::Fixed(200), &[100, 1000]),
];
const QUICK_CASES: [(Arm, &[u32]); 1] = [(Arm::Fixed(200), &[100])];

/// Of all pages that a case has, by a guest alone.
const FIRST_TOUCH: Duration = Duration::from_millis(300);

pub(super) const fn run(load: Load, arm: Arm) -> Run {
    Run { part: Part::Rate, load, arm }
}

/// What one life has shown.
struct Shown {
    arm: Arm,
    pages: u32,
    /// Pages a second, by the guest alone.
    alone: f64,
    protected: Stretch,
}

impl Bench<'_> {
    pub(super) async fn rate(&mut self) -> Result<()> {
        let cases: &[_] = if self.plan.quick { &QUICK_CASES } else { &CASES };
        let mut shown = Vec::new();
        for &(arm, pages) in in_turn(self.round, cases) {
            self.rate_of(arm, pages, &mut shown).await?;
        }
        for Shown { arm, pages, alone, protected } in &shown {
            let ratio = protected.work / usually_alone(&shown, *pages);
            let mut measured = pause_figures(protected);
            measured.extend([(Figure::WorkPerS, protected.work), (Figure::WorkRatio, ratio)]);
            let run = |arm| run(Load::Pages(*pages), arm);
            self.figures.add(run(Arm::Unprotected), [(Figure::WorkPerS, *alone)]);
            self.figures.add(run(*arm), measured);
        }
        Ok(())
    }

    async fn rate_of(&mut self, arm: Arm, cases: &[u32], shown: &mut Vec<Shown>) -> Result<()> {
        let mut life = Life::begin(self.bed, &arm.options()).await?;
        let mut alone = Vec::new();
        for &pages in cases {
            life.guest.start_work(pages, SPARSE, 0).await?;
            sleep(FIRST_TOUCH).await;
            alone.push(life.stretch(self.bed, self.stretch() * 2 / 3).await?.work);
        }
        life.protect(self.bed).await?;
        for (&pages, alone) in cases.iter().zip(alone) {
            life.guest.start_work(pages, SPARSE, 0).await?;
            sleep(warm_up(pages)).await;
            let protected = life.stretch(self.bed, self.stretch()).await?;
            self.say(&format!(
                "{}, {pages} pages: {:.1} checkpoints/s, {:.0} touches/s, alone {alone:.0}",
                arm.name(),
                protected.checkpoints as f64 / protected.seconds,
                protected.work
            ));
            shown.push(Shown { arm, pages, alone, protected });
        }
        life.end(self.bed).await
    }
}

/// The median of the round's guests, which are all alike: one that was disturbed while it was alone would make what
/// came of it under protection look good.
fn usually_alone(shown: &[Shown], pages: u32) -> f64 {
    let alike = shown.iter().filter(|shown| shown.pages == pages);
    median(&alike.map(|shown| shown.alone).collect::<Vec<_>>())
}
