//! The bulk connection at the primary: checkpoints out, acks in, both blocking.

use std::{
    io::{self, ErrorKind, IoSlice, Read, Write},
    net::{Shutdown, TcpStream},
};

use anyhow::{Context, Result, ensure};

use crate::{
    checkpoint::{BATCH_MAX, OutBatch},
    wire::{
        Ack, BODY_MAX, Begin, BulkToPrimary, Chain, Digest, End, Features, FrameBuffer, Kind, Lane,
        Session, head,
    },
};

// A batch of pages is the body of one frame.
const _: () = assert!(BATCH_MAX <= BODY_MAX);

/// Parts of one frame: its header and what a batch may have.
const PARTS_MAX: usize = 1 + OutBatch::PARTS_MAX;

/// The bulk connection of a session at the primary, whole.
#[derive(Debug)]
pub struct Bulk {
    stream: TcpStream,
}

/// A way to end both directions of a bulk connection at once, so that whoever waits on either of them returns.
#[derive(Debug)]
pub struct HangUp {
    stream: TcpStream,
}

impl Bulk {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream }
    }

    /// The halves of the connection in a session that has `features`, each for a thread of its own, and a way to end both.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn split(
        self,
        session: Session,
        features: Features,
    ) -> io::Result<(BulkOut, AckIn, HangUp)> {
        let (acks, ours) = (self.stream.try_clone()?, self.stream.try_clone()?);
        Ok((
            BulkOut::new(self.stream, session),
            AckIn::new(acks, features),
            HangUp { stream: ours },
        ))
    }
}

impl HangUp {
    pub fn now(&self) {
        // An error says that the connection has ended already.
        drop(self.stream.shutdown(Shutdown::Both));
    }
}

/// The sending direction, with the digest of all that it has carried.
pub struct BulkOut {
    stream: TcpStream,
    chain: Chain,
    small: Vec<u8>,
    bytes: u64,
}

impl BulkOut {
    fn new(stream: TcpStream, session: Session) -> Self {
        Self { stream, chain: Chain::new(session), small: Vec::with_capacity(256), bytes: 0 }
    }

    /// Bytes sent since the session began, headers included.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The digest of all that was sent: what the next `Begin` names, or `End` carries.
    pub fn digest(&self) -> Digest {
        self.chain.digest()
    }

    /// Sends pages of what the guest begins with.
    ///
    /// # Errors
    /// When the connection is gone, as for every method here.
    pub fn boot_pages(&mut self, batch: &OutBatch<'_>) -> io::Result<()> {
        self.frame(Kind::BootPages, batch.parts())
    }

    pub fn boot_state(&mut self, part: &[u8]) -> io::Result<()> {
        self.frame(Kind::BootState, std::iter::once(part))
    }

    /// Sends pages of the live sync.
    pub fn sync_pages(&mut self, batch: &OutBatch<'_>) -> io::Result<()> {
        self.frame(Kind::SyncPages, batch.parts())
    }

    pub fn begin(&mut self, begin: &Begin) -> io::Result<()> {
        self.small.clear();
        let checksum = begin.encode(&mut self.small);
        self.chain.absorb(Kind::Begin, checksum);
        self.small()
    }

    pub fn pages(&mut self, batch: &OutBatch<'_>) -> io::Result<()> {
        self.frame(Kind::Pages, batch.parts())
    }

    pub fn state(&mut self, part: &[u8]) -> io::Result<()> {
        self.frame(Kind::State, std::iter::once(part))
    }

    pub fn end(&mut self, end: &End) -> io::Result<()> {
        self.small.clear();
        end.encode(&mut self.small);
        self.small()
    }

    fn small(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.small)?;
        self.bytes += self.small.len() as u64;
        Ok(())
    }

    /// Writes header and parts from where they are.
    fn frame<'a>(
        &mut self,
        kind: Kind,
        parts: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> io::Result<()> {
        let (header, checksum) = head(kind, parts.clone());
        self.chain.absorb(kind, checksum);
        let mut slices = [IoSlice::new(&[]); PARTS_MAX];
        slices[0] = IoSlice::new(&header);
        let mut count = 1;
        for part in parts {
            slices[count] = IoSlice::new(part);
            count += 1;
        }
        self.bytes += slices.iter().map(|part| part.len() as u64).sum::<u64>();
        write_all_vectored(&mut self.stream, &mut slices[..count])
    }
}

fn write_all_vectored(stream: &mut TcpStream, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !slices.is_empty() {
        match stream.write_vectored(slices) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The receiving direction.
pub struct AckIn {
    stream: TcpStream,
    frames: FrameBuffer,
}

impl AckIn {
    fn new(stream: TcpStream, features: Features) -> Self {
        let mut frames = FrameBuffer::new(Lane::BulkToPrimary);
        frames.agree(features);
        Self { stream, frames }
    }

    /// Waits for the next ack.
    ///
    /// # Errors
    /// When the connection ends or carries something else than acks.
    pub fn next_ack(&mut self) -> Result<Ack> {
        loop {
            if let Some(frame) = self.frames.next_frame()? {
                let BulkToPrimary::Ack(ack) = BulkToPrimary::decode(&frame)?;
                return Ok(ack);
            }
            let read = match self.stream.read(self.frames.space()) {
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                read => read.context("read from the bulk connection")?,
            };
            ensure!(read > 0, "the backup closed the bulk connection");
            self.frames.filled(read);
        }
    }
}
