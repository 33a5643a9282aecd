//! Everything at once: a gate that has held frames for long gets its commit. From the commit until the last
//! frame is at the sink; all must arrive, in order, none before. Beside it stands the same burst through the bridge alone,
//! from its first write until its last frame is at the sink: what each frame pays in any case.

use anyhow::{Result, ensure};

use super::{
    arm::Gated,
    bed::Bed,
    clocks::{monotonic_ns, thread_cpu_ns},
    figures::{Figure, Measured, outcome},
    frames::Size,
    writer::Order,
};

pub(super) fn through_the_bridge_alone(
    bed: &mut Bed,
    size: Size,
    frames: u32,
) -> Result<Vec<Measured>> {
    let tag = bed.begin_run(size);
    bed.sink.allow(u64::MAX);
    let order = Order { frame: size.template(), tag, pace_ns: None, frames_max: frames };
    let began_ns = monotonic_ns();
    bed.writer.begin(order)?;
    let written = bed.writer.finish()?;
    ensure!(written.refused == 0, "the tap refused {} writes", written.refused);
    let arrived = bed.sink.settle(frames.into());
    let each = f64::from(frames);
    Ok(vec![
        (Figure::ReleaseUs, (arrived.last_ns - began_ns) as f64 / 1e3 / each),
        (Figure::WriterCpuNs, written.cpu_ns as f64 / each),
        (Figure::Lost, each - arrived.frames as f64),
        (Figure::OutOfOrder, arrived.out_of_order as f64),
    ])
}

pub(super) fn burst(
    bed: &mut Bed,
    gated: &mut Gated,
    size: Size,
    frames: u32,
) -> Result<Vec<Measured>> {
    let before = gated.counters()?;
    let tag = bed.begin_run(size);
    let order = Order { frame: size.template(), tag, pace_ns: None, frames_max: frames };
    bed.writer.begin(order)?;
    let written = bed.writer.finish()?;
    ensure!(written.refused == 0, "the tap refused {} writes", written.refused);
    gated.seal()?;
    bed.sink.allow(frames.into());

    let (began_ns, cpu_before_ns) = (monotonic_ns(), thread_cpu_ns());
    gated.commit();
    let flushes = gated.flush_all()?;
    let (flushed_ns, cpu_ns) = (monotonic_ns(), thread_cpu_ns() - cpu_before_ns);
    let arrived = bed.sink.settle(frames.into());

    let ended_ns = arrived.last_ns.max(flushed_ns);
    let each = f64::from(frames);
    let mut measured = vec![
        (Figure::ReleaseUs, (ended_ns - began_ns) as f64 / 1e3 / each),
        (Figure::GateCpuNs, cpu_ns as f64 / each),
        (Figure::Flushes, flushes as f64),
    ];
    measured.extend(outcome(frames, &arrived, &before, &gated.counters()?));
    Ok(measured)
}
