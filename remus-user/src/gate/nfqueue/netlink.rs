//! Netlink messages as bytes: writing requests of netfilter's subsystems, walking what comes back.
//!
//! ```text
//! message    length u32 | kind u16 | flags u16 | sequence u32 | port u32 | family u8 | version u8 | resource be16 | attributes
//! attribute  length u16 | kind u16 | value | padding to 4
//! ```
//!
//! The length of either counts its own header. Nothing here is trusted to be whole: a walk ends where a length does
//! not fit what is there. Pure; the socket is in [`super::socket`].

/// Bytes of a message before its payload.
pub(super) const HEADER: usize = 16;
/// Bytes of the payload before its attributes.
const SUBHEADER: usize = 4;

pub(super) const REQUEST: u16 = 1;
pub(super) const ACK: u16 = 4;
pub(super) const DUMP: u16 = 0x300;
/// Make it, if it is not there.
pub(super) const CREATE: u16 = 0x400;
/// At the end of what is there, not at its beginning.
pub(super) const APPEND: u16 = 0x800;

/// The kind of a message that reports an error, or acknowledges when the error is 0.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Flag of a dump during which the thing that is dumped changed.
const INTERRUPTED: u16 = 0x10;
const NESTED: u16 = 0x8000;
const KIND: u16 = 0x3fff;

/// Requests, one after another in one buffer.
#[derive(Default)]
pub(super) struct Requests {
    bytes: Vec<u8>,
    begin: usize,
    sequence: u32,
}

impl Requests {
    /// Begins a message; what is added next are its attributes.
    pub(super) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
    ) -> &mut Self {
        self.begin = self.bytes.len();
        self.sequence += 1;
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | REQUEST).to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.close(self.begin, 4);
        self
    }

    /// # Panics
    /// On a value of 64 KiB or more: no request here has one.
    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let at = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.close(at, 2);
        self.close(self.begin, 4);
        self
    }

    /// A string, with the zero byte at its end that the kernel wants.
    pub(super) fn string(&mut self, kind: u16, value: &str) -> &mut Self {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(super) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    /// An attribute whose value is what `inner` adds.
    pub(super) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) -> &mut Self {
        let at = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        inner(self);
        self.close(at, 2);
        self.close(self.begin, 4);
        self
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes the length, of `width` bytes, of what begins at `at`, and pads what follows.
    fn close(&mut self, at: usize, width: usize) {
        let length = u32::try_from(self.bytes.len() - at).expect("requests are short");
        assert!(width == 4 || length <= u16::MAX.into(), "an attribute's length has 16 bits");
        self.bytes[at..at + width].copy_from_slice(&length.to_ne_bytes()[..width]);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// One message of the kernel's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reply<'a> {
    /// What was asked for, of this kind. Its attributes are walked with [`attributes`].
    Data { kind: u16, family: u8, resource: u16, attributes: &'a [u8] },
    /// The request with this sequence was refused: an errno, above 0.
    Refused { sequence: u32, errno: i32 },
    /// The request was done, or the dump has ended.
    Done,
    /// The dump is not consistent: ask again.
    Interrupted,
}

/// The messages in one datagram, as far as they are whole.
pub(super) fn replies(mut datagram: &[u8]) -> impl Iterator<Item = Reply<'_>> {
    std::iter::from_fn(move || {
        loop {
            let length = u32_at(datagram, 0)? as usize;
            if length < HEADER || length > datagram.len() {
                return None;
            }
            let message = &datagram[..length];
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
            if let Some(reply) = reply(message) {
                return Some(reply);
            }
        }
    })
}

fn reply(message: &[u8]) -> Option<Reply<'_>> {
    let (kind, flags) = (u16_at(message, 4)?, u16_at(message, 6)?);
    if kind != ERROR && flags & INTERRUPTED != 0 {
        return Some(Reply::Interrupted);
    }
    match kind {
        ERROR => {
            let errno = u32_at(message, HEADER)?.cast_signed().checked_neg()?;
            Some(match errno {
                0 => Reply::Done,
                errno => Reply::Refused { sequence: u32_at(message, 8)?, errno },
            })
        }
        DONE => Some(Reply::Done),
        kind => Some(Reply::Data {
            kind,
            family: *message.get(HEADER)?,
            resource: u16_at(message, HEADER + 2)?.to_be(),
            attributes: message.get(HEADER + SUBHEADER..)?,
        }),
    }
}

/// The attributes in `bytes`, as far as they are whole: kind, without its flags, and value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & KIND;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_has_the_layout_of_the_module_doc() {
        let mut requests = Requests::default();
        requests.message(0x0302, ACK, 7, 0x1234).number(2, 5).nest(1, |inner| {
            inner.string(6, "ab");
        });
        let expected: &[u8] = &[
            40, 0, 0, 0, 0x02, 0x03, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0x12, 0x34, // header
            8, 0, 2, 0, 0, 0, 0, 5, // a number
            12, 0, 1, 0x80, 7, 0, 6, 0, b'a', b'b', 0, 0, // a string in a nest
        ];
        assert_eq!(requests.bytes(), expected);
    }

    #[test]
    fn an_error_is_a_refusal_and_error_0_is_done() {
        let mut error = vec![20, 0, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        error.extend((-2i32).to_ne_bytes());
        let refused = Reply::Refused { sequence: 9, errno: 2 };
        assert_eq!(replies(&error).collect::<Vec<_>>(), [refused]);
        error[16..].fill(0);
        assert_eq!(replies(&error).collect::<Vec<_>>(), [Reply::Done]);
    }

    proptest! {
        #[test]
        fn attributes_come_back_as_they_were_written(
            values in prop::collection::vec((0u16..0x3fff, prop::collection::vec(any::<u8>(), 0..40)), 0..8),
        ) {
            let mut requests = Requests::default();
            requests.message(0x0a00, 0, 1, 0);
            for (kind, value) in &values {
                requests.attribute(*kind, value);
            }
            let read: Vec<_> = replies(requests.bytes()).collect();
            let [Reply::Data { attributes: bytes, .. }] = read[..] else { panic!("one message") };
            let read: Vec<_> = attributes(bytes).map(|(kind, value)| (kind, value.to_vec())).collect();
            prop_assert_eq!(read, values);
        }

        #[test]
        fn whatever_bytes_come_the_walk_ends(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for reply in replies(&bytes) {
                if let Reply::Data { attributes: inner, .. } = reply {
                    prop_assert!(attributes(inner).count() <= inner.len() / 4);
                }
            }
        }
    }
}
