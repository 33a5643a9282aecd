//! One rtnetlink socket for short questions: what filters sit on a link, and what the link has.
//!
//! Written out rather than taken from a crate, because it is asked on every tick by the thread that moves the
//! guest's frames: one buffer on the stack, no allocation, and no wait, since the kernel has the answer ready
//! when the request has been sent. The socket belongs to the network namespace in which it was opened.
//!
//! Deliberately absent: what the answers mean (`chain`, `health`), and any change but the removal of a filter.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::atomic::{AtomicU32, Ordering},
};

/// One message of the kernel is far below this; a dump comes in parts.
const ANSWER_BYTES: usize = 16 << 10;
const HEADER_BYTES: usize = size_of::<libc::nlmsghdr>();
const REQUEST_BYTES: usize = 64;

pub(super) struct Rtnl {
    socket: OwnedFd,
    sequence: AtomicU32,
}

/// A request: its kind, its fixed part and short attributes.
pub(super) struct Request {
    bytes: [u8; REQUEST_BYTES],
    len: usize,
}

impl Request {
    /// `kind` is an RTM number, `flags` are those beside NLM_F_REQUEST.
    pub(super) fn new(kind: u16, flags: i32, fixed: &[u8]) -> Self {
        let mut request = Self { bytes: [0; REQUEST_BYTES], len: HEADER_BYTES };
        let flags = u16::try_from(libc::NLM_F_REQUEST | flags).expect("flags of 16 bits");
        request.bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        request.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        request.push(fixed);
        request
    }

    /// Adds an attribute of a multiple of four bytes.
    pub(super) fn with(mut self, attribute: u16, value: &[u8]) -> Self {
        let len = u16::try_from(4 + value.len()).expect("a short attribute");
        self.push(&len.to_ne_bytes());
        self.push(&attribute.to_ne_bytes());
        self.push(value);
        self
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn numbered(&mut self, sequence: u32) -> &[u8] {
        let len = u32::try_from(self.len).expect("a short request");
        self.bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.bytes[..self.len]
    }
}

impl Rtnl {
    /// Opens the socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel has no netlink sockets to give.
    pub(super) fn open() -> io::Result<Self> {
        // SAFETY: plain socket(2); the result is checked.
        let socket = unsafe {
            libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE)
        };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        Ok(Self { socket, sequence: AtomicU32::new(0) })
    }

    /// Sends `request`, which asks for a dump or an ack, and hands `each` the body of every answer.
    ///
    /// # Errors
    /// What the kernel answered, such as ENODEV, or an answer that is none.
    pub(super) fn ask(&self, mut request: Request, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let bytes = request.numbered(sequence);
        // SAFETY: a live buffer of that length; an unconnected netlink socket sends to the kernel.
        let sent =
            unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut buffer = [0; ANSWER_BYTES];
        loop {
            let answer = self.receive(&mut buffer)?;
            for message in Messages(answer) {
                let message = message?;
                if message.sequence != sequence {
                    // The rest of an answer that was given up.
                    continue;
                }
                match i32::from(message.kind) {
                    libc::NLMSG_DONE | libc::NLMSG_ERROR => return errno(message.body),
                    libc::NLMSG_NOOP => {}
                    _ => each(message.body),
                }
            }
        }
    }

    fn receive<'a>(&self, buffer: &'a mut [u8; ANSWER_BYTES]) -> io::Result<&'a [u8]> {
        // SAFETY: sockaddr_nl is plain data.
        let mut from: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        let mut from_len = libc::socklen_t::try_from(size_of_val(&from)).expect("twelve");
        // SAFETY: the buffer and the address live during the call, and their lengths are theirs.
        let got = unsafe {
            libc::recvfrom(
                self.socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT | libc::MSG_TRUNC,
                (&raw mut from).cast(),
                &raw mut from_len,
            )
        };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        if from.nl_pid != 0 {
            return Err(io::Error::other("an answer that is not the kernel's"));
        }
        buffer.get(..got).ok_or_else(|| io::Error::other("an answer too long to be one"))
    }
}

struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The messages of one answer.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = io::Result<Message<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let message = split_message(self.0);
        self.0 = message.as_ref().map_or(&[], |(_, rest)| rest);
        Some(
            message
                .map(|(message, _)| message)
                .ok_or_else(|| io::Error::other("an answer that is cut off")),
        )
    }
}

fn split_message(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let len = word(bytes, 0)? as usize;
    let message = Message {
        kind: half(bytes, 4)?,
        sequence: word(bytes, 8)?,
        body: bytes.get(HEADER_BYTES..len)?,
    };
    // The last one may come without its padding.
    Some((message, bytes.get(len.next_multiple_of(4)..).unwrap_or(&[])))
}

/// The attributes in a message or in another attribute: kind and value. What is malformed ends them.
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        // NLA_F_NESTED and NLA_F_NET_BYTEORDER share the field with the kind.
        const KIND: u16 = 0x3fff;
        let len = usize::from(half(self.0, 0)?);
        let kind = half(self.0, 2)? & KIND;
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

/// The 32-bit word at `at`, in the order of this machine.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The result at the head of an ack, or of the end of a dump: 0 or a negative errno.
fn errno(body: &[u8]) -> io::Result<()> {
    match word(body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(error @ ..0) => Err(io::Error::from_raw_os_error(error.wrapping_neg())),
        Some(1..) | None => Err(io::Error::other("an answer without a result")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_is_taken_apart_and_a_cut_one_is_an_error() {
        let mut bytes = Vec::new();
        for (kind, body) in [(16u16, &[1u8, 2, 3][..]), (3, &[0; 4])] {
            let len = u32::try_from(HEADER_BYTES + body.len()).unwrap();
            bytes.extend(len.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 2]);
            bytes.extend(7u32.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend(body);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let all: Vec<_> = Messages(&bytes).map(Result::unwrap).collect();
        assert_eq!(all.iter().map(|m| (m.kind, m.sequence)).collect::<Vec<_>>(), [(16, 7), (3, 7)]);
        assert_eq!(all[0].body, [1, 2, 3]);
        let cut = &bytes[..bytes.len() - 1];
        assert!(Messages(cut).last().unwrap().is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic_or_go_on_for_ever(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Messages(&bytes).count() <= bytes.len() / HEADER_BYTES + 1);
            prop_assert!(Attributes(&bytes).count() <= bytes.len() / 4 + 1);
        }
    }
}
