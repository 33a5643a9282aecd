//! Why bytes are not a message.

use std::fmt;

use super::{Feature, Kind, version::WIRE_VERSION};

/// Why bytes are not a message. The connection that carried them is of no further use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WireError {
    /// The peer does not speak this protocol.
    Magic,
    /// It speaks another version of it.
    Version {
        theirs: u16,
    },
    Kind {
        number: u16,
    },
    /// A message that does not belong on this connection, or not in this direction.
    Lane {
        kind: Kind,
    },
    /// A message, or a field of one, of a feature that the session does not have.
    Feature {
        kind: Kind,
        feature: Feature,
    },
    TooLong {
        kind: Kind,
        len: u32,
    },
    Checksum {
        kind: Kind,
    },
    /// The body ends within a field.
    Short,
    /// The body goes on after the last field.
    Trailing,
    /// A field has a value that it cannot have; its name.
    Value(&'static str),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("the peer does not speak Remus replication"),
            Self::Version { theirs } => {
                write!(f, "the peer speaks protocol version {theirs}, this host {WIRE_VERSION}")
            }
            Self::Kind { number } => write!(f, "no message has the kind {number}"),
            Self::Lane { kind } => write!(f, "a {kind:?} does not belong on this connection"),
            Self::Feature { kind, feature } => {
                write!(
                    f,
                    "a {kind:?} makes use of {feature}, a feature that this session does not have"
                )
            }
            Self::TooLong { kind, len } => write!(f, "a {kind:?} of {len} bytes is too long"),
            Self::Checksum { kind } => write!(f, "the checksum of a {kind:?} does not hold"),
            Self::Short => f.write_str("a message ends within a field"),
            Self::Trailing => f.write_str("a message goes on after its last field"),
            Self::Value(field) => write!(f, "a {field} has a value that it cannot have"),
        }
    }
}

impl std::error::Error for WireError {}
