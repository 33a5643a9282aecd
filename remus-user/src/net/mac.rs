//! Ethernet addresses.

use std::{fmt, str::FromStr};

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// The address that no station has.
    pub const ZERO: Self = Self([0; 6]);

    /// Returns whether this can be one station's own address: not a group, and not all zeros.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self != Self::ZERO
    }

    /// Returns the address of the host's end of a tap whose guest has this address.
    ///
    /// It must differ from the guest's, or the bridge would keep the guest's frames for itself. It begins
    /// with `fe`, the highest unicast byte: a bridge takes the lowest address of its ports for its own, and
    /// must not change it when a tap comes or goes.
    pub fn host_side(self) -> Self {
        let [_, rest @ ..] = self.0;
        let [b, c, d, e, f] = rest;
        if self.0[0] == 0xfe { Self([0xfa, b, c, d, e, f]) } else { Self([0xfe, b, c, d, e, f]) }
    }
}

/// Why a text is not a [`Mac`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotAMac;

impl fmt::Display for NotAMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an Ethernet address of six bytes in hexadecimal, as in 52:54:00:77:00:0a")
    }
}

impl std::error::Error for NotAMac {}

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(s: &str) -> Result<Self, NotAMac> {
        let mut mac = [0; 6];
        let mut parts = s.split(':');
        for byte in &mut mac {
            let part = parts.next().ok_or(NotAMac)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(NotAMac);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| NotAMac)?;
        }
        if parts.next().is_some() { Err(NotAMac) } else { Ok(Self(mac)) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_agree_and_other_texts_are_refused() {
        let mac: Mac = "52:54:00:77:00:0a".parse().unwrap();
        assert_eq!(mac, Mac([0x52, 0x54, 0, 0x77, 0, 0x0a]));
        assert_eq!(mac.to_string(), "52:54:00:77:00:0a");
        for bad in ["", "52:54", "52:54:00:77:00:0a:0b", "+2:54:00:77:00:0a", "52-54-00-77-00-0a"] {
            assert_eq!(bad.parse::<Mac>(), Err(NotAMac), "{bad}");
        }
    }

    #[test]
    fn the_hosts_end_never_has_the_guests_address() {
        for first in [0x52, 0xfe] {
            let guest = Mac([first, 1, 2, 3, 4, 5]);
            assert_ne!(guest.host_side(), guest);
            assert!(guest.host_side().is_unicast());
        }
    }
}
