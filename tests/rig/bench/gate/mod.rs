//! `remus-rig bench gate`: what the gate costs, against the same bridge without one.
//!
//! Every arm does the same work on the same tap, bridge and cable ([`bed`]), in turns, several rounds of
//! them, after a round that does not count. Ratios are taken between runs of the same round, so that a
//! machine that gets slower meanwhile does not tilt them; what is told is the median of the rounds.
//!
//! What ran where: the writer alone on a CPU, with what the kernel does within its `write` calls (without a
//! gate that is all of a frame's way to the sink); the controller on another, with the softirqs that its flushes
//! set off. The rest of the rig waits meanwhile.
//!
//! [`arm`] is what is compared, [`open`], [`hold`], [`release`] and [`judge`] are the questions, [`figures`]
//! keeps the answers, [`report`] tells them.
//!
//! [`plug`] is another's gate: it is compared where it is asked for, and where the kernel has it.
//!
//! Deliberately absent: a guest (the writer stands for it), the replication's own time, and any emulated
//! network.

mod arm;
mod bed;
mod claims;
mod clocks;
mod figures;
mod frames;
mod hold;
mod judge;
mod open;
mod plug;
mod release;
mod report;
mod sink;
mod writer;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

pub use arm::Arm;
use arm::{Gated, Room};
use bed::Bed;
use figures::{Figure, Figures, Measured, Phase, Run};
use frames::Size;
use report::Report;

use crate::{bench::come_first, sys};

const SIZES: [Size; 3] = [Size::B64, Size::B1500, Size::Gso64K];
const EPOCHS_MS: [u32; 2] = [25, 100];
/// Super-frames are not among them: one is as much as forty full frames, and a burst of those another question.
const BURSTS: [u32; 2] = [10_000, 100_000];

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    pub arms: Vec<Arm>,
    /// Rounds that count.
    pub rounds: u32,
    /// Shorter runs: for a machine that only has to show that all of it works.
    pub quick: bool,
}

/// The files that a bench needs and makes, beside the rig in `target/`.
#[derive(Clone, Debug)]
pub struct Places {
    sink: PathBuf,
    gate: PathBuf,
    reports: PathBuf,
}

impl Places {
    pub fn beside_the_rig(rig: &Path) -> Result<Self> {
        let target = rig.parent().and_then(Path::parent);
        let target = target.context("the rig is not in target/release")?;
        let objects = target.join("ebpf");
        Ok(Self {
            sink: objects.join("sink.o"),
            gate: objects.join("gate.o"),
            reports: target.join("bench"),
        })
    }
}

/// Runs the plan. Says whether every claim holds, or, of a quick one, every claim that nothing was lost.
pub fn run(plan: &Plan, places: &Places) -> Result<bool> {
    let writers_cpu = take_the_controllers_cpu()?;
    come_first()?;
    let mut bed = Bed::make(&places.sink, writers_cpu)?;
    let mut figures = Figures::default();
    for round in 0..=plan.rounds {
        println!("round {round} of {}{}", plan.rounds, if round == 0 { ": a warm-up" } else { "" });
        // Each arm is first in turn.
        let first = round as usize % plan.arms.len();
        for &arm in plan.arms[first..].iter().chain(&plan.arms[..first]) {
            let measured = measure(arm, &mut bed, plan, places);
            for (run, measured) in measured.with_context(|| format!("arm {}", arm.name()))? {
                if round > 0 {
                    figures.add(run, measured);
                }
            }
        }
    }
    let report = Report::new(&figures, &plan.arms, plan.rounds, plan.quick);
    report.write(&places.reports)?;
    println!("{}\n  {}", report.table(), places.reports.join("gate.json").display());
    Ok(report.all_hold())
}

/// A burst that an arm held and released: what became of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Burst {
    pub(super) arm: Arm,
    /// Of each of its frames.
    pub(super) bytes: usize,
    /// From the release until the last frame was at the sink.
    pub(super) took: Duration,
    pub(super) early: u64,
    pub(super) lost: u64,
    pub(super) out_of_order: u64,
    pub(super) resent: u64,
}

/// Bursts of so many frames, small and full ones, through each of `arms` in turns, after a round that does not count.
/// Binds the calling thread to the controller's CPU, and says which is the writer's.
fn take_the_controllers_cpu() -> Result<usize> {
    let (writers, others) = sys::apart().context("the bench needs two CPUs")?;
    sys::use_only_cpu(others[0]).context("take the controller's CPU")?;
    Ok(writers)
}

/// Takes the controller's CPU for the calling thread, and mounts /run and /sys anew.
pub(super) fn bursts(
    arms: &[Arm],
    rounds: u32,
    frames: u32,
    places: &Places,
) -> Result<Vec<Burst>> {
    let mut bed = Bed::make(&places.sink, take_the_controllers_cpu()?)?;
    let mut bursts = Vec::new();
    for round in 0..=rounds {
        for &arm in arms {
            with_gate(arm, &mut bed, Room::Default, |bed, gated| {
                let Some(gated) = gated else { return Ok(()) };
                for size in [Size::B64, Size::B1500] {
                    let measured = release::burst(bed, gated, size, frames)?;
                    if round > 0 {
                        bursts.push(Burst::new(arm, size, frames, &measured));
                    }
                }
                Ok(())
            })
            .with_context(|| format!("arm {}", arm.name()))?;
        }
    }
    Ok(bursts)
}

impl Burst {
    fn new(arm: Arm, size: Size, frames: u32, measured: &[Measured]) -> Self {
        let of = |wanted| measured.iter().find(|(figure, _)| *figure == wanted);
        let value = |wanted| of(wanted).map_or(0.0, |&(_, value)| value);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counts of frames; a negative one of losses, were there one, is no loss"
        )]
        let count = |wanted| value(wanted) as u64;
        Self {
            arm,
            bytes: size.bytes(),
            took: Duration::from_secs_f64(value(Figure::ReleaseUs) * f64::from(frames) / 1e6),
            early: count(Figure::Early),
            lost: count(Figure::Lost) + count(Figure::DroppedFull),
            out_of_order: count(Figure::OutOfOrder),
            resent: count(Figure::Resent),
        }
    }
}

/// All that is asked of an arm in a round.
fn measure(
    arm: Arm,
    bed: &mut Bed,
    plan: &Plan,
    places: &Places,
) -> Result<Vec<(Run, Vec<Measured>)>> {
    let (time, epochs) = if plan.quick {
        (Duration::from_millis(300), [4, 2])
    } else {
        (Duration::from_millis(1000), [12, 4])
    };
    let mut rows = Vec::new();
    let sizes: Vec<Size> = SIZES.into_iter().filter(|&size| arm.takes(size)).collect();
    with_gate(arm, bed, Room::Default, |bed, gated| {
        for &size in &sizes {
            let run = |phase| Run { phase, size, arm };
            rows.push((run(Phase::Open), open::throughput(bed, gated, size, time)?));
            if size != Size::Gso64K {
                rows.push((run(Phase::Latency), open::latency(bed, gated, size, time / 2)?));
            }
        }
        Ok(())
    })?;
    with_gate(arm, bed, Room::Burst, |bed, gated| {
        for &size in &sizes {
            let run = |phase| Run { phase, size, arm };
            let bursts = if size == Size::Gso64K { &[] } else { arm.bursts() };
            let Some(gated) = gated else {
                for &frames in bursts {
                    let measured = release::through_the_bridge_alone(bed, size, frames)?;
                    rows.push((run(Phase::Release(frames)), measured));
                }
                continue;
            };
            for (epoch_ms, epochs) in EPOCHS_MS.into_iter().zip(epochs) {
                let epoch = Duration::from_millis(epoch_ms.into());
                let measured = hold::paced(bed, gated, size, epoch, epochs)?;
                rows.push((run(Phase::HoldMs(epoch_ms)), measured));
            }
            for &frames in bursts {
                let measured = release::burst(bed, gated, size, frames)?;
                rows.push((run(Phase::Release(frames)), measured));
            }
        }
        Ok(())
    })?;
    for &size in sizes.iter().filter(|&&size| size != Size::Gso64K) {
        if let Some(questions) = judge::questions(arm) {
            let run = Run { phase: Phase::Judge, size, arm };
            let measured = judge::stamp_and_lock(&places.gate, &places.sink, questions, size);
            rows.push((run, measured?));
        }
    }
    Ok(rows)
}

/// Lets `work` happen with the arm's gate on the tap, and takes it off again.
fn with_gate(
    arm: Arm,
    bed: &mut Bed,
    room: Room,
    work: impl FnOnce(&mut Bed, &mut Option<Gated>) -> Result<()>,
) -> Result<()> {
    let mut gated = arm.set_up(bed, room)?;
    work(bed, &mut gated)?;
    if let Some(gated) = gated {
        gated.remove()?;
    }
    Ok(())
}
