//! Who the guest is on its network: the stations and addresses that it has shown to be its own.
//!
//! The tables are bounded and in the order of first sight. A full table takes nothing more, so that a guest that invents
//! addresses does not push out those that it began with.
//!
//! Bytes, as they travel to the backup (all numbers big-endian):
//!
//! ```text
//! u8 version = 1
//! u8 stations   then each: mac[6]  u16 vlan (0: untagged)
//! u8 ipv4       then each: u8 station  ip[4]
//! u8 ipv6       then each: u8 station  ip[16]
//! ```

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Mac;

const STATIONS_MAX: usize = 16;
const ADDRESSES_MAX: usize = 32;
const VERSION: u8 = 1;

/// An Ethernet station of the guest: its address, and the VLAN in which it sends.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Station {
    pub mac: Mac,
    /// 1 to 4094; `None` is untagged.
    pub vlan: Option<u16>,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Identity {
    stations: Vec<Station>,
    /// Station by its place in `stations`.
    ipv4: Vec<(u8, Ipv4Addr)>,
    ipv6: Vec<(u8, Ipv6Addr)>,
}

impl Identity {
    /// Bytes of the longest encoding.
    pub const BYTES_MAX: usize = 4 + STATIONS_MAX * 8 + ADDRESSES_MAX * (5 + 17);

    pub fn stations(&self) -> impl Iterator<Item = Station> + '_ {
        self.stations.iter().copied()
    }

    pub fn ipv4(&self) -> impl Iterator<Item = (Station, Ipv4Addr)> + '_ {
        self.ipv4.iter().map(|(at, ip)| (self.stations[usize::from(*at)], *ip))
    }

    pub fn ipv6(&self) -> impl Iterator<Item = (Station, Ipv6Addr)> + '_ {
        self.ipv6.iter().map(|(at, ip)| (self.stations[usize::from(*at)], *ip))
    }

    /// Returns whether `station` was new and had room.
    pub(super) fn see_station(&mut self, station: Station) -> bool {
        self.station(station).is_none() && push(&mut self.stations, station, STATIONS_MAX)
    }

    /// Returns whether the pair was new and had room. A station for which there was no room has no addresses.
    pub(super) fn see_ipv4(&mut self, at: Station, ip: Ipv4Addr) -> bool {
        let Some(at) = self.station(at) else { return false };
        !self.ipv4.contains(&(at, ip)) && push(&mut self.ipv4, (at, ip), ADDRESSES_MAX)
    }

    /// Returns whether the pair was new and had room. A station for which there was no room has no addresses.
    pub(super) fn see_ipv6(&mut self, at: Station, ip: Ipv6Addr) -> bool {
        let Some(at) = self.station(at) else { return false };
        !self.ipv6.contains(&(at, ip)) && push(&mut self.ipv6, (at, ip), ADDRESSES_MAX)
    }

    fn station(&self, station: Station) -> Option<u8> {
        let at = self.stations.iter().position(|s| *s == station)?;
        Some(u8::try_from(at).expect("at most STATIONS_MAX"))
    }

    pub fn encode(&self) -> Vec<u8> {
        let count = |n: usize| u8::try_from(n).expect("tables are bounded");
        let mut bytes = Vec::with_capacity(Self::BYTES_MAX);
        bytes.push(VERSION);
        bytes.push(count(self.stations.len()));
        for s in &self.stations {
            bytes.extend(s.mac.0);
            bytes.extend(s.vlan.unwrap_or(0).to_be_bytes());
        }
        bytes.push(count(self.ipv4.len()));
        for (at, ip) in &self.ipv4 {
            bytes.push(*at);
            bytes.extend(ip.octets());
        }
        bytes.push(count(self.ipv6.len()));
        for (at, ip) in &self.ipv6 {
            bytes.push(*at);
            bytes.extend(ip.octets());
        }
        bytes
    }

    /// Reads the identity in `bytes`; `None` unless they are whole, within limits and say nothing twice.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let mut identity = Self::default();
        if take(&mut rest)? != [VERSION] {
            return None;
        }
        let [stations] = take(&mut rest)?;
        for _ in 0..stations {
            let mac = Mac(take(&mut rest)?);
            let vlan = match u16::from_be_bytes(take(&mut rest)?) {
                0 => None,
                id @ 1..=4094 => Some(id),
                _ => return None,
            };
            let fits = mac.is_unicast() && identity.see_station(Station { mac, vlan });
            fits.then_some(())?;
        }
        let [ipv4] = take(&mut rest)?;
        for _ in 0..ipv4 {
            let at = identity.named(take(&mut rest)?)?;
            identity.see_ipv4(at, take::<4>(&mut rest)?.into()).then_some(())?;
        }
        let [ipv6] = take(&mut rest)?;
        for _ in 0..ipv6 {
            let at = identity.named(take(&mut rest)?)?;
            identity.see_ipv6(at, take::<16>(&mut rest)?.into()).then_some(())?;
        }
        rest.is_empty().then_some(identity)
    }

    fn named(&self, [at]: [u8; 1]) -> Option<Station> {
        self.stations.get(usize::from(at)).copied()
    }
}

fn push<T>(table: &mut Vec<T>, entry: T, max: usize) -> bool {
    let room = table.len() < max;
    if room {
        table.push(entry);
    }
    room
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_encoded_is_decoded_and_cut_bytes_are_refused() {
        let station = Station { mac: Mac([2, 0, 0, 0, 0, 1]), vlan: Some(5) };
        let mut identity = Identity::default();
        assert!(identity.see_station(station));
        assert!(identity.see_ipv4(station, Ipv4Addr::new(10, 0, 0, 1)));
        assert!(identity.see_ipv6(station, Ipv6Addr::LOCALHOST));
        let bytes = identity.encode();
        assert_eq!(Identity::decode(&bytes), Some(identity));
        for cut in 0..bytes.len() {
            assert_eq!(Identity::decode(&bytes[..cut]), None);
        }
    }

    #[test]
    fn the_longest_identity_has_the_stated_length() {
        let mut identity = Identity::default();
        for n in 0..100 {
            let at = Station { mac: Mac([2, 0, 0, 0, 0, n]), vlan: None };
            identity.see_station(at);
            identity.see_ipv4(at, Ipv4Addr::new(10, 0, 0, n));
            identity.see_ipv4(at, Ipv4Addr::new(10, 0, 1, n));
            identity.see_ipv6(at, Ipv6Addr::new(1, 0, 0, 0, 0, 0, 0, n.into()));
            identity.see_ipv6(at, Ipv6Addr::new(2, 0, 0, 0, 0, 0, 0, n.into()));
        }
        assert_eq!(identity.encode().len(), Identity::BYTES_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(0u8..20, 0..200)) {
            if let Some(identity) = Identity::decode(&bytes) {
                prop_assert_eq!(identity.encode(), bytes);
            }
        }
    }
}
