use proptest::prelude::*;
use virtio_bindings::virtio_net as net;

use super::*;

const ALL: Negotiated = Negotiated(
    1 << net::VIRTIO_NET_F_CSUM
        | 1 << net::VIRTIO_NET_F_HOST_TSO4
        | 1 << net::VIRTIO_NET_F_HOST_TSO6
        | 1 << net::VIRTIO_NET_F_GUEST_CSUM
        | 1 << net::VIRTIO_NET_F_GUEST_TSO4,
);
const FRAME_MAX: usize = 1522;

/// Ethernet, IPv4 of 20 bytes, TCP of 20 bytes, 2000 bytes.
fn tcp4() -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0, 80, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0]);
    frame.resize(54 + 2000, 7);
    frame
}

/// flags, gso_type, gso_size, csum_start, csum_offset
fn header(flags: u8, gso: u8, size: u16, start: u16, offset: u16) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    (header[0], header[1]) = (flags, gso);
    for (at, value) in [(4, size), (6, start), (8, offset)] {
        header[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    header
}

#[test]
fn headers_that_lie_are_refused() {
    let frame = tcp4();
    let judged = |header| judge(&header, &frame, ALL, FRAME_MAX);
    assert!(matches!(judged(header(1, 1, 1000, 34, 16)), Ok(Job::Pass(_))));
    for (what, lie) in [
        ("cutting without a checksum", header(0, 1, 1000, 34, 16)),
        ("IPv6 in IPv4", header(1, 4, 1000, 34, 16)),
        ("UDP fragments", header(1, 3, 1000, 34, 16)),
        ("UDP segments", header(1, 5, 1000, 34, 16)),
        ("ECN", header(1, 0x81, 1000, 34, 16)),
        ("an unknown kind", header(1, 2, 1000, 34, 16)),
        ("segments of nothing", header(1, 1, 0, 34, 16)),
        ("segments of next to nothing", header(1, 1, 7, 34, 16)),
        ("segments beyond the MTU", header(1, 1, 1469, 34, 16)),
        ("another transport header", header(1, 1, 1000, 33, 16)),
        ("another place of the checksum", header(1, 1, 1000, 34, 6)),
    ] {
        assert_eq!(judged(lie), Err(Unfit::Header), "{what}");
    }
    assert!(matches!(judged(header(1, 1, 1468, 34, 16)), Ok(Job::Pass(_))));
    assert_eq!(judged(header(0, 0, 0, 0, 0)), Err(Unfit::Length), "uncut and not to be cut");
}

#[test]
fn what_fits_one_segment_is_not_said_to_need_cutting() {
    let frame = tcp4();
    for (payload, gso) in [(0, 0), (1000, 0), (1001, 1)] {
        let frame = &frame[..54 + payload];
        match judge(&header(1, 1, 1000, 34, 16), frame, ALL, FRAME_MAX) {
            Ok(Job::Pass(to)) => assert_eq!((to[0], to[1]), (1, gso), "{payload} bytes"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_checksum_is_within_the_frame() {
    let frame = &tcp4()[..100];
    let judged = |start, offset| judge(&header(1, 0, 0, start, offset), frame, ALL, FRAME_MAX);
    assert!(matches!(judged(34, 64), Ok(Job::Pass(_))));
    for (start, offset) in [(34, 65), (100, 0), (0xffff, 0xffff), (13, 16)] {
        assert_eq!(judged(start, offset), Err(Unfit::Header), "{start} {offset}");
    }
}

#[test]
fn what_goes_through_slots_is_finished_here() {
    let mut arp = vec![0; 60];
    arp[12..14].copy_from_slice(&[8, 6]);
    let judged = judge(&header(1, 0, 0, 20, 4), &arp, ALL, FRAME_MAX);
    assert_eq!(judged, Ok(Job::Complete { start: 20, at: 24 }));
    let mut tagged = tcp4();
    tagged.splice(12..12, [0x81, 0, 0, 9]);
    match judge(&header(1, 1, 1000, 38, 16), &tagged, ALL, FRAME_MAX) {
        Ok(Job::Cut { tcp, size }) => assert_eq!((tcp.payload, size), (58, 1000)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_guest_gets_what_the_kernel_said_less_what_it_did_not_ask_for() {
    let uncut = header(1, 1, 1448, 34, 16);
    let passed = for_guest(&uncut, 60_000, ALL, FRAME_MAX).unwrap();
    assert_eq!(passed[..NUM_BUFFERS], uncut[..NUM_BUFFERS]);
    assert_eq!(passed[NUM_BUFFERS..], [1, 0]);
    for (header, length) in [
        (header(1, 4, 1448, 34, 16), 60_000),
        (header(1, 0x81, 1448, 34, 16), 60_000),
        (header(0, 0, 0, 0, 0), FRAME_MAX + 1),
        (uncut, UNCUT_MAX + 1),
        (header(0, 0, 0, 0, 0), 13),
    ] {
        assert_eq!(for_guest(&header, length, ALL, FRAME_MAX), None, "{header:?} {length}");
    }
    let plain = for_guest(&header(2, 0, 5, 5, 5), 60, Negotiated(0), FRAME_MAX).unwrap();
    assert_eq!(plain, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
}

proptest! {
    #[test]
    fn whatever_is_passed_on_is_within_the_frame(
        header in any::<[u8; HEADER]>(),
        few in any::<bool>(),
        edits in prop::collection::vec((0usize..80, any::<u8>()), 0..4),
        len in 0usize..2054,
    ) {
        let mut frame = tcp4();
        edits.iter().for_each(|(at, byte)| frame[*at] = *byte);
        frame.truncate(len);
        let mut header = header;
        if few {
            (header[0], header[1]) = (1, header[1] & 5);
            header[6..10].copy_from_slice(&[34, 0, 16, 0]);
        }
        match judge(&header, &frame, ALL, FRAME_MAX) {
            Ok(Job::Pass(to)) => {
                let field = |at: usize| usize::from(u16::from_le_bytes([to[at], to[at + 1]]));
                prop_assert!(to[0] == 0 || field(6) + field(8) + 2 <= frame.len());
                prop_assert!(to[1] == 0 || field(2) <= frame.len() && field(2) + field(4) <= FRAME_MAX);
                prop_assert!(to[1] != 0 || frame.len() <= FRAME_MAX);
                prop_assert_eq!(&to[10..], &[0, 0]);
            }
            Ok(Job::Complete { start, at }) => prop_assert!(start <= at && at + 2 <= frame.len()),
            Ok(Job::Cut { tcp, size }) => prop_assert!(tcp.payload + size <= FRAME_MAX),
            Err(Unfit::Length | Unfit::Header) => {}
        }
    }
}
