//! Claims about the release on the word of a datagram: a gate on a real tap and bridge, and the link to a backup
//! in a network namespace of its own, from which acks come, genuine and otherwise.

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use aya::programs::{SchedClassifier, TcAttachType};
use remus::{
    gate::{Flushed, Gate, Held, Release, Settings, Trigger},
    names::LinkName,
    wire::Session,
};
use remus_abi::{
    Epoch, Term,
    ack::{AckCounter, AckDatagram, AckKey},
    gate::Counter,
};
use rig::{
    links::Links,
    netns::NetNs,
    permits::{self, Epochs},
    sys::boottime_ns,
};

use crate::{
    gate::{TERM, begun, committed, epoch, holding_gate_on, opened, release_all},
    wire::{GUEST_MAC, Wire, frame, number_in, numbered, numbered_long},
};

const KEY: AckKey = AckKey([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]);
const LEASE: Duration = Duration::from_secs(60);
const REPL: &str = "repl0";
const V4: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1)), IpAddr::V4(Ipv4Addr::new(10, 99, 0, 2))];
const V6: [IpAddr; 2] = [
    IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 2)),
];

/// A guest behind a holding gate, and the backup's end of the link over which acks come.
struct Stage {
    wire: Wire,
    gate: Gate,
    trigger: Trigger,
    /// Where datagrams go that the program passes on.
    ours: UdpSocket,
    backup: UdpSocket,
    backup_netns: NetNs,
}

fn session(n: u64) -> Session {
    Session::new(n).unwrap()
}

impl Stage {
    /// Armed for session 1.
    fn new() -> Self {
        Self::over(V4)
    }

    fn over([here, there]: [IpAddr; 2]) -> Self {
        let wire = Wire::new();
        let backup_netns = NetNs::new().unwrap();
        lay_cable(&backup_netns);
        let ours = bind(here);
        ours.set_nonblocking(true).unwrap();
        let backup = {
            let _entered = backup_netns.enter().unwrap();
            bind(there)
        };
        backup.connect(ours.local_addr().unwrap()).unwrap();
        let gate = holding_gate_on(&wire);
        let mut trigger = gate.trigger().unwrap();
        trigger.attach(REPL).unwrap();
        let stage = Self { wire, gate, trigger, ours, backup, backup_netns };
        stage.trigger.arm(session(1), KEY, stage.port(), LEASE);
        stage
    }

    fn port(&self) -> u16 {
        self.ours.local_addr().unwrap().port()
    }

    /// The same with another gate, whose trigger is attached and not armed. It has no lease of the controller's.
    fn of_a_new_gate(self, settings: &Settings) -> Self {
        let Self { wire, gate, trigger, ours, backup, backup_netns } = self;
        drop((gate, trigger));
        let mut gate = begun(Gate::install(wire.tap.clone(), wire.pins.path(), settings).unwrap());
        gate.hold();
        let mut trigger = gate.trigger().unwrap();
        trigger.attach(REPL).unwrap();
        Self { wire, gate, trigger, ours, backup, backup_netns }
    }

    /// A frame of epoch 1 is held, and epoch 2 is open.
    fn with_a_frame_of_epoch_1() -> Self {
        let mut stage = Self::new();
        stage.wire.send(&numbered(1));
        stage.gate.seal(&opened(2));
        stage
    }

    fn send(&self, payload: &[u8]) {
        self.backup.send(payload).unwrap();
    }

    fn ack(&self, n: u64) {
        self.send(&ack_of(n).encode(KEY));
    }

    fn count(&self, which: AckCounter) -> u64 {
        self.gate.ack_counters().unwrap().get(which)
    }

    fn numbers_out(&mut self) -> Vec<u32> {
        self.wire.arrivals().iter().map(|frame| number_in(frame)).collect()
    }

    fn sees_nothing_leave(&mut self) {
        assert!(self.wire.arrivals().is_empty());
    }

    /// What `ours` was handed.
    fn passed_on(&self) -> Vec<u8> {
        let mut buffer = [0; 2048];
        match self.ours.recv(&mut buffer) {
            Ok(len) => buffer[..len].to_vec(),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Vec::new(),
            Err(e) => panic!("receive: {e}"),
        }
    }
}

/// What the backup of session 1 says of epoch `n` now.
fn ack_of(n: u64) -> AckDatagram {
    AckDatagram { session: 1, term: TERM, epoch: epoch(n), sent_ns: boottime_ns() }
}

/// `repl0` here and there, with addresses of both families.
fn lay_cable(there: &NetNs) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let ours = Links::open(&NetNs::current().unwrap()).unwrap();
        let theirs = Links::open(there).unwrap();
        ours.add_cable(REPL, REPL, there).await.unwrap();
        for (links, netns, [v4, v6]) in
            [(&ours, None, [V4[0], V6[0]]), (&theirs, Some(there), [V4[1], V6[1]])]
        {
            // /proc/sys/net shows the namespace of the thread that looks.
            let entered = netns.map(|netns| netns.enter().unwrap());
            let knob = |of: &str| format!("/proc/sys/net/ipv6/conf/{of}");
            fs::write(knob(&format!("{REPL}/disable_ipv6")), "0").unwrap();
            for scope in ["all", REPL] {
                fs::write(knob(&format!("{scope}/accept_dad")), "0").unwrap();
            }
            drop(entered);
            for (address, prefix) in [(v4, 24), (v6, 64)] {
                links.add_address(REPL, address, prefix).await.unwrap();
            }
        }
    });
    // Until both ends have noticed their carrier: what is sent before may be lost.
    drop(bind(V6[0]));
    let _there = there.enter().unwrap();
    drop(bind(V6[1]));
}

/// An IPv6 address cannot be used before the link has noticed its carrier.
fn bind(address: IpAddr) -> UdpSocket {
    for _ in 0..100 {
        match UdpSocket::bind((address, 0)) {
            Ok(socket) => return socket,
            Err(e) if e.kind() == ErrorKind::AddrNotAvailable => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(e) => panic!("bind to {address}: {e}"),
        }
    }
    panic!("{address} cannot be used after two seconds");
}

/// Programs at the ingress of `repl0`.
fn programs_at_repl() -> usize {
    SchedClassifier::query_tcx(REPL, TcAttachType::Ingress).unwrap().1.len()
}

#[test]
fn a_genuine_ack_releases_without_a_word_from_the_controller() {
    let mut stage = Stage::new();
    stage.wire.send(&numbered(1));
    stage.wire.send(&numbered(2));
    stage.gate.seal(&opened(2));
    stage.wire.send(&numbered(3));
    stage.ack(1);
    assert_eq!(stage.numbers_out(), [1, 2], "epoch 1, in order, and nothing of epoch 2");
    assert_eq!(stage.count(AckCounter::Taken), 1);
    assert_eq!(stage.gate.newest_ack().unwrap().0.epoch(), epoch(1));
    assert!(stage.passed_on().is_empty(), "a genuine datagram is consumed");

    stage.gate.seal(&opened(3));
    stage.ack(2);
    assert_eq!(stage.numbers_out(), [3]);
    let counters = stage.gate.counters().unwrap();
    assert_eq!((counters.get(Counter::Held), counters.get(Counter::Released)), (3, 3));
    assert_eq!(counters.get(Counter::RefusedByLock) + counters.get(Counter::RefusedStale), 0);
}

#[test]
fn the_controllers_commit_after_the_datagrams_is_as_ever() {
    let mut stage = Stage::with_a_frame_of_epoch_1();
    stage.ack(1);
    stage.gate.commit(&committed(1));
    release_all(&mut stage.gate);
    assert_eq!(stage.numbers_out(), [1], "once");
    assert_eq!(stage.gate.held(), 0);
}

fn comes_out_as_it_went_in(stage: &mut Stage) {
    let tag = |tpid: u16, vid: u16, inner: &[u8]| {
        [&tpid.to_be_bytes()[..], &vid.to_be_bytes(), inner].concat()
    };
    let address = [&[0xff; 6][..], &GUEST_MAC].concat();
    let payload = [&[0x08, 0x06][..], &[7; 60]].concat();
    let mut frames = vec![
        frame(0x0806, &[1; 28]),
        frame(0x0800, &[0x45; 1500]),
        frame(0x86dd, &[0x60; 40]),
        frame(0x88cc, &[2; 46]),
        numbered_long(4, 9000),
        [&address[..], &tag(0x8100, 5, &payload)].concat(),
        [&address[..], &tag(0x88a8, 6, &tag(0x8100, 7, &payload))].concat(),
    ];
    // As a guest sends them that does not pad: shorter than where the headers of the datagram ended.
    for len in [42, 33, 20, 15] {
        frames.push([&address[..], &[0x88, 0xb5], &[9; 60][..len - 14]].concat());
    }
    for frame in &frames {
        stage.wire.send(frame);
    }
    stage.gate.seal(&opened(2));
    stage.ack(1);
    let out = stage.wire.arrivals();
    for (at, sent) in frames.iter().enumerate() {
        assert_eq!(out.get(at), Some(sent), "frame {at}");
    }
    assert_eq!(out.len(), frames.len());
    assert_eq!(stage.gate.counters().unwrap().get(Counter::SendFailed), 0);
}

#[test]
fn every_kind_of_frame_comes_out_as_it_went_in_on_an_ack_by_ipv4() {
    comes_out_as_it_went_in(&mut Stage::over(V4));
}

#[test]
fn every_kind_of_frame_comes_out_as_it_went_in_on_an_ack_by_ipv6() {
    comes_out_as_it_went_in(&mut Stage::over(V6));
}

#[test]
fn an_uplink_lets_out_what_a_datagram_commits() {
    let stage = Stage::new();
    let uplink = LinkName::new(stage.wire.uplink()).unwrap();
    let settings = Settings { release: Release::Uplink(uplink), ..Settings::default() };
    let mut stage = stage.of_a_new_gate(&settings);
    stage.trigger.arm(session(1), KEY, stage.port(), LEASE);
    stage.wire.send(&numbered(1));
    stage.wire.send(&numbered(2));
    stage.gate.seal(&opened(2));
    stage.wire.send(&numbered(3));
    stage.ack(1);
    assert_eq!(stage.numbers_out(), [1, 2]);
    assert_eq!(stage.gate.counters().unwrap().get(Counter::Unguarded), 0);
}

#[test]
fn a_forged_tag_releases_nothing() {
    let mut stage = Stage::with_a_frame_of_epoch_1();
    stage.send(&ack_of(1).encode(AckKey([1, 2])));
    let mut bent = ack_of(1).encode(KEY);
    bent[47] ^= 0x80;
    stage.send(&bent);
    stage.sees_nothing_leave();
    assert_eq!(stage.count(AckCounter::BadTag), 2);
    assert!(stage.passed_on().is_empty(), "nor does anybody else see it");
}

#[test]
fn an_ack_of_another_session_releases_nothing_and_passes() {
    let mut stage = Stage::with_a_frame_of_epoch_1();
    let other = AckDatagram { session: 2, ..ack_of(1) }.encode(KEY);
    stage.send(&other);
    stage.sees_nothing_leave();
    assert_eq!(stage.count(AckCounter::OtherSession), 1);
    assert_eq!(stage.passed_on(), other);
}

#[test]
fn an_ack_of_another_term_releases_nothing() {
    let mut stage = Stage::with_a_frame_of_epoch_1();
    stage.send(&AckDatagram { term: TERM.next(), ..ack_of(1) }.encode(KEY));
    stage.sees_nothing_leave();
    assert_eq!(stage.count(AckCounter::OtherTerm), 1);
}

#[test]
fn an_epoch_that_is_not_below_the_open_one_releases_nothing() {
    let mut stage = Stage::with_a_frame_of_epoch_1();
    for n in [2, 3, Epoch::MAX.get()] {
        stage.ack(n);
    }
    stage.sees_nothing_leave();
    assert_eq!(stage.count(AckCounter::NotBelowOpen), 3);
}

#[test]
fn an_echo_of_a_moment_to_come_releases_nothing() {
    let mut stage = Stage::with_a_frame_of_epoch_1();
    let sent_ns = boottime_ns() + 1_000_000_000;
    stage.send(&AckDatagram { sent_ns, ..ack_of(1) }.encode(KEY));
    stage.sees_nothing_leave();
    assert_eq!(stage.count(AckCounter::FromTheFuture), 1);
}

#[test]
fn a_replayed_or_stale_ack_moves_nothing() {
    let mut stage = Stage::with_a_frame_of_epoch_1();
    let first = ack_of(1).encode(KEY);
    stage.send(&first);
    stage.wire.send(&numbered(2));
    stage.gate.seal(&opened(3));
    stage.ack(2);
    assert_eq!(stage.numbers_out(), [1, 2]);

    stage.wire.send(&numbered(3));
    stage.gate.seal(&opened(4));
    stage.send(&first);
    stage.ack(2);
    stage.sees_nothing_leave();
    assert_eq!((stage.count(AckCounter::Stale), stage.count(AckCounter::Taken)), (2, 2));
    assert_eq!(stage.gate.newest_ack().unwrap().0.epoch(), epoch(2));

    stage.gate.commit(&committed(3));
    stage.ack(3);
    assert_eq!(stage.count(AckCounter::Stale), 3, "the controller was faster");
}

#[test]
fn a_genuine_ack_after_the_lease_releases_nothing() {
    let mut stage = Stage::new().of_a_new_gate(&Settings::default());
    stage.trigger.arm(session(1), KEY, stage.port(), Duration::from_millis(50));
    stage.wire.send(&numbered(1));
    stage.gate.seal(&opened(2));
    let late = AckDatagram { sent_ns: boottime_ns() - 51_000_000, ..ack_of(1) };
    stage.send(&late.encode(KEY));
    stage.sees_nothing_leave();
    assert!(stage.gate.counters().unwrap().get(Counter::LeaseOver) > 0);

    // A later ack, in time, is a lease of its own: no word from the controller is needed.
    stage.gate.seal(&opened(3));
    stage.ack(2);
    assert_eq!(stage.numbers_out(), [1], "held, not lost");
}

#[test]
fn a_new_session_voids_the_old_key() {
    let mut stage = Stage::with_a_frame_of_epoch_1();
    let new = AckKey([5, 6]);
    stage.trigger.arm(session(2), new, stage.port(), LEASE);
    stage.ack(1);
    stage.send(&AckDatagram { session: 2, ..ack_of(1) }.encode(KEY));
    stage.sees_nothing_leave();
    assert_eq!((stage.count(AckCounter::OtherSession), stage.count(AckCounter::BadTag)), (1, 1));
    stage.send(&AckDatagram { session: 2, ..ack_of(1) }.encode(new));
    assert_eq!(stage.numbers_out(), [1]);
}

#[test]
fn an_old_terms_acks_and_lease_release_nothing_in_a_new_term() {
    let mut stage = Stage::new().of_a_new_gate(&Settings::default());
    stage.trigger.arm(session(1), KEY, stage.port(), LEASE);
    stage.wire.send(&numbered(1));
    stage.gate.seal(&opened(2));
    stage.ack(1);
    assert_eq!(stage.numbers_out(), [1], "by the datagram's lease");
    stage.wire.send(&numbered(2));
    stage.gate.seal(&opened(3));

    let fenced = permits::after(TERM);
    stage.gate.begin_term(&fenced, Held::Keep).unwrap();
    assert_eq!(stage.gate.newest_ack(), None);
    let late = ack_of(2).encode(KEY);
    stage.send(&late);
    stage.sees_nothing_leave();
    assert_eq!(stage.passed_on(), late, "the trigger is disarmed");
    // Armed all the same, by a thread that has not heard of the new term.
    stage.trigger.arm(session(1), KEY, stage.port(), LEASE);
    stage.ack(1);
    stage.ack(2);
    stage.sees_nothing_leave();
    assert_eq!(stage.count(AckCounter::OtherTerm), 2);

    let mut epochs = Epochs::begin(fenced);
    stage.gate.seal(&epochs.seal());
    stage.gate.commit(&epochs.commit());
    assert_eq!(stage.gate.flush().unwrap(), Flushed::Refused, "no lease of this term");
    stage.sees_nothing_leave();
    assert!(stage.gate.counters().unwrap().get(Counter::LeaseOver) > 0);

    // Committed by the controller; the lease comes with the next datagram of the new term.
    stage.gate.seal(&epochs.seal());
    let term = TERM.next();
    stage.send(&AckDatagram { term, ..ack_of(2) }.encode(KEY));
    assert_eq!(stage.numbers_out(), [2], "kept, not lost");
    let counters = stage.gate.counters().unwrap();
    assert_eq!(counters.get(Counter::RefusedByLock) + counters.get(Counter::RefusedStale), 0);
}

/// Datagrams of the old term at any moment of its end.
#[test]
fn datagrams_that_come_while_a_term_begins_leave_no_lease_behind() {
    const TERMS: u32 = 200;
    let mut stage = Stage::new().of_a_new_gate(&Settings::default());
    let mut term = TERM;
    let stop = AtomicBool::new(false);
    let speaker = AtomicU32::new(term.get());
    thread::scope(|scope| {
        let sender = stage.backup.try_clone().unwrap();
        let (stop, speaker) = (&stop, &speaker);
        scope.spawn(move || {
            while !stop.load(Ordering::Acquire) {
                let term = Term::new(speaker.load(Ordering::Acquire)).unwrap();
                for n in 1..4 {
                    sender.send(&AckDatagram { term, ..ack_of(n) }.encode(KEY)).unwrap();
                }
            }
        });
        let mut epochs = Epochs::begin(permits::first());
        for n in 0..TERMS {
            stage.trigger.arm(session(1), KEY, stage.port(), LEASE);
            (0..4).for_each(|_| stage.gate.seal(&epochs.seal()));
            // A datagram comes about every millisecond, and a term begins within a few microseconds. So the term is as
            // often ended before the first datagram as after one, and sometimes with one under way.
            thread::sleep(Duration::from_micros(u64::from(n * 37 % 1000)));
            let fenced = permits::after(term);
            stage.gate.begin_term(&fenced, Held::Discard).unwrap();
            assert_eq!(stage.gate.newest_ack(), None, "term {term}");
            term = term.next();
            epochs = Epochs::begin(fenced);
            // A release would find the lease that an ack of the old term had left.
            stage.wire.send(&numbered(term.get()));
            stage.gate.seal(&epochs.seal());
            stage.gate.commit(&epochs.commit());
            assert_eq!(stage.gate.flush().unwrap(), Flushed::Refused, "term {term}");
            // That frame would rightly leave by an ack of its own term.
            let fenced = permits::after(term);
            stage.gate.begin_term(&fenced, Held::Discard).unwrap();
            term = term.next();
            epochs = Epochs::begin(fenced);
            speaker.store(term.get(), Ordering::Release);
        }
        stop.store(true, Ordering::Release);
    });
    stage.sees_nothing_leave();
    let counts = AckCounter::ALL.map(|counter| (counter, stage.count(counter)));
    assert!(stage.count(AckCounter::Taken) > 0, "none came in time: {counts:?}");
}

#[test]
fn without_a_session_every_frame_passes_and_nothing_is_released() {
    let mut stage = Stage::with_a_frame_of_epoch_1();
    stage.trigger.disarm();
    let ack = ack_of(1).encode(KEY);
    stage.send(&ack);
    stage.sees_nothing_leave();
    assert_eq!(stage.passed_on(), ack);
    assert_eq!(AckCounter::ALL.map(|counter| stage.count(counter)), [0; AckCounter::COUNT]);
}

#[test]
fn what_is_not_an_ack_to_this_port_passes_untouched() {
    let mut stage = Stage::with_a_frame_of_epoch_1();
    let mut other_magic = ack_of(1).encode(KEY);
    other_magic[0] = b'r';
    let good = ack_of(1).encode(KEY);
    for payload in [&other_magic[..], &good[..47], &[&good[..], &[0]].concat(), &[0; 1200]] {
        stage.send(payload);
        assert_eq!(stage.passed_on(), payload);
    }
    let elsewhere = UdpSocket::bind((V4[0], 0)).unwrap();
    stage.backup.connect(elsewhere.local_addr().unwrap()).unwrap();
    stage.ack(1);
    let mut buffer = [0; 64];
    assert_eq!(elsewhere.recv(&mut buffer).unwrap(), good.len(), "of another guest's gate");
    stage.sees_nothing_leave();
    assert_eq!(AckCounter::ALL.map(|counter| stage.count(counter)), [0; AckCounter::COUNT]);
}

#[test]
fn a_closed_gate_stays_closed_whatever_is_acked() {
    let mut stage = Stage::with_a_frame_of_epoch_1();
    stage.gate.close();
    stage.ack(1);
    stage.sees_nothing_leave();
    assert_eq!(stage.count(AckCounter::LeftToController), 1);
    assert_eq!(stage.gate.newest_ack(), None);
}

#[test]
fn what_a_datagram_leaves_behind_the_controller_releases() {
    let mut stage = Stage::new();
    for n in 0..900 {
        stage.wire.send(&numbered(n));
    }
    stage.gate.seal(&opened(2));
    stage.ack(1);
    let first = stage.numbers_out();
    assert!((1..900).contains(&first.len()), "a batch: {}", first.len());
    stage.gate.commit(&committed(1));
    let mut out = first;
    // The reader's queue takes 500 frames at once.
    while stage.gate.held() > 0 {
        stage.gate.flush().unwrap();
        out.extend(stage.numbers_out());
    }
    assert_eq!(stage.gate.counters().unwrap().get(Counter::Released), 900);
    assert!(
        out.is_sorted() && out.windows(2).all(|pair| pair[0] != pair[1]),
        "in order, each once"
    );
}

/// The try-lock: a flush of the controller's and one of a datagram's at any moment of one another.
#[test]
fn datagrams_and_the_controller_release_each_frame_once_and_in_order() {
    const EPOCHS: u64 = 300;
    const FRAMES: u32 = 20;
    let mut stage = Stage::new();
    let done = AtomicBool::new(false);
    let mut out = Vec::new();
    thread::scope(|scope| {
        let sender = stage.backup.try_clone().unwrap();
        let (to_ack, acks) = std::sync::mpsc::channel::<u64>();
        let done = &done;
        scope.spawn(move || {
            for n in acks {
                sender.send(&ack_of(n).encode(KEY)).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        for n in 1..=EPOCHS {
            for at in 0..FRAMES {
                stage.wire.send(&numbered(u32::try_from(n).unwrap() * FRAMES + at));
            }
            stage.gate.seal(&opened(n + 1));
            to_ack.send(n).unwrap();
            if n % 3 == 0 {
                stage.gate.commit(&committed(n));
            }
            stage.gate.flush().unwrap();
            if n % 10 == 0 {
                out.extend(stage.numbers_out());
            }
        }
        drop(to_ack);
    });
    assert!(done.load(Ordering::Acquire));
    stage.gate.commit(&committed(EPOCHS));
    release_all(&mut stage.gate);
    out.extend(stage.numbers_out());
    let all: Vec<u32> =
        (FRAMES..).take(usize::try_from(EPOCHS).unwrap() * FRAMES as usize).collect();
    assert_eq!(out, all);
    assert!(stage.count(AckCounter::Taken) > 0);
    let counters = stage.gate.counters().unwrap();
    assert_eq!(counters.get(Counter::RefusedByLock) + counters.get(Counter::RefusedStale), 0);
}

#[test]
fn a_trigger_whose_controller_is_gone_is_gone_from_the_link_and_releases_nothing() {
    let stage = Stage::with_a_frame_of_epoch_1();
    assert_eq!(programs_at_repl(), 1);
    let Stage { mut wire, gate, trigger, backup, .. } = stage;
    // As after SIGKILL: nothing of this process is left but the pins.
    drop((gate, trigger));
    assert_eq!(programs_at_repl(), 0);
    backup.send(&ack_of(1).encode(KEY)).unwrap();
    assert!(wire.arrivals().is_empty());
}

#[test]
fn a_link_that_was_made_again_is_attached_to_again() {
    let mut stage = Stage::with_a_frame_of_epoch_1();
    assert!(stage.trigger.is_at(REPL));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let links = Links::open(&NetNs::current().unwrap()).unwrap();
        let all = links.list().await.unwrap();
        links.delete(all.iter().find(|link| link.name == REPL).unwrap()).await.unwrap();
    });
    lay_cable(&stage.backup_netns);
    assert!(!stage.trigger.is_at(REPL));
    stage.trigger.attach(REPL).unwrap();
    assert!(stage.trigger.is_at(REPL));
    let here: SocketAddr = stage.ours.local_addr().unwrap();
    stage.backup.connect(here).unwrap();
    stage.ack(1);
    assert_eq!(stage.numbers_out(), [1]);
}

#[test]
fn a_trigger_that_was_never_armed_lets_everything_pass() {
    let mut stage = Stage::new().of_a_new_gate(&Settings::default());
    stage.wire.send(&numbered(1));
    stage.gate.seal(&opened(2));
    stage.send(&AckDatagram { session: 0, ..ack_of(1) }.encode(AckKey([0, 0])));
    stage.sees_nothing_leave();
    assert_eq!(AckCounter::ALL.map(|counter| stage.count(counter)), [0; AckCounter::COUNT]);
}
