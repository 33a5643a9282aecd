//! Filling the guest's buffers.
//!
//! As with every device, the guest may write anything into ring and descriptors. A chain without an end, a buffer for
//! reading or outside of RAM, an index that runs away break the device until the guest resets it.

use std::io;

use anyhow::Result;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vm_memory::Bytes;

use super::super::interrupt::Interrupt;
use super::super::log_limit::LogLimit;
use super::super::mmio::{Effect, Identity, Transport};
use super::super::port::{Device, Progress};
use super::super::ring::{self, Breach, Stop, Used};
use crate::checkpoint::DeviceState;
use crate::machine::memory::Ram;

/// The one queue's number.
pub(in crate::machine) const REQUESTS: usize = 0;

const QUEUE_MAX: u16 = 64;
/// Bytes of a request at most. Linux asks for 64 at a time, and for less than a page when it is read from user space.
const CHUNK: usize = 4096;
/// Requests in one go.
const BUDGET: usize = 8;

/// The device.
pub(in crate::machine) struct Rng {
    transport: Transport,
    /// What a request gets, on its way.
    bytes: Box<[u8; CHUNK]>,
    limit: LogLimit,
}

impl Rng {
    /// # Errors
    /// When a queue cannot be made.
    pub(in crate::machine) fn new() -> Result<Self> {
        let transport = Transport::new(Identity {
            name: "entropy device",
            device_id: VIRTIO_ID_RNG,
            features: 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX,
            requires: &[],
            queues: 1,
            queue_max: QUEUE_MAX,
            config: Vec::new(),
        })?;
        Ok(Self { transport, bytes: Box::new([0; CHUNK]), limit: LogLimit::default() })
    }

    /// Fills what the guest has put into its queue.
    ///
    /// # Errors
    /// When the host has no entropy or the interrupt cannot be raised.
    pub(in crate::machine) fn fill(
        &mut self,
        ram: &Ram,
        interrupt: &Interrupt,
    ) -> Result<Progress> {
        let before = self.transport.queue(REQUESTS).next_used();
        let outcome = self.fill_some(ram);
        let Self { transport, limit, .. } = self;
        let progress = ring::conclude(transport, limit, REQUESTS, before, outcome, ram, interrupt)?;
        Ok(progress.unwrap_or(Progress::Starved))
    }

    fn fill_some(&mut self, ram: &Ram) -> Result<Progress, Stop> {
        if !self.transport.is_live() {
            return Ok(Progress::Idle);
        }
        let mut budget = BUDGET;
        loop {
            while let Some(chain) = ring::next_chain(self.transport.queue(REQUESTS), ram)? {
                let head = chain.head_index();
                let mut filled = 0;
                ring::walk(chain, |descriptor| {
                    if !descriptor.is_write_only() {
                        return Err(Stop::Breach(Breach::Chain("a buffer for reading")));
                    }
                    let now = (CHUNK - filled).min(descriptor.len() as usize);
                    if now > 0 {
                        let bytes = &mut self.bytes[filled..filled + now];
                        draw(bytes)?;
                        // Marks the pages: marks come before the used entry.
                        ram.write_slice(bytes, descriptor.addr()).map_err(Breach::Memory)?;
                        filled += now;
                    }
                    Ok(())
                })?;
                let len = u32::try_from(filled).expect("at most a chunk");
                ring::publish(self.transport.queue(REQUESTS), ram, &[Used { head, len }])?;
                budget -= 1;
                if budget == 0 {
                    return Ok(Progress::More);
                }
            }
            // Asks for a doorbell at the next request, and finds one that came in the meantime.
            if !self.transport.queue(REQUESTS).enable_notification(ram)? {
                return Ok(Progress::Idle);
            }
        }
    }
}

impl Device for Rng {
    fn transport(&self) -> &Transport {
        &self.transport
    }

    fn write(&mut self, ram: &Ram, offset: u64, data: &[u8]) -> Effect {
        self.transport.write(ram, offset, data)
    }

    fn restore(&mut self, ram: &Ram, state: &DeviceState) -> Result<()> {
        self.transport.restore(ram, state)
    }
}

/// Fills `bytes` from the host's generator.
fn draw(bytes: &mut [u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        // SAFETY: a buffer of that length, alive during the call.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => rest = &mut rest[got..],
            Err(_) => match io::Error::last_os_error() {
                // A signal came while the kernel had many bytes to make.
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
