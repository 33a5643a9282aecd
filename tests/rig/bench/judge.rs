//! What the gate's judgement itself costs: its programs run again and again on one frame by the kernel's own
//! test facility (BPF_PROG_TEST_RUN), which times the whole series.
//!
//! - stamp: a fresh frame before a holding gate. `hold` stamps it, keeps a copy, and drops it.
//! - lock: a frame that is marked as if it came from `flush`, but is not committed, before the program that judges
//!   it on its way out. It goes all the way to the last check, and since it fails there nothing changes: the next
//!   run does the same.
//! - empty: a program that only returns. That much the kernel tells of any program, most of it for the test itself;
//!   stamp and lock are told without it.
//!
//! Of several series the fastest counts: whatever disturbs one only adds to it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, TestRun, TestRunOptions,
    maps::{Array, MapData},
    programs::SchedClassifier,
};
use remus_abi::{
    Epoch, Stamp, Term,
    gate::{
        BUFFER_MIB_DEFAULT, CONTROL_WORDS, Control, Life, Mode, RING_WORDS, Slot, SlotState, mark,
        slots, units,
    },
};

use super::{
    figures::{Figure, Measured},
    frames::Size,
};

/// The programs that can be the lock: at the tap's ingress, and at an uplink's egress.
pub(super) const HOLD: &str = "hold";
pub(super) const GUARD: &str = "guard";
const EMPTY: &str = "empty";

/// What both programs take for the tap's ifindex.
const TAP: u32 = 7;
const SERIES: u32 = 10;
const RUNS_MAX: u32 = 20_000;
const TC_ACT_SHOT: u32 = 2;
const SLOT_BYTES: usize = size_of::<Slot>();

/// `gate` and `sink` are objects, `lock` is the program of the gate that judges what leaves.
pub(super) fn stamp_and_lock(
    gate: &Path,
    sink: &Path,
    size: Size,
    lock: &str,
) -> Result<Vec<Measured>> {
    let none = load(sink, &[EMPTY])?;
    let mut loaded = load(gate, &[HOLD, lock])?;
    let open = Stamp::new(Term::FIRST, Epoch::new(2).expect("small"));
    let mut control = [0; CONTROL_WORDS];
    control[Control::Mode as usize] = Mode::Hold as u64;
    control[Control::Open as usize] = open.bits();
    control[Control::Committed as usize] = Stamp::new(Term::FIRST, Epoch::FIRST).bits();
    control[Control::Units as usize] = slots(BUFFER_MIB_DEFAULT).into();
    control[Control::Tap as usize] = TAP.into();
    array::<[u64; CONTROL_WORDS]>(&mut loaded, "CONTROL")?.set(0, control, 0)?;

    let empty_ns = fastest(|| time(&none, EMPTY, size, 0))?;
    let stamp_ns = fastest(|| fresh(&mut loaded, size))?;

    let mut slot = [0; SLOT_BYTES];
    slot[0..8].copy_from_slice(&open.bits().to_ne_bytes());
    slot[8..12].copy_from_slice(&Life::new(0, SlotState::Sent).bits().to_ne_bytes());
    array::<[u8; SLOT_BYTES]>(&mut loaded, "SLOTS")?.set(0, slot, 0)?;
    let lock_ns = fastest(|| time(&loaded, lock, size, mark(0)))?;
    Ok(vec![
        (Figure::EmptyNs, empty_ns),
        (Figure::StampNs, (stamp_ns - empty_ns).max(0.0)),
        (Figure::LockNs, (lock_ns - empty_ns).max(0.0)),
    ])
}

fn load(object: &Path, programs: &[&str]) -> Result<Ebpf> {
    let mut loaded =
        Ebpf::load_file(object).with_context(|| format!("load {}", object.display()))?;
    for &name in programs {
        let program = loaded.program_mut(name);
        let program = program.with_context(|| format!("the object has no program {name}"))?;
        let program: &mut SchedClassifier = program.try_into()?;
        if program.fd().is_err() {
            program.load().with_context(|| format!("the kernel refused {name}"))?;
        }
    }
    Ok(loaded)
}

fn fastest(mut series: impl FnMut() -> Result<f64>) -> Result<f64> {
    // Memory is touched for the first time.
    series()?;
    let mut least = f64::INFINITY;
    for _ in 0..SERIES {
        least = least.min(series()?);
    }
    Ok(least)
}

/// Fresh frames into an empty buffer.
fn fresh(loaded: &mut Ebpf, size: Size) -> Result<f64> {
    array::<[u64; RING_WORDS]>(loaded, "RING")?.set(0, [0; RING_WORDS], 0)?;
    time(loaded, HOLD, size, 0)
}

/// Nanoseconds of a run of `program`, which must drop a frame with `mark`.
fn time(loaded: &Ebpf, program: &str, size: Size, mark: u32) -> Result<f64> {
    let tested: &SchedClassifier =
        loaded.program(program).context("it was there before")?.try_into()?;
    // The first words of __sk_buff: the mark is the third, the control buffer begins with the thirteenth
    // (include/uapi/linux/bpf.h).
    let mut context = [0; 52];
    context[8..12].copy_from_slice(&mark.to_ne_bytes());
    context[48..52].copy_from_slice(&TAP.to_ne_bytes());
    let frame = vec![0; size.bytes()];
    // Every fresh frame must find room.
    let room = slots(BUFFER_MIB_DEFAULT) / units(u32::try_from(frame.len())?);
    let options = TestRunOptions {
        data_in: Some(&frame),
        ctx_in: Some(&context),
        repeat: room.min(RUNS_MAX),
        ..TestRunOptions::new()
    };
    let result = tested.test_run(options);
    let result = result.with_context(|| format!("run {program} under BPF_PROG_TEST_RUN"))?;
    ensure!(result.return_value == TC_ACT_SHOT, "{program} passed a frame that it must drop");
    Ok(result.duration.as_nanos() as f64)
}

fn array<'a, T: aya::Pod>(loaded: &'a mut Ebpf, name: &str) -> Result<Array<&'a mut MapData, T>> {
    let map = loaded.map_mut(name).with_context(|| format!("the object has no map {name}"))?;
    Ok(map.try_into()?)
}
