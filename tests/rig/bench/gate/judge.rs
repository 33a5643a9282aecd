//! What the gate's judgement itself costs: its programs run again and again on one frame by the kernel's own
//! test facility (BPF_PROG_TEST_RUN), which times the whole series.
//!
//! - stamp: a fresh frame before a holding gate. `hold` stamps it, keeps a copy, and drops it; `stamp` stamps it and
//!   lets it go on to netfilter's queue.
//! - lock: a frame on its way out. `hold` and `guard` get one whose slot is not committed: they go all the way to the
//!   last check, and since it fails there nothing changes and the next run does the same. `lock` keeps no account of
//!   frames, and gets one that may pass.
//! - empty: a program that only returns. That much the kernel tells of any program, most of it for the test itself;
//!   stamp and lock are told without it.
//!
//! Of several series the fastest counts: whatever disturbs one only adds to it.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, TestRun, TestRunOptions,
    maps::{Array, MapData},
    programs::Program,
};
use remus::net::VNET_HEADER_BYTES;
use remus_abi::{
    Epoch, Stamp, Term, Turns,
    gate::{
        BUFFER_MIB_DEFAULT, CONTROL_WORDS, Control, Life, Mode, RING_WORDS, Slot, SlotState, mark,
        slots, units,
    },
    queue,
    sink::Probe,
};

use super::{
    arm::Arm,
    figures::{Figure, Measured},
    frames::Size,
};

const OPEN: Stamp = Stamp::new(Term::FIRST, Epoch::FIRST.next());
const COMMITTED: Stamp = Stamp::new(Term::FIRST, Epoch::FIRST);
const TURNS: Turns = Turns::from_bits(1);
/// What the programs take for the tap's ifindex.
const TAP: u32 = 7;
const SERIES: u32 = 10;
const RUNS_MAX: u32 = 20_000;
const SLOT_BYTES: usize = size_of::<Slot>();

const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;
/// `lock` lets the frame pass: the rule that asks it does not match.
const NO_MATCH: u32 = 0;

/// A program, the mark of the frame that it gets, and what it must say to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    program: &'static str,
    mark: u32,
    verdict: u32,
}

const EMPTY: Question = Question { program: "empty", mark: 0, verdict: TC_ACT_SHOT };

/// The programs of an arm that judge a frame on its way in and out; `None` where there are none.
pub(super) const fn questions(arm: Arm) -> Option<[Question; 2]> {
    let hold = Question { program: "hold", mark: 0, verdict: TC_ACT_SHOT };
    match arm {
        Arm::None | Arm::Plug => None,
        Arm::Reentry => Some([hold, Question { mark: mark(0), ..hold }]),
        Arm::Uplink => Some([hold, Question { program: "guard", mark: mark(0), ..hold }]),
        Arm::NfQueue => Some([
            Question { program: "stamp", mark: 0, verdict: TC_ACT_UNSPEC },
            Question { program: "lock", mark: queue::mark(COMMITTED, TURNS), verdict: NO_MATCH },
        ]),
    }
}

/// `gate` and `sink` are objects.
pub(super) fn stamp_and_lock(
    gate: &Path,
    sink: &Path,
    [stamp, lock]: [Question; 2],
    size: Size,
) -> Result<Vec<Measured>> {
    let none = load(sink, &[EMPTY])?;
    let mut loaded = load(gate, &[stamp, lock])?;
    let mut control = [0; CONTROL_WORDS];
    for (word, value) in [
        (Control::Mode, Mode::Hold as u64),
        (Control::Open, OPEN.bits()),
        (Control::Committed, COMMITTED.bits()),
        (Control::LeaseUntil, u64::MAX),
        (Control::Units, slots(BUFFER_MIB_DEFAULT).into()),
        (Control::Tap, TAP.into()),
        // Which `hold` does not look at.
        (Control::Queueing, 1),
        (Control::Turns, TURNS.bits()),
    ] {
        control[word as usize] = value;
    }
    array::<[u64; CONTROL_WORDS]>(&mut loaded, "CONTROL")?.set(0, control, 0)?;

    let empty_ns = fastest(|| time(&none, EMPTY, size))?;
    let stamp_ns = fastest(|| {
        // Fresh frames into an empty buffer.
        array::<[u64; RING_WORDS]>(&mut loaded, "RING")?.set(0, [0; RING_WORDS], 0)?;
        time(&loaded, stamp, size)
    })?;
    let mut slot = [0; SLOT_BYTES];
    slot[0..8].copy_from_slice(&OPEN.bits().to_ne_bytes());
    slot[8..12].copy_from_slice(&Life::new(0, SlotState::Sent).bits().to_ne_bytes());
    array::<[u8; SLOT_BYTES]>(&mut loaded, "SLOTS")?.set(0, slot, 0)?;
    let lock_ns = fastest(|| time(&loaded, lock, size))?;
    Ok(vec![
        (Figure::EmptyNs, empty_ns),
        (Figure::StampNs, (stamp_ns - empty_ns).max(0.0)),
        (Figure::LockNs, (lock_ns - empty_ns).max(0.0)),
    ])
}

fn load(object: &Path, questions: &[Question]) -> Result<Ebpf> {
    let mut loaded =
        Ebpf::load_file(object).with_context(|| format!("load {}", object.display()))?;
    for &Question { program: name, .. } in questions {
        let program = loaded.program_mut(name);
        let program = program.with_context(|| format!("the object has no program {name}"))?;
        if program.fd().is_ok() {
            continue;
        }
        match program {
            Program::SchedClassifier(program) => program.load(),
            Program::SocketFilter(program) => program.load(),
            _ => bail!("{name} is no program of a gate"),
        }
        .with_context(|| format!("the kernel refused {name}"))?;
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

/// Nanoseconds of a run.
fn time(loaded: &Ebpf, question: Question, size: Size) -> Result<f64> {
    let Question { program: name, mark, verdict } = question;
    // The first words of __sk_buff: the mark is the third, the control buffer begins with the thirteenth
    // (include/uapi/linux/bpf.h).
    let mut context = [0; 52];
    context[8..12].copy_from_slice(&mark.to_ne_bytes());
    context[48..52].copy_from_slice(&TAP.to_ne_bytes());
    let mut template = size.template();
    let frame = &template.with(Probe { tag: 0, sequence: 0, sent_ns: 0 })[VNET_HEADER_BYTES..];
    // Every fresh frame must find room.
    let room = slots(BUFFER_MIB_DEFAULT) / units(u32::try_from(frame.len())?);
    let options = TestRunOptions {
        data_in: Some(frame),
        ctx_in: Some(&context),
        repeat: room.min(RUNS_MAX),
        ..TestRunOptions::new()
    };
    let result = match loaded.program(name) {
        Some(Program::SchedClassifier(program)) => program.test_run(options),
        Some(Program::SocketFilter(program)) => program.test_run(options),
        Some(_) | None => bail!("{name} is no program of a gate"),
    };
    let result = result.with_context(|| format!("run {name} under BPF_PROG_TEST_RUN"))?;
    ensure!(result.return_value == verdict, "{name} said {}", result.return_value);
    Ok(result.duration.as_nanos() as f64)
}

fn array<'a, T: aya::Pod>(loaded: &'a mut Ebpf, name: &str) -> Result<Array<&'a mut MapData, T>> {
    let map = loaded.map_mut(name).with_context(|| format!("the object has no map {name}"))?;
    Ok(map.try_into()?)
}
