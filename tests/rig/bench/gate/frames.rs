//! The frames of a run, as a VMM writes them: a virtio-net header, then the frame, with a probe in it.

use remus::net::VNET_HEADER_BYTES;
use remus_abi::sink::{PROBE_BYTES, Probe};
use serde::Serialize;

pub(super) const GUEST: [u8; 6] = [0x52, 0x54, 0, 0x77, 0, 0x0a];
/// The far end of the cable, where the sink is.
pub(super) const WORLD: [u8; 6] = [0x52, 0x54, 0, 0x77, 0, 0x01];

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const TCP: usize = 20;
const UDP_PROTOCOL: u8 = 17;
const TCP_PROTOCOL: u8 = 6;
/// Payload of a segment of the large frame, and how many of them it has: 64 KB, as a guest's TCP makes it.
const SEGMENT: usize = 1448;
const SEGMENTS: usize = 45;

/// What is written again and again. The number of bytes is the frame's, without its checksum.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub(super) enum Size {
    #[serde(rename = "64 B")]
    B64,
    #[serde(rename = "1500 B")]
    B1500,
    /// One TCP super-frame that the network card would cut (GSO).
    #[serde(rename = "64 KB GSO")]
    Gso64K,
}

impl Size {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::B64 => "64 B",
            Self::B1500 => "1500 B",
            Self::Gso64K => "64 KB GSO",
        }
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Self::B64 => 64,
            Self::B1500 => 1500,
            Self::Gso64K => ETHERNET + IPV4 + TCP + SEGMENTS * SEGMENT,
        }
    }

    /// Where the frame carries its probe.
    pub(super) fn probe_offset(self) -> usize {
        match self {
            Self::B64 | Self::B1500 => 48,
            Self::Gso64K => 64,
        }
    }

    /// The frame behind its virtio-net header, probe not yet written.
    pub(super) fn template(self) -> Template {
        let mut bytes = vec![0; VNET_HEADER_BYTES + self.bytes()];
        let (header, frame) = bytes.split_at_mut(VNET_HEADER_BYTES);
        put(frame, 0, &WORLD);
        put(frame, 6, &GUEST);
        put(frame, 12, &[0x08, 0x00]);
        let ip = &mut frame[ETHERNET..];
        let protocol = match self {
            Self::B64 | Self::B1500 => UDP_PROTOCOL,
            Self::Gso64K => {
                announce_super_frame(header);
                TCP_PROTOCOL
            }
        };
        put(ip, 0, &[0x45, 0]);
        put(ip, 2, &length(ip.len()));
        put(ip, 6, &[0x40, 0, 64, protocol]);
        put(ip, 12, &[10, 77, 0, 10, 10, 77, 0, 1]);
        let sum = internet_checksum(&ip[..IPV4]);
        put(ip, 10, &sum);
        let transport = &mut ip[IPV4..];
        put(transport, 0, &[0x0f, 0xa0, 0x0f, 0xa1]);
        match self {
            // A checksum of 0: not computed.
            Self::B64 | Self::B1500 => put(transport, 4, &length(self.bytes() - ETHERNET - IPV4)),
            Self::Gso64K => put(transport, 12, &[0x50, 0x10]),
        }
        Template { bytes, probe_at: VNET_HEADER_BYTES + self.probe_offset() }
    }
}

/// A frame to be written, but for its probe.
#[derive(Clone, Debug)]
pub(super) struct Template {
    bytes: Vec<u8>,
    probe_at: usize,
}

impl Template {
    /// The bytes to write, with `probe` in them.
    pub(super) fn with(&mut self, probe: Probe) -> &[u8] {
        let Probe { tag, sequence, sent_ns } = probe;
        let at = &mut self.bytes[self.probe_at..self.probe_at + PROBE_BYTES];
        at[0..4].copy_from_slice(&tag.to_ne_bytes());
        at[4..8].copy_from_slice(&sequence.to_ne_bytes());
        at[8..16].copy_from_slice(&sent_ns.to_ne_bytes());
        &self.bytes
    }
}

/// `struct virtio_net_hdr_v1`: the checksum is still to be filled in, and the frame to be cut (TCPV4).
fn announce_super_frame(header: &mut [u8]) {
    let halves = [ETHERNET + IPV4 + TCP, SEGMENT, ETHERNET + IPV4, 16];
    put(header, 0, &[1, 1]);
    for (at, half) in halves.into_iter().enumerate() {
        let half = u16::try_from(half).expect("within a header").to_le_bytes();
        put(header, 2 + 2 * at, &half);
    }
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).expect("an IP packet is no longer").to_be_bytes()
}

fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    into[at..at + bytes.len()].copy_from_slice(bytes);
}

fn internet_checksum(header: &[u8]) -> [u8; 2] {
    let words = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = (!sum).to_be_bytes();
    [high, low]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [Size; 3] = [Size::B64, Size::B1500, Size::Gso64K];

    #[test]
    fn a_template_has_the_length_it_says_and_room_for_the_probe_behind_its_headers() {
        for size in SIZES {
            let template = size.template();
            assert_eq!(template.bytes.len(), VNET_HEADER_BYTES + size.bytes());
            let headers = match size {
                Size::B64 | Size::B1500 => ETHERNET + IPV4 + 8,
                Size::Gso64K => ETHERNET + IPV4 + TCP,
            };
            assert!(size.probe_offset() >= headers);
            assert!(size.probe_offset() + PROBE_BYTES <= size.bytes());
        }
    }

    #[test]
    fn a_header_with_its_checksum_sums_to_nothing() {
        for size in SIZES {
            let ip = &size.template().bytes[VNET_HEADER_BYTES + ETHERNET..][..IPV4];
            assert_eq!(internet_checksum(ip), [0, 0]);
        }
    }
}
