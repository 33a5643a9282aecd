//! Two questions to a gate that is never left waiting for a commit: how much passes through it, and how late.
//!
//! The gate holds, as in front of a protected guest, and a controller on the other CPU seals, commits and
//! flushes for as long as something waits. It does not make the writer rest for a seal: no guest's state is
//! at stake here, and a frame that is stamped late is on the safe side.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{
    arm::Gated,
    bed::Bed,
    clocks::{all_cpus_busy_ns, monotonic_ns, thread_cpu_ns},
    figures::{Figure, Measured},
    frames::Size,
    writer::Order,
};

/// Load before the clock starts: caches, and memory that is touched for the first time.
const WARM_UP: Duration = Duration::from_millis(100);
/// With fewer frames waiting than this the controller of a throughput run lets some more come.
const WORTH_A_FLUSH: u64 = 64;
const NAP: Duration = Duration::from_micros(20);
const LATENCY_PACE_NS: u64 = 50_000;

/// As fast as the writer writes.
pub(super) fn throughput(
    bed: &mut Bed,
    gated: &mut Option<Gated>,
    size: Size,
    time: Duration,
) -> Result<Vec<Measured>> {
    let tag = bed.begin_run(size);
    bed.sink.allow(u64::MAX);
    let frame = size.template();
    bed.writer.begin(Order { frame, tag, pace_ns: None, frames_max: u32::MAX })?;
    let offering_since_ns = monotonic_ns();
    drive(gated, WARM_UP, WORTH_A_FLUSH)?;
    let [before, busy_before_ns] = [bed.sink.arrived().frames, all_cpus_busy_ns()?];
    let (bytes_before, cpu_before_ns) = (bed.sink.arrived().bytes, thread_cpu_ns());
    let began_ns = monotonic_ns();
    drive(gated, time, WORTH_A_FLUSH)?;
    let (arrived, ended_ns) = (bed.sink.arrived(), monotonic_ns());
    let [cpu_ns, busy_ns] = [thread_cpu_ns() - cpu_before_ns, all_cpus_busy_ns()? - busy_before_ns];
    let written = bed.writer.stop()?;
    let offered_ns = (monotonic_ns() - offering_since_ns) as f64;
    drain(gated)?;
    ensure!(written.refused == 0, "the tap refused {} writes", written.refused);

    let took_ns = (ended_ns - began_ns) as f64;
    let frames = (arrived.frames - before) as f64;
    let per_frame = |ns: u64| ns as f64 / frames.max(1.0);
    let mut measured = vec![
        (Figure::OfferedKpps, f64::from(written.frames) / offered_ns * 1e6),
        (Figure::SinkKpps, frames / took_ns * 1e6),
        (Figure::SinkGbps, (arrived.bytes - bytes_before) as f64 * 8.0 / took_ns),
        (Figure::WriterCpuNs, written.cpu_ns as f64 / f64::from(written.frames.max(1))),
        (Figure::AllCpusNs, per_frame(busy_ns)),
        (Figure::OutOfOrder, bed.sink.settle(u64::MAX).out_of_order as f64),
    ];
    if gated.is_some() {
        measured.push((Figure::GateCpuNs, per_frame(cpu_ns)));
    }
    Ok(measured)
}

/// At a pace that nothing here is busy with; every frame says when it was written.
pub(super) fn latency(
    bed: &mut Bed,
    gated: &mut Option<Gated>,
    size: Size,
    time: Duration,
) -> Result<Vec<Measured>> {
    let tag = bed.begin_run(size);
    bed.sink.allow(u64::MAX);
    let frame = size.template();
    let pace_ns = Some(LATENCY_PACE_NS);
    bed.writer.begin(Order { frame, tag, pace_ns, frames_max: u32::MAX })?;
    drive(gated, time, 1)?;
    let written = bed.writer.stop()?;
    drain(gated)?;
    let arrived = bed.sink.settle(written.frames.into());
    let us = |share| bed.sink.latency_ns(share) as f64 / 1e3;
    Ok(vec![
        (Figure::LatencyP50Us, us(0.5)),
        (Figure::LatencyP99Us, us(0.99)),
        (Figure::Lost, f64::from(written.frames) - arrived.frames as f64),
        (Figure::OutOfOrder, arrived.out_of_order as f64),
    ])
}

/// The controller, for `time`: releases whatever waits once it is `worth` a flush.
fn drive(gated: &mut Option<Gated>, time: Duration, worth: u64) -> Result<()> {
    let until_ns = monotonic_ns() + u64::try_from(time.as_nanos()).expect("a short time");
    let Some(gated) = gated else {
        std::thread::sleep(time);
        return Ok(());
    };
    while monotonic_ns() < until_ns {
        if gated.held().is_none_or(|held| held >= worth) {
            gated.seal()?;
            gated.commit();
            gated.flush()?;
        } else if worth > 1 {
            std::thread::sleep(NAP);
        } else {
            std::hint::spin_loop();
        }
    }
    Ok(())
}

/// Whatever still waits leaves, so that the next run begins with an empty gate.
fn drain(gated: &mut Option<Gated>) -> Result<()> {
    let Some(gated) = gated else { return Ok(()) };
    gated.seal()?;
    gated.commit();
    gated.flush_all()?;
    ensure!(gated.left().is_none_or(|left| left == 0), "the gate holds frames that were released");
    Ok(())
}
