//! Finishing in software what a guest has left to its host: a checksum, the cutting of TCP.
//!
//! Pure, and without memory of its own: bytes in, bytes out. It is meant for the frames that go through the
//! gate's copying slots although offloads are on; all others are finished by the kernel, late or never. What
//! comes out is what the kernel's own segmentation makes of the same frame, byte for byte.
//!
//! [`Tcp::find`] is the only judge of a frame's structure: what it accepts can be cut without further checks.
//!
//! Absent: segments below a minimum that only an attacker asks for, IPv4 fragments, tunnels, UDP.

/// Bytes of an Ethernet header, and of a VLAN tag between addresses and type.
pub(super) const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;
/// VLAN tags that are looked through.
const VLAN_TAGS_MAX: usize = 4;

const TYPE_IPV4: u16 = 0x0800;
const TYPE_IPV6: u16 = 0x86dd;
const TYPE_VLAN: u16 = 0x8100;
const TYPE_QINQ: u16 = 0x88a8;

const PROTOCOL_TCP: u8 = 6;
/// IPv6 headers that may stand before TCP and have the same layout: hop-by-hop, routing, destination.
const EXTENSIONS: [u8; 3] = [0, 43, 60];
const ROUTING: u8 = 43;

/// The field of a TCP header, in bytes from its beginning.
const TCP_SEQUENCE: usize = 4;
const TCP_LENGTH: usize = 12;
const TCP_FLAGS: usize = 13;
pub(super) const TCP_CHECKSUM: usize = 16;
const TCP_HEADER_MIN: usize = 20;
const TCP_FIN: u8 = 0x01;
const TCP_PUSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// What carries a TCP segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Family {
    Ipv4,
    Ipv6,
}

/// Where things begin in an Ethernet frame of TCP, in bytes from its first.
///
/// `network < transport < payload <= frame.len()`, and the headers between them are whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tcp {
    pub(super) family: Family,
    network: usize,
    pub(super) transport: usize,
    pub(super) payload: usize,
}

/// Returns whether a frame is IPv4 or IPv6 without a VLAN tag, which netfilter can hold. All other frames go through
/// slots.
pub(super) fn is_untagged_ip(frame: &[u8]) -> bool {
    matches!(u16_at(frame, 12), Some(TYPE_IPV4 | TYPE_IPV6))
}

impl Tcp {
    /// Finds TCP in a frame; `None` when it is something else, or a header does not hold together.
    pub(super) fn find(frame: &[u8]) -> Option<Self> {
        let mut network = ETHERNET;
        let family = (0..=VLAN_TAGS_MAX).find_map(|_| match u16_at(frame, network - 2) {
            Some(TYPE_VLAN | TYPE_QINQ) => {
                network += VLAN_TAG;
                None
            }
            other => Some(other),
        })?;
        let (family, transport) = match family? {
            TYPE_IPV4 => (Family::Ipv4, network + ipv4_header(frame.get(network..)?)?),
            TYPE_IPV6 => (Family::Ipv6, network + ipv6_headers(frame.get(network..)?)?),
            _ => return None,
        };
        let header = usize::from(frame.get(transport + TCP_LENGTH)? >> 4) * 4;
        let payload = transport + header;
        let whole = header >= TCP_HEADER_MIN && payload <= frame.len();
        whole.then_some(Self { family, network, transport, payload })
    }
}

/// Returns the length of an IPv4 header before TCP, with its options.
fn ipv4_header(packet: &[u8]) -> Option<usize> {
    let first = *packet.first()?;
    let bytes = usize::from(first & 0xf) * 4;
    // More fragments, or not the first.
    let fragment = u16_at(packet, 6)? & 0x3fff != 0;
    let fits = first >> 4 == 4 && bytes >= 20 && packet.len() >= bytes;
    (fits && !fragment && packet[9] == PROTOCOL_TCP).then_some(bytes)
}

/// Returns the length of an IPv6 header before TCP, with its extensions.
fn ipv6_headers(packet: &[u8]) -> Option<usize> {
    if packet.first()? >> 4 != 6 {
        return None;
    }
    let mut next = *packet.get(6)?;
    let mut at = 40;
    while next != PROTOCOL_TCP {
        let extension = packet.get(at..at + 8)?;
        // A routing header with a way still to go means another destination than the one in the header, and
        // the checksum is over that.
        if !EXTENSIONS.contains(&next) || next == ROUTING && extension[3] != 0 {
            return None;
        }
        next = extension[0];
        at += (usize::from(extension[1]) + 1) * 8;
    }
    (packet.len() >= at).then_some(at)
}

/// Fills in a checksum: the sum of everything from `start` on, what is in its place included (a pseudo
/// header's sum), goes to `at`.
///
/// # Panics
/// When `start` or the two bytes at `at` are beyond the frame, or `at` is before `start`.
pub(super) fn complete_checksum(frame: &mut [u8], start: usize, at: usize) {
    assert!(start <= at);
    let checksum = not_zero(!fold(sum(&frame[start..])));
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// A frame of TCP, cut.
pub(super) struct Segments<'a> {
    frame: &'a [u8],
    tcp: Tcp,
    /// Bytes of payload in each segment but the last.
    size: usize,
    /// Payload that was cut off so far, in bytes.
    done: usize,
    count: u16,
    over: bool,
}

impl<'a> Segments<'a> {
    /// `tcp` was found in this `frame`. A payload of no bytes is a segment too.
    ///
    /// # Panics
    /// When `size` is 0.
    pub(super) fn new(frame: &'a [u8], tcp: Tcp, size: usize) -> Self {
        assert!(size > 0 && tcp.payload <= frame.len());
        Self { frame, tcp, size, done: 0, count: 0, over: false }
    }

    /// Writes the next segment into `out` as a frame that lacks nothing, and tells its length; `None` when
    /// all have been written.
    ///
    /// # Panics
    /// When `out` has not room for the headers and `size` bytes.
    pub(super) fn write_next(&mut self, out: &mut [u8]) -> Option<usize> {
        if self.over {
            return None;
        }
        let Tcp { family, network, transport, payload } = self.tcp;
        let rest = &self.frame[payload + self.done..];
        let now = &rest[..rest.len().min(self.size)];
        self.over = now.len() == rest.len();
        let out = &mut out[..payload + now.len()];
        out[..payload].copy_from_slice(&self.frame[..payload]);
        out[payload..].copy_from_slice(now);

        let (headers, segment) = out.split_at_mut(transport);
        let packet = &mut headers[network..];
        let pseudo = match family {
            Family::Ipv4 => finish_ipv4(packet, segment.len(), self.count),
            Family::Ipv6 => finish_ipv6(packet, segment.len()),
        };
        self.finish_tcp(segment, pseudo);
        self.done += now.len();
        self.count = self.count.wrapping_add(1);
        Some(out.len())
    }

    fn finish_tcp(&self, segment: &mut [u8], pseudo: u64) {
        let sequence = &mut segment[TCP_SEQUENCE..TCP_SEQUENCE + 4];
        let first = u32::from_be_bytes((&*sequence).try_into().expect("four bytes"));
        let done = u32::try_from(self.done).expect("a frame's length");
        sequence.copy_from_slice(&first.wrapping_add(done).to_be_bytes());
        if self.count > 0 {
            segment[TCP_FLAGS] &= !TCP_CWR;
        }
        if !self.over {
            segment[TCP_FLAGS] &= !(TCP_FIN | TCP_PUSH);
        }
        segment[TCP_CHECKSUM..TCP_CHECKSUM + 2].fill(0);
        let checksum = not_zero(!fold(pseudo + sum(segment)));
        segment[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Length, identification and checksum of an IPv4 header before `segment` bytes; the sum of TCP's pseudo
/// header.
fn finish_ipv4(header: &mut [u8], segment: usize, count: u16) -> u64 {
    let length = length_field(header.len() + segment);
    header[2..4].copy_from_slice(&length.to_be_bytes());
    let identification = u16_at(header, 4).expect("a header's field").wrapping_add(count);
    header[4..6].copy_from_slice(&identification.to_be_bytes());
    header[10..12].fill(0);
    let checksum = !fold(sum(header));
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    sum(&header[12..20]) + u64::from(PROTOCOL_TCP) + segment as u64
}

/// Payload length of an IPv6 header before `segment` bytes; the sum of TCP's pseudo header.
fn finish_ipv6(headers: &mut [u8], segment: usize) -> u64 {
    let length = length_field(headers.len() - 40 + segment);
    headers[4..6].copy_from_slice(&length.to_be_bytes());
    sum(&headers[8..40]) + u64::from(PROTOCOL_TCP) + segment as u64
}

/// # Panics
/// When a segment is longer than an IP packet can be: callers bound it by the MTU.
fn length_field(bytes: usize) -> u16 {
    u16::try_from(bytes).expect("a segment within the MTU")
}

/// Returns the sum of `bytes` as big-endian words, the last one padded. The caller folds it.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    // 2^16 is 1 in this arithmetic: two words at once are as good.
    let all = words.iter().chain([&last]);
    all.map(|word| u64::from(u32::from_be_bytes(*word))).sum()
}

/// Folds a sum in ones' complement into 16 bits.
fn fold(sum: u64) -> u16 {
    let mut sum = sum;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

/// Zero has another meaning in UDP ("no checksum"), and its other form means the same everywhere.
fn not_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes(two.try_into().expect("two bytes")))
}

#[cfg(test)]
#[path = "tests/segment.rs"]
mod tests;
