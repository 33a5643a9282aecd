//! `hold` alone, under BPF_PROG_TEST_RUN, with marks that no guest could put on a frame: the second lock.

use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::{Array, MapData, PerCpuArray},
    programs::SchedClassifier,
};
use remus_abi::{
    Epoch, Stamp, Term,
    gate::{
        BUFFER_MIB_DEFAULT, CONTROL_WORDS, Control, Counter, Life, MARK_TAG, Mode, RING_WORDS,
        Ring, SlotState, mark, slots,
    },
};

use crate::wire::numbered;

const PASS: u32 = u32::MAX;
const DROP: u32 = 2;
/// The slot as the kernel keeps it, as bytes: `remus_abi::gate::Slot`.
type SlotBytes = [u8; 32];

struct Hold {
    loaded: Ebpf,
    control: [u64; CONTROL_WORDS],
}

impl Hold {
    /// Loaded, holding in epoch 5 of term 2, with epoch 4 committed.
    fn new() -> Self {
        let object = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/ebpf/gate.o");
        let mut loaded =
            EbpfLoader::new().load_file(object).expect("load the gate's object: needs root");
        let hold: &mut SchedClassifier = loaded.program_mut("hold").unwrap().try_into().unwrap();
        hold.load().unwrap();
        let mut hold = Self { loaded, control: [0; CONTROL_WORDS] };
        hold.set(Control::Units, slots(BUFFER_MIB_DEFAULT).into());
        hold.set(Control::Open, stamp(5).bits());
        hold.set(Control::Committed, stamp(4).bits());
        hold.set(Control::Mode, Mode::Hold as u64);
        hold
    }

    fn set(&mut self, word: Control, to: u64) {
        self.control[word as usize] = to;
        let mut map: Array<&mut MapData, [u64; CONTROL_WORDS]> =
            self.loaded.map_mut("CONTROL").unwrap().try_into().unwrap();
        map.set(0, self.control, 0).unwrap();
    }

    /// The verdict on `frame` with `mark`.
    fn judge(&self, mark: u32, frame: &[u8]) -> u32 {
        // The first words of __sk_buff: len, pkt_type, mark (include/uapi/linux/bpf.h).
        let mut context = [0; 16];
        context[8..12].copy_from_slice(&mark.to_ne_bytes());
        let hold: &SchedClassifier = self.loaded.program("hold").unwrap().try_into().unwrap();
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        hold.test_run(options).unwrap().return_value
    }

    /// Puts slot 0 into a state of its life, with the stamp of `epoch`.
    fn set_slot(&mut self, state: SlotState, stamp: Stamp, number: u64) {
        let mut slot: SlotBytes = [0; 32];
        slot[0..8].copy_from_slice(&stamp.bits().to_ne_bytes());
        slot[8..12].copy_from_slice(&Life::new(number, state).bits().to_ne_bytes());
        slot[16..20].copy_from_slice(&60u32.to_ne_bytes());
        let mut slots: Array<&mut MapData, SlotBytes> =
            self.loaded.map_mut("SLOTS").unwrap().try_into().unwrap();
        slots.set(0, slot, 0).unwrap();
    }

    fn head(&self) -> u64 {
        let ring: Array<&MapData, [u64; RING_WORDS]> =
            self.loaded.map("RING").unwrap().try_into().unwrap();
        ring.get(&0, 0).unwrap()[Ring::Head as usize]
    }

    fn count(&self, which: Counter) -> u64 {
        let counters: PerCpuArray<&MapData, u64> =
            self.loaded.map("COUNTERS").unwrap().try_into().unwrap();
        counters.get(&(which as u32), 0).unwrap().iter().sum()
    }
}

fn stamp(epoch: u64) -> Stamp {
    Stamp::new(Term::new(2).unwrap(), Epoch::new(epoch).unwrap())
}

/// The frame in slot 0 in its fourth use.
const NUMBER: u64 = 3 * slots(BUFFER_MIB_DEFAULT) as u64;
const MARK: u32 = mark(NUMBER);
const EARLIER: u64 = NUMBER - slots(BUFFER_MIB_DEFAULT) as u64;

#[test]
fn zeroed_maps_are_a_closed_gate() {
    let mut hold = Hold::new();
    for word in [Control::Mode, Control::Open, Control::Committed, Control::Units] {
        hold.set(word, 0);
    }
    assert_eq!(hold.judge(0, &numbered(1)), DROP);
    assert_eq!(hold.judge(MARK_TAG, &numbered(1)), DROP);
    assert_eq!(hold.head(), 0);
}

#[test]
fn an_unknown_mode_is_closed() {
    let mut hold = Hold::new();
    hold.set(Control::Mode, 77);
    assert_eq!(hold.judge(0, &numbered(1)), DROP);
    assert_eq!(hold.count(Counter::DroppedClosed), 1);
}

#[test]
fn a_committed_slot_passes_once() {
    let mut hold = Hold::new();
    hold.set_slot(SlotState::Sent, stamp(4), NUMBER);
    assert_eq!(hold.judge(MARK, &numbered(1)), PASS);
    assert_eq!(hold.judge(MARK, &numbered(1)), DROP, "a second arrival");
    assert_eq!((hold.count(Counter::Released), hold.count(Counter::RefusedStale)), (1, 1));
}

#[test]
fn an_uncommitted_slot_does_not_pass_whatever_flush_thought() {
    let mut hold = Hold::new();
    hold.set_slot(SlotState::Sent, stamp(5), NUMBER);
    assert_eq!(hold.judge(MARK, &numbered(1)), DROP);
    assert_eq!(hold.count(Counter::RefusedByLock), 1);
}

#[test]
fn a_slot_of_another_term_does_not_pass() {
    let mut hold = Hold::new();
    hold.set_slot(SlotState::Sent, Stamp::new(Term::FIRST, Epoch::FIRST), NUMBER);
    assert_eq!(hold.judge(MARK, &numbered(1)), DROP);
    assert_eq!(hold.count(Counter::RefusedByLock), 1);
}

#[test]
fn a_held_slot_or_an_earlier_use_of_it_does_not_pass() {
    let mut hold = Hold::new();
    hold.set_slot(SlotState::Held, stamp(4), NUMBER);
    assert_eq!(hold.judge(MARK, &numbered(1)), DROP, "never sent by flush");
    hold.set_slot(SlotState::Sent, stamp(4), EARLIER);
    assert_eq!(hold.judge(MARK, &numbered(1)), DROP, "a copy of another use");
    assert_eq!(hold.count(Counter::RefusedStale), 2);
}

#[test]
fn nothing_passes_a_gate_that_was_closed_meanwhile() {
    let mut hold = Hold::new();
    hold.set_slot(SlotState::Sent, stamp(4), NUMBER);
    hold.set(Control::Mode, Mode::Closed as u64);
    assert_eq!(hold.judge(MARK, &numbered(1)), DROP);
}
