//! One end of a connection in an event loop: the backup's view of both.
//!
//! How a connection ended matters here. FIN and RST are the peer's word. Any other error says that this host's kernel
//! has given the connection up (ETIMEDOUT, EHOSTUNREACH, ENETUNREACH, ENETDOWN, or an operator with `ss -K`), which is
//! no more than silence. The kernel is told not to do so before the detector has judged.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::TcpStream,
    os::fd::{AsRawFd, RawFd},
    time::Duration,
};

use super::tune;
use crate::wire::{FrameBuffer, Lane, Timing};

/// Most bytes that may wait to be sent.
const UNSENT_MAX: usize = 64 << 10;
/// A detector judges earlier, whatever the session's timing.
const GIVE_UP_AFTER: Duration = Timing::SPAN_MAX.saturating_mul(2);
/// Within this time a process that dies closes all of its connections.
const CLOSING: Duration = Duration::from_millis(10);

/// What became of a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrived {
    /// Bytes came; there may be frames, and more bytes.
    Bytes,
    /// Nothing is there now.
    Nothing,
    /// The peer has ended the connection.
    End,
    /// The peer has not ended the connection, and nothing more will arrive on it.
    Broken,
}

/// How a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    ByPeer,
    /// By this host's kernel.
    Broken,
}

impl Ended {
    fn by(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::ByPeer,
            _ => Self::Broken,
        }
    }
}

/// A non-blocking socket, the frames that arrive on it, and what still has to leave.
pub struct Polled {
    stream: TcpStream,
    pub frames: FrameBuffer,
    unsent: Vec<u8>,
    /// Known once a read or a write has found it out.
    ended: Option<Ended>,
}

impl Polled {
    /// # Errors
    /// When the socket cannot be made non-blocking, or patient.
    pub(super) fn new(stream: TcpStream, lane: Lane) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        tune(&stream, GIVE_UP_AFTER)?;
        let unsent = Vec::with_capacity(UNSENT_MAX);
        Ok(Self { stream, frames: FrameBuffer::new(lane), unsent, ended: None })
    }

    /// Reads once into the frame buffer; take the frames out before the next call.
    pub fn read(&mut self) -> Arrived {
        loop {
            return match self.stream.read(self.frames.space()) {
                Ok(0) => {
                    self.ended.get_or_insert(Ended::ByPeer);
                    Arrived::End
                }
                Ok(read) => {
                    self.frames.filled(read);
                    Arrived::Bytes
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => Arrived::Nothing,
                Err(e) => match self.ended.get_or_insert(Ended::by(&e)) {
                    Ended::ByPeer => Arrived::End,
                    Ended::Broken => Arrived::Broken,
                },
            };
        }
    }

    /// Answers with what `encode` appends, unless so many earlier answers still wait that the peer would learn nothing
    /// from another one: then this one is left out.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn answer(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        if self.unsent.len() < UNSENT_MAX / 2 {
            encode(&mut self.unsent);
        }
        self.flush()
    }

    /// Sends what `encode` appends, now or, as far as the socket does not take it, with the next send.
    ///
    /// # Errors
    /// When the connection is broken, or the peer takes nothing any more.
    pub fn send(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        encode(&mut self.unsent);
        self.flush()?;
        if self.unsent.len() > UNSENT_MAX {
            return Err(io::Error::new(ErrorKind::TimedOut, "the peer takes no answers"));
        }
        Ok(())
    }

    /// Sends what is left of earlier sends.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(written) => {
                    self.unsent.drain(..written);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => {
                    self.ended.get_or_insert(Ended::by(&e));
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// Whether the peer has ended the connection, or does so within `within`. Bytes that were not read do not hide it.
    fn is_ended_by_peer(&self, within: Duration) -> bool {
        if let Some(ended) = self.ended {
            return ended == Ended::ByPeer;
        }
        let mut fd = libc::pollfd { fd: self.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
        let timeout = libc::c_int::try_from(within.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: one pollfd, which lives during the call. An interrupted call is as good as nothing seen.
        let ready = unsafe { libc::poll(&raw mut fd, 1, timeout) };
        if ready <= 0 {
            return false;
        }
        match self.stream.take_error() {
            Ok(Some(e)) => Ended::by(&e) == Ended::ByPeer,
            Ok(None) => true,
            Err(_) => false,
        }
    }
}

/// Whether the peer has ended every one of a session's connections: that is news of it. It is none when this host ended
/// one, or when its kernel gave one up.
pub fn are_ended_by_peer<'a>(connections: impl Iterator<Item = &'a Polled> + Clone) -> bool {
    let found = connections.clone().any(|connection| connection.ended == Some(Ended::ByPeer));
    found && connections.clone().all(|connection| connection.is_ended_by_peer(CLOSING))
}

impl AsRawFd for Polled {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A connection's two ends: the backup's, and the primary's bare one.
    fn pair() -> (Polled, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let primary = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (backup, _) = listener.accept().unwrap();
        (Polled::new(backup, Lane::ControlToBackup).unwrap(), primary)
    }

    fn read_until_it_ends(polled: &mut Polled) -> Arrived {
        loop {
            match polled.read() {
                Arrived::Nothing | Arrived::Bytes => std::thread::yield_now(),
                ended @ (Arrived::End | Arrived::Broken) => return ended,
            }
        }
    }

    /// Ends with RST: close with a linger of nothing.
    fn reset(stream: TcpStream) {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        let length = libc::socklen_t::try_from(size_of_val(&linger)).unwrap();
        // SAFETY: an option of this type on a descriptor that lives during the call.
        let result = unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                (&raw const linger).cast(),
                length,
            )
        };
        assert_eq!(result, 0);
    }

    #[test]
    fn a_peer_that_ends_both_connections_is_news_and_one_that_ends_one_is_not() {
        let ((mut control, at_primary), (bulk, bulk_at_primary)) = (pair(), pair());
        drop(at_primary);
        assert_eq!(read_until_it_ends(&mut control), Arrived::End);
        assert!(!are_ended_by_peer([&control, &bulk].into_iter()));
        // Found although it was not read, and although bytes come before it.
        (&bulk_at_primary).write_all(&[0; 100]).unwrap();
        drop(bulk_at_primary);
        assert!(are_ended_by_peer([&control, &bulk].into_iter()));
    }

    #[test]
    fn a_reset_is_the_peers_word_too() {
        let ((mut control, at_primary), (bulk, bulk_at_primary)) = (pair(), pair());
        reset(at_primary);
        reset(bulk_at_primary);
        assert_eq!(read_until_it_ends(&mut control), Arrived::End);
        assert!(are_ended_by_peer([&control, &bulk].into_iter()));
    }

    #[test]
    fn a_connection_that_nobody_has_ended_yet_is_no_news() {
        let ((control, _at_primary), (bulk, bulk_at_primary)) = (pair(), pair());
        drop(bulk_at_primary);
        // This host ends the session, for what was said on it say.
        assert!(!are_ended_by_peer([&control, &bulk].into_iter()));
    }

    #[test]
    fn what_this_hosts_kernel_gives_up_is_not_the_peers_word() {
        for errno in [
            libc::ETIMEDOUT,
            libc::EHOSTUNREACH,
            libc::ENETUNREACH,
            libc::ENETDOWN,
            libc::ECONNABORTED,
        ] {
            assert_eq!(Ended::by(&io::Error::from_raw_os_error(errno)), Ended::Broken, "{errno}");
        }
        for errno in [libc::ECONNRESET, libc::EPIPE] {
            assert_eq!(Ended::by(&io::Error::from_raw_os_error(errno)), Ended::ByPeer, "{errno}");
        }
    }

    #[test]
    fn answers_that_the_peer_does_not_take_are_left_out_and_end_nothing() {
        let (mut control, at_primary) = pair();
        // More than both sockets take.
        for _ in 0..400_000 {
            control.answer(|out| out.extend([7; 44])).unwrap();
        }
        assert!(control.unsent.len() < UNSENT_MAX, "{}", control.unsent.len());
        drop(at_primary);
    }
}
