//! Frames: the header, its limits, and the buffer in which they arrive.

use xxhash_rust::xxh3::Xxh3;

use super::{Features, Kind, Lane, WireError, version::WIRE_VERSION};

const MAGIC: [u8; 4] = *b"RmKv";
/// Bytes before the body.
pub const HEADER_LEN: usize = 24;
/// The checksum covers this much of the header, then the body.
const SUMMED: usize = 16;

/// A frame whose checksum holds, still in the buffer in which it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    pub kind: Kind,
    pub checksum: u64,
    pub body: &'a [u8],
    /// What the session has.
    pub(super) features: Features,
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
    fn parse(bytes: &[u8; HEADER_LEN], lane: Lane, features: Features) -> Result<Self, WireError> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if bytes[..4] != MAGIC {
            return Err(WireError::Magic);
        }
        let (version, number, len) = (u16_at(4), u16_at(6), u32_at(8));
        if version != WIRE_VERSION && number != Kind::Refuse as u16 {
            return Err(WireError::Version { theirs: version });
        }
        let kind = Kind::from_number(number).ok_or(WireError::Kind { number })?;
        if kind.lane() != lane {
            return Err(WireError::Lane { kind });
        }
        if let Some(feature) = kind.feature().filter(|feature| !features.has(*feature)) {
            return Err(WireError::Feature { kind, feature });
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
/// Until [`agree`](Self::agree) has said otherwise, the session has no features.
///
/// Call order: read from the socket into [`space`](Self::space), say how much with [`filled`](Self::filled), then
/// [`next_frame`](Self::next_frame) until it has none.
pub struct FrameBuffer {
    lane: Lane,
    features: Features,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl FrameBuffer {
    pub fn new(lane: Lane) -> Self {
        let buffer = vec![0; 2 * (HEADER_LEN + lane.body_max())].into_boxed_slice();
        Self { lane, features: Features::NONE, buffer, start: 0, end: 0 }
    }

    /// The session has these features, for all frames from here on: both ends have named them.
    pub fn agree(&mut self, features: Features) {
        self.features = features;
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
        let Header { kind, len, checksum: claimed } =
            Header::parse(header, self.lane, self.features)?;
        let Some(body) = rest.get(..len) else { return Ok(None) };
        if checksum(&header[..SUMMED], std::iter::once(body)) != claimed {
            return Err(WireError::Checksum { kind });
        }
        self.start += HEADER_LEN + len;
        Ok(Some(Frame { kind, checksum: claimed, body, features: self.features }))
    }
}
