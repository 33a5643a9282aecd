//! From the guest's transmit ring to the wire.

use super::*;

/// Returns a frame of TCP over IPv4 with `payload` bytes behind its headers, tagged if there is a `tag`.
fn tcp4(payload: usize, tag: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x52, 0, 0, 0, 0, 1, 0x52, 0, 0, 0, 0, 2];
    frame.extend(tag);
    frame.extend([8, 0, 0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0x10, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    frame.extend((0..payload).map(|n| n.to_le_bytes()[0]));
    frame
}

/// Returns a header that leaves cutting into segments of 1000 bytes to the device.
fn cut(start: u8) -> [u8; HEADER] {
    let [low, high] = 1000_u16.to_le_bytes();
    [1, 1, start + 20, 0, low, high, start, 0, 16, 0, 0, 0]
}

#[test]
fn a_frame_in_pieces_leaves_whole_behind_a_blank_header() {
    let mut guest = Guest::new();
    // Flags that mean nothing, and fields that nothing asks for.
    guest.put(0x8000, &[0xfe, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]);
    guest.put(0x9000, &[7; 60]);
    guest.describe(TRANSMIT, 3, 0x8000, 12, NEXT, 5);
    guest.describe(TRANSMIT, 5, 0x9000, 60, 0, 0);
    guest.offer(TRANSMIT, 3);
    assert_eq!(guest.transmit(), Progress::Idle);
    assert_eq!(guest.frame_on_wire(), Some([[0; 12].as_slice(), &[7; 60]].concat()));
    assert_eq!(guest.used(TRANSMIT), 1);
    assert_eq!((guest.line.read().unwrap(), guest.interrupt.status()), (1, USED_BUFFER));
    assert_eq!(guest.transmit(), Progress::Idle);
    assert!(guest.line.read().is_err(), "no interrupt when nothing was used");
}

#[test]
fn frames_that_no_wire_takes_are_dropped_and_their_buffers_given_back() {
    let mut guest = Guest::new();
    for (n, len) in [(0, 4), (1, 12 + 13), (2, 12 + 1523), (3, u32::MAX), (4, 0)] {
        guest.describe(TRANSMIT, n, 0x8000, len, 0, 0);
        guest.offer(TRANSMIT, n);
    }
    assert_eq!(guest.transmit(), Progress::Idle);
    assert_eq!(guest.frame_on_wire(), None);
    assert_eq!(guest.used(TRANSMIT), 5);
    assert_eq!(guest.net.counters().sent_dropped, 5);
    assert!(guest.net.transport.is_live());
}

#[test]
fn broken_transmit_chains_break_the_device_and_nothing_else() {
    let mut guest = Guest::new();
    // A loop; a next beyond the table; a buffer outside of RAM; one for writing; an indirect table that is
    // none; a head beyond the table.
    let cases: [(u64, u32, u16, u16, u16); 6] = [
        (0x8000, 1, NEXT, 0, 0),
        (0x8000, 1, NEXT, SIZE, 0),
        (0x1f_fff0, 100, 0, 0, 0),
        (0x8000, 60, WRITE, 0, 0),
        (u64::MAX - 4, 64, INDIRECT, 0, 0),
        (0x8000, 60, 0, 0, SIZE + 3),
    ];
    for (address, len, flags, next, head) in cases {
        guest.describe(TRANSMIT, 0, address, len, flags, next);
        guest.offer(TRANSMIT, head);
        assert_eq!(guest.transmit(), Progress::Starved, "{address:#x} {flags} {next} {head}");
        guest.is_broken();
    }
    // An index that runs away.
    guest.put(rings(TRANSMIT)[1] + 2, &(SIZE + 1).to_le_bytes());
    guest.transmit();
    guest.is_broken();
}

#[test]
fn a_packet_of_the_mtu_leaves_and_one_byte_more_does_not() {
    let mut guest = Guest::with(Offloads::Segmentation, ALL, SIZE);
    assert_eq!(guest.sends(&[0; HEADER], &[3; FRAME_MAX]), Progress::Idle);
    assert_eq!(guest.frame_on_wire().unwrap().len(), HEADER + FRAME_MAX);
    guest.sends(&[0; HEADER], &[3; FRAME_MAX + 1]);
    assert_eq!(guest.frame_on_wire(), None);
    assert_eq!(guest.net.counters().sent_dropped, 1);
}

#[test]
fn offloads_that_were_not_negotiated_cost_the_guest_its_frame_and_nothing_else() {
    let mut guest = Guest::new();
    let frame = tcp4(3000, &[]);
    for header in [[1; HEADER], cut(34), [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        assert_eq!(guest.sends(&header, &frame[..1000]), Progress::Idle);
    }
    assert_eq!(guest.frame_on_wire(), None);
    assert_eq!(guest.used(TRANSMIT), 3, "the buffers are given back");
    assert_eq!(guest.net.counters().sent_refused, 3);
    assert!(guest.net.transport.is_live());
}

#[test]
fn a_tcp_frame_of_64_kib_goes_whole_to_the_tap_behind_a_header_of_our_own() {
    let mut guest = Guest::with(Offloads::Segmentation, ALL, SIZE);
    let frame = tcp4(65_000, &[]);
    let mut header = cut(34);
    // hdr_len is a hint that may say anything, num_buffers means nothing here, and the other flags neither.
    (header[0], header[2], header[3], header[10]) = (0xff, 0xff, 0xff, 7);
    assert_eq!(guest.sends(&header, &frame), Progress::Idle);
    assert_eq!(guest.frame_on_wire().unwrap(), [&cut(34)[..], &frame].concat());
    assert_eq!(guest.net.counters().sent, 1);
}

#[test]
fn a_tagged_tcp_frame_is_cut_before_the_tap() {
    let mut guest = Guest::with(Offloads::Segmentation, ALL, SIZE);
    let frame = tcp4(2500, &[0x81, 0, 0, 5]);
    assert_eq!(guest.sends(&cut(38), &frame), Progress::Idle);
    let mut payload = Vec::new();
    for length in [1000, 1000, 500] {
        let sent = guest.frame_on_wire().unwrap();
        assert_eq!(sent[..HEADER], [0; HEADER]);
        assert_eq!(sent.len(), HEADER + 58 + length);
        payload.extend_from_slice(&sent[HEADER + 58..]);
    }
    assert_eq!(payload, frame[58..]);
    assert_eq!(guest.frame_on_wire(), None);
    let counters = guest.net.counters();
    assert_eq!((counters.sent, counters.sent_segments), (1, 3));
}

#[test]
fn a_checksum_is_left_to_the_kernel_or_filled_in_for_what_goes_through_slots() {
    let mut guest = Guest::with(Offloads::Segmentation, ALL, SIZE);
    let header = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
    let frame = tcp4(100, &[]);
    guest.sends(&header, &frame);
    assert_eq!(guest.frame_on_wire().unwrap(), [&header[..], &frame].concat());

    let mut tagged = tcp4(100, &[0x88, 0xa8, 0, 5]);
    guest.sends(&[1, 0, 0, 0, 0, 0, 38, 0, 16, 0, 0, 0], &tagged);
    segment::complete_checksum(&mut tagged, 38, 54);
    assert_eq!(guest.frame_on_wire().unwrap(), [&[0; HEADER][..], &tagged].concat());
}

#[test]
fn segments_count_against_the_budget() {
    let mut guest = Guest::with(Offloads::Segmentation, ALL, SIZE);
    let frame = tcp4(2000, &[0x81, 0, 0, 5]);
    let mut header = cut(38);
    header[4..6].copy_from_slice(&8_u16.to_le_bytes());
    // 250 segments, and the socket in the tap's place takes only some of them at once.
    assert_eq!(guest.sends(&header, &frame), Progress::More);
    assert_eq!(guest.net.counters().sent_segments, 250);
    assert_eq!(guest.transmit(), Progress::Idle);
}

#[test]
fn interrupts_come_when_the_driver_asked_for_them() {
    let event_idx = 1 << VIRTIO_RING_F_EVENT_IDX;
    for (features, wish, wanted) in
        [(0, 0_u16, true), (0, 1, false), (event_idx, 0, true), (event_idx, 1, false)]
    {
        let mut guest = Guest::with(Offloads::None, features, SIZE);
        let [_, avail, _] = rings(TRANSMIT);
        // The flags of the available ring, or the used index whose use is worth an interrupt.
        let at = if features == 0 { avail } else { avail + 4 + 2 * u64::from(SIZE) };
        guest.put(at, &wish.to_le_bytes());
        guest.sends(&[0; HEADER], &[1; 60]);
        assert_eq!(guest.line.read().is_ok(), wanted, "{features:#x} {wish}");
        guest.sends(&[0; HEADER], &[1; 60]);
        let second = if features == 0 { wanted } else { wish == 1 };
        assert_eq!(guest.line.read().is_ok(), second, "{features:#x} {wish}, second");
    }
}
