//! Claims about the gate, on real frames through a real tap and bridge.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use remus::{
    gate::{Flushed, Gate, Held, Release, Settings},
    names::LinkName,
    replication::{Committed, Fenced, NextEpoch},
};
use remus_abi::{
    Epoch, Term,
    gate::{Counter, FRAME_MAX, Life, RING_WORDS, Ring, SlotState, TICK_SHIFT},
};
use rig::{
    permits::{self, Epochs, lease, long_lease},
    sys,
};

use crate::hook::kinds;
use crate::wire::{GUEST_MAC, Wire, frame, number_in, numbered, numbered_long};

pub(crate) const TERM: Term = Term::FIRST;

pub(crate) fn epoch(n: u64) -> Epoch {
    Epoch::new(n).unwrap()
}

fn gate_on(wire: &Wire) -> Gate {
    begun(
        Gate::install(wire.tap.clone(), wire.pins.path(), &Settings::default())
            .expect("install the gate"),
    )
}

/// The gate in the first term.
pub(crate) fn begun(mut gate: Gate) -> Gate {
    gate.begin_term(&permits::first(), Held::Discard).expect("begin a term");
    gate
}

/// A gate that holds from epoch 1 and may release.
pub(crate) fn holding_gate_on(wire: &Wire) -> Gate {
    let mut gate = gate_on(wire);
    gate.hold();
    gate.renew_lease(&long_lease(TERM));
    gate
}

pub(crate) fn committed(n: u64) -> Committed {
    committed_in(permits::first(), n)
}

/// The permission to stamp with epoch `n`, from a brain that has sealed the one before.
pub(crate) fn opened(n: u64) -> NextEpoch {
    opened_in(permits::first(), n)
}

/// The same in the term that `fenced` begins.
pub(crate) fn opened_in(fenced: Fenced, n: u64) -> NextEpoch {
    sealed(fenced, n - 2).seal()
}

/// The permission that the first `n` epochs of the term that `fenced` begins leave.
pub(crate) fn committed_in(fenced: Fenced, n: u64) -> Committed {
    sealed(fenced, n).commit()
}

/// A brain in the term that `fenced` begins that has sealed `n` epochs.
fn sealed(fenced: Fenced, n: u64) -> Epochs {
    let mut epochs = Epochs::begin(fenced);
    for _ in 0..n {
        epochs.seal();
    }
    epochs
}

pub(crate) fn release_all(gate: &mut Gate) {
    // By time: how often one has to ask depends on how fast another CPU takes in what is under way.
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        match gate.flush().unwrap() {
            Flushed::All => return,
            Flushed::Pending => {}
            Flushed::Refused => panic!("flush was refused"),
        }
    }
    panic!("frames are still under way after 20 s");
}

#[test]
fn a_new_gate_lets_nothing_out() {
    let mut wire = Wire::new();
    let gate = gate_on(&wire);
    wire.send(&numbered(1));
    assert!(wire.arrivals().is_empty());
    assert_eq!(gate.counters().unwrap().get(Counter::DroppedClosed), 1);
}

#[test]
fn frames_leave_when_their_epoch_is_committed_and_not_before() {
    let mut wire = Wire::new();
    let mut gate = holding_gate_on(&wire);
    wire.send(&numbered(1));
    wire.send(&numbered(2));
    gate.seal(&opened(2));
    wire.send(&numbered(3));
    gate.flush().unwrap();
    assert!(wire.arrivals().is_empty(), "nothing is committed yet");

    gate.commit(&committed(1));
    release_all(&mut gate);
    let out: Vec<_> = wire.arrivals().iter().map(|f| number_in(f)).collect();
    assert_eq!(out, [1, 2], "epoch 1, in order, and nothing of epoch 2");

    gate.seal(&opened(3));
    gate.commit(&committed(2));
    release_all(&mut gate);
    assert_eq!(wire.arrivals().iter().map(|f| number_in(f)).collect::<Vec<_>>(), [3]);
    assert_eq!(gate.held(), 0);
    let counters = gate.counters().unwrap();
    assert_eq!((counters.get(Counter::Held), counters.get(Counter::Released)), (3, 3));
    assert_eq!(counters.get(Counter::RefusedByLock) + counters.get(Counter::RefusedStale), 0);
}

#[test]
fn every_kind_of_frame_is_held_and_comes_out_as_it_went_in() {
    let mut wire = Wire::new();
    let mut gate = holding_gate_on(&wire);
    let tag = |tpid: u16, vid: u16, inner: &[u8]| {
        [&tpid.to_be_bytes()[..], &vid.to_be_bytes(), inner].concat()
    };
    let address = [&[0xff; 6][..], &GUEST_MAC].concat();
    let payload = [&[0x08, 0x06][..], &[7; 60]].concat();
    let frames = [
        frame(0x0806, &[1; 28]),
        frame(0x0800, &[0x45; 1500]),
        frame(0x0800, &[0x45; 9000]),
        frame(0x86dd, &[0x60; 40]),
        frame(0x88cc, &[2; 46]),
        frame(0x1234, &[3; 1]),
        // A runt: a header and one byte. And one to a group.
        [&address[..], &[0x88, 0xb5, 4]].concat(),
        [&[0x01, 0, 0x5e, 0, 0, 0xfb][..], &GUEST_MAC, &payload].concat(),
        [&address[..], &tag(0x8100, 5, &payload)].concat(),
        [&address[..], &tag(0x88a8, 6, &tag(0x8100, 7, &payload))].concat(),
    ];
    for frame in &frames {
        wire.send(frame);
    }
    assert!(wire.arrivals().is_empty());
    gate.seal(&opened(2));
    gate.commit(&committed(1));
    release_all(&mut gate);
    let out = wire.arrivals();
    for (at, sent) in frames.iter().enumerate() {
        assert_eq!(out.get(at), Some(sent), "frame {at}");
    }
    assert_eq!(out.len(), frames.len());
}

#[test]
fn frames_to_the_host_itself_are_held() {
    let mut wire = Wire::new();
    let (host, port) = (Ipv4Addr::new(10, 9, 0, 1), 4001);
    let mac = wire.host_on_bridge(host);
    let socket = UdpSocket::bind((host, port)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut gate = holding_gate_on(&wire);
    wire.send(&udp(mac, host, port, b"from the guest"));
    let mut heard = [0; 64];
    socket.recv(&mut heard).unwrap_err();
    gate.seal(&opened(2));
    gate.commit(&committed(1));
    release_all(&mut gate);
    let n = socket.recv(&mut heard).expect("it was held, not lost");
    assert_eq!(&heard[..n], b"from the guest");
}

/// A UDP packet over IPv4 from 10.9.0.2 to a host; without a checksum of its own, which IPv4 allows.
fn udp(mac: [u8; 6], to: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let udp_len = u16::try_from(8 + payload.len()).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_len).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 10, 9, 0, 2]);
    ip.extend(to.octets());
    let sum = ip.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    for field in [4000, port, udp_len, 0] {
        ip.extend(field.to_be_bytes());
    }
    ip.extend(payload);
    [&mac[..], &GUEST_MAC, &[8, 0], &ip].concat()
}

#[test]
fn several_gates_share_an_uplink() {
    for kind in kinds() {
        let mut wire = Wire::new();
        let uplink = LinkName::new(wire.uplink()).unwrap();
        let settings = Settings { release: Release::Uplink(uplink), ..Settings::default() };
        let mut gate =
            begun(Gate::install_by(kind, wire.tap.clone(), wire.pins.path(), &settings).unwrap());
        gate.hold();
        gate.renew_lease(&long_lease(TERM));
        // Another VM's, on a tap of its own; its guard is attached later, so it is in front.
        let (other_tap, other_pins) = (wire.another_tap("guest1"), tempfile::tempdir().unwrap());
        let other = Gate::install_by(kind, other_tap, other_pins.path(), &settings).unwrap();
        gate.verify().unwrap();
        other.verify().unwrap();
        wire.send(&numbered(1));
        gate.seal(&opened(2));
        gate.commit(&committed(1));
        release_all(&mut gate);
        assert_eq!(wire.arrivals(), [numbered(1)]);
        assert_eq!(gate.counters().unwrap().get(Counter::Released), 1);
        let others = other.counters().unwrap();
        assert_eq!(others.get(Counter::RefusedStale) + others.get(Counter::RefusedByLock), 0);
        // The next gate of the first VM replaces its own guard, and no other.
        let again = Gate::install_by(kind, wire.tap.clone(), wire.pins.path(), &settings).unwrap();
        again.verify().unwrap();
        other.verify().unwrap();
        other.remove().unwrap();
        again.verify().unwrap();
    }
}

#[test]
fn nothing_leaves_after_the_lease() {
    let mut wire = Wire::new();
    let mut gate = gate_on(&wire);
    gate.hold();
    gate.renew_lease(&lease(TERM, Duration::from_nanos(1)));
    wire.send(&numbered(1));
    gate.seal(&opened(2));
    gate.commit(&committed(1));
    assert_eq!(gate.flush().unwrap(), Flushed::Refused);
    assert!(wire.arrivals().is_empty());
    assert!(gate.counters().unwrap().get(Counter::LeaseOver) > 0);

    gate.renew_lease(&long_lease(TERM));
    release_all(&mut gate);
    assert_eq!(wire.arrivals().len(), 1, "held, not lost");
}

#[test]
fn a_hundred_thousand_frames_released_in_one_go_all_arrive_in_order() {
    const FRAMES: u32 = 100_000;
    let mut wire = Wire::new();
    let mut gate = holding_gate_on(&wire);
    for n in 0..FRAMES {
        wire.send(&numbered(n));
    }
    assert_eq!(gate.held(), u64::from(FRAMES));
    gate.seal(&opened(2));
    gate.commit(&committed(1));
    // Taken up as they come: Linux 6.1 does not let as many wait outside.
    let mut out = Vec::new();
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let flushed = gate.flush().unwrap();
        out.extend(wire.arrivals().iter().map(|f| number_in(f)));
        match flushed {
            Flushed::All => break,
            Flushed::Pending => assert!(Instant::now() < until, "{} are out", out.len()),
            Flushed::Refused => panic!("flush was refused"),
        }
    }
    let counters = gate.counters().unwrap();
    assert_eq!(counters.get(Counter::Released), u64::from(FRAMES));
    assert!(out.is_sorted(), "in order");
    assert_eq!(out.len(), FRAMES as usize, "resent: {}", counters.get(Counter::Resent));
}

/// Makes of frame 0, which is held, one that was sent a moment ago and that no backlog has.
fn lose_frame_0(wire: &Wire) {
    const SLOT_LIFE: usize = 8;
    const SLOT_SENT_TICKS: usize = 28;
    let map = |name| Map::Array(MapData::from_pin(wire.pins.path().join(name)).unwrap());
    let mut slots: Array<_, [u8; 32]> = map("SLOTS").try_into().unwrap();
    let mut ring: Array<_, [u64; RING_WORDS]> = map("RING").try_into().unwrap();
    // By this thread, which from here on is on that CPU.
    let cpu = sys::cpus()[0];
    sys::use_only_cpu(cpu).unwrap();
    let mut words = ring.get(&0, 0).unwrap();
    (words[Ring::Next as usize], words[Ring::Cpu as usize]) = (1, cpu as u64);
    ring.set(0, words, 0).unwrap();
    let mut slot = slots.get(&0, 0).unwrap();
    let life = Life::new(0, SlotState::Sent).bits();
    slot[SLOT_LIFE..SLOT_LIFE + 4].copy_from_slice(&life.to_ne_bytes());
    #[expect(clippy::cast_possible_truncation, reason = "ticks go round")]
    let now = (sys::boottime_ns() >> TICK_SHIFT) as u32;
    slot[SLOT_SENT_TICKS..].copy_from_slice(&now.to_ne_bytes());
    slots.set(0, slot, 0).unwrap();
}

#[test]
fn a_frame_lost_on_its_way_is_sent_again_once_a_later_one_has_come() {
    let mut wire = Wire::new();
    let mut gate = holding_gate_on(&wire);
    for n in 0..3 {
        wire.send(&numbered(n));
    }
    gate.seal(&opened(2));
    gate.commit(&committed(1));
    lose_frame_0(&wire);
    let began = Instant::now();
    release_all(&mut gate);
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    let out: Vec<_> = wire.arrivals().iter().map(|f| number_in(f)).collect();
    assert_eq!(out, [1, 2, 0]);
    assert_eq!(gate.counters().unwrap().get(Counter::Resent), 1);
}

#[test]
fn a_frame_that_only_is_slow_is_not_sent_twice_and_one_that_never_comes_is_in_the_end() {
    let mut wire = Wire::new();
    let mut gate = holding_gate_on(&wire);
    wire.send(&numbered(0));
    gate.seal(&opened(2));
    gate.commit(&committed(1));
    let began = Instant::now();
    lose_frame_0(&wire);
    while began.elapsed() < Duration::from_millis(500) {
        assert_eq!(gate.flush().unwrap(), Flushed::Pending);
    }
    assert_eq!(gate.counters().unwrap().get(Counter::Resent), 0);
    release_all(&mut gate);
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(wire.arrivals().len(), 1);
}

#[test]
fn a_full_gate_drops_and_counts_and_never_leaks() {
    let mut wire = Wire::new();
    let settings = Settings { buffer_mib: 1, ..Settings::default() };
    let mut gate = begun(Gate::install(wire.tap.clone(), wire.pins.path(), &settings).unwrap());
    gate.hold();
    gate.renew_lease(&long_lease(TERM));
    // 1500 B of payload take 24 units of 64 B.
    let fit = (1 << 20) / (24 * 64);
    for n in 0..fit + 4 {
        wire.send(&numbered_long(n, 1500));
    }
    assert!(wire.arrivals().is_empty());
    assert_eq!(gate.held(), u64::from(fit));
    assert_eq!(gate.counters().unwrap().get(Counter::DroppedFull), 4);
    assert!(gate.take_filling(), "the controller was told in time");
    assert!(!gate.take_filling(), "once");
    gate.seal(&opened(2));
    gate.commit(&committed(1));
    release_all(&mut gate);
    let out: Vec<_> = wire.arrivals().iter().map(|f| number_in(f)).collect();
    assert_eq!(out, (0..fit).collect::<Vec<_>>());
    wire.send(&numbered(20));
    assert_eq!(gate.held(), 1, "there is room again");
    assert_eq!(gate.fill().bytes, 64);
}

#[test]
fn a_frame_longer_than_any_link_carries_is_dropped_and_counted() {
    let mut wire = Wire::new();
    let gate = holding_gate_on(&wire);
    wire.send(&numbered_long(1, FRAME_MAX - 14));
    wire.send(&numbered_long(2, FRAME_MAX - 14 + 1));
    assert_eq!((gate.held(), gate.counters().unwrap().get(Counter::DroppedUnfit)), (1, 1));
}

#[test]
fn small_frames_take_little_of_the_buffer() {
    let mut wire = Wire::new();
    let gate = holding_gate_on(&wire);
    for n in 0..1000 {
        wire.send(&numbered(n));
    }
    assert_eq!(gate.fill().bytes, 64_000);
    assert_eq!(gate.fill().capacity_bytes, 32 << 20);
}

#[test]
fn an_uplink_lets_out_what_is_committed_past_the_bridge() {
    let mut wire = Wire::new();
    let uplink = LinkName::new(wire.uplink()).unwrap();
    let settings = Settings { release: Release::Uplink(uplink), ..Settings::default() };
    let mut gate = begun(Gate::install(wire.tap.clone(), wire.pins.path(), &settings).unwrap());
    gate.hold();
    gate.renew_lease(&long_lease(TERM));
    let tagged = [&frame(0x8100, &[0, 5, 0x08, 0x06])[..], &[7; 60]].concat();
    wire.send(&numbered(1));
    wire.send(&numbered_long(2, 9000));
    wire.send(&tagged);
    gate.seal(&opened(2));
    wire.send(&numbered(3));
    gate.flush().unwrap();
    assert!(wire.arrivals().is_empty(), "nothing is committed yet");
    gate.commit(&committed(1));
    release_all(&mut gate);
    assert_eq!(wire.arrivals(), [numbered(1), numbered_long(2, 9000), tagged]);
    let counters = gate.counters().unwrap();
    assert_eq!((counters.get(Counter::Released), counters.get(Counter::Unguarded)), (3, 0));
    assert_eq!(gate.residence().count(), 1, "the first of a burst is timed, and one in sixteen");
    assert_eq!(gate.held(), 1);
}

#[test]
fn what_was_held_leaves_before_what_passes_an_open_gate() {
    let mut wire = Wire::new();
    let mut gate = holding_gate_on(&wire);
    for n in 0..300 {
        wire.send(&numbered(n));
    }
    gate.seal(&opened(2));
    for n in 300..400 {
        wire.send(&numbered(n));
    }
    gate.open(&permits::first());
    wire.send(&numbered(400));
    assert_eq!(gate.held(), 401, "it queues up behind the others");
    release_all(&mut gate);
    wire.send(&numbered(401));
    let out: Vec<_> = wire.arrivals().iter().map(|f| number_in(f)).collect();
    assert_eq!(out, (0..402).collect::<Vec<_>>());
    assert_eq!(gate.counters().unwrap().get(Counter::Passed), 1);
}

#[test]
fn the_next_controller_adopts_a_gate_with_all_that_it_holds() {
    let mut wire = Wire::new();
    let mut gate = holding_gate_on(&wire);
    wire.send(&numbered(1));
    gate.seal(&opened(2));
    wire.send(&numbered(2));
    gate.commit(&committed(1));
    drop(gate);
    wire.send(&numbered(3));

    let mut next = Gate::adopt(wire.tap.clone(), wire.pins.path()).unwrap().expect("it is there");
    assert_eq!((next.held(), next.open_epoch().epoch()), (3, epoch(2)));
    release_all(&mut next);
    assert_eq!(wire.arrivals().iter().map(|f| number_in(f)).collect::<Vec<_>>(), [1]);
    next.seal(&opened(3));
    next.commit(&committed(2));
    release_all(&mut next);
    assert_eq!(wire.arrivals().iter().map(|f| number_in(f)).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn a_gate_of_a_tap_that_was_made_anew_is_not_adopted() {
    let mut wire = Wire::new();
    let gate = gate_on(&wire);
    drop(gate);
    wire.recreate_tap();
    let tap = remus::gate::Tap { ifindex: wire.tap_index(), ..wire.tap.clone() };
    assert!(Gate::adopt(tap, wire.pins.path()).unwrap().is_none());
    let nowhere = tempfile::tempdir().unwrap();
    assert!(Gate::adopt(wire.tap.clone(), nowhere.path()).unwrap().is_none());
}

#[test]
fn a_gate_outlives_its_controller_and_the_next_one_discards_what_it_held() {
    let mut wire = Wire::new();
    let mut gate = holding_gate_on(&wire);
    wire.send(&numbered(1));
    gate.seal(&opened(2));
    gate.commit(&committed(1));
    // As after SIGKILL: nothing of this process is left but the pins.
    drop(gate);
    wire.send(&numbered(2));
    assert!(wire.arrivals().is_empty(), "held on without a controller");

    let mut next = Gate::install(wire.tap.clone(), wire.pins.path(), &Settings::default()).unwrap();
    next.begin_term(&permits::after(TERM), Held::Discard).unwrap();
    next.hold();
    next.renew_lease(&long_lease(TERM.next()));
    next.seal(&opened_in(permits::after(TERM), 2));
    next.commit(&committed_in(permits::after(TERM), 1));
    release_all(&mut next);
    assert!(wire.arrivals().is_empty(), "the dead guest's frames are gone");
}

#[test]
fn an_open_gate_passes_frames_at_once() {
    let mut wire = Wire::new();
    let mut gate = gate_on(&wire);
    gate.open(&permits::first());
    wire.send(&numbered(1));
    assert_eq!(wire.arrivals().len(), 1);
}

#[test]
fn a_removed_gate_leaves_no_pin() {
    let wire = Wire::new();
    gate_on(&wire).remove().unwrap();
    assert!(!wire.pins.path().exists(), "neither pins nor the bpffs that they were on");
    // The directory is the guard's to remove, and it insists.
    std::fs::create_dir(wire.pins.path()).unwrap();
}
