//! The announcements that tell switches and neighbours, after a takeover, that the guest is behind another port now.
//!
//! Everything here is pure: bytes in, bytes out. A [`Learner`] on the primary picks the guest's own addresses out of the
//! frames that the guest sends. The addresses travel to the backup as the bytes of an [`Identity`]. [`frames`] turns them
//! into announcements, which the backup writes into its tap *as if the guest had sent them*, so that they pass the gate
//! like any other output.
//!
//! - RARP (as QEMU sends it): a broadcast from the guest's MAC, one a VLAN: switches learn the port.
//! - Gratuitous ARP, as request and as reply, since neighbours differ in which they heed.
//! - Unsolicited neighbour advertisement with the override flag, for IPv6.
//!
//! The guest is not trusted: every table is bounded, and an address counts only if the frame's source is also the sender
//! that the frame names. A guest that lies here announces to its own segment what it could have announced itself.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Mac, identity::Identity, identity::Station};

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_RARP: u16 = 0x8035;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
/// 802.1ad: the outer tag of a QinQ frame. The gate keeps one tag, so the inner one stays in the payload.
const ETHERTYPE_QINQ: u16 = 0x88a8;
const VLAN_ID_MASK: u16 = 0x0fff;
/// Shortest Ethernet frame, without the check sequence.
const FRAME_BYTES_MIN: usize = 60;

/// Picks the guest's own addresses out of the frames that it sends.
///
/// Call [`observe`](Self::observe) for each frame from the guest, then [`take_change`](Self::take_change)
/// now and then to learn whether the backup must hear of something new.
#[derive(Clone, Debug)]
pub struct Learner {
    identity: Identity,
    /// The station of the last frame, so that the usual frame costs one comparison.
    last: Option<Station>,
    changed: bool,
}

impl Learner {
    /// Makes a learner that knows the configured MAC, untagged, from the start.
    pub fn new(mac: Mac) -> Self {
        let mut identity = Identity::default();
        identity.see_station(Station { mac, vlan: None });
        Self { identity, last: None, changed: true }
    }

    /// Looks at one Ethernet frame from the guest (without any virtio-net header), whole or cut off.
    pub fn observe(&mut self, frame: &[u8]) {
        let Some((station, ethertype, payload)) = parse_ethernet(frame) else { return };
        if self.last != Some(station) {
            self.last = Some(station);
            self.changed |= self.identity.see_station(station);
        }
        match ethertype {
            ETHERTYPE_ARP => {
                if let Some(ip) = arp_sender(payload, station.mac) {
                    self.changed |= self.identity.see_ipv4(station, ip);
                }
            }
            ETHERTYPE_IPV6 => {
                if let Some(ip) = neighbour_sender(payload) {
                    self.changed |= self.identity.see_ipv6(station, ip);
                }
            }
            // No other protocol names an address that its sender vouches for.
            _ => {}
        }
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns the identity, if it has changed since it was last taken.
    pub fn take_change(&mut self) -> Option<&Identity> {
        std::mem::take(&mut self.changed).then_some(&self.identity)
    }
}

/// Returns every announcement for `identity`: all RARPs first, since the bridge's port is what everything else needs.
pub fn frames(identity: &Identity) -> Vec<Vec<u8>> {
    let rarps = identity.stations().map(rarp);
    let arps = identity.ipv4().flat_map(|(at, ip)| {
        [gratuitous_arp(at, ip, Arp::Request), gratuitous_arp(at, ip, Arp::Reply)]
    });
    let advertisements = identity.ipv6().map(|(at, ip)| unsolicited_advertisement(at, ip));
    rarps.chain(arps).chain(advertisements).collect()
}

/// The two forms of a gratuitous ARP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arp {
    Request,
    Reply,
}

/// Returns a reverse ARP request of `at` about itself, broadcast.
pub fn rarp(at: Station) -> Vec<u8> {
    let unknown = Ipv4Addr::UNSPECIFIED;
    let mut frame = ethernet(at, Mac::BROADCAST, ETHERTYPE_RARP);
    push_arp(&mut frame, 3, at.mac, unknown, at.mac, unknown);
    padded(frame)
}

/// Returns an ARP of `at` that its own address is `ip`, broadcast.
pub fn gratuitous_arp(at: Station, ip: Ipv4Addr, form: Arp) -> Vec<u8> {
    let mut frame = ethernet(at, Mac::BROADCAST, ETHERTYPE_ARP);
    match form {
        Arp::Request => push_arp(&mut frame, 1, at.mac, ip, Mac([0; 6]), ip),
        Arp::Reply => push_arp(&mut frame, 2, at.mac, ip, Mac::BROADCAST, ip),
    }
    padded(frame)
}

/// Returns an unsolicited neighbour advertisement (RFC 4861, 7.2.6) of `at`, to all nodes, that it has `ip`, with the
/// override flag.
pub fn unsolicited_advertisement(at: Station, ip: Ipv6Addr) -> Vec<u8> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const ICMPV6: u8 = 58;
    const OVERRIDE: u8 = 0x20;
    let mut message = vec![136, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend(ip.octets());
    // Option 2, target link-layer address, one unit of eight bytes.
    message.extend([2, 1]);
    message.extend(at.mac.0);
    let sum = icmpv6_checksum(ip, ALL_NODES, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = ethernet(at, Mac([0x33, 0x33, 0, 0, 0, 1]), ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(u16::try_from(message.len()).expect("32 bytes").to_be_bytes());
    // Hop limit 255: receivers refuse anything that was forwarded.
    frame.extend([ICMPV6, 255]);
    frame.extend(ip.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    padded(frame)
}

fn ethernet(at: Station, to: Mac, ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(96);
    frame.extend(to.0);
    frame.extend(at.mac.0);
    if let Some(vlan) = at.vlan {
        frame.extend(ETHERTYPE_VLAN.to_be_bytes());
        frame.extend(vlan.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame
}

fn push_arp(
    frame: &mut Vec<u8>,
    operation: u16,
    sender: Mac,
    sender_ip: Ipv4Addr,
    target: Mac,
    target_ip: Ipv4Addr,
) {
    // Ethernet, IPv4, six and four bytes of address.
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(sender.0);
    frame.extend(sender_ip.octets());
    frame.extend(target.0);
    frame.extend(target_ip.octets());
}

fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(FRAME_BYTES_MIN), 0);
    frame
}

/// Returns who sent a frame, its ethertype and what follows; `None` when it is too short or its source is no station.
fn parse_ethernet(frame: &[u8]) -> Option<(Station, u16, &[u8])> {
    let mac = Mac(frame.get(6..12)?.try_into().ok()?);
    if !mac.is_unicast() {
        return None;
    }
    let outer = be16(frame, 12)?;
    if outer != ETHERTYPE_VLAN && outer != ETHERTYPE_QINQ {
        return Some((Station { mac, vlan: None }, outer, &frame[14..]));
    }
    let id = be16(frame, 14)? & VLAN_ID_MASK;
    // Id 0 is a priority tag, which is no VLAN; 4095 is reserved.
    let vlan = match id {
        0 => None,
        0xfff => return None,
        id => Some(id),
    };
    // A customer's VLAN inside a provider's is not announced: one tag is all that an announcement carries.
    let ethertype = if outer == ETHERTYPE_QINQ { ETHERTYPE_QINQ } else { be16(frame, 16)? };
    Some((Station { mac, vlan }, ethertype, frame.get(18..)?))
}

/// Returns the sender's address in an ARP packet, where the sender is `mac` and vouches for it.
fn arp_sender(packet: &[u8], mac: Mac) -> Option<Ipv4Addr> {
    let packet = packet.get(..28)?;
    let operation = be16(packet, 6)?;
    if packet[..6] != [0, 1, 8, 0, 6, 4] || !matches!(operation, 1 | 2) || packet[8..14] != mac.0 {
        return None;
    }
    let ip = Ipv4Addr::from(<[u8; 4]>::try_from(&packet[14..18]).ok()?);
    // 0.0.0.0 is a probe: the sender asks whether it may have an address, and does not have one yet.
    let usable =
        !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast() && !ip.is_loopback();
    usable.then_some(ip)
}

/// Returns the address that a neighbour solicitation or advertisement shows to be its sender's own: the target of an
/// advertisement, the source of a solicitation.
fn neighbour_sender(packet: &[u8]) -> Option<Ipv6Addr> {
    const SOLICITATION: u8 = 135;
    const ADVERTISEMENT: u8 = 136;
    let packet = packet.get(..64)?;
    // Version 6, next header ICMPv6 with no extension between, hop limit 255 (else it was forwarded).
    if packet[0] >> 4 != 6 || packet[6] != 58 || packet[7] != 255 || packet[41] != 0 {
        return None;
    }
    let address = |at: usize| {
        let octets = <[u8; 16]>::try_from(&packet[at..at + 16]).expect("within 64 bytes");
        Ipv6Addr::from(octets)
    };
    let ip = match packet[40] {
        SOLICITATION => address(8),
        ADVERTISEMENT => address(48),
        _ => return None,
    };
    // An unspecified source is duplicate address detection: the address is not the sender's yet.
    let usable = !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback();
    usable.then_some(ip)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Returns the internet checksum over the pseudo-header and `message`, whose own checksum field is zero.
fn icmpv6_checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).expect("a short message").to_be_bytes();
    let pseudo = [&from.octets()[..], &to.octets(), &length, &[0, 0, 0, 58]];
    let sum: u32 = pseudo
        .into_iter()
        .chain([message])
        .flat_map(|part| part.chunks(2))
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).expect("folded twice")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 0x0a]);
    const IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
    const IP6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe77, 0x0a);

    fn at(vlan: Option<u16>) -> Station {
        Station { mac: MAC, vlan }
    }

    fn learned(sent: &[Vec<u8>]) -> Identity {
        let mut learner = Learner::new(MAC);
        for frame in sent {
            learner.observe(frame);
        }
        learner.identity().clone()
    }

    #[test]
    fn a_fresh_guest_is_announced_by_one_rarp_of_its_configured_mac() {
        let sent = frames(&learned(&[]));
        assert_eq!(sent, [rarp(at(None))]);
        let golden = "ffffffffffff52540077000a80350001080006040003\
                      52540077000a0000000052540077000a00000000";
        let hex: String = sent[0].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex[..golden.len()], *golden);
        assert_eq!(sent[0].len(), 60);
    }

    #[test]
    fn what_was_announced_is_learned_back_in_every_vlan() {
        for vlan in [None, Some(7), Some(4094)] {
            let arp = gratuitous_arp(at(vlan), IP, Arp::Reply);
            let na = unsolicited_advertisement(at(vlan), IP6);
            let identity = learned(&[arp.clone(), na.clone()]);
            assert_eq!(identity.ipv4().collect::<Vec<_>>(), [(at(vlan), IP)]);
            assert_eq!(identity.ipv6().collect::<Vec<_>>(), [(at(vlan), IP6)]);
            let announced = frames(&identity);
            assert!(announced.contains(&rarp(at(vlan))));
            assert!(announced.contains(&arp) && announced.contains(&na));
            assert!(announced.contains(&gratuitous_arp(at(vlan), IP, Arp::Request)));
        }
    }

    #[test]
    fn an_advertisement_has_the_checksum_that_receivers_demand() {
        let frame = unsolicited_advertisement(at(None), IP6);
        let message = &frame[14 + 40..];
        let to = Ipv6Addr::from(<[u8; 16]>::try_from(&frame[38..54]).unwrap());
        // Summed with its own checksum in place, a right message gives zero.
        assert_eq!(icmpv6_checksum(IP6, to, message), 0);
        assert_eq!((frame[21], frame.len()), (255, 86));
    }

    #[test]
    fn probes_and_other_peoples_addresses_are_not_learned() {
        let mut probe = gratuitous_arp(at(None), IP, Arp::Request);
        probe[28..32].fill(0);
        let mut proxy = gratuitous_arp(at(None), IP, Arp::Reply);
        proxy[22] ^= 2;
        let mut forwarded = unsolicited_advertisement(at(None), IP6);
        forwarded[21] = 64;
        let detection = unsolicited_advertisement(at(None), Ipv6Addr::UNSPECIFIED);
        let identity = learned(&[probe, proxy, forwarded, detection]);
        assert_eq!(identity.ipv4().count() + identity.ipv6().count(), 0);
    }

    #[test]
    fn a_change_is_reported_once() {
        let mut learner = Learner::new(MAC);
        assert!(learner.take_change().is_some(), "the configured MAC is news to the backup");
        assert!(learner.take_change().is_none());
        let arp = gratuitous_arp(at(None), IP, Arp::Request);
        learner.observe(&arp);
        assert!(learner.take_change().is_some());
        learner.observe(&arp);
        assert!(learner.take_change().is_none(), "nothing new in it");
    }

    #[test]
    fn a_lying_guest_fills_no_memory_and_never_loses_its_configured_station() {
        let mut learner = Learner::new(MAC);
        for n in 0..=u16::MAX {
            let [high, low] = n.to_be_bytes();
            let liar = Station { mac: Mac([2, 0, 0, 0, high, low]), vlan: Some(1 + n % 4000) };
            learner.observe(&gratuitous_arp(liar, Ipv4Addr::new(10, 9, high, low), Arp::Reply));
        }
        assert!(frames(learner.identity()).len() <= 128);
        assert!(frames(learner.identity()).contains(&rarp(at(None))));
    }

    proptest! {
        #[test]
        fn no_frame_makes_the_learner_panic_or_announce_what_it_cannot_carry(
            frames_seen in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..20),
            ethertype in prop::sample::select(vec![0x0806u16, 0x86dd, 0x8100, 0x88a8]),
        ) {
            let mut learner = Learner::new(MAC);
            for mut frame in frames_seen {
                if frame.len() >= 14 {
                    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
                }
                learner.observe(&frame);
            }
            let bytes = learner.identity().encode();
            prop_assert_eq!(Identity::decode(&bytes), Some(learner.identity().clone()));
        }
    }
}
