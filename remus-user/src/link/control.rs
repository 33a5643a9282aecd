//! The control connection, async.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

use super::{Bulk, Patience, tune};
use crate::wire::{Attach, Features, Frame, FrameBuffer, Lane, ToPrimary, WireError};

/// How long a peer that has not said anything yet is waited for: until a connection to it is there, and until its
/// first message is. Nothing is lost with it.
pub(super) const OPEN_WITHIN: Duration = Duration::from_secs(5);

/// The primary's end of the control connection.
pub struct Control {
    incoming: Incoming,
    outgoing: OwnedWriteHalf,
    buffer: Vec<u8>,
    patience: Patience,
    features: Features,
}

/// The reading half; its own type, so that reading may be one arm of a select and sending another.
struct Incoming {
    stream: OwnedReadHalf,
    frames: FrameBuffer,
}

impl Control {
    /// Connects to a backup.
    ///
    /// # Errors
    /// When nobody answers at `address` within five seconds.
    pub async fn connect(address: SocketAddr, patience: Patience) -> Result<Self> {
        let stream = dial(address, OPEN_WITHIN, patience).await?;
        let (incoming, outgoing) = stream.into_split();
        let incoming =
            Incoming { stream: incoming, frames: FrameBuffer::new(Lane::ControlToPrimary) };
        let buffer = Vec::with_capacity(256);
        Ok(Self { incoming, outgoing, buffer, patience, features: Features::NONE })
    }

    /// The address of this end.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.outgoing.local_addr()
    }

    /// The session has these features, for all that is received from here on.
    pub fn agree(&mut self, features: Features) {
        self.features = features;
        self.incoming.frames.agree(features);
    }

    /// What the session has.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Sends the message that `encode` appends, whole.
    ///
    /// # Errors
    /// When the connection is gone. Not cancel safe: never an arm of a select.
    pub async fn send(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        self.buffer.clear();
        encode(&mut self.buffer);
        self.outgoing.write_all(&self.buffer).await.context("send on the control connection")
    }

    /// The next message. Cancel safe: what has arrived stays in the buffer.
    ///
    /// # Errors
    /// When the connection ends or carries something else than messages to a primary.
    pub async fn receive(&mut self) -> Result<ToPrimary> {
        self.incoming.next(ToPrimary::decode).await
    }

    /// The answer to a message that makes a session; like [`receive`](Self::receive), but not for ever.
    ///
    /// # Errors
    /// As `receive`, and when no answer comes for as long as a stuck connection is waited for. (The backup may have
    /// taken the session up, and to close its one connection is to look dead.)
    pub async fn answer(&mut self) -> Result<ToPrimary> {
        let within = self.patience.stuck();
        timeout(within, self.receive()).await.context("the backup does not answer")?
    }
}

/// Opens the bulk connection of the session that was welcomed on a control connection.
///
/// # Errors
/// When the backup is gone.
pub async fn open_bulk(address: SocketAddr, attach: Attach, patience: Patience) -> Result<Bulk> {
    let mut stream = dial(address, patience.stuck(), patience).await?;
    let mut buffer = Vec::new();
    attach.encode(&mut buffer);
    stream.write_all(&buffer).await.context("attach the bulk connection")?;
    let stream = blocking(stream)?;
    // The sender thread must not wait for ever.
    stream.set_write_timeout(Some(patience.stuck())).context("limit the time of a write")?;
    Ok(Bulk::new(stream))
}

async fn dial(address: SocketAddr, within: Duration, patience: Patience) -> Result<TcpStream> {
    let stream = timeout(within, TcpStream::connect(address))
        .await
        .map_err(std::io::Error::from)
        .and_then(|connected| connected)
        .with_context(|| format!("connect to the backup at {address}"))?;
    tune(&stream, patience.stuck()).context("set up the connection")?;
    Ok(stream)
}

pub(super) fn blocking(stream: TcpStream) -> Result<std::net::TcpStream> {
    let stream = stream.into_std().context("take a socket out of the runtime")?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

impl Incoming {
    async fn next<T>(&mut self, decode: impl Fn(&Frame<'_>) -> Result<T, WireError>) -> Result<T> {
        loop {
            if let Some(frame) = self.frames.next_frame()? {
                return Ok(decode(&frame)?);
            }
            let read = self
                .stream
                .read(self.frames.space())
                .await
                .context("read from the control connection")?;
            ensure!(read > 0, "the backup closed the control connection");
            self.frames.filled(read);
        }
    }
}
