//! The beacon: a growing counter sent in frames of four kinds.
//!
//! An observer on the wire compares what it saw with the counter of the guest that lives on after a
//! takeover: a number it saw that this guest has not reached was output let out too early. Four kinds of
//! frame, because a gate that holds only what it knows would pass the others: an ARP request, UDP in IPv6,
//! UDP in IPv4, and an ethertype that nobody speaks. The marks are `remus_abi::beacon`'s.
//!
//! Invariant: the counter has grown before the frame that carries it is made, so that a guest never
//! forgets a number that left it, unless its memory is older than the frame.

use remus_abi::beacon::{ETHERTYPE, LEN, UDP_PORT, encode};

/// Frames shorter than this are padded with zeros, as Ethernet demands.
const FRAME_MIN: usize = 60;
/// The longest frame is the IPv6 one.
pub const FRAME_MAX: usize = ETHERNET + IPV6 + UDP + LEN;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;
const ARP: usize = 28;

const BROADCAST: [u8; 6] = [0xff; 6];
/// Where frames to ff02::1 (all nodes) go.
const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// What carries the counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Arp,
    Ipv6,
    Ipv4,
    Unknown,
}

/// Who sends.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    pub mac: [u8; 6],
    pub ip: [u8; 4],
}

/// Counter and schedule.
#[derive(Debug, Default)]
pub struct Beacon {
    counter: u64,
    schedule: Option<Schedule>,
}

#[derive(Debug)]
struct Schedule {
    period_ns: u64,
    next_ns: u64,
}

/// One frame, ready to be sent.
#[derive(Debug)]
pub struct Frame {
    bytes: [u8; FRAME_MAX],
    len: usize,
}

impl Beacon {
    /// Sends four frames at once and then each `period_ns`.
    pub fn start(&mut self, period_ns: u64, now_ns: u64) {
        self.schedule = Some(Schedule { period_ns, next_ns: now_ns });
    }

    pub fn stop(&mut self) {
        self.schedule = None;
    }

    /// The number in the newest frame.
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// When the next frames are due, if any ever are.
    pub fn due_ns(&self) -> Option<u64> {
        self.schedule.as_ref().map(|s| s.next_ns)
    }

    /// The frames to send now. Periods that were missed are not made up for.
    pub fn frames(&mut self, now_ns: u64, sender: &Sender) -> Option<[Frame; 4]> {
        let schedule = self.schedule.as_mut().filter(|s| s.next_ns <= now_ns)?;
        let next_ns = schedule.next_ns + schedule.period_ns;
        schedule.next_ns = if next_ns > now_ns { next_ns } else { now_ns + schedule.period_ns };
        Some([Kind::Arp, Kind::Ipv6, Kind::Ipv4, Kind::Unknown].map(|kind| {
            self.counter += 1;
            Frame::new(kind, self.counter, sender)
        }))
    }
}

impl Frame {
    pub fn new(kind: Kind, counter: u64, sender: &Sender) -> Self {
        let mut frame = Self { bytes: [0; FRAME_MAX], len: 0 };
        match kind {
            Kind::Arp => {
                frame.ethernet(BROADCAST, sender, 0x0806);
                // Ethernet, IPv4, lengths, request.
                frame.put(&[0, 1, 8, 0, 6, 4, 0, 1]);
                frame.put(&sender.mac);
                frame.put(&sender.ip);
                frame.put(&[0; 6]);
                // Asks for its own address: an announcement, which nobody answers.
                frame.put(&sender.ip);
                debug_assert_eq!(frame.len, ETHERNET + ARP);
            }
            Kind::Ipv6 => {
                let source = link_local(sender.mac);
                let destination = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
                frame.ethernet(ALL_NODES, sender, 0x86dd);
                // Version 6, payload length, next header UDP, hop limit 1.
                frame.put(&[0x60, 0, 0, 0, 0, UDP_LEN_BYTE, 17, 1]);
                frame.put(&source);
                frame.put(&destination);
                frame.udp(counter, &[&source, &destination]);
            }
            Kind::Ipv4 => {
                frame.ethernet(BROADCAST, sender, 0x0800);
                let total = UDP_LEN_BYTE + 20;
                let mut header =
                    [0x45, 0, 0, total, 0, 0, 0x40, 0, 1, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255];
                header[12..16].copy_from_slice(&sender.ip);
                let sum = checksum(&[&header]);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.put(&header);
                frame.udp(counter, &[&sender.ip, &[255; 4]]);
            }
            Kind::Unknown => frame.ethernet(BROADCAST, sender, ETHERTYPE),
        }
        match kind {
            // The UDP kinds have put it into their payload.
            Kind::Ipv4 | Kind::Ipv6 => {}
            Kind::Arp | Kind::Unknown => frame.put(&encode(counter)),
        }
        frame.len = frame.len.max(FRAME_MIN);
        frame
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn ethernet(&mut self, destination: [u8; 6], sender: &Sender, ethertype: u16) {
        self.put(&destination);
        self.put(&sender.mac);
        self.put(&ethertype.to_be_bytes());
    }

    fn udp(&mut self, counter: u64, addresses: &[&[u8]; 2]) {
        let port = UDP_PORT.to_be_bytes();
        let mut header = [port[0], port[1], port[0], port[1], 0, UDP_LEN_BYTE, 0, 0];
        let payload = encode(counter);
        let pseudo = [0, 17, 0, UDP_LEN_BYTE];
        let sum = checksum(&[addresses[0], addresses[1], &pseudo, &header, &payload]);
        // 0 means "no checksum", so that a sum of 0 is sent as its other form.
        let sum = if sum == 0 { 0xffff } else { sum };
        header[6..8].copy_from_slice(&sum.to_be_bytes());
        self.put(&header);
        self.put(&payload);
    }
}

/// Header and payload of the UDP kinds: 24, in one byte.
const UDP_LEN_BYTE: u8 = 24;
const _: () = assert!(UDP + LEN == UDP_LEN_BYTE as usize && IPV4 == 20);

/// The link-local address that an interface with this MAC address gives itself.
fn link_local(mac: [u8; 6]) -> [u8; 16] {
    let [a, b, c, d, e, f] = mac;
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]
}

/// The internet checksum over parts of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        let (words, rest) = part.as_chunks::<2>();
        debug_assert!(rest.is_empty());
        sum += words.iter().map(|w| u32::from(u16::from_be_bytes(*w))).sum::<u32>();
    }
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).expect("was folded twice")
}

#[cfg(test)]
mod tests {
    use super::*;
    use remus_abi::beacon::find;

    const SENDER: Sender = Sender { mac: [2, 0, 0, 0, 0, 7], ip: [10, 77, 0, 10] };

    #[test]
    fn every_kind_carries_its_counter_and_its_ethertype() {
        let mut beacon = Beacon::default();
        beacon.start(1_000, 50);
        let frames = beacon.frames(50, &SENDER).unwrap();
        for (i, (frame, ethertype)) in
            frames.iter().zip([0x0806u16, 0x86dd, 0x0800, ETHERTYPE]).enumerate()
        {
            assert_eq!(find(frame.bytes()), Some(i as u64 + 1));
            assert_eq!(frame.bytes()[12..14], ethertype.to_be_bytes());
            assert_eq!(frame.bytes()[6..12], SENDER.mac);
            assert!(frame.bytes().len() >= FRAME_MIN);
        }
        assert_eq!(beacon.counter(), 4);
    }

    #[test]
    fn missed_periods_are_not_made_up_for() {
        let mut beacon = Beacon::default();
        assert!(beacon.frames(50, &SENDER).is_none());
        beacon.start(1_000, 50);
        assert!(beacon.frames(50, &SENDER).is_some());
        assert!(beacon.frames(1_049, &SENDER).is_none());
        assert!(beacon.frames(1_000_000, &SENDER).is_some());
        assert!(beacon.frames(1_000_999, &SENDER).is_none());
        assert!(beacon.frames(1_001_000, &SENDER).is_some());
        beacon.stop();
        assert_eq!(beacon.due_ns(), None);
    }

    #[test]
    fn checksums_over_the_finished_frames_come_out_as_zero() {
        let v4 = Frame::new(Kind::Ipv4, 77, &SENDER);
        assert_eq!(checksum(&[&v4.bytes()[14..34]]), 0);
        let udp4 = &v4.bytes()[34..58];
        assert_eq!(checksum(&[&v4.bytes()[26..34], &[0, 17, 0, 24], udp4]), 0);
        let v6 = Frame::new(Kind::Ipv6, 77, &SENDER);
        assert_eq!(checksum(&[&v6.bytes()[22..54], &[0, 17, 0, 24], &v6.bytes()[54..78]]), 0);
    }
}
