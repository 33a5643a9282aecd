//! Moving frames between the virtqueues and the tap.
//!
//! The guest writes the rings and descriptors, at any time: lengths and addresses are taken as numbers that
//! may be anything. What breaks the rules (a chain without an end, a buffer outside of RAM or of the wrong
//! direction, an index that runs away) breaks the device, until the guest resets it.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use serde::Serialize;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MAC;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemoryError};

use super::super::interrupt::{CONFIGURATION, Interrupt, USED_BUFFER};
use super::super::log_limit::LogLimit;
use super::super::mmio::{Identity, Transport};
use super::tap::{FRAME_MAX, FRAME_MIN, HEADER, Tap};
use crate::machine::memory::Ram;

/// Numbers of the virtqueues.
pub(in crate::machine) const RECEIVE: usize = 0;
pub(in crate::machine) const TRANSMIT: usize = 1;

const QUEUE_MAX: u16 = 256;
/// Frames moved in one go, so that the serving thread comes back to its other duties.
const BUDGET: usize = 128;
/// Descriptors of one frame; a driver uses two or three.
const CHAIN_MAX: usize = 32;
/// Lengths of a frame and its header that pass.
const LENGTHS: RangeInclusive<usize> = HEADER + FRAME_MIN..=HEADER + FRAME_MAX;
/// The receive header: blank but for `num_buffers`, which is always one.
const RECEIVE_HEADER: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// How many frames went which way. Counted from the device's creation on this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct NetCounters {
    pub sent: u64,
    /// The tap did not take them, or they were too short or too long for it.
    pub sent_dropped: u64,
    pub received: u64,
    /// Too long for the guest.
    pub received_dropped: u64,
    /// How often a frame had to wait because the guest had no buffer.
    pub receive_starved: u64,
}

/// What stopped a queue's loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::machine) enum Progress {
    /// Nothing is left to do.
    Idle,
    /// The budget is used up: call again.
    More,
    /// Frames may wait, but the guest has no buffer for them.
    Starved,
}

/// The device.
pub(in crate::machine) struct Net {
    transport: Transport,
    tap: Tap,
    /// A header and a frame, and a byte by which one that is too long is known.
    buffer: Box<[u8; HEADER + FRAME_MAX + 1]>,
    counters: NetCounters,
    /// A buffer was used since the guest was last told.
    used: bool,
    limit: LogLimit,
}

/// A guest's breach of the ring's rules.
#[derive(Debug)]
enum Breach {
    Queue(virtio_queue::Error),
    Memory(GuestMemoryError),
    Chain(&'static str),
}

/// Why a queue's loop ended before its time.
enum Stop {
    Breach(Breach),
    Tap(io::Error),
}

impl Net {
    /// A device with this Ethernet address over this tap.
    ///
    /// # Errors
    /// When `tap` is none, or of another kind (see [`Tap::new`]).
    pub(in crate::machine) fn new(mac: [u8; 6], tap: OwnedFd) -> Result<Self> {
        Self::over(mac, Tap::new(tap)?)
    }

    fn over(mac: [u8; 6], tap: Tap) -> Result<Self> {
        let features =
            1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_RING_F_EVENT_IDX;
        let transport = Transport::new(Identity {
            device_id: VIRTIO_ID_NET,
            features,
            queues: 2,
            queue_max: QUEUE_MAX,
            config: mac.to_vec(),
        })?;
        let buffer = Box::new([0; HEADER + FRAME_MAX + 1]);
        Ok(Self {
            transport,
            tap,
            buffer,
            limit: LogLimit::default(),
            counters: NetCounters::default(),
            used: false,
        })
    }

    pub(super) fn transport(&mut self) -> &mut Transport {
        &mut self.transport
    }

    pub(in crate::machine) fn counters(&self) -> NetCounters {
        self.counters
    }

    pub(in crate::machine) fn tap_fd(&self) -> RawFd {
        self.tap.as_raw_fd()
    }

    /// The driver is ready: rings may be looked at.
    pub(in crate::machine) fn is_live(&self) -> bool {
        self.transport.is_live()
    }

    /// Sends what the guest has put into its transmit queue.
    ///
    /// # Errors
    /// When the tap is gone or the interrupt cannot be raised.
    pub(in crate::machine) fn transmit(
        &mut self,
        ram: &Ram,
        interrupt: &Interrupt,
    ) -> Result<Progress> {
        let outcome = self.transmit_some(ram);
        self.conclude(TRANSMIT, outcome, ram, interrupt).context("transmit")
    }

    /// Hands frames from the tap to the guest.
    ///
    /// # Errors
    /// When the tap is gone or the interrupt cannot be raised.
    pub(in crate::machine) fn receive(
        &mut self,
        ram: &Ram,
        interrupt: &Interrupt,
    ) -> Result<Progress> {
        let outcome = self.receive_some(ram);
        self.conclude(RECEIVE, outcome, ram, interrupt).context("receive")
    }

    fn transmit_some(&mut self, ram: &Ram) -> Result<Progress, Stop> {
        if !self.transport.is_live() {
            return Ok(Progress::Idle);
        }
        let mut budget = BUDGET;
        loop {
            while let Some(chain) = next_chain(self.transport.queue(TRANSMIT), ram)? {
                let head = chain.head_index();
                let bytes = gather(chain, ram, &mut self.buffer[..HEADER + FRAME_MAX])?;
                // Whatever the guest has put into the header, it has negotiated nothing that could be said
                // there.
                self.buffer[..HEADER].fill(0);
                let sent = match bytes {
                    Some(n) if LENGTHS.contains(&n) => self.tap.send(&self.buffer[..n])?,
                    Some(_) | None => false,
                };
                let counter =
                    if sent { &mut self.counters.sent } else { &mut self.counters.sent_dropped };
                *counter += 1;
                self.transport.queue(TRANSMIT).add_used(ram, head, 0)?;
                self.used = true;
                budget -= 1;
                if budget == 0 {
                    return Ok(Progress::More);
                }
            }
            // Asks for a doorbell at the next frame, and finds one that came in the meantime.
            if !self.transport.queue(TRANSMIT).enable_notification(ram)? {
                return Ok(Progress::Idle);
            }
        }
    }

    fn receive_some(&mut self, ram: &Ram) -> Result<Progress, Stop> {
        if !self.transport.is_live() {
            return Ok(Progress::Starved);
        }
        for _ in 0..BUDGET {
            // The buffer first: a frame without one stays in the tap, where the kernel counts it.
            let Some(chain) = next_chain(self.transport.queue(RECEIVE), ram)? else {
                if self.transport.queue(RECEIVE).enable_notification(ram)? {
                    continue;
                }
                self.counters.receive_starved += 1;
                return Ok(Progress::Starved);
            };
            let received = self.tap.receive(&mut self.buffer[..])?;
            let length = match received {
                Some(n) if !LENGTHS.contains(&n) => {
                    self.counters.received_dropped += 1;
                    self.transport.queue(RECEIVE).go_to_previous_position();
                    continue;
                }
                Some(n) => n,
                None => {
                    self.transport.queue(RECEIVE).go_to_previous_position();
                    return Ok(Progress::Idle);
                }
            };
            self.buffer[..HEADER].copy_from_slice(&RECEIVE_HEADER);
            let head = chain.head_index();
            scatter(chain, ram, &self.buffer[..length])?;
            let used = u32::try_from(length).expect("a frame's length");
            // The pages of the frame are marked by now: marks come before the used entry.
            self.transport.queue(RECEIVE).add_used(ram, head, used)?;
            self.used = true;
            self.counters.received += 1;
        }
        Ok(Progress::More)
    }

    /// Tells the guest what happened to its queue.
    fn conclude(
        &mut self,
        queue: usize,
        outcome: Result<Progress, Stop>,
        ram: &Ram,
        interrupt: &Interrupt,
    ) -> Result<Progress> {
        let used = std::mem::take(&mut self.used);
        if used && self.transport.queue(queue).needs_notification(ram).unwrap_or(true) {
            interrupt.raise(USED_BUFFER).context("raise the interrupt")?;
        }
        match outcome {
            Ok(progress) => Ok(progress),
            Err(Stop::Breach(breach)) => {
                if self.limit.passes() {
                    tracing::warn!("the guest broke its network device, queue {queue}: {breach}");
                }
                self.transport.break_down();
                interrupt.raise(CONFIGURATION).context("raise the interrupt")?;
                Ok(Progress::Starved)
            }
            Err(Stop::Tap(e)) => Err(e).context("the tap is gone"),
        }
    }
}

fn next_chain<'a>(
    queue: &mut Queue,
    ram: &'a Ram,
) -> Result<Option<DescriptorChain<&'a Ram>>, Breach> {
    Ok(queue.iter(ram)?.next())
}

/// Copies what a transmit chain holds into `into`; `None` when it is more than that.
fn gather(
    chain: DescriptorChain<&Ram>,
    ram: &Ram,
    into: &mut [u8],
) -> Result<Option<usize>, Breach> {
    let mut filled = 0;
    let mut fits = true;
    walk(chain, |descriptor| {
        if descriptor.is_write_only() {
            return Err(Breach::Chain("a buffer for writing in the transmit queue"));
        }
        let end = filled + descriptor.len() as usize;
        match into.get_mut(filled..end) {
            Some(to) if fits => ram.read_slice(to, descriptor.addr())?,
            _ => fits = false,
        }
        filled = end;
        Ok(())
    })?;
    Ok(fits.then_some(filled))
}

/// Copies `from` into a receive chain, which must have room for it.
fn scatter(chain: DescriptorChain<&Ram>, ram: &Ram, from: &[u8]) -> Result<(), Breach> {
    let mut rest = from;
    walk(chain, |descriptor| {
        if !descriptor.is_write_only() {
            return Err(Breach::Chain("a buffer for reading in the receive queue"));
        }
        let (now, later) = rest.split_at(rest.len().min(descriptor.len() as usize));
        ram.write_slice(now, descriptor.addr())?;
        rest = later;
        Ok(())
    })?;
    if rest.is_empty() {
        Ok(())
    } else {
        Err(Breach::Chain("a receive buffer below a frame's size"))
    }
}

/// Shows each descriptor of a chain, and sees to it that the chain has an end.
fn walk(
    chain: DescriptorChain<&Ram>,
    mut each: impl FnMut(Descriptor) -> Result<(), Breach>,
) -> Result<(), Breach> {
    // The iterator stops at whatever it cannot follow; only the last descriptor tells whether it was done.
    let mut open = true;
    for (n, descriptor) in chain.enumerate() {
        if n == CHAIN_MAX {
            return Err(Breach::Chain("too many descriptors in a chain"));
        }
        open = descriptor.has_next();
        each(descriptor)?;
    }
    if open { Err(Breach::Chain("a chain without an end")) } else { Ok(()) }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(e) => e.fmt(f),
            Self::Memory(e) => e.fmt(f),
            Self::Chain(what) => f.write_str(what),
        }
    }
}

impl From<virtio_queue::Error> for Breach {
    fn from(e: virtio_queue::Error) -> Self {
        Self::Queue(e)
    }
}

impl From<GuestMemoryError> for Breach {
    fn from(e: GuestMemoryError) -> Self {
        Self::Memory(e)
    }
}

impl From<Breach> for Stop {
    fn from(breach: Breach) -> Self {
        Self::Breach(breach)
    }
}

impl From<virtio_queue::Error> for Stop {
    fn from(e: virtio_queue::Error) -> Self {
        Self::Breach(Breach::Queue(e))
    }
}

impl From<io::Error> for Stop {
    fn from(e: io::Error) -> Self {
        Self::Tap(e)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
