//! Connections that a backup accepts: from the port to the first message, which says whose they are.

use std::{
    io::{self, Write},
    net::SocketAddr,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{
    AckDatagrams, Polled,
    control::{OPEN_WITHIN, blocking},
    tune,
};
use crate::wire::{
    AckTo, Attach, BulkToBackup, CONTROL_BODY_MAX, FrameBuffer, HEADER_LEN, Hello, Kind, Lane,
    Refuse, ToBackup,
};

/// The port at which a backup waits for primaries.
pub struct Listener(TcpListener);

/// Somebody who has connected and not said yet what for.
pub struct Caller(TcpStream);

/// A connection whose first message was read, and nothing beyond.
#[derive(Debug)]
pub struct Accepted(std::net::TcpStream);

/// The first message of a connection.
pub enum Opening {
    /// A primary wants a session; this is its control connection.
    Hello(Box<Hello>),
    /// The bulk connection of a session.
    Attach(Attach),
}

/// The header tells which lane this is; exactly one frame is read, since pages may follow an `Attach` at once.
async fn read_opening(stream: &mut TcpStream) -> Result<Opening> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).await.context("read the opening message")?;
    let number = u16::from_le_bytes([header[6], header[7]]);
    let is_bulk = number == Kind::Attach as u16;
    let lane = if is_bulk { Lane::BulkToBackup } else { Lane::ControlToBackup };
    let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
    ensure!(len <= CONTROL_BODY_MAX, "an opening message of {len} bytes");

    let mut frames = FrameBuffer::new(lane);
    let space = frames.space();
    space[..HEADER_LEN].copy_from_slice(&header);
    stream
        .read_exact(&mut space[HEADER_LEN..HEADER_LEN + len])
        .await
        .context("read the opening message")?;
    frames.filled(HEADER_LEN + len);
    let frame = frames.next_frame()?.context("a whole frame was read")?;
    if is_bulk {
        return match BulkToBackup::decode(&frame)? {
            BulkToBackup::Attach(attach) => Ok(Opening::Attach(attach)),
            BulkToBackup::BootPages(_)
            | BulkToBackup::BootState(_)
            | BulkToBackup::SyncPages(_)
            | BulkToBackup::Begin(_)
            | BulkToBackup::Pages(_)
            | BulkToBackup::State(_)
            | BulkToBackup::End(_) => bail!("a bulk connection opens with Attach"),
        };
    }
    match ToBackup::decode(&frame)? {
        ToBackup::Hello(hello) => Ok(Opening::Hello(Box::new(hello))),
        ToBackup::Heartbeat(_) | ToBackup::Goodbye(_) | ToBackup::Inbound(_) => {
            bail!("a control connection opens with Hello")
        }
    }
}

impl Listener {
    /// # Errors
    /// When `address` is none of this host's, or the port is taken.
    pub async fn bind(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("listen at {address}: is it an address of this host, and the port free?")
        })?;
        Ok(Self(listener))
    }

    /// Waits for the next caller; says where they call from.
    ///
    /// # Errors
    /// When the process has no descriptor left, most likely.
    pub async fn accept(&self) -> io::Result<(Caller, SocketAddr)> {
        let (stream, peer) = self.0.accept().await?;
        Ok((Caller(stream), peer))
    }
}

impl Caller {
    /// Reads the first message, and no byte beyond: a primary sends nothing more before it is answered.
    ///
    /// # Errors
    /// When no opening comes within five seconds, or the bytes are something else; the connection is dropped.
    pub async fn opening(self) -> Result<(Opening, Accepted)> {
        let mut stream = self.0;
        tune(&stream, OPEN_WITHIN).context("set up the connection")?;
        let opening = timeout(OPEN_WITHIN, read_opening(&mut stream))
            .await
            .context("no opening message")??;
        Ok((opening, Accepted(blocking(stream)?)))
    }
}

impl Accepted {
    /// Answers with a refusal, and ends the connection.
    ///
    /// # Errors
    /// When the caller is gone.
    pub fn refuse(self, refusal: Refuse) -> io::Result<()> {
        let mut stream = self.0;
        let mut buffer = Vec::new();
        refusal.encode(&mut buffer);
        stream.set_write_timeout(Some(OPEN_WITHIN))?;
        stream.write_all(&buffer)
    }

    /// The connection as one of a session, on which `lane` arrives.
    ///
    /// # Errors
    /// When the socket cannot be made non-blocking.
    pub fn polled(self, lane: Lane) -> io::Result<Polled> {
        Polled::new(self.0, lane)
    }

    /// A way to send acks as datagrams to the caller.
    ///
    /// # Errors
    /// When the connection is gone, or no socket is to be had.
    pub fn datagrams(&self, to: &AckTo) -> io::Result<AckDatagrams> {
        AckDatagrams::beside(&self.0, to)
    }
}
