use proptest::prelude::*;

use super::*;

/// Returns the sum that a receiver makes, in the plainest way: over 16-bit words, with the carry added at once.
fn receivers_sum(words: &mut dyn Iterator<Item = u8>) -> u16 {
    let bytes: Vec<u8> = words.collect();
    let mut sum = 0_u16;
    for pair in bytes.chunks(2) {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let (added, carry) = sum.overflowing_add(word);
        sum = added + u16::from(carry);
    }
    sum
}

/// Ethernet and `tags`, then IPv4 with `options` bytes of options, then TCP with 12 bytes of them.
fn tcp4(tags: &[u8], options: usize, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(tags);
    frame.extend([8, 0]);
    let header = u8::try_from(20 + options).unwrap();
    frame.extend([0x40 | (header / 4), 0, 0xff, 0xff, 0xff, 0xfe, 0x40, 0, 64, 6, 0xee, 0xee]);
    frame.extend([192, 168, 0, 1, 192, 168, 0, 199]);
    frame.resize(frame.len() + options, 1);
    frame.extend(tcp(flags));
    frame.extend(payload);
    frame
}

/// Ethernet, then IPv6 with one extension of each kind that is looked through, then TCP.
fn tcp6(extensions: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd];
    let next = if extensions { 0 } else { 6 };
    frame.extend([0x60, 0, 0, 0, 0, 0, next, 64]);
    frame.extend((0..32).map(|n| n * 7));
    if extensions {
        frame.extend([60, 0, 1, 4, 0, 0, 0, 0]);
        frame.extend([43, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend([6, 0, 0, 0, 0, 0, 0, 0]);
    }
    frame.extend(tcp(0x18));
    frame.extend(payload);
    frame
}

fn tcp(flags: u8) -> Vec<u8> {
    let mut tcp = vec![0x1f, 0x90, 0xc0, 0, 0xff, 0xff, 0xff, 0xf0, 1, 2, 3, 4, 0x80, flags, 1, 0];
    tcp.extend([0xbe, 0xef, 0, 0, 1, 1, 8, 10, 9, 9, 9, 9, 8, 8, 8, 8]);
    tcp
}

fn cut(frame: &[u8], size: usize) -> Vec<Vec<u8>> {
    let tcp = Tcp::find(frame).unwrap();
    let mut segments = Segments::new(frame, tcp, size);
    let mut out = vec![0xaa; tcp.payload + size];
    let mut all = Vec::new();
    while let Some(length) = segments.write_next(&mut out) {
        all.push(out[..length].to_vec());
    }
    all
}

/// Checks both checksums as a receiver does.
fn verify(segment: &[u8]) {
    let Tcp { family, network, transport, .. } = Tcp::find(segment).unwrap();
    let packet = &segment[network..];
    let length = u32::try_from(segment.len() - transport).unwrap().to_be_bytes();
    let addresses = match family {
        Family::Ipv4 => {
            let header = receivers_sum(&mut segment[network..transport].iter().copied());
            assert_eq!(header, 0xffff, "IPv4 header");
            assert_eq!(usize::from(u16_at(packet, 2).unwrap()), packet.len());
            &packet[12..20]
        }
        Family::Ipv6 => {
            assert_eq!(usize::from(u16_at(packet, 4).unwrap()), packet.len() - 40);
            &packet[8..40]
        }
    };
    let pseudo = addresses.iter().chain(&length).chain(&[0, 0, 0, 6]);
    let all = pseudo.chain(&segment[transport..]);
    assert_eq!(receivers_sum(&mut all.copied()), 0xffff, "TCP");
}

#[test]
fn the_sum_is_that_of_rfc_1071() {
    assert_eq!(fold(sum(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
    assert_eq!(fold(sum(&[0, 1, 0xf2])), 0xf201, "an odd byte is the upper half of a word");
}

#[test]
fn a_well_known_ipv4_header_gets_its_checksum() {
    let mut header =
        [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
    complete_checksum(&mut header, 0, 10);
    assert_eq!(header[10..12], [0xb8, 0x61]);
}

#[test]
fn a_checksum_of_zero_is_written_in_its_other_form() {
    let mut bytes = [0xff, 0xff, 0, 0];
    complete_checksum(&mut bytes, 0, 2);
    assert_eq!(bytes[2..], [0xff, 0xff]);
}

#[test]
fn flags_identification_and_sequence_go_as_in_the_kernel() {
    // FIN, PSH, ACK, CWR; sequence and identification wrap.
    let segments = cut(&tcp4(&[], 0, 0x99, &[7; 40]), 16);
    let of = |at| segments.iter().map(|s| s[34 + at]).collect::<Vec<_>>();
    assert_eq!(of(TCP_FLAGS), [0x90, 0x10, 0x19]);
    assert_eq!(of(TCP_SEQUENCE + 3), [0xf0, 0x00, 0x10]);
    assert_eq!(of(TCP_SEQUENCE), [0xff, 0, 0]);
    let ids: Vec<_> = segments.iter().map(|s| u16_at(s, 18).unwrap()).collect();
    assert_eq!(ids, [0xfffe, 0xffff, 0]);
}

#[test]
fn a_frame_that_needs_no_cut_is_finished_all_the_same() {
    for payload in [&[][..], &[1], &[1; 16]] {
        let segments = cut(&tcp4(&[], 0, 0x99, payload), 16);
        assert_eq!(segments.len(), 1);
        assert_eq!(segments[0][34 + TCP_FLAGS], 0x99);
        verify(&segments[0]);
    }
}

#[test]
fn what_is_not_whole_tcp_is_not_found() {
    let good = tcp4(&[], 4, 0x10, &[0; 10]);
    assert!(Tcp::find(&good).is_some());
    // Version, header length, fragment, protocol, TCP header length.
    for (at, byte) in
        [(14, 0x66), (14, 0x44), (14, 0x4f), (20, 0x60), (21, 1), (23, 17), (50, 0x40)]
    {
        let mut bad = good.clone();
        bad[at] = byte;
        assert_eq!(Tcp::find(&bad), None, "{at} {byte:#x}");
    }
    for len in 0..good.len() - 10 {
        assert_eq!(Tcp::find(&good[..len]), None, "{len} bytes");
    }
    let mut routed = tcp6(true, &[]);
    assert!(Tcp::find(&routed).is_some());
    routed[14 + 40 + 8 + 16 + 3] = 0;
    routed[14 + 40 + 8 + 3] = 1;
    assert!(Tcp::find(&routed).is_some(), "a byte of an option");
    routed[14 + 40] = 43;
    routed[14 + 40 + 8 + 3] = 1;
    assert_eq!(Tcp::find(&routed), None, "a way still to go");
    let tags = [0x81, 0, 0, 1].repeat(5);
    assert_eq!(Tcp::find(&tcp4(&tags, 0, 0x10, &[])), None, "tags without an end");
}

proptest! {
    #[test]
    fn segments_are_whole_right_and_put_together_the_frame(
        payload in prop::collection::vec(any::<u8>(), 0..5000),
        size in 8usize..1600,
        shape in 0usize..6,
        flags in any::<u8>(),
    ) {
        let frame = match shape {
            0 => tcp4(&[], 0, flags, &payload),
            1 => tcp4(&[], 20, flags, &payload),
            2 => tcp4(&[0x81, 0, 0, 5], 0, flags, &payload),
            3 => tcp4(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6], 8, flags, &payload),
            4 => tcp6(false, &payload),
            _ => tcp6(true, &payload),
        };
        let Tcp { network, payload: headers, .. } = Tcp::find(&frame).unwrap();
        let segments = cut(&frame, size);
        prop_assert_eq!(segments.len(), payload.len().div_ceil(size).max(1));
        let mut together = Vec::new();
        for segment in &segments {
            verify(segment);
            prop_assert_eq!(&segment[..network], &frame[..network], "addresses, tags and type");
            prop_assert!(segment.len() <= headers + size);
            together.extend_from_slice(&segment[headers..]);
        }
        prop_assert_eq!(together, payload);
    }

    #[test]
    fn completed_checksums_are_those_that_a_receiver_expects(
        mut bytes in prop::collection::vec(any::<u8>(), 4..200),
        at in any::<prop::sample::Index>(),
        start in any::<prop::sample::Index>(),
    ) {
        let at = at.index(bytes.len() - 1);
        let start = start.index(at + 1);
        // Where words are paired as the receiver pairs them; what is in its place is zero, or a sum to add.
        let at = start + (at - start) / 2 * 2;
        bytes[at..at + 2].fill(0);
        complete_checksum(&mut bytes, start, at);
        let sum = receivers_sum(&mut bytes[start..].iter().copied());
        prop_assert_eq!(sum, 0xffff);
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200), head in 0usize..4) {
        let mut bytes = bytes;
        let heads: [&[u8]; 4] = [&[], &[8, 0, 0x45], &[0x86, 0xdd, 0x60], &[0x81, 0]];
        for (to, from) in bytes.iter_mut().skip(12).zip(heads[head]) {
            *to = *from;
        }
        if let Some(tcp) = Tcp::find(&bytes) {
            prop_assert!(tcp.network < tcp.transport && tcp.transport < tcp.payload);
            prop_assert!(tcp.payload <= bytes.len());
            for segment in cut(&bytes, 8) {
                prop_assert!(segment.len() <= tcp.payload + 8);
            }
        }
    }
}
