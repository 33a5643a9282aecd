//! From the wire to the guest's receive ring.

use super::super::header::NUM_BUFFERS;
use super::*;
use crate::checkpoint::{Page, PageSet};

/// A header as the kernel writes it for TCP over IPv4 that nobody has cut.
const UNCUT: [u8; HEADER] = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];

/// Offers `count` buffers of `len` bytes each, a page apart from 0x4_0000 on; head `n` is the nth.
fn offer_buffers(guest: &mut Guest, first: u16, count: u16, len: u32) {
    for n in first..first + count {
        guest.describe(RECEIVE, n, buffer(n), len, WRITE, 0);
        guest.offer(RECEIVE, n);
    }
}

fn buffer(n: u16) -> u64 {
    0x4_0000 + u64::from(n) * 0x1000
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251).to_le_bytes()[0]).collect()
}

#[test]
fn a_received_frame_is_whole_and_its_pages_are_marked() {
    let mut guest = Guest::new();
    guest.describe(RECEIVE, 1, 0x8000 - 6, 12, WRITE | NEXT, 2);
    guest.describe(RECEIVE, 2, 0x9000, 2048, WRITE, 0);
    guest.put_on_wire(&[0; HEADER], &[5; 100]);
    assert_eq!(guest.receive(), Progress::Starved, "no buffer, and the frame waits in the tap");
    guest.offer(RECEIVE, 1);
    let mut marked = PageSet::new(guest.memory.layout().pages());
    guest.memory.harvest_touched(&mut marked);
    assert_eq!(guest.receive(), Progress::Starved);
    let mut frame = [0; 101];
    guest.memory.ram().read_slice(&mut frame, GuestAddress(0x9000)).unwrap();
    assert_eq!(frame[..], [[5; 100].as_slice(), &[0]].concat());
    assert_eq!(guest.u16_at(0x8000 - 6 + 10), 1, "num_buffers");
    assert_eq!(guest.used(RECEIVE), 1);
    marked.clear();
    guest.memory.harvest_touched(&mut marked);
    let pages: Vec<_> = marked.iter().collect();
    assert_eq!(pages, [Page(3), Page(7), Page(8), Page(9)]);
}

#[test]
fn broken_receive_chains_break_the_device_and_nothing_else() {
    let mut guest = Guest::new();
    let cases: [(u64, u32, u16); 3] =
        [(0x8000, 2048, 0), (1 << 40, 2048, WRITE), (0x8000, 9, WRITE | NEXT)];
    for (address, len, flags) in cases {
        guest.describe(RECEIVE, 0, address, len, flags, 0);
        guest.offer(RECEIVE, 0);
        guest.put_on_wire(&[0; HEADER], &[1; 100]);
        assert_eq!(guest.receive(), Progress::Starved, "{address:#x} {len} {flags}");
        guest.is_broken();
    }
}

#[test]
fn frames_too_long_for_the_guest_use_no_buffer() {
    let mut guest = Guest::new();
    guest.describe(RECEIVE, 0, 0x8000, 2048, WRITE, 0);
    guest.offer(RECEIVE, 0);
    guest.put_on_wire(&[0; HEADER], &[1; FRAME_MAX + 1]);
    guest.put_on_wire(&[0; HEADER], &[2; FRAME_MAX]);
    assert_eq!(guest.receive(), Progress::Starved);
    assert_eq!(guest.net.counters().received_dropped, 1);
    assert_eq!(guest.used(RECEIVE), 1);
}

#[test]
fn a_buffer_too_small_for_a_frame_waits_for_the_next_one() {
    let mut guest = Guest::new();
    offer_buffers(&mut guest, 0, 1, 200);
    guest.put_on_wire(&[0; HEADER], &[1; 1000]);
    guest.put_on_wire(&[0; HEADER], &[2; 100]);
    assert_eq!(guest.receive(), Progress::Starved);
    assert!(
        guest.net.transport.is_live(),
        "no frame from the network can break the guest's device"
    );
    assert_eq!(guest.used_entry(RECEIVE, 0), (0, 112));
    assert_eq!(guest.bytes_at(buffer(0) + 12, 100), [2; 100]);
    let counters = guest.net.counters();
    assert_eq!((counters.received, counters.received_dropped), (1, 1));
}

#[test]
fn a_long_frame_lies_in_as_many_buffers_as_it_takes_and_its_header_says_so() {
    let mut guest = Guest::with(Offloads::Segmentation, ALL, 64);
    offer_buffers(&mut guest, 0, 64, 1526);
    let frame = bytes(64_000);
    guest.put_on_wire(&UNCUT, &frame);
    assert_eq!(guest.receive(), Progress::Idle);
    let used = guest.used(RECEIVE);
    assert_eq!(usize::from(used), (HEADER + frame.len()).div_ceil(1526));
    let mut received = Vec::new();
    for n in 0..used {
        let (head, len) = guest.used_entry(RECEIVE, n);
        assert_eq!(head, u32::from(n));
        received.extend(guest.bytes_at(buffer(n), len as usize));
    }
    let mut header = UNCUT;
    header[NUM_BUFFERS..].copy_from_slice(&used.to_le_bytes());
    assert!(received[..HEADER] == header && received[HEADER..] == frame);
    assert_eq!((guest.line.read().unwrap(), guest.net.counters().received), (1, 1));
}

#[test]
fn a_header_torn_between_buffers_still_says_how_many_there_are() {
    let mut guest = Guest::with(Offloads::Segmentation, ALL, SIZE);
    // The first byte of num_buffers ends one buffer, the second begins the next.
    guest.describe(RECEIVE, 0, buffer(0), 11, WRITE, 0);
    guest.offer(RECEIVE, 0);
    offer_buffers(&mut guest, 1, 2, 700);
    guest.put_on_wire(&[0; HEADER], &bytes(1300));
    assert_eq!(guest.receive(), Progress::Starved);
    assert_eq!(guest.used(RECEIVE), 3);
    assert_eq!(guest.bytes_at(buffer(0) + 10, 1), [3]);
    assert_eq!(guest.bytes_at(buffer(1), 1), [0]);
    assert_eq!(guest.bytes_at(buffer(1) + 1, 699), bytes(1300)[..699]);
}

#[test]
fn a_frame_waits_for_buffers_and_none_is_used_before_there_are_enough() {
    let event_idx = 1 << VIRTIO_RING_F_EVENT_IDX;
    let mut guest = Guest::with(Offloads::Segmentation, ALL | event_idx, 64);
    offer_buffers(&mut guest, 0, 10, 1526);
    let frame = bytes(64_000);
    guest.put_on_wire(&UNCUT, &frame);
    guest.put_on_wire(&[0; HEADER], &[4; 60]);
    for offered in [10, 30] {
        assert_eq!(guest.receive(), Progress::Starved);
        assert_eq!(guest.used(RECEIVE), 0);
        assert!(guest.line.read().is_err());
        let [_, _, used] = rings(RECEIVE);
        let doorbell_at = guest.u16_at(used + 4 + 64 * 8);
        assert_eq!(doorbell_at, offered, "the next buffer rings, not one that was there before");
        offer_buffers(&mut guest, offered, 20, 1526);
    }
    assert_eq!(guest.receive(), Progress::Idle);
    assert_eq!(guest.net.counters().received, 2, "in their order");
    assert_eq!(guest.used_entry(RECEIVE, guest.used(RECEIVE) - 1).1, 72);
}

#[test]
fn a_frame_that_no_ring_of_this_guest_holds_is_dropped() {
    for (features, len) in [(ALL, 1526), (ALL & !MERGEABLE, 65_000)] {
        let mut guest = Guest::with(Offloads::Segmentation, features, SIZE);
        offer_buffers(&mut guest, 0, SIZE, len);
        guest.put_on_wire(&UNCUT, &bytes(65_000));
        guest.put_on_wire(&[0; HEADER], &[6; 60]);
        assert_eq!(guest.receive(), Progress::Idle);
        let counters = guest.net.counters();
        assert_eq!((counters.received, counters.received_dropped), (1, 1));
        assert_eq!(guest.used_entry(RECEIVE, 0), (0, 72));
    }
}

#[test]
fn without_merging_a_long_frame_fits_one_long_chain() {
    let mut guest = Guest::with(Offloads::Segmentation, ALL & !MERGEABLE, 64);
    for n in 0..19 {
        let (flags, next) = if n < 18 { (WRITE | NEXT, n + 1) } else { (WRITE, 0) };
        guest.describe(RECEIVE, n, buffer(n), 0x1000, flags, next);
    }
    guest.offer(RECEIVE, 0);
    let frame = bytes(65_000);
    guest.put_on_wire(&UNCUT, &frame);
    assert_eq!(guest.receive(), Progress::Starved);
    assert_eq!(guest.used_entry(RECEIVE, 0), (0, 65_012));
    let mut header = UNCUT;
    header[NUM_BUFFERS] = 1;
    assert_eq!(guest.bytes_at(buffer(0), 65_012), [&header[..], &frame].concat());
}

#[test]
fn what_the_driver_did_not_take_does_not_reach_it() {
    let mut guest = Guest::with(Offloads::Segmentation, MERGEABLE, SIZE);
    offer_buffers(&mut guest, 0, SIZE, 2048);
    guest.put_on_wire(&UNCUT, &bytes(1400));
    // It is finished instead.
    guest.put_on_wire(&[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], &bytes(60));
    guest.put_on_wire(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &bytes(60));
    assert_eq!(guest.receive(), Progress::Idle);
    let counters = guest.net.counters();
    assert_eq!((counters.received, counters.received_dropped), (2, 1));
    for n in [0, 1] {
        assert_eq!(guest.bytes_at(buffer(n), HEADER), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    }
}

#[test]
fn a_reset_forgets_the_frame_that_waited() {
    let mut guest = Guest::with(Offloads::Segmentation, ALL, 64);
    offer_buffers(&mut guest, 0, 1, 1526);
    guest.put_on_wire(&UNCUT, &bytes(64_000));
    assert_eq!(guest.receive(), Progress::Starved);
    guest.features = VERSION_1;
    guest.set_up();
    offer_buffers(&mut guest, 0, 1, 2048);
    assert_eq!(guest.receive(), Progress::Idle);
    assert_eq!(guest.used(RECEIVE), 0);
}

#[test]
fn merged_buffers_that_break_the_rules_break_the_device_and_use_none() {
    let mut guest = Guest::with(Offloads::Segmentation, ALL, SIZE);
    // A loop; a buffer for reading; one outside of RAM; a head beyond the table: each behind a good one.
    let cases: [(u64, u32, u16, u16, u16); 4] = [
        (0x8000, 1, WRITE | NEXT, 1, 1),
        (0x8000, 2048, 0, 0, 1),
        (1 << 40, 2048, WRITE, 0, 1),
        (0x8000, 2048, WRITE, 0, SIZE + 1),
    ];
    for (address, len, flags, next, head) in cases {
        guest.describe(RECEIVE, 0, buffer(0), 100, WRITE, 0);
        guest.describe(RECEIVE, 1, address, len, flags, next);
        guest.offer(RECEIVE, 0);
        guest.offer(RECEIVE, head);
        let used = guest.used(RECEIVE);
        guest.put_on_wire(&[0; HEADER], &bytes(1400));
        assert_eq!(guest.receive(), Progress::Starved, "{address:#x} {flags} {head}");
        assert_eq!(guest.used(RECEIVE), used);
        guest.is_broken();
    }
}

#[test]
fn buffers_of_no_bytes_do_not_hold_the_device_up() {
    let mut guest = Guest::with(Offloads::Segmentation, ALL, SIZE);
    offer_buffers(&mut guest, 0, SIZE, 0);
    guest.put_on_wire(&[0; HEADER], &bytes(60));
    assert_eq!(guest.receive(), Progress::Idle);
    assert_eq!(guest.net.counters().received_dropped, 1);
}

#[test]
fn what_the_guest_was_given_is_told_and_given_again_elsewhere_before_all_else() {
    let features = ALL | 1 << VIRTIO_RING_F_EVENT_IDX;
    let mut here = Guest::with(Offloads::Segmentation, features, 64);
    offer_buffers(&mut here, 0, 64, 2048);
    // One of another kind than the driver takes is not given.
    here.put_on_wire(&UNCUT, &bytes(5000));
    here.put_on_wire(&[9; HEADER], &bytes(60));
    here.put_on_wire(&[0; HEADER], &bytes(70));
    assert_eq!(here.receive(), Progress::Idle);
    let lengths = |guest: &Guest| guest.given.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(lengths(&here), [HEADER + 5000, HEADER + 70]);

    let mut there = Guest::with(Offloads::Segmentation, features, 64);
    offer_buffers(&mut there, 0, 64, 2048);
    there.put_on_wire(&[0; HEADER], &bytes(80));
    there.net.give(here.given.iter().map(|frame| frame.clone().into()));
    assert_eq!(there.receive(), Progress::Idle);
    assert_eq!(there.given[..2], here.given);
    assert_eq!(there.given[2][HEADER..], bytes(80));
    let ram = |guest: &Guest| guest.bytes_at(buffer(0), 4 * 0x1000);
    assert!(ram(&here) == ram(&there), "to the guest it is the same");
    let counters = there.net.counters();
    assert_eq!((counters.received, counters.received_ahead), (3, 2));
}

#[test]
fn frames_from_elsewhere_are_taken_as_strictly_as_those_of_the_tap() {
    let mut guest = Guest::new();
    offer_buffers(&mut guest, 0, 4, 2048);
    let frame = |len: usize| [&[0; HEADER][..], &bytes(len)].concat().into_boxed_slice();
    let bad: [Box<[u8]>; 4] = [Box::default(), frame(0), frame(FRAME_MAX + 1), frame(70_000)];
    guest.net.give(bad.into_iter().chain([frame(FRAME_MAX)]));
    assert_eq!(guest.receive(), Progress::Idle);
    assert_eq!((guest.used(RECEIVE), guest.net.counters().received_dropped), (1, 4));
    // They were for a driver that is no more.
    guest.net.give([frame(100)].into_iter());
    guest.set_up();
    offer_buffers(&mut guest, 0, 4, 2048);
    assert_eq!((guest.receive(), guest.given.len()), (Progress::Idle, 1));
}

#[test]
fn a_checksum_that_nobody_finished_is_finished_for_a_driver_that_cannot() {
    // UDP over IPv4: a pseudo header's sum stands where the checksum is to be.
    let mut frame = bytes(100);
    frame[40..42].copy_from_slice(&[0x12, 0x34]);
    let unfinished = |start: u8, offset: u8| [1, 0, 0, 0, 0, 0, start, 0, offset, 0, 0, 0];
    let mut sum: u32 =
        frame[34..].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let finished = !u16::try_from(sum).unwrap();

    let mut guest = Guest::new();
    offer_buffers(&mut guest, 0, 8, 2048);
    guest.put_on_wire(&unfinished(34, 6), &frame);
    // Sums that begin or end outside of the frame's payload.
    guest.put_on_wire(&unfinished(13, 6), &frame);
    guest.put_on_wire(&unfinished(34, 65), &frame);
    assert_eq!(guest.receive(), Progress::Idle);
    let [given] = &guest.given[..] else { panic!("{:?}", guest.given.len()) };
    assert_eq!(given[..10], [0; 10], "nothing is left to be done");
    assert_eq!(given[HEADER + 40..HEADER + 42], finished.to_be_bytes());
    assert_eq!(guest.net.counters().received_dropped, 2);
}
