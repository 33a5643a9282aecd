//! What a guest may leave to its host, and what of it a driver has taken.
//!
//! An offload is work on a frame that is put off: a checksum not yet filled in, a TCP frame of up to 64 KiB
//! not yet cut. What is put off is written beside the frame, so whoever copies the frame alone loses it. So
//! [`Offloads`] follows from the gate: one that copies frames allows none, one that keeps the kernel's own
//! buffers allows all.
//!
//! Absent: ECN in cut frames (the sender's stack cuts those), UDP segmentation, tunnels, receive coalescing,
//! switching offloads while the driver runs (no control queue).

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net as net;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

/// What the network device offers to take over. Both hosts must offer the same: what the driver took is
/// part of every checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Offloads {
    /// Nothing: frames are finished, both ways.
    #[default]
    None,
    /// Checksums, and the cutting of TCP over IPv4 and IPv6, both ways.
    Segmentation,
}

/// Offered with any [`Offloads`]. Buffers that are merged need no offload: they also carry long frames.
const ALWAYS: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << net::VIRTIO_NET_F_MAC
    | 1 << net::VIRTIO_NET_F_MTU
    | 1 << net::VIRTIO_NET_F_MRG_RXBUF;

/// The features that are offloads, by the names that the specification gives them.
const NAMES: [(u32, &str); 6] = [
    (net::VIRTIO_NET_F_CSUM, "CSUM"),
    (net::VIRTIO_NET_F_GUEST_CSUM, "GUEST_CSUM"),
    (net::VIRTIO_NET_F_GUEST_TSO4, "GUEST_TSO4"),
    (net::VIRTIO_NET_F_GUEST_TSO6, "GUEST_TSO6"),
    (net::VIRTIO_NET_F_HOST_TSO4, "HOST_TSO4"),
    (net::VIRTIO_NET_F_HOST_TSO6, "HOST_TSO6"),
];

/// Features that mean nothing without another (virtio 1.2, 5.1.3.1).
pub(super) const REQUIRES: [(u32, u32); 4] = [
    (net::VIRTIO_NET_F_GUEST_TSO4, net::VIRTIO_NET_F_GUEST_CSUM),
    (net::VIRTIO_NET_F_GUEST_TSO6, net::VIRTIO_NET_F_GUEST_CSUM),
    (net::VIRTIO_NET_F_HOST_TSO4, net::VIRTIO_NET_F_CSUM),
    (net::VIRTIO_NET_F_HOST_TSO6, net::VIRTIO_NET_F_CSUM),
];

impl Offloads {
    /// Returns the feature bits of a device that offers this.
    pub(super) fn features(self) -> u64 {
        match self {
            Self::None => ALWAYS,
            Self::Segmentation => NAMES.iter().fold(ALWAYS, |bits, (bit, _)| bits | 1 << bit),
        }
    }
}

/// Returns the offloads among `features`, for people.
pub(super) fn names(features: u64) -> String {
    let named = NAMES.iter().filter(|(bit, _)| features & 1 << bit != 0).map(|(_, name)| *name);
    named.collect::<Vec<_>>().join(", ")
}

/// The features that a driver has taken; nothing before it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Negotiated(pub(super) u64);

impl Negotiated {
    fn has(self, bit: u32) -> bool {
        self.0 & 1 << bit != 0
    }

    /// Returns whether the guest may leave a checksum to us.
    pub(super) fn checksum(self) -> bool {
        self.has(net::VIRTIO_NET_F_CSUM)
    }

    /// Returns whether the guest may leave the cutting of TCP over IPv4 to us.
    pub(super) fn tcp4(self) -> bool {
        self.has(net::VIRTIO_NET_F_HOST_TSO4)
    }

    /// Returns whether the guest may leave the cutting of TCP over IPv6 to us.
    pub(super) fn tcp6(self) -> bool {
        self.has(net::VIRTIO_NET_F_HOST_TSO6)
    }

    /// Returns whether the guest may leave cutting of any kind to us.
    pub(super) fn any_tcp(self) -> bool {
        self.tcp4() || self.tcp6()
    }

    /// Returns whether the guest takes frames without a checksum, or whose checksum the host has looked at.
    pub(super) fn guest_checksum(self) -> bool {
        self.has(net::VIRTIO_NET_F_GUEST_CSUM)
    }

    /// Returns whether the guest takes TCP over IPv4 that nobody has cut.
    pub(super) fn guest_tcp4(self) -> bool {
        self.has(net::VIRTIO_NET_F_GUEST_TSO4)
    }

    /// Returns whether the guest takes TCP over IPv6 that nobody has cut.
    pub(super) fn guest_tcp6(self) -> bool {
        self.has(net::VIRTIO_NET_F_GUEST_TSO6)
    }

    /// Returns whether a received frame may lie in several buffers.
    pub(super) fn mergeable(self) -> bool {
        self.has(net::VIRTIO_NET_F_MRG_RXBUF)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_that_copies_frames_is_offered_no_unfinished_ones() {
        let offered = Negotiated(Offloads::None.features());
        assert!(!offered.checksum() && !offered.any_tcp());
        assert!(!offered.guest_checksum() && !offered.guest_tcp4() && !offered.guest_tcp6());
        assert!(offered.mergeable());
        assert_eq!(names(offered.0), "");
    }

    #[test]
    fn what_is_offered_has_all_that_it_requires_and_no_ecn() {
        let offered = Offloads::Segmentation.features();
        for (feature, needs) in REQUIRES {
            assert!(offered & 1 << feature != 0 && offered & 1 << needs != 0);
        }
        assert_eq!(offered & 1 << net::VIRTIO_NET_F_HOST_ECN, 0);
        assert_eq!(offered & 1 << net::VIRTIO_NET_F_GUEST_ECN, 0);
        assert_eq!(names(1 << 0 | 1 << 11), "CSUM, HOST_TSO4");
    }
}
