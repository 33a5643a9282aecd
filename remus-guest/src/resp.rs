//! RESP2, the Redis protocol: requests in, replies out.
//!
//! A request is either an array of bulk strings,
//!
//! ```text
//! *2\r\n  $4\r\n ECHO\r\n  $2\r\n hi\r\n        (without the blanks)
//! ```
//!
//! or an *inline command*: one line of words between blanks. The parser looks at bytes and says where the
//! arguments lie in them; it copies nothing and keeps nothing between calls, so what it returns depends
//! only on the bytes. Limits are checked on the announced lengths, before the bytes have come.
//!
//! Deliberately absent: RESP3, and quoting in inline commands (a quote is a byte like any other).

use alloc::vec::Vec;
use core::fmt::Write;
use core::ops::Range;

/// Arguments of one request, at most.
pub const ARGS_MAX: usize = 8192;
/// Bytes of an inline command, at most.
pub const INLINE_MAX: usize = 16 * 1024;

/// What one connection may ask a server of this size to keep in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of one bulk string.
    pub bulk: usize,
    /// Bytes of a whole request.
    pub request: usize,
    /// Bytes of a whole reply.
    pub reply: usize,
}

/// The arguments of one request: where they lie in the bytes that were parsed.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    bytes: &'a [u8],
    ranges: &'a [Range<usize>],
}

/// What the bytes so far amount to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// The request goes on beyond the bytes.
    Incomplete,
    /// A request ends after `consumed` bytes. It may be empty (a blank line, `*0`), which gets no reply.
    Request { consumed: usize },
}

/// Bytes that no request begins with. The connection cannot go on after one: where the next request
/// begins is unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProtocolError {
    MultibulkLength,
    BulkLength,
    ExpectedDollar(u8),
    InlineTooBig,
    MultibulkCountTooBig,
    RequestTooBig,
}

impl<'a> Args<'a> {
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Argument `i`; 0 is the command's name.
    ///
    /// # Panics
    /// Beyond [`Args::len`]: the command table has checked the number before.
    pub fn get(&self, i: usize) -> &'a [u8] {
        &self.bytes[self.ranges[i].clone()]
    }

    /// The arguments from number `i` on.
    pub fn from(&self, i: usize) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let bytes = self.bytes;
        self.ranges[i.min(self.ranges.len())..].iter().map(move |r| &bytes[r.clone()])
    }
}

/// Finds requests in bytes. Holds only the arguments of the last request it found, to reuse their memory.
#[derive(Default, Debug)]
pub struct Parser {
    ranges: Vec<Range<usize>>,
}

impl Parser {
    /// Looks for one request at the beginning of `bytes`. Its arguments are then in [`Parser::args`].
    pub fn parse(&mut self, bytes: &[u8], limits: &Limits) -> Result<Parsed, ProtocolError> {
        self.ranges.clear();
        let parsed = match bytes.first() {
            None => Ok(Parsed::Incomplete),
            Some(b'*') => self.multibulk(bytes, limits),
            Some(_) => self.inline(bytes),
        };
        if parsed == Ok(Parsed::Incomplete) && bytes.len() > limits.request {
            return Err(ProtocolError::RequestTooBig);
        }
        parsed
    }

    /// The arguments of the request that [`Parser::parse`] found in `bytes`, which must be the same.
    pub fn args<'a>(&'a self, bytes: &'a [u8]) -> Args<'a> {
        Args { bytes, ranges: &self.ranges }
    }

    fn inline(&mut self, bytes: &[u8]) -> Result<Parsed, ProtocolError> {
        let Some(end) = bytes.iter().take(INLINE_MAX).position(|b| *b == b'\n') else {
            return if bytes.len() >= INLINE_MAX {
                Err(ProtocolError::InlineTooBig)
            } else {
                Ok(Parsed::Incomplete)
            };
        };
        let mut word_start = None;
        for (i, b) in bytes[..=end].iter().enumerate() {
            match (b.is_ascii_whitespace(), word_start) {
                (true, Some(start)) => {
                    self.ranges.push(start..i);
                    word_start = None;
                }
                (false, None) => word_start = Some(i),
                (true, None) | (false, Some(_)) => {}
            }
        }
        if self.ranges.len() > ARGS_MAX {
            return Err(ProtocolError::MultibulkCountTooBig);
        }
        Ok(Parsed::Request { consumed: end + 1 })
    }

    fn multibulk(&mut self, bytes: &[u8], limits: &Limits) -> Result<Parsed, ProtocolError> {
        let Some((count, mut at)) = length_line(bytes, 1, ProtocolError::MultibulkLength)? else {
            return Ok(Parsed::Incomplete);
        };
        // A negative count is an empty request to Redis, too.
        let count = usize::try_from(count).unwrap_or(0);
        if count > ARGS_MAX {
            return Err(ProtocolError::MultibulkCountTooBig);
        }
        for _ in 0..count {
            match bytes.get(at) {
                None => return Ok(Parsed::Incomplete),
                Some(b'$') => {}
                Some(other) => return Err(ProtocolError::ExpectedDollar(*other)),
            }
            let Some((len, start)) = length_line(bytes, at + 1, ProtocolError::BulkLength)? else {
                return Ok(Parsed::Incomplete);
            };
            let len = usize::try_from(len).map_err(|_| ProtocolError::BulkLength)?;
            if len > limits.bulk {
                return Err(ProtocolError::BulkLength);
            }
            if start + len > limits.request {
                return Err(ProtocolError::RequestTooBig);
            }
            // As Redis does, the two bytes after a bulk string are counted and not looked at.
            if bytes.len() < start + len + 2 {
                return Ok(Parsed::Incomplete);
            }
            self.ranges.push(start..start + len);
            at = start + len + 2;
        }
        Ok(Parsed::Request { consumed: at })
    }
}

/// The decimal number from `at` to the next CRLF, and where the line after it begins. `None`: not whole yet.
fn length_line(
    bytes: &[u8],
    at: usize,
    error: ProtocolError,
) -> Result<Option<(i64, usize)>, ProtocolError> {
    // Sign, 19 digits, CR, LF.
    const LINE_MAX: usize = 22;
    let rest = &bytes[at..];
    let Some(cr) = rest.iter().take(LINE_MAX).position(|b| *b == b'\r') else {
        return if rest.len() >= LINE_MAX { Err(error) } else { Ok(None) };
    };
    let number = parse_i64(&rest[..cr]).ok_or(error)?;
    match rest.get(cr + 1) {
        None => Ok(None),
        Some(b'\n') => Ok(Some((number, at + cr + 2))),
        Some(_) => Err(error),
    }
}

/// A decimal integer as Redis takes it: an optional minus, digits, nothing else.
pub fn parse_i64(bytes: &[u8]) -> Option<i64> {
    if bytes.first() == Some(&b'+') {
        return None;
    }
    core::str::from_utf8(bytes).ok()?.parse().ok()
}

/// Writes one reply to the end of a buffer.
///
/// A reply that would grow beyond its limit is replaced by an error when [`Reply::finish`] is called, so
/// that no request makes the server hold more than the limit.
pub struct Reply<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    limit: usize,
    overflow: bool,
}

impl<'a> Reply<'a> {
    pub fn new(out: &'a mut Vec<u8>, limit: usize) -> Self {
        let start = out.len();
        Self { out, start, limit, overflow: false }
    }

    pub fn ok(&mut self) {
        self.simple("OK");
    }

    pub fn simple(&mut self, text: &str) {
        self.line(b'+', text.as_bytes());
    }

    /// An error line. `text` begins with its kind (`ERR`, `WRONGTYPE`) and has no line break.
    pub fn error(&mut self, text: &str) {
        self.line(b'-', text.as_bytes());
    }

    pub fn integer(&mut self, n: i64) {
        self.number(b':', n);
    }

    pub fn bulk(&mut self, bytes: &[u8]) {
        if self.room(bytes.len() + 32) {
            self.length(b'$', bytes.len());
            self.out.extend_from_slice(bytes);
            self.out.extend_from_slice(b"\r\n");
        }
    }

    pub fn null(&mut self) {
        self.number(b'$', -1);
    }

    /// The null array, of which `*-1` is the sign.
    pub fn null_array(&mut self) {
        self.number(b'*', -1);
    }

    /// Begins an array: the next `len` replies are its elements.
    pub fn array(&mut self, len: usize) {
        self.length(b'*', len);
    }

    /// Ends the reply: if it did not fit, an error stands in its place.
    pub fn finish(mut self) {
        if self.overflow {
            self.overflow = false;
            self.out.truncate(self.start);
            self.error("ERR the reply is larger than this server sends");
        }
    }

    fn length(&mut self, kind: u8, n: usize) {
        self.number(kind, i64::try_from(n).unwrap_or(i64::MAX));
    }

    fn number(&mut self, kind: u8, n: i64) {
        if self.room(32) {
            self.out.push(kind);
            write!(Appender(self.out), "{n}\r\n").expect("appending to a Vec cannot fail");
        }
    }

    fn line(&mut self, kind: u8, text: &[u8]) {
        if self.room(text.len() + 3) {
            self.out.push(kind);
            self.out.extend_from_slice(text);
            self.out.extend_from_slice(b"\r\n");
        }
    }

    fn room(&mut self, bytes: usize) -> bool {
        self.overflow |= self.out.len() - self.start + bytes > self.limit;
        !self.overflow
    }
}

/// `core::fmt` into bytes.
pub(crate) struct Appender<'a>(pub(crate) &'a mut Vec<u8>);

impl Write for Appender<'_> {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        self.0.extend_from_slice(s.as_bytes());
        Ok(())
    }
}

impl core::fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Protocol error: ")?;
        match self {
            Self::MultibulkLength | Self::MultibulkCountTooBig => {
                f.write_str("invalid multibulk length")
            }
            Self::BulkLength => f.write_str("invalid bulk length"),
            Self::ExpectedDollar(got) => {
                let shown = if got.is_ascii_graphic() { char::from(*got) } else { '?' };
                write!(f, "expected '$', got '{shown}'")
            }
            Self::InlineTooBig => f.write_str("too big inline request"),
            Self::RequestTooBig => f.write_str("too big request"),
        }
    }
}

#[cfg(test)]
mod tests;
