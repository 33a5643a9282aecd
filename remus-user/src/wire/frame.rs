//! Frames: the header, its limits, and the buffer in which they arrive.

use std::fmt;

use xxhash_rust::xxh3::Xxh3;

use super::version::{WIRE_VERSION, understands};

const MAGIC: [u8; 4] = *b"RmKv";
/// Bytes before the body.
pub const HEADER_LEN: usize = 24;
/// The checksum covers this much of the header, then the body.
const SUMMED: usize = 16;
/// Longest body on a bulk connection.
pub const BODY_MAX: usize = 1 << 20;
/// Longest body on a control connection.
pub const CONTROL_BODY_MAX: usize = 1 << 16;

/// What a frame is. 0 is reserved: zeroed bytes are no frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u16)]
pub enum Kind {
    Hello = 1,
    Heartbeat = 2,
    Goodbye = 3,
    Inbound = 4,

    Welcome = 16,
    Refuse = 17,
    HeartbeatAck = 18,
    GoodbyeAck = 19,
    StandDown = 20,
    Lacks = 21,

    Attach = 32,
    SyncPages = 33,
    Begin = 34,
    Pages = 35,
    State = 36,
    End = 37,
    BootPages = 38,
    BootState = 39,

    Ack = 48,
}

/// One direction of one connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Lane {
    ControlToBackup,
    ControlToPrimary,
    BulkToBackup,
    BulkToPrimary,
}

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

/// A frame whose checksum holds, still in the buffer in which it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    pub kind: Kind,
    pub checksum: u64,
    pub body: &'a [u8],
}

impl Kind {
    fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Hello,
            2 => Self::Heartbeat,
            3 => Self::Goodbye,
            4 => Self::Inbound,
            16 => Self::Welcome,
            17 => Self::Refuse,
            18 => Self::HeartbeatAck,
            19 => Self::GoodbyeAck,
            20 => Self::StandDown,
            21 => Self::Lacks,
            32 => Self::Attach,
            33 => Self::SyncPages,
            34 => Self::Begin,
            35 => Self::Pages,
            36 => Self::State,
            37 => Self::End,
            38 => Self::BootPages,
            39 => Self::BootState,
            48 => Self::Ack,
            _ => return None,
        })
    }

    /// The only lane on which it travels.
    pub fn lane(self) -> Lane {
        match self {
            Self::Hello | Self::Heartbeat | Self::Goodbye | Self::Inbound => Lane::ControlToBackup,
            Self::Welcome
            | Self::Refuse
            | Self::HeartbeatAck
            | Self::GoodbyeAck
            | Self::StandDown
            | Self::Lacks => Lane::ControlToPrimary,
            Self::Attach
            | Self::BootPages
            | Self::BootState
            | Self::SyncPages
            | Self::Begin
            | Self::Pages
            | Self::State
            | Self::End => Lane::BulkToBackup,
            Self::Ack => Lane::BulkToPrimary,
        }
    }
}

impl Lane {
    /// Longest body that may arrive on it.
    pub fn body_max(self) -> usize {
        match self {
            Self::ControlToBackup | Self::ControlToPrimary => CONTROL_BODY_MAX,
            Self::BulkToBackup => BODY_MAX,
            Self::BulkToPrimary => 64,
        }
    }
}

/// The header of a frame of `kind` whose body is `parts` one after another, and the checksum in it.
///
/// The parts themselves are not copied: write the header, then them, in one vectored write.
///
/// # Panics
/// When the body is longer than its lane allows: the sender composes it.
pub fn head<'a>(
    kind: Kind,
    parts: impl Iterator<Item = &'a [u8]> + Clone,
) -> ([u8; HEADER_LEN], u64) {
    let len = parts.clone().map(<[u8]>::len).sum::<usize>();
    assert!(len <= kind.lane().body_max(), "a {kind:?} of {len} bytes");
    let mut header = [0; HEADER_LEN];
    header[..4].copy_from_slice(&MAGIC);
    header[4..6].copy_from_slice(&WIRE_VERSION.to_le_bytes());
    header[6..8].copy_from_slice(&(kind as u16).to_le_bytes());
    header[8..12].copy_from_slice(&u32::try_from(len).expect("below BODY_MAX").to_le_bytes());
    let checksum = checksum(&header[..SUMMED], parts);
    header[SUMMED..].copy_from_slice(&checksum.to_le_bytes());
    (header, checksum)
}

fn checksum<'a>(header: &[u8], parts: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut sum = Xxh3::new();
    sum.update(header);
    parts.for_each(|part| sum.update(part));
    sum.digest()
}

struct Header {
    kind: Kind,
    len: usize,
    checksum: u64,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_LEN], lane: Lane) -> Result<Self, WireError> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if bytes[..4] != MAGIC {
            return Err(WireError::Magic);
        }
        let (version, number, len) = (u16_at(4), u16_at(6), u32_at(8));
        if !understands(version, number) {
            return Err(WireError::Version { theirs: version });
        }
        let kind = Kind::from_number(number).ok_or(WireError::Kind { number })?;
        if kind.lane() != lane {
            return Err(WireError::Lane { kind });
        }
        if u32_at(12) != 0 {
            return Err(WireError::Value("reserved word of a header"));
        }
        let body_max = lane.body_max();
        match usize::try_from(len) {
            Ok(fits) if fits <= body_max => {
                let checksum = u64::from_le_bytes(bytes[SUMMED..].try_into().expect("eight bytes"));
                Ok(Self { kind, len: fits, checksum })
            }
            Ok(_) | Err(_) => Err(WireError::TooLong { kind, len }),
        }
    }
}

/// Where a lane's bytes arrive: twice its longest frame, made once, whatever the peer sends.
///
/// Call order: read from the socket into [`space`](Self::space), say how much with [`filled`](Self::filled), then
/// [`next_frame`](Self::next_frame) until it has none.
pub struct FrameBuffer {
    lane: Lane,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl FrameBuffer {
    pub fn new(lane: Lane) -> Self {
        let buffer = vec![0; 2 * (HEADER_LEN + lane.body_max())].into_boxed_slice();
        Self { lane, buffer, start: 0, end: 0 }
    }

    /// Room to read into: never empty once [`next_frame`](Self::next_frame) has returned `None`.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < self.buffer.len() / 2 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// The first `len` bytes of [`space`](Self::space) now hold what arrived.
    ///
    /// # Panics
    /// When that is more than there was room for.
    pub fn filled(&mut self, len: usize) {
        assert!(len <= self.buffer.len() - self.end, "more than there was room for");
        self.end += len;
    }

    /// The next whole frame, or `None` until more has arrived.
    ///
    /// # Errors
    /// [`WireError`]; the connection must then be dropped, since where the next frame begins is not known.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, WireError> {
        let bytes = &self.buffer[self.start..self.end];
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let Header { kind, len, checksum: claimed } = Header::parse(header, self.lane)?;
        let Some(body) = rest.get(..len) else { return Ok(None) };
        if checksum(&header[..SUMMED], std::iter::once(body)) != claimed {
            return Err(WireError::Checksum { kind });
        }
        self.start += HEADER_LEN + len;
        Ok(Some(Frame { kind, checksum: claimed, body }))
    }
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
            Self::TooLong { kind, len } => write!(f, "a {kind:?} of {len} bytes is too long"),
            Self::Checksum { kind } => write!(f, "the checksum of a {kind:?} does not hold"),
            Self::Short => f.write_str("a message ends within a field"),
            Self::Trailing => f.write_str("a message goes on after its last field"),
            Self::Value(field) => write!(f, "a {field} has a value that it cannot have"),
        }
    }
}

impl std::error::Error for WireError {}
