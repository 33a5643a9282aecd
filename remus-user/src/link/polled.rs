//! One end of a connection in an event loop: the backup's view of both.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::TcpStream,
    os::fd::{AsRawFd, RawFd},
};

use crate::wire::{FrameBuffer, Lane};

/// Most bytes that may wait to be sent. Answers are small: a peer that lets so many pile up is gone.
const UNSENT_MAX: usize = 64 << 10;

/// What became of a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrived {
    /// Bytes came; there may be frames, and more bytes.
    Bytes,
    /// Nothing is there now.
    Nothing,
    /// The peer has ended the connection, or it is broken.
    End,
}

/// A non-blocking socket, the frames that arrive on it, and what still has to leave.
pub struct Polled {
    stream: TcpStream,
    pub frames: FrameBuffer,
    unsent: Vec<u8>,
}

impl Polled {
    /// # Errors
    /// When the socket cannot be made non-blocking.
    pub fn new(stream: TcpStream, lane: Lane) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, frames: FrameBuffer::new(lane), unsent: Vec::with_capacity(UNSENT_MAX) })
    }

    /// Reads once into the frame buffer; take the frames out before the next call.
    pub fn read(&mut self) -> Arrived {
        loop {
            return match self.stream.read(self.frames.space()) {
                Ok(0) => Arrived::End,
                Ok(read) => {
                    self.frames.filled(read);
                    Arrived::Bytes
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => Arrived::Nothing,
                Err(_) => Arrived::End,
            };
        }
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
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl AsRawFd for Polled {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}
