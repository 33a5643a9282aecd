//! Walking the descriptor chains of a split ring, and giving them back.
//!
//! The guest writes the rings and descriptors, at any time: lengths, addresses and indices are taken as
//! numbers that may be anything. Whatever breaks a rule is a [`Breach`].
//!
//! Buffers are given back here and not by the queue itself, which makes each used entry visible alone: a frame
//! in several buffers must become visible at once, or the driver finds a part of it.

use std::sync::atomic::{Ordering, fence};
use std::{fmt, io};

use anyhow::{Context, Result as Done};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::interrupt::{CONFIGURATION, Interrupt, USED_BUFFER};
use super::log_limit::LogLimit;
use super::mmio::Transport;
use crate::machine::memory::Ram;

/// Descriptors of one chain. Linux uses up to 47 for a frame (CONFIG_MAX_SKB_FRAGS and two), and for a disk two more
/// than it was told that a request may have segments.
pub(super) const CHAIN_MAX: usize = 128;
/// Bytes before the entries of an available or used ring, and of an entry of each.
const RING_HEAD: u64 = 4;
const AVAIL_ENTRY: u64 = 2;
const USED_ENTRY: u64 = 8;
/// Where the index is in either ring.
const INDEX: u64 = 2;
/// The driver wants no interrupt (VIRTQ_AVAIL_F_NO_INTERRUPT).
const NO_INTERRUPT: u16 = 1;

/// A guest's breach of the ring's rules.
#[derive(Debug)]
pub(super) enum Breach {
    Queue(virtio_queue::Error),
    Memory(GuestMemoryError),
    Chain(&'static str),
}

/// Why a device's work on a queue ended before its time.
#[derive(Debug)]
pub(super) enum Stop {
    Breach(Breach),
    /// What the device stands on in the host has failed: a tap that is gone.
    Host(io::Error),
}

/// A buffer that the device is done with.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    pub(super) head: u16,
    /// Bytes written into it.
    pub(super) len: u32,
}

/// Returns whether the guest has put a chain into the ring that the device has not taken yet.
pub(super) fn has_chain(queue: &mut Queue, ram: &Ram) -> Result<bool, Breach> {
    // Refuses an index that runs away.
    queue.iter(ram)?;
    Ok(queue.avail_idx(ram, Ordering::Acquire)?.0 != queue.next_avail())
}

/// Takes the next chain.
pub(super) fn next_chain<'a>(
    queue: &mut Queue,
    ram: &'a Ram,
) -> Result<Option<DescriptorChain<&'a Ram>>, Breach> {
    Ok(queue.iter(ram)?.next())
}

/// Gives buffers back, so that the guest sees all of them at once.
pub(super) fn publish(queue: &mut Queue, ram: &Ram, used: &[Used]) -> Result<(), Breach> {
    let ring = queue.used_ring();
    let mut next = queue.next_used();
    for Used { head, len } in used {
        // No overflow: the ring lies within RAM, which was asked when it was set up.
        let at = ring + RING_HEAD + u64::from(next % queue.size()) * USED_ENTRY;
        let [a, b] = head.to_le_bytes();
        let [c, d, e, f] = len.to_le_bytes();
        ram.write_slice(&[a, b, 0, 0, c, d, e, f], GuestAddress(at))?;
        next = next.wrapping_add(1);
    }
    queue.set_next_used(next);
    // After the entries, for the guest's eyes.
    ram.store(next.to_le(), GuestAddress(ring + INDEX), Ordering::Release)?;
    Ok(())
}

/// Returns whether the driver wants to hear of the buffers that were given back since `before`.
pub(super) fn wants_interrupt(queue: &Queue, ram: &Ram, before: u16) -> Result<bool, Breach> {
    let used = queue.next_used();
    if used == before {
        return Ok(false);
    }
    // The used index must be out before the driver's wish is read: it writes and reads in the other order.
    fence(Ordering::SeqCst);
    let ring = queue.avail_ring();
    if !queue.event_idx_enabled() {
        let flags: u16 = ram.load(GuestAddress(ring), Ordering::Relaxed)?;
        return Ok(u16::from_le(flags) & NO_INTERRUPT == 0);
    }
    let at = ring + RING_HEAD + u64::from(queue.size()) * AVAIL_ENTRY;
    let event: u16 = ram.load(GuestAddress(at), Ordering::Relaxed)?;
    let since = used.wrapping_sub(u16::from_le(event)).wrapping_sub(1);
    Ok(since < used.wrapping_sub(before))
}

/// Shows each descriptor of a chain, and sees to it that the chain has an end.
pub(super) fn walk<E: From<Breach>>(
    chain: DescriptorChain<&Ram>,
    mut each: impl FnMut(Descriptor) -> Result<(), E>,
) -> Result<(), E> {
    // The iterator stops at whatever it cannot follow; only the last descriptor tells whether it was done.
    let mut open = true;
    for (n, descriptor) in chain.enumerate() {
        if n == CHAIN_MAX {
            return Err(Breach::Chain("too many descriptors in a chain").into());
        }
        open = descriptor.has_next();
        each(descriptor)?;
    }
    if open { Err(Breach::Chain("a chain without an end").into()) } else { Ok(()) }
}

/// Tells the guest what happened to a queue of its device, whose used index was `before`: buffers came back, or it
/// broke the rules, and with them the device. Gives back what the work on the queue came to, nothing after a breach.
///
/// # Errors
/// When the host failed, or the interrupt cannot be raised.
pub(super) fn conclude<T>(
    transport: &mut Transport,
    limit: &mut LogLimit,
    queue: usize,
    before: u16,
    outcome: Result<T, Stop>,
    ram: &Ram,
    interrupt: &Interrupt,
) -> Done<Option<T>> {
    if wants_interrupt(transport.queue(queue), ram, before).unwrap_or(true) {
        interrupt.raise(USED_BUFFER).context("raise the interrupt")?;
    }
    match outcome {
        Ok(outcome) => Ok(Some(outcome)),
        Err(Stop::Host(e)) => {
            Err(e).with_context(|| format!("the host's end of the {}", transport.name()))
        }
        Err(Stop::Breach(breach)) => {
            if limit.passes() {
                tracing::warn!("the guest broke its {}, queue {queue}: {breach}", transport.name());
            }
            transport.break_down();
            interrupt.raise(CONFIGURATION).context("raise the interrupt")?;
            Ok(None)
        }
    }
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

impl std::error::Error for Breach {}

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
        Self::Host(e)
    }
}
