//! The command line: `key=value` words, separated by blanks.
//!
//! `ip=10.77.0.10/24` (required), `gw=10.77.0.1` (optional), `port=6379` (default 6379). An unknown key is
//! an error, so that a misspelt one is seen at boot and not missed.

use core::net::Ipv4Addr;
use core::str::FromStr;

/// How the guest presents itself on the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    pub address: Ipv4Addr,
    /// Bits of `address` that name the network, at most 32.
    pub prefix_len: u8,
    pub gateway: Option<Ipv4Addr>,
    pub port: u16,
}

/// Why a command line was refused. Each names the word at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OptionsError<'a> {
    NotAscii,
    UnknownWord(&'a str),
    BadValue(&'a str),
    AddressMissing,
}

impl Options {
    pub const PORT: u16 = 6379;

    /// Reads a whole command line. Of a key given twice, the last counts.
    pub fn parse(line: &[u8]) -> Result<Self, OptionsError<'_>> {
        let line = core::str::from_utf8(line).map_err(|_| OptionsError::NotAscii)?;
        let mut network = None;
        let mut gateway = None;
        let mut port = Self::PORT;
        for word in line.split_ascii_whitespace() {
            let (key, value) = word.split_once('=').ok_or(OptionsError::UnknownWord(word))?;
            match key {
                "ip" => network = Some(parse_network(value).ok_or(OptionsError::BadValue(word))?),
                "gw" => gateway = Some(parse(value).ok_or(OptionsError::BadValue(word))?),
                "port" => {
                    port = parse(value).filter(|p| *p != 0).ok_or(OptionsError::BadValue(word))?;
                }
                _ => return Err(OptionsError::UnknownWord(word)),
            }
        }
        let (address, prefix_len) = network.ok_or(OptionsError::AddressMissing)?;
        Ok(Self { address, prefix_len, gateway, port })
    }
}

fn parse<T: FromStr>(value: &str) -> Option<T> {
    value.parse().ok()
}

fn parse_network(value: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix_len) = value.split_once('/')?;
    let prefix_len = parse(prefix_len).filter(|n| *n <= 32)?;
    Some((parse(address)?, prefix_len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_line_is_understood() {
        let o = Options::parse(b"ip=10.77.0.10/24  gw=10.77.0.1 port=7000").unwrap();
        assert_eq!((o.address, o.prefix_len), (Ipv4Addr::new(10, 77, 0, 10), 24));
        assert_eq!((o.gateway, o.port), (Some(Ipv4Addr::new(10, 77, 0, 1)), 7000));
    }

    #[test]
    fn the_word_at_fault_is_named() {
        assert_eq!(Options::parse(b""), Err(OptionsError::AddressMissing));
        assert_eq!(Options::parse(b"ip=1.2.3.4"), Err(OptionsError::BadValue("ip=1.2.3.4")));
        assert_eq!(Options::parse(b"ip=1.2.3.4/33"), Err(OptionsError::BadValue("ip=1.2.3.4/33")));
        assert_eq!(Options::parse(b"pi=1.2.3.4/8"), Err(OptionsError::UnknownWord("pi=1.2.3.4/8")));
        assert_eq!(Options::parse(b"port=0"), Err(OptionsError::BadValue("port=0")));
        assert_eq!(Options::parse(b"ip=\xff"), Err(OptionsError::NotAscii));
    }
}
