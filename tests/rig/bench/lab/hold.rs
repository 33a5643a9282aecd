//! What held output costs when it is released: ten thousand frames at once, by our gate in both its ways and by
//! sch_plug on an IFB, on one tap and with the work of `bench gate`.

use std::thread;

use anyhow::Context;

use super::{
    Bench,
    figures::{Arm, Figure, Load, Part, Run},
};
use crate::bench::gate::{self, Burst};

const FRAMES: u32 = 10_000;
const ARMS: [gate::Arm; 3] = [gate::Arm::Reentry, gate::Arm::Uplink, gate::Arm::Plug];

pub(super) const fn run(bytes: usize, arm: Arm) -> Run {
    Run { part: Part::Hold, load: Load::Frames(bytes), arm }
}

impl Bench<'_> {
    /// All rounds of it, on one tap.
    pub(super) fn hold(&mut self) {
        self.say(&format!("{FRAMES} held frames, {} rounds after a warm-up", self.plan.rounds));
        let (rounds, places) = (self.plan.rounds, self.places);
        // In a thread of its own, whose namespace and CPU are not ours.
        let bursts = thread::scope(|scope| {
            scope.spawn(|| gate::bursts(&ARMS, rounds, FRAMES, places)).join()
        });
        match bursts.expect("does not panic").context("held frames") {
            Ok(bursts) => bursts.iter().for_each(|burst| self.add_burst(burst)),
            Err(error) => self.fails("hold", &error),
        }
    }

    fn add_burst(&mut self, burst: &Burst) {
        let Burst { arm, bytes, took, early, lost, out_of_order, resent } = *burst;
        let arm = match arm {
            gate::Arm::Plug => Arm::Plug,
            gate::Arm::Uplink => Arm::Uplink,
            gate::Arm::Reentry | gate::Arm::NfQueue | gate::Arm::None => Arm::Remus,
        };
        let measured = [
            (Figure::ReleaseMs, took.as_secs_f64() * 1e3),
            (Figure::Early, early as f64),
            (Figure::FramesLost, lost as f64),
            (Figure::OutOfOrder, out_of_order as f64),
            (Figure::Resent, resent as f64),
        ];
        self.figures.add(run(bytes, arm), measured);
    }
}
