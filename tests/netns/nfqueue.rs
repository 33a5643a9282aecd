//! Claims about the engine `nfqueue`, on real frames through a real tap, bridge and netfilter.

use std::{
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
    time::Duration,
};

use remus::gate::{Engine, Flushed, Gate, Held, Remedy, Settings};
use remus_abi::gate::Counter;
use rig::permits::{self, lease, long_lease};

use crate::{
    gate::{TERM, begun, committed, opened, release_all},
    wire::{GUEST_MAC, VIRTIO_NET_HEADER, Wire, frame, numbered},
};

fn settings() -> Settings {
    Settings { engine: Engine::NfQueue, ..Settings::default() }
}

fn gate_on(wire: &Wire) -> Gate {
    begun(Gate::install(wire.tap.clone(), wire.pins.path(), &settings()).expect("install the gate"))
}

/// A gate that holds from epoch 1 and may release.
fn holding_gate_on(wire: &Wire) -> Gate {
    let mut gate = gate_on(wire);
    gate.hold();
    gate.renew_lease(&long_lease(TERM));
    gate
}

/// A broadcast UDP datagram that carries `number`: of IPv4 when it is even, else of IPv6.
pub(crate) fn ip(number: u32) -> Vec<u8> {
    let payload = [&number.to_be_bytes()[..], &[7; 36]].concat();
    if number.is_multiple_of(2) {
        return udp([0xff; 6], Ipv4Addr::BROADCAST, &payload);
    }
    let mut packet = vec![0x60, 0, 0, 0, 0, 48, 17, 64];
    packet.extend([0xfd; 16]);
    packet.extend([0xff; 16]);
    packet.extend([0x0f, 0xa0, 0x0f, 0xa0, 0, 48, 1, 1]);
    frame(0x86dd, &[packet, payload].concat())
}

/// The numbers in frames of [`ip`].
pub(crate) fn numbers(frames: &[Vec<u8>]) -> Vec<u32> {
    let number = |frame: &Vec<u8>| {
        let at = if frame[12..14] == [0x08, 0x00] { 42 } else { 62 };
        u32::from_be_bytes(frame[at..at + 4].try_into().unwrap())
    };
    frames.iter().map(number).collect()
}

/// A UDP datagram over IPv4, port 4000, from a guest at 10.9.0.9.
fn udp(mac: [u8; 6], to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut ip = [0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 9, 0, 9, 0, 0, 0, 0];
    ip[2..4].copy_from_slice(&u16::try_from(28 + payload.len()).unwrap().to_be_bytes());
    ip[16..].copy_from_slice(&to.octets());
    let sum = !folded(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut udp = [0x0f, 0xa0, 0x0f, 0xa0, 0, 0, 0, 0];
    udp[4..6].copy_from_slice(&u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    [&mac[..], &GUEST_MAC, &[8, 0], &ip, &udp, payload].concat()
}

fn folded(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
}

#[test]
fn ip_frames_wait_in_the_queue_and_leave_epoch_by_epoch_in_order() {
    let mut wire = Wire::new();
    let mut gate = holding_gate_on(&wire);
    (0..100).for_each(|n| wire.send(&ip(n)));
    gate.seal(&opened(2));
    (100..150).for_each(|n| wire.send(&ip(n)));
    assert_eq!(gate.flush().unwrap(), Flushed::All);
    assert!(wire.arrivals().is_empty(), "nothing is committed yet");
    assert_eq!(gate.held(), 150);

    gate.commit(&committed(1));
    release_all(&mut gate);
    assert_eq!(numbers(&wire.arrivals()), (0..100).collect::<Vec<_>>());

    gate.seal(&opened(3));
    wire.send(&ip(150));
    gate.commit(&committed(2));
    release_all(&mut gate);
    assert_eq!(numbers(&wire.arrivals()), (100..150).collect::<Vec<_>>());
    let counters = gate.counters().unwrap();
    assert_eq!((counters.get(Counter::Held), counters.get(Counter::Released)), (151, 150));
    assert_eq!(counters.get(Counter::RefusedByLock) + counters.get(Counter::RefusedStale), 0);
    gate.verify().unwrap();
}

#[test]
fn every_kind_of_frame_is_held_and_comes_out_as_it_went_in() {
    let mut wire = Wire::new();
    let mut gate = holding_gate_on(&wire);
    let tag = |tpid: u16, vid: u16, inner: &[u8]| {
        [&tpid.to_be_bytes()[..], &vid.to_be_bytes(), inner].concat()
    };
    let address = [&[0xff; 6][..], &GUEST_MAC].concat();
    let arp = [&[0x08, 0x06][..], &[7; 60]].concat();
    let v4 = udp([0xff; 6], Ipv4Addr::BROADCAST, &[6; 60])[12..].to_vec();
    let lldp = [&[0x01, 0x80, 0xc2, 0, 0, 0x0e][..], &GUEST_MAC, &[0x88, 0xcc], &[2; 46]].concat();
    let frames = [
        frame(0x0806, &[1; 28]),
        udp([0xff; 6], Ipv4Addr::BROADCAST, &[5; 1400]),
        ip(1),
        frame(0x88cc, &[2; 46]),
        frame(0x1234, &[3; 1]),
        [&address[..], &tag(0x8100, 5, &arp)].concat(),
        [&address[..], &tag(0x8100, 6, &v4)].concat(),
        [&address[..], &tag(0x88a8, 6, &tag(0x8100, 7, &v4))].concat(),
    ];
    frames.iter().for_each(|frame| wire.send(frame));
    // A bridge keeps LLDP to itself; that it waits is seen by what the gate holds.
    wire.send(&lldp);
    gate.flush().unwrap();
    assert!(wire.arrivals().is_empty());
    assert_eq!(gate.held(), 9);
    gate.seal(&opened(2));
    gate.commit(&committed(1));
    release_all(&mut gate);
    let mut out = wire.arrivals();
    for sent in &frames {
        let at = out.iter().position(|it| it == sent).expect("it comes out, unchanged");
        out.remove(at);
    }
    assert!(out.is_empty(), "and nothing else does");
    assert_eq!(gate.held(), 0);
}

/// A TCP segment over IPv4 of `length` bytes of payload, its checksum still to be filled in, before it the header of
/// virtio-net that says so.
fn unfinished_tcp(length: usize, segment: u16) -> Vec<u8> {
    const NEEDS_CHECKSUM: u8 = 1;
    const TSO4: u8 = 1;
    let total = u16::try_from(40 + length).unwrap();
    let (kind, headers) = if segment > 0 { (TSO4, 54) } else { (0, 0) };
    let mut header = vec![NEEDS_CHECKSUM, kind];
    for word in [headers, segment, 34, 16] {
        header.extend(u16::to_ne_bytes(word));
    }
    let mut ip = [0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    let sum = !folded(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut tcp = [0; 20];
    tcp[..4].copy_from_slice(&[0x10, 0, 0x20, 0]);
    tcp[12] = 0x50;
    tcp[13] = 0x10;
    // The pseudo header's sum, as who leaves the rest to others does.
    let mut pseudo = [&ip[12..20], &[0, 6][..]].concat();
    pseudo.extend((total - 20).to_be_bytes());
    tcp[16..18].copy_from_slice(&folded(&pseudo).to_be_bytes());
    let payload: Vec<u8> = (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect();
    assert_eq!(header.len(), VIRTIO_NET_HEADER);
    [&header[..], &[0xff; 6], &GUEST_MAC, &[8, 0], &ip, &tcp, &payload].concat()
}

#[test]
fn a_frame_of_64_kb_stays_whole() {
    let mut wire = Wire::with_offloads();
    let mut gate = holding_gate_on(&wire);
    let sent = unfinished_tcp(64_000, 1448);
    wire.send(&sent);
    gate.flush().unwrap();
    assert!(wire.arrivals().is_empty());
    assert_eq!(gate.held(), 1);
    gate.seal(&opened(2));
    gate.commit(&committed(1));
    release_all(&mut gate);
    let out = wire.arrivals();
    assert_eq!(out.len(), 1, "not cut into segments");
    assert!(out[0] == sent, "frame and header are what they were");
}

#[test]
fn a_checksum_that_is_left_to_others_is_still_left_to_them() {
    let mut wire = Wire::with_offloads();
    let mut gate = holding_gate_on(&wire);
    let sent = unfinished_tcp(100, 0);
    wire.send(&sent);
    gate.seal(&opened(2));
    gate.commit(&committed(1));
    release_all(&mut gate);
    assert_eq!(wire.arrivals(), [sent]);
}

/// Whoever listens on `host` hears `frames` when they are committed, and not before.
fn heard_after_commit(wire: &mut Wire, gate: &mut Gate, host: Ipv4Addr, frame: &[u8]) {
    let socket = UdpSocket::bind((host, 4000)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    wire.send(frame);
    gate.flush().unwrap();
    assert!(socket.recv(&mut [0; 8]).is_err(), "it waits");
    assert_eq!(gate.held(), 1);
    gate.seal(&opened(2));
    gate.commit(&committed(1));
    release_all(gate);
    let mut heard = [0; 8];
    socket.recv(&mut heard).expect("it arrives");
    assert_eq!(heard, [7; 8]);
}

#[test]
fn frames_to_the_host_itself_are_held() {
    let mut wire = Wire::new();
    let (host, mac) = (Ipv4Addr::new(10, 9, 0, 1), wire.host_on_bridge(Ipv4Addr::new(10, 9, 0, 1)));
    let mut gate = holding_gate_on(&wire);
    heard_after_commit(&mut wire, &mut gate, host, &udp(mac, host, &[7; 40]));
}

#[test]
fn on_a_tap_that_is_in_no_bridge_ip_is_held_and_so_is_the_rest() {
    let mut wire = Wire::new();
    let host = Ipv4Addr::new(10, 9, 0, 1);
    let mac = wire.host_on_tap(host);
    let mut gate = holding_gate_on(&wire);
    heard_after_commit(&mut wire, &mut gate, host, &udp(mac, host, &[7; 40]));
    wire.send(&frame(0x0806, &[1; 28]));
    assert_eq!(gate.held(), 1, "ARP waits in the buffer");
}

#[test]
fn without_its_listener_the_gate_leaks_nothing() {
    let mut wire = Wire::new();
    let mut gate = holding_gate_on(&wire);
    (0..50).for_each(|n| wire.send(&ip(n)));
    gate.seal(&opened(2));
    gate.commit(&committed(1));
    // As after SIGKILL: nothing of this process is left but the pins and the rules.
    drop(gate);
    (50..100).for_each(|n| wire.send(&ip(n)));
    wire.send(&numbered(100));
    assert!(wire.arrivals().is_empty());

    // The next controller takes over what stands there, and works.
    let mut next = Gate::install(wire.tap.clone(), wire.pins.path(), &settings()).unwrap();
    next.begin_term(&permits::after(TERM), Held::Discard).unwrap();
    next.hold();
    next.verify().unwrap();
    wire.send(&ip(0));
    next.flush().unwrap();
    assert_eq!(next.held(), 1);
    assert!(wire.arrivals().is_empty());
}

/// The verdict "accept" on all frames up to `last`, whoever it may concern, from the queue's own socket.
fn accept_up_to(gate: &Gate, last: u32) {
    const FIRST_QUEUE: u16 = 0x5d00;
    let mut message = vec![32, 0, 0, 0, 3, 3, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend(FIRST_QUEUE.to_be_bytes());
    message.extend([12, 0, 2, 0, 0, 0, 0, 1]);
    message.extend(last.to_be_bytes());
    let fd = gate.queue_fd().expect("a queue").as_raw_fd();
    // SAFETY: a buffer of that length, alive during the call.
    let sent = unsafe { libc::send(fd, message.as_ptr().cast(), message.len(), 0) };
    assert_eq!(usize::try_from(sent), Ok(message.len()));
}

#[test]
fn of_1000_uncommitted_frames_that_a_buggy_release_lets_go_none_gets_out() {
    let mut wire = Wire::new();
    let mut gate = holding_gate_on(&wire);
    (0..1000).for_each(|n| wire.send(&ip(n)));
    accept_up_to(&gate, 1000);
    assert!(wire.arrivals().is_empty());
    assert_eq!(gate.counters().unwrap().get(Counter::RefusedByLock), 1000);
    gate.seal(&opened(2));
    gate.commit(&committed(1));
    release_all(&mut gate);
    assert!(wire.arrivals().is_empty(), "lost, not leaked");
}

#[test]
fn a_release_after_the_lease_is_stopped_twice() {
    let mut wire = Wire::new();
    let mut gate = gate_on(&wire);
    gate.hold();
    gate.renew_lease(&lease(TERM, Duration::from_nanos(1)));
    (0..10).for_each(|n| wire.send(&ip(n)));
    gate.seal(&opened(2));
    gate.commit(&committed(1));
    assert_eq!(gate.flush().unwrap(), Flushed::Refused);
    assert_eq!(gate.held(), 10, "held, not lost");
    accept_up_to(&gate, 10);
    assert!(wire.arrivals().is_empty());
    assert_eq!(gate.counters().unwrap().get(Counter::LeaseOver), 10);
}

#[test]
fn a_replayed_release_gets_nothing_out_twice() {
    let mut wire = Wire::new();
    let mut gate = holding_gate_on(&wire);
    (0..1000).for_each(|n| wire.send(&ip(n)));
    gate.seal(&opened(2));
    gate.commit(&committed(1));
    let mut out = 0;
    for _ in 0..3 {
        release_all(&mut gate);
        accept_up_to(&gate, 1000);
        out += wire.arrivals().len();
    }
    assert_eq!(gate.counters().unwrap().get(Counter::Released), 1000);
    assert_eq!(out, 1000);
}

#[test]
fn a_closed_gate_lets_nothing_out_not_even_what_is_committed() {
    let mut wire = Wire::new();
    let mut gate = holding_gate_on(&wire);
    wire.send(&ip(0));
    gate.seal(&opened(2));
    gate.commit(&committed(1));
    gate.close();
    assert_eq!(gate.flush().unwrap(), Flushed::Refused);
    accept_up_to(&gate, 1);
    wire.send(&ip(1));
    assert!(wire.arrivals().is_empty());
}

#[test]
fn a_full_queue_drops_and_counts_and_never_leaks() {
    let mut wire = Wire::new();
    let mut gate = holding_gate_on(&wire);
    let frame = ip(0);
    (0..70_000).for_each(|_| wire.send(&frame));
    gate.flush().unwrap();
    assert!(wire.arrivals().is_empty());
    let held = gate.held();
    assert!(held >= 60_000, "{held}");
    assert_eq!(held + gate.counters().unwrap().get(Counter::DroppedFull), 70_000);
    gate.seal(&opened(2));
    gate.commit(&committed(1));
    release_all(&mut gate);
    assert_eq!(gate.counters().unwrap().get(Counter::Released), held);
    assert_eq!(gate.held(), 0);
}

#[test]
fn the_next_controller_adopts_the_gate_and_holds_on() {
    let mut wire = Wire::new();
    let mut gate = holding_gate_on(&wire);
    gate.seal(&opened(2));
    wire.send(&numbered(0));
    drop(gate);
    let mut gate = Gate::adopt(wire.tap.clone(), wire.pins.path()).unwrap().expect("a gate");
    wire.send(&ip(1));
    gate.flush().unwrap();
    assert_eq!(gate.held(), 2);
    gate.seal(&opened(3));
    gate.commit(&committed(2));
    release_all(&mut gate);
    assert_eq!(wire.arrivals().len(), 2);
}

#[test]
fn what_was_held_leaves_before_what_passes_an_open_gate() {
    let mut wire = Wire::new();
    let mut gate = holding_gate_on(&wire);
    (0..10).for_each(|n| wire.send(&ip(n)));
    gate.open(&permits::first());
    (10..20).for_each(|n| wire.send(&ip(n)));
    release_all(&mut gate);
    (20..30).for_each(|n| wire.send(&ip(n)));
    assert_eq!(numbers(&wire.arrivals()), (0..30).collect::<Vec<_>>());
    assert_eq!(gate.counters().unwrap().get(Counter::Passed), 10, "the last do not pass the queue");
}

#[test]
fn with_br_netfilter_off_frames_are_dropped_and_the_gate_says_why() {
    let mut wire = Wire::new();
    let gate = holding_gate_on(&wire);
    std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0").unwrap();
    wire.send(&ip(0));
    assert!(wire.arrivals().is_empty());
    let error = gate.verify().unwrap_err().to_string();
    assert!(error.contains("bridge-nf-call-iptables was turned off"), "{error}");
}

/// Tries, as a firewall that restarts does, to take the gate's table of IPv4 out: the kernel's errno, or 0.
fn delete_table(tap: &str) -> i32 {
    let mut request = Vec::new();
    let mut message = |kind: u16, flags: u16, family: u8, body: &[u8]| {
        request.extend(u32::try_from(20 + body.len()).unwrap().to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend((flags | 1).to_ne_bytes());
        request.extend([0; 8]);
        request.extend([family, 0, 0, 10]);
        request.extend(body);
    };
    let mut name = format!("remus-{tap}\0").into_bytes();
    let mut body = u16::try_from(4 + name.len()).unwrap().to_ne_bytes().to_vec();
    body.extend([1, 0]);
    name.resize(name.len().next_multiple_of(4), 0);
    body.extend(name);
    message(0x10, 0, 0, &[]);
    message(0x0a02, 4, 2, &body);
    message(0x11, 0, 0, &[]);
    let mut answer = [0; 1024];
    // SAFETY: a socket of its own, buffers of those lengths, alive during the calls; results are checked.
    let received = unsafe {
        let socket = libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_NETFILTER,
        );
        assert!(socket >= 0);
        let sent = libc::send(socket, request.as_ptr().cast(), request.len(), 0);
        assert_eq!(usize::try_from(sent), Ok(request.len()));
        let received = libc::recv(socket, answer.as_mut_ptr().cast(), answer.len(), 0);
        libc::close(socket);
        received
    };
    assert!(received >= 20);
    -i32::from_ne_bytes(answer[16..20].try_into().unwrap())
}

#[test]
fn a_gate_that_is_lost_is_put_back_though_its_rules_have_an_owner() {
    let mut wire = Wire::new();
    let mut gate = holding_gate_on(&wire);
    std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0").unwrap();
    assert_eq!(gate.verify().unwrap_err().remedy(), Remedy::NewGate);
    let mut back = gate.again().expect("put the gate back");
    assert!(gate.verify().is_err(), "the old one is of no use");
    // It still stamps, with its own count of turns.
    drop(gate);
    back.verify().expect("well");
    back.hold();
    wire.send(&ip(0));
    back.flush().unwrap();
    assert_eq!(back.held(), 1);
    assert!(wire.arrivals().is_empty());
}

#[test]
fn rules_that_are_taken_out_are_missed_and_owned_ones_cannot_be() {
    let wire = Wire::new();
    let gate = holding_gate_on(&wire);
    let errno = delete_table(&wire.tap.name);
    let support = remus::gate::queue_support().expect("this kernel can do it");
    if support.owned_tables {
        assert_eq!(errno, libc::EPERM);
        gate.verify().unwrap();
    } else {
        assert_eq!(errno, 0);
        let error = gate.verify().unwrap_err().to_string();
        assert!(error.contains("were changed or taken out"), "{error}");
    }
}

#[test]
fn a_removed_gate_leaves_no_rule_behind() {
    let mut wire = Wire::new();
    let mut gate = holding_gate_on(&wire);
    wire.send(&ip(0));
    gate.flush().unwrap();
    gate.remove().unwrap();
    wire.send(&ip(1));
    assert_eq!(numbers(&wire.arrivals()), [1], "the tap is as it was before");
    // The directory is the guard's to remove, and it insists.
    std::fs::create_dir(wire.pins.path()).unwrap();
}
