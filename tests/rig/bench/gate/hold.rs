//! A guest at a steady pace behind a gate that really waits: what an epoch's end costs, and that nothing is
//! early, lost or out of order.
//!
//! The writer rests for each seal, as a VMM's device thread does in a pause, so that it is known which frames
//! an epoch has. The commit follows at once: what a backup would take is no work of the gate.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{
    arm::Gated,
    bed::Bed,
    clocks::{monotonic_ns, thread_cpu_ns},
    figures::{Figure, Measured, outcome},
    frames::Size,
    writer::Order,
};

impl Size {
    /// Nanoseconds between frames: 200 thousand small ones a second, and of the others about 1 Gb/s.
    fn pace_ns(self) -> u64 {
        match self {
            Self::B64 => 5_000,
            Self::B1500 => 12_000,
            Self::Gso64K => 524_000,
        }
    }
}

pub(super) fn paced(
    bed: &mut Bed,
    gated: &mut Gated,
    size: Size,
    epoch: Duration,
    epochs: u32,
) -> Result<Vec<Measured>> {
    let before = gated.counters()?;
    let tag = bed.begin_run(size);
    let frame = size.template();
    let pace_ns = Some(size.pace_ns());
    bed.writer.begin(Order { frame, tag, pace_ns, frames_max: u32::MAX })?;

    let began = Instant::now();
    let (mut flush_ns, mut released, mut cpu_ns) = (0, 0, 0);
    for number in 1..=epochs {
        thread::sleep((epoch * number).saturating_sub(began.elapsed()));
        let (cpu_before_ns, sealed) = (thread_cpu_ns(), seal(bed, gated)?);
        bed.sink.allow(sealed.into());
        let begin_ns = monotonic_ns();
        gated.commit();
        gated.flush_all()?;
        flush_ns += monotonic_ns() - begin_ns;
        cpu_ns += thread_cpu_ns() - cpu_before_ns;
        released = sealed;
    }
    let written = bed.writer.stop()?;
    gated.seal()?;
    bed.sink.allow(written.frames.into());
    gated.commit();
    gated.flush_all()?;
    let arrived = bed.sink.settle(written.frames.into());
    ensure!(written.refused == 0, "the tap refused {} writes", written.refused);

    let mut measured = vec![
        (Figure::FlushUsPerEpoch, flush_ns as f64 / 1e3 / f64::from(epochs)),
        (Figure::FramesPerEpoch, f64::from(released) / f64::from(epochs)),
        (Figure::GateCpuNs, cpu_ns as f64 / f64::from(released.max(1))),
        (Figure::WriterCpuNs, written.cpu_ns as f64 / f64::from(written.frames.max(1))),
    ];
    measured.extend(outcome(written.frames, &arrived, &before, &gated.counters()?));
    Ok(measured)
}

/// Ends the open epoch while no frame is on its way, and says how many frames were written until then.
fn seal(bed: &Bed, gated: &mut Gated) -> Result<u32> {
    bed.writer.while_it_rests(|written| {
        gated.seal()?;
        Ok(written)
    })
}
