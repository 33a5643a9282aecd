//! A guest under protection: what a checkpoint takes of its time, how many there are, and what its host's death is like
//! for a client. Remus and COLO in turns, each with a guest of its own for each load.

use std::time::Duration;

use anyhow::Result;

use super::{
    Bench,
    figures::{Arm, Figure, Load, Measured, Part, Run},
};
use crate::{
    bench::{figures::median, in_turn},
    remus::{linux_network, linux_words},
};

pub(super) const PAGES: u32 = 1000;
/// What the guest does, and the part that asks for its pauses.
const LOADS: [(Load, Part); 2] = [(Load::Idle, Part::Pause), (Load::Pages(PAGES), Part::Rate)];
/// Until what is written again and again has become hot, and COLO has its first checkpoints behind it.
pub(super) const WARM_UP: Duration = Duration::from_secs(3);

pub(super) const fn idle(arm: Arm) -> Run {
    Run { part: Part::Pause, load: Load::Idle, arm }
}

pub(super) const fn at_work(arm: Arm) -> Run {
    Run { part: Part::Rate, load: Load::Pages(PAGES), arm }
}

/// What a protected guest's life has shown.
#[derive(Default)]
pub(super) struct Shown {
    pub(super) pause: Vec<Measured>,
    pub(super) gap: Option<Vec<Measured>>,
}

impl Bench<'_> {
    pub(super) async fn protect(&mut self) -> Result<()> {
        for (load, part) in LOADS {
            if !self.asks(part) && !self.dies(load) {
                continue;
            }
            let mut both = Vec::new();
            for &arm in in_turn(self.round, &[Arm::Remus, Arm::Colo]) {
                let shown = match arm {
                    Arm::Colo => self.colo(load).await,
                    Arm::Remus | Arm::Uplink | Arm::Microvm | Arm::Plug => self.remus(load).await,
                };
                match shown {
                    Ok(shown) => both.push((arm, shown)),
                    Err(error) => self.fails(&format!("{}, {}", arm.name(), load.name()), &error),
                }
            }
            if both.len() == 2 {
                for (arm, Shown { pause, gap }) in both {
                    if self.asks(part) {
                        self.figures.add(Run { part, load, arm }, pause);
                    }
                    if let Some(gap) = gap {
                        self.figures.add(super::gap::run(arm), gap);
                    }
                }
            }
        }
        Ok(())
    }

    /// The death is the idle guest's: what a client waits for is its host's end, not its guest's other work.
    pub(super) fn dies(&self, load: Load) -> bool {
        load == Load::Idle && self.asks(Part::Gap)
    }

    /// How long pauses are looked at.
    pub(super) fn stretch(&self) -> Duration {
        Duration::from_secs(if self.plan.quick { 3 } else { 10 })
    }

    pub(super) fn tell(&self, arm: Arm, load: Load, pause: &[Measured]) {
        let of = |wanted| pause.iter().find(|(figure, _)| *figure == wanted);
        let value = |wanted| of(wanted).map_or(f64::NAN, |&(_, value)| value);
        self.say(&format!(
            "{}, {}: paused {:.2} ms (p50), {:.1} checkpoints a second",
            arm.name(),
            load.name(),
            value(Figure::PauseP50Ms),
            value(Figure::CheckpointsPerS)
        ));
    }
}

/// The guest's command line under this load.
pub(super) fn words(load: Load) -> String {
    linux_words(&network_and(load))
}

/// Of the words those that are this guest's.
pub(super) fn network_and(load: Load) -> String {
    match load {
        Load::Pages(pages) => format!("{} remus.dirty={pages}", linux_network()),
        Load::Idle | Load::Vcpus(_) | Load::Frames(_) => linux_network(),
    }
}

/// Pauses in microseconds, of a stretch of so many seconds.
pub(super) fn pause_figures(pauses_us: &[f64], seconds: f64) -> Vec<Measured> {
    if pauses_us.is_empty() {
        return vec![(Figure::CheckpointsPerS, 0.0)];
    }
    vec![
        (Figure::PauseP50Ms, median(pauses_us) / 1e3),
        (Figure::PauseMaxMs, pauses_us.iter().copied().fold(0.0, f64::max) / 1e3),
        (Figure::CheckpointsPerS, pauses_us.len() as f64 / seconds),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_told_in_milliseconds_and_counted_by_the_second() {
        let told = pause_figures(&[1000.0, 3000.0, 2000.0], 2.0);
        let expected =
            [(Figure::PauseP50Ms, 2.0), (Figure::PauseMaxMs, 3.0), (Figure::CheckpointsPerS, 1.5)];
        assert_eq!(told, expected);
        assert_eq!(pause_figures(&[], 2.0), [(Figure::CheckpointsPerS, 0.0)]);
    }

    #[test]
    fn a_loaded_guest_has_a_word_more() {
        assert_eq!(
            network_and(Load::Pages(7)),
            format!("{} remus.dirty=7", network_and(Load::Idle))
        );
    }
}
