//! The second lock, against a release that has gone wrong: everything it sends is judged again.
//!
//! The wrong release is a program of its own, `inject`, which sends any frame with any mark, into the tap or out of
//! the uplink, and asks nobody. It also writes into the slots what `flush` writes before it sends.

use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::{Array, Map, MapData},
    programs::SchedClassifier,
};
use remus::{
    gate::{Gate, Release, Settings},
    names::LinkName,
};
use remus_abi::gate::{Counter, Life, SlotState, mark};
use rig::permits::long_lease;

use crate::{
    gate::{TERM, begun, committed, opened, release_all},
    wire::{Wire, number_in, numbered},
};

const FRAMES: u32 = 1000;
/// `BPF_F_INGRESS` of include/uapi/linux/bpf.h.
const INGRESS: u32 = 1;

/// The release gone wrong.
struct Wrong {
    loaded: Ebpf,
    slots: Array<MapData, [u8; 32]>,
    tap: u32,
    to: u32,
    flags: u32,
}

impl Wrong {
    fn beside(wire: &Wire, release: &Release) -> Self {
        let object = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/ebpf/sink.o");
        let mut loaded =
            EbpfLoader::new().load_file(object).expect("load the tests' object: needs root");
        let inject: &mut SchedClassifier =
            loaded.program_mut("inject").unwrap().try_into().unwrap();
        inject.load().unwrap();
        let slots = MapData::from_pin(wire.pins.path().join("SLOTS")).unwrap();
        let (to, flags) = match release {
            Release::ReEntry => (wire.tap.ifindex, INGRESS),
            Release::Uplink(_) => (wire.uplink_index(), 0),
        };
        let slots = Map::Array(slots).try_into().unwrap();
        Self { loaded, slots, tap: wire.tap.ifindex, to, flags }
    }

    /// Claims in the slot of frame `number` that it was sent.
    fn claim_sent(&mut self, number: u32) {
        let mut slot = self.slots.get(&number, 0).unwrap();
        let life = Life::new(number.into(), SlotState::Sent);
        slot[8..12].copy_from_slice(&life.bits().to_ne_bytes());
        self.slots.set(number, slot, 0).unwrap();
    }

    /// Sends frame `number` with the mark that it would have.
    fn send(&self, number: u32) {
        let words = [(8, mark(number.into())), (48, self.tap), (52, self.to), (56, self.flags)];
        // struct __sk_buff of include/uapi/linux/bpf.h: the mark, and the first words of cb.
        let mut context = [0; 68];
        for (offset, word) in words {
            context[offset..offset + 4].copy_from_slice(&word.to_ne_bytes());
        }
        let frame = numbered(number);
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let inject: &SchedClassifier = self.loaded.program("inject").unwrap().try_into().unwrap();
        inject.test_run(options).unwrap();
    }
}

fn both_ways(claim: impl Fn(&mut Wire, &mut Gate, &mut Wrong)) {
    let mut wire = Wire::new();
    let uplink = Release::Uplink(LinkName::new(wire.uplink()).unwrap());
    for release in [Release::ReEntry, uplink] {
        let settings = Settings { release: release.clone(), ..Settings::default() };
        let pins = wire.pins.path();
        let mut gate = begun(Gate::install(wire.tap.clone(), pins, &settings).unwrap());
        gate.hold();
        gate.renew_lease(&long_lease(TERM));
        for n in 0..FRAMES {
            wire.send(&numbered(n));
        }
        gate.seal(&opened(2));
        let mut wrong = Wrong::beside(&wire, &release);
        claim(&mut wire, &mut gate, &mut wrong);
        gate.remove().unwrap();
    }
}

#[test]
fn a_thousand_uncommitted_frames_sent_by_mistake_stay_inside() {
    both_ways(|wire, gate, wrong| {
        for n in 0..FRAMES {
            wrong.claim_sent(n);
            wrong.send(n);
        }
        assert!(wire.arrivals().is_empty());
        let counters = gate.counters().unwrap();
        assert_eq!(counters.get(Counter::RefusedByLock), u64::from(FRAMES));
        assert_eq!(counters.get(Counter::Released), 0);
    });
}

#[test]
fn frames_that_are_still_held_do_not_leave_by_their_mark_alone() {
    both_ways(|wire, gate, wrong| {
        gate.commit(&committed(1));
        (0..FRAMES).for_each(|n| wrong.send(n));
        assert!(wire.arrivals().is_empty());
        let counters = gate.counters().unwrap();
        assert_eq!(counters.get(Counter::RefusedStale), u64::from(FRAMES));
    });
}

#[test]
fn a_release_that_is_replayed_lets_nothing_out_twice() {
    both_ways(|wire, gate, wrong| {
        gate.commit(&committed(1));
        release_all(gate);
        let out: Vec<_> = wire.arrivals().iter().map(|f| number_in(f)).collect();
        assert_eq!(out, (0..FRAMES).collect::<Vec<_>>());
        (0..FRAMES).for_each(|n| wrong.send(n));
        assert!(wire.arrivals().is_empty());
        let counters = gate.counters().unwrap();
        assert_eq!(counters.get(Counter::RefusedStale), u64::from(FRAMES));
        assert_eq!(counters.get(Counter::RefusedByLock), 0);
    });
}
