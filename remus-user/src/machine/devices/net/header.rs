//! The header before each frame (`struct virtio_net_hdr_v1`), judged in both directions.
//!
//! ```text
//! 0 flags u8 | 1 gso_type u8 | 2 hdr_len u16 | 4 gso_size u16 | 6 csum_start u16 | 8 csum_offset u16
//! 10 num_buffers u16                                                       all little endian
//! ```
//!
//! From the guest nothing in it is believed, and no byte of it is passed on: it says what the guest wants,
//! [`judge`] holds that against the frame and against what was negotiated, and the header for the tap is
//! written anew. To the guest goes what the kernel said, less what the driver did not ask for.

use virtio_bindings::virtio_net as net;

use super::offloads::Negotiated;
use super::segment::{ETHERNET, Family, TCP_CHECKSUM, Tcp, is_untagged_ip};

/// Bytes of the header: virtio 1.0's, in both directions.
pub(super) const HEADER: usize = 12;
/// Bytes of the longest frame that may be cut, as virtio 1.2, 5.1.6.3.1 has it, and two VLAN tags.
pub(super) const UNCUT_MAX: usize = 65_536 + ETHERNET + 8;
/// Bytes of payload in a segment, at least: the least that Linux ever asks for.
const SEGMENT_MIN: usize = 8;
/// Where the number of buffers is in the header.
pub(super) const NUM_BUFFERS: usize = 10;

const NEEDS_CHECKSUM: u8 = byte(net::VIRTIO_NET_HDR_F_NEEDS_CSUM);
const CHECKSUM_GOOD: u8 = byte(net::VIRTIO_NET_HDR_F_DATA_VALID);
const GSO_NONE: u8 = byte(net::VIRTIO_NET_HDR_GSO_NONE);
const GSO_TCP4: u8 = byte(net::VIRTIO_NET_HDR_GSO_TCPV4);
const GSO_TCP6: u8 = byte(net::VIRTIO_NET_HDR_GSO_TCPV6);

const fn byte(value: u32) -> u8 {
    assert!(value <= 0xff);
    value.to_le_bytes()[0]
}

/// What is to be done with a frame of the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Job {
    /// It goes to the tap behind this header.
    Pass([u8; HEADER]),
    /// Its checksum is filled in first, here: the sum from `start` goes to `at`.
    Complete { start: usize, at: usize },
    /// It is cut here, into segments of `size` bytes of payload.
    Cut { tcp: Tcp, size: usize },
}

/// Why a frame of the guest goes nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unfit {
    /// It is too short or too long for a wire.
    Length,
    /// The header asks for what is unknown or was not negotiated, or does not fit the frame.
    Header,
}

/// Judges a frame by its header. `frame_max` is the longest frame for the wire, in bytes.
///
/// Flags that virtio does not define for this direction are ignored, as it says.
pub(super) fn judge(
    header: &[u8; HEADER],
    frame: &[u8],
    negotiated: Negotiated,
    frame_max: usize,
) -> Result<Job, Unfit> {
    let [flags, gso, rest @ ..] = *header;
    let field = |at: usize| u16::from_le_bytes([rest[at - 2], rest[at - 1]]);
    let (size, start, offset) = (field(4), field(6), field(8));
    let needs_checksum = flags & NEEDS_CHECKSUM != 0;
    if needs_checksum && !negotiated.checksum() {
        return Err(Unfit::Header);
    }
    let family = match gso {
        GSO_NONE => None,
        GSO_TCP4 if negotiated.tcp4() => Some(Family::Ipv4),
        GSO_TCP6 if negotiated.tcp6() => Some(Family::Ipv6),
        _ => return Err(Unfit::Header),
    };
    let length_max = if family.is_some() { UNCUT_MAX } else { frame_max };
    if !(ETHERNET..=length_max).contains(&frame.len()) {
        return Err(Unfit::Length);
    }
    let (start, at) = (usize::from(start), usize::from(start) + usize::from(offset));
    let Some(family) = family else {
        if !needs_checksum {
            return Ok(Job::Pass([0; HEADER]));
        }
        if !has_sum(frame.len(), start, at) {
            return Err(Unfit::Header);
        }
        return Ok(if is_untagged_ip(frame) {
            Job::Pass(written(GSO_NONE, 0, 0, start, at))
        } else {
            Job::Complete { start, at }
        });
    };
    let tcp = Tcp::find(frame).ok_or(Unfit::Header)?;
    let size = usize::from(size);
    let agrees = needs_checksum
        && tcp.family == family
        && tcp.transport == start
        && tcp.transport + TCP_CHECKSUM == at;
    if !agrees || size < SEGMENT_MIN || tcp.payload + size > frame_max {
        return Err(Unfit::Header);
    }
    Ok(if !is_untagged_ip(frame) {
        Job::Cut { tcp, size }
    } else if frame.len() - tcp.payload > size {
        Job::Pass(written(gso, tcp.payload, size, start, at))
    } else {
        // There is nothing to cut, and Linux (6.18) loses a frame of which it is claimed.
        Job::Pass(written(GSO_NONE, 0, 0, start, at))
    })
}

/// Returns whether a frame of this length can have a checksum of the bytes from `start` on, put at `at`.
fn has_sum(length: usize, start: usize, at: usize) -> bool {
    start >= ETHERNET && at + 2 <= length
}

/// Returns a header for the tap that asks for a checksum, and for cutting unless `gso` is none.
fn written(gso: u8, headers: usize, size: usize, start: usize, at: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = NEEDS_CHECKSUM;
    header[1] = gso;
    for (to, value) in [(2, headers), (4, size), (6, start), (8, at - start)] {
        let value = u16::try_from(value).expect("it came out of 16 bits, or is a header's length");
        header[to..to + 2].copy_from_slice(&value.to_le_bytes());
    }
    header
}

/// Returns where the sum of a frame for the guest begins and where the sum is to be put, if the frame's checksum is not
/// finished and the driver takes no such frame. A tap finishes checksums by itself; a frame that was taken elsewhere
/// may have one that is not.
pub(super) fn to_complete(
    header: &[u8; HEADER],
    length: usize,
    negotiated: Negotiated,
) -> Option<(usize, usize)> {
    let [flags, gso, ..] = *header;
    let field = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (start, at) = (field(6), field(6) + field(8));
    let is_unfinished =
        flags & NEEDS_CHECKSUM != 0 && gso == GSO_NONE && !negotiated.guest_checksum();
    (is_unfinished && has_sum(length, start, at)).then_some((start, at))
}

/// Returns the guest's header for a frame that came behind `header` from the tap; `None` when the frame is of a kind
/// that this driver did not negotiate. The kernel sends no such frame, but for those that waited in the tap when the
/// driver changed.
pub(super) fn for_guest(
    header: &[u8; HEADER],
    length: usize,
    negotiated: Negotiated,
    frame_max: usize,
) -> Option<[u8; HEADER]> {
    let [flags, gso, ..] = *header;
    let length_max = match gso {
        GSO_NONE => frame_max,
        GSO_TCP4 if negotiated.guest_tcp4() => UNCUT_MAX,
        GSO_TCP6 if negotiated.guest_tcp6() => UNCUT_MAX,
        _ => return None,
    };
    if !(ETHERNET..=length_max).contains(&length) {
        return None;
    }
    let mut passed = *header;
    passed[NUM_BUFFERS..].copy_from_slice(&1_u16.to_le_bytes());
    if negotiated.guest_checksum() {
        passed[0] = flags & (NEEDS_CHECKSUM | CHECKSUM_GOOD);
    } else if flags & NEEDS_CHECKSUM != 0 {
        return None;
    } else {
        passed[..NUM_BUFFERS].fill(0);
    }
    Some(passed)
}

#[cfg(test)]
#[path = "tests/header.rs"]
mod tests;
