//! The device in its turns: what became of the last I/O, and which is the next.
//!
//! What breaks the rules of a ring breaks the device until the guest resets it. A request that a disk cannot do costs
//! the guest that request. A reset in the middle of one makes the thread forget it: nothing more is written for it
//! into RAM, as the specification asks.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::Result;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vm_memory::Bytes;

use super::super::interrupt::Interrupt;
use super::super::log_limit::LogLimit;
use super::super::mmio::{Effect, Identity, Transport};
use super::super::port::Device;
use super::super::ring::{self, Breach, CHAIN_MAX, Stop, Used};
use super::disk::{DISK_ID_MAX, Disk};
use super::request::{Request, What};
use super::{CHUNK, SECTOR};
use crate::checkpoint::DeviceState;
use crate::machine::memory::Ram;

const REQUESTS: usize = 0;
const QUEUE_MAX: u16 = 128;
/// Segments of a request's data: a chain has a header and a status beside them.
const SEGMENTS_MAX: u32 = 126;
const _: () = assert!(SEGMENTS_MAX as usize + 2 == CHAIN_MAX && CHAIN_MAX == QUEUE_MAX as usize);
/// Requests that are done in one turn: such as need no I/O.
const BUDGET: usize = 8;

/// The device.
pub(in crate::machine) struct Block {
    transport: Transport,
    disk: Arc<Disk>,
    /// How often the driver has reset it.
    resets: u64,
    limit: LogLimit,
}

/// What the disk's thread is to do after a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// [`Work::perform`], then the next turn.
    Perform,
    /// The next turn at once.
    Again,
    /// Wait for the doorbell.
    Wait,
}

/// The request under way, if any, and bytes on their way. The thread's own.
pub(super) struct Work {
    /// Of which time between two resets it is.
    resets: u64,
    is_under_way: bool,
    request: Request,
    /// Where on the disk the next bytes are.
    at: u64,
    /// Bytes of data that are through.
    done: u64,
    io: Io,
    bytes: Box<[u8]>,
    result: io::Result<()>,
}

/// A call to the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Io {
    None,
    /// So many bytes.
    Read(usize),
    Write(usize),
    Flush,
}

impl Work {
    pub(super) fn new() -> Self {
        Self {
            resets: 0,
            is_under_way: false,
            request: Request::new(),
            at: 0,
            done: 0,
            io: Io::None,
            bytes: vec![0; CHUNK].into_boxed_slice(),
            result: Ok(()),
        }
    }

    /// Calls the disk. Outside of turns: it takes as long as it takes.
    pub(super) fn perform(&mut self, disk: &Disk) {
        self.result = match self.io {
            Io::None => Ok(()),
            Io::Read(bytes) => disk.file.read_exact_at(&mut self.bytes[..bytes], self.at),
            Io::Write(bytes) => disk.file.write_all_at(&self.bytes[..bytes], self.at),
            Io::Flush => disk.file.sync_data(),
        };
    }
}

impl Block {
    /// # Errors
    /// When a queue cannot be made.
    pub(in crate::machine) fn new(disk: Arc<Disk>) -> Result<Self> {
        let shape = &disk.shape;
        let read_only = if shape.readonly { 1 << VIRTIO_BLK_F_RO } else { 0 };
        let transport = Transport::new(Identity {
            name: "disk",
            device_id: VIRTIO_ID_BLOCK,
            features: 1 << VIRTIO_F_VERSION_1
                | 1 << VIRTIO_RING_F_EVENT_IDX
                | 1 << VIRTIO_BLK_F_SEG_MAX
                | 1 << VIRTIO_BLK_F_FLUSH
                | read_only,
            requires: &[],
            queues: 1,
            queue_max: QUEUE_MAX,
            // capacity, size_max (not offered), seg_max
            config: [
                &(shape.bytes / SECTOR).to_le_bytes()[..],
                &[0; 4],
                &SEGMENTS_MAX.to_le_bytes(),
            ]
            .concat(),
        })?;
        Ok(Self { transport, disk, resets: 0, limit: LogLimit::default() })
    }

    /// Takes a turn: takes in what the last call to the disk gave, and says what is next.
    ///
    /// # Errors
    /// When the interrupt cannot be raised.
    pub(super) fn turn(
        &mut self,
        work: &mut Work,
        ram: &Ram,
        interrupt: &Interrupt,
    ) -> Result<Next> {
        let before = self.transport.queue(REQUESTS).next_used();
        let outcome = self.turn_some(work, ram);
        if outcome.is_err() {
            work.is_under_way = false;
        }
        let Self { transport, limit, .. } = self;
        let outcome = outcome.map_err(Stop::Breach);
        let next = ring::conclude(transport, limit, REQUESTS, before, outcome, ram, interrupt)?;
        Ok(next.unwrap_or(Next::Wait))
    }

    fn turn_some(&mut self, work: &mut Work, ram: &Ram) -> Result<Next, Breach> {
        if work.resets != self.resets || !self.transport.is_live() {
            work.resets = self.resets;
            work.is_under_way = false;
        }
        if !self.transport.is_live() {
            return Ok(Next::Wait);
        }
        if work.is_under_way {
            self.take_in(work, ram)?;
        }
        for _ in 0..BUDGET {
            if work.is_under_way {
                return Ok(Next::Perform);
            }
            let queue = self.transport.queue(REQUESTS);
            let first = queue.next_avail();
            let Some(chain) = ring::next_chain(queue, ram)? else {
                // Asks for a doorbell at the next request, and finds one that came in the meantime.
                match queue.enable_notification(ram)? {
                    true => continue,
                    false => return Ok(Next::Wait),
                }
            };
            work.request.read(chain, ram)?;
            // It is taken when it is done.
            queue.set_next_avail(first);
            self.begin(work, ram)?;
        }
        Ok(if work.is_under_way { Next::Perform } else { Next::Again })
    }

    /// Does a request, as far as that goes without its disk.
    fn begin(&mut self, work: &mut Work, ram: &Ram) -> Result<(), Breach> {
        work.done = 0;
        let shape = &self.disk.shape;
        match work.request.what {
            What::Other => self.finish(work, ram, VIRTIO_BLK_S_UNSUPP),
            What::Id => {
                let mut id = [0; DISK_ID_MAX];
                id[..shape.id.len()].copy_from_slice(shape.id.as_bytes());
                let room = usize::try_from(work.request.data.left()).unwrap_or(DISK_ID_MAX);
                let bytes = room.min(DISK_ID_MAX);
                work.request.data.write(ram, &id[..bytes])?;
                work.done = bytes as u64;
                self.finish(work, ram, VIRTIO_BLK_S_OK)
            }
            What::Flush => {
                work.io = Io::Flush;
                work.is_under_way = true;
                Ok(())
            }
            What::Write if shape.readonly => self.finish(work, ram, VIRTIO_BLK_S_IOERR),
            What::Read | What::Write => match work.request.place(shape.bytes) {
                Some(at) => {
                    work.at = at;
                    self.go_on(work, ram)
                }
                None => self.finish(work, ram, VIRTIO_BLK_S_IOERR),
            },
        }
    }

    /// Takes in what the disk gave.
    fn take_in(&mut self, work: &mut Work, ram: &Ram) -> Result<(), Breach> {
        let io = std::mem::replace(&mut work.io, Io::None);
        if let Err(e) = std::mem::replace(&mut work.result, Ok(())) {
            if self.limit.passes() {
                tracing::warn!("disk {}: {io:?} at byte {}: {e}", self.disk.shape.path, work.at);
            }
            return self.finish(work, ram, VIRTIO_BLK_S_IOERR);
        }
        match io {
            Io::None | Io::Flush => self.finish(work, ram, VIRTIO_BLK_S_OK),
            Io::Read(bytes) => {
                work.request.data.write(ram, &work.bytes[..bytes])?;
                self.moved(work, ram, bytes)
            }
            Io::Write(bytes) => self.moved(work, ram, bytes),
        }
    }

    fn moved(&mut self, work: &mut Work, ram: &Ram, bytes: usize) -> Result<(), Breach> {
        work.at += bytes as u64;
        work.done += bytes as u64;
        self.go_on(work, ram)
    }

    /// Makes the next call to the disk for a request to read or write, or ends the request.
    fn go_on(&mut self, work: &mut Work, ram: &Ram) -> Result<(), Breach> {
        let left = work.request.data.left();
        let bytes = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let is_write = work.request.what == What::Write;
        work.io = match (bytes, is_write) {
            // A driver that cannot flush takes what is done for what is safe.
            (0, true) if self.transport.negotiated() & 1 << VIRTIO_BLK_F_FLUSH == 0 => Io::Flush,
            (0, _) => return self.finish(work, ram, VIRTIO_BLK_S_OK),
            (_, true) => {
                work.request.data.read(ram, &mut work.bytes[..bytes])?;
                Io::Write(bytes)
            }
            (_, false) => Io::Read(bytes),
        };
        work.is_under_way = true;
        Ok(())
    }

    /// Gives the request back.
    fn finish(&mut self, work: &mut Work, ram: &Ram, status: u32) -> Result<(), Breach> {
        work.is_under_way = false;
        let request = &work.request;
        let status = u8::try_from(status).expect("a status is a byte");
        ram.write_slice(&[status], request.status)?;
        let data = if request.what == What::Write { 0 } else { work.done };
        let len = u32::try_from(data + 1).unwrap_or(u32::MAX);
        let queue = self.transport.queue(REQUESTS);
        queue.set_next_avail(queue.next_avail().wrapping_add(1));
        ring::publish(queue, ram, &[Used { head: request.head, len }])
    }
}

impl Device for Block {
    fn transport(&self) -> &Transport {
        &self.transport
    }

    fn write(&mut self, ram: &Ram, offset: u64, data: &[u8]) -> Effect {
        let effect = self.transport.write(ram, offset, data);
        if effect == Effect::Reset {
            self.resets += 1;
        }
        effect
    }

    fn restore(&mut self, ram: &Ram, state: &DeviceState) -> Result<()> {
        // What is under way is of the guest before, if there was one.
        self.resets += 1;
        self.transport.restore(ram, state)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
