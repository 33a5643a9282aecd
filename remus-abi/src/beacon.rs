//! Beacon frames: a counter that the demo guest sends in four kinds of frame, so that an observer on the
//! wire can tell how far the guest had come when the frame left.
//!
//! Every beacon frame ends with the same [`LEN`] bytes, wherever the kind of frame puts them: [`MAGIC`],
//! then the counter as a big-endian `u64`. One counter serves all kinds; it grows by one a frame.

pub const MAGIC: [u8; 8] = *b"RMSBCN01";
pub const LEN: usize = 16;
/// The ethertype (IEEE 802 local experimental 1) of the kind that no stack knows.
pub const ETHERTYPE: u16 = 0x88b5;
/// Destination port of the UDP kind, in IPv4 and IPv6.
pub const UDP_PORT: u16 = 47_474;

/// The last bytes of a beacon frame that carries `counter`.
pub fn encode(counter: u64) -> [u8; LEN] {
    let mut b = [0; LEN];
    b[..8].copy_from_slice(&MAGIC);
    b[8..].copy_from_slice(&counter.to_be_bytes());
    b
}

/// The counter in `frame`, if it is a beacon. Trailing padding after the beacon is allowed.
pub fn find(frame: &[u8]) -> Option<u64> {
    let at = frame.windows(LEN).rposition(|w| w.starts_with(&MAGIC))?;
    let counter = frame[at + 8..at + LEN].try_into().ok()?;
    Some(u64::from_be_bytes(counter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_padded_beacon_is_found_and_a_short_one_is_not() {
        let mut frame = [0u8; 60];
        frame[20..36].copy_from_slice(&encode(7));
        assert_eq!(find(&frame), Some(7));
        assert_eq!(find(&frame[..30]), None);
        assert_eq!(find(&[]), None);
    }
}
