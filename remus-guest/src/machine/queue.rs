//! One split virtqueue (virtio 1.2, 2.7) whose descriptors each own one packet buffer for ever.
//!
//! Descriptor `i` always points to buffer `i`; a chain is always one descriptor. So nothing is written to
//! the descriptor table after the start but lengths, and the pages that traffic dirties are few: rings, and
//! the buffers in use.
//!
//! Interrupts are asked for by `used_event` (VIRTIO_F_EVENT_IDX). A queue that is *parked* has it just
//! behind what was seen, so that no interrupt comes until 65,535 more buffers are used; asking puts it just
//! before the next one. Doorbells are rung only when the device asked by `avail_event`.
//!
//! The `virtio-drivers` crate is not used because it asks for an interrupt after every buffer it takes
//! back: on a machine where an interrupt costs 35 us that is the wrong way round.
//!
//! The device is the VMM, which could do anything to this memory anyway: what it writes is checked only as
//! far as Rust's own rules need it.

use alloc::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use core::ptr;
use core::sync::atomic::{AtomicU16, Ordering, fence};

/// Descriptors in a queue, at most.
pub(super) const SIZE_MAX: u16 = 256;
/// Bytes of a packet buffer: header, 1514 bytes of frame, and slack; two in a page.
pub(super) const BUFFER: usize = 2048;

const DEVICE_WRITES: u16 = 2;

#[derive(Clone, Copy)]
#[repr(C)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Used {
    id: u32,
    len: u32,
}

/// Who writes the buffers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    ToDevice,
    FromDevice,
}

/// A queue and its buffers. Never freed.
pub(super) struct Queue {
    size: u16,
    descriptors: *mut Descriptor,
    available: *mut u16,
    used: *mut u16,
    buffers: *mut u8,
    /// The next index that will be published, and the last one at which a doorbell was considered.
    avail_index: u16,
    avail_considered: u16,
    used_seen: u16,
}

/// A buffer that the driver owns: taken from the device, or never given.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Owned(u16);

impl Queue {
    /// A queue of `size` descriptors (a power of two), whose buffers all belong to the driver.
    pub(super) fn new(size: u16, direction: Direction) -> (Self, impl Iterator<Item = Owned>) {
        assert!(size.is_power_of_two() && size <= SIZE_MAX, "a queue of {size} descriptors");
        let n = usize::from(size);
        let buffers = allocate(n * BUFFER);
        let queue = Self {
            size,
            descriptors: allocate(n * size_of::<Descriptor>()).cast(),
            available: allocate(6 + 2 * n).cast(),
            used: allocate(6 + n * size_of::<Used>()).cast(),
            buffers,
            avail_index: 0,
            avail_considered: 0,
            used_seen: 0,
        };
        let flags = if direction == Direction::FromDevice { DEVICE_WRITES } else { 0 };
        for i in 0..n {
            let address = buffers as u64 + (i * BUFFER) as u64;
            let descriptor = Descriptor { address, len: BUFFER as u32, flags, next: 0 };
            // SAFETY: `i` is within the table that was just allocated, which the device does not know yet.
            unsafe { queue.descriptors.add(i).write(descriptor) };
        }
        (queue, (0..size).map(Owned))
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// Physical addresses of descriptor table, available ring, used ring.
    pub(super) fn addresses(&self) -> [u64; 3] {
        [self.descriptors as u64, self.available as u64, self.used as u64]
    }

    /// The bytes of a buffer.
    pub(super) fn bytes<'a>(&'a mut self, buffer: &'a mut Owned) -> &'a mut [u8] {
        // SAFETY: only ids below `size` become `Owned`, so the range is within the buffers; the device does
        // not touch a buffer it was not given, and the borrow keeps it from being given.
        unsafe {
            core::slice::from_raw_parts_mut(
                self.buffers.add(usize::from(buffer.0) * BUFFER),
                BUFFER,
            )
        }
    }

    /// Gives a buffer to the device: `len` bytes of it.
    pub(super) fn give(&mut self, buffer: Owned, len: u32) {
        let slot = usize::from(self.avail_index % self.size);
        // SAFETY: id and slot are below `size`: within table and ring. The device reads neither this
        // descriptor nor this slot before the index below says so.
        unsafe {
            ptr::write_volatile(&raw mut (*self.descriptors.add(usize::from(buffer.0))).len, len);
            ptr::write_volatile(self.available.add(2 + slot), buffer.0);
        }
        self.avail_index = self.avail_index.wrapping_add(1);
        self.word(self.available, 1).store(self.avail_index, Ordering::Release);
    }

    /// Whether the device has used a buffer that was not taken yet.
    pub(super) fn has_used(&self) -> bool {
        self.word(self.used, 1).load(Ordering::Acquire) != self.used_seen
    }

    /// Takes back the next buffer that the device has used, and how many bytes it wrote.
    pub(super) fn take(&mut self) -> Option<(Owned, usize)> {
        if !self.has_used() {
            return None;
        }
        let slot = usize::from(self.used_seen % self.size);
        // SAFETY: the slot is within the ring, which begins 4 bytes into it; 4-aligned, as the ring is.
        let used = unsafe { ptr::read_volatile(self.used.add(2).cast::<Used>().add(slot)) };
        self.used_seen = self.used_seen.wrapping_add(1);
        self.park();
        let id = u16::try_from(used.id).ok().filter(|id| *id < self.size);
        let id = id.expect("the device used a buffer that is not there");
        Some((Owned(id), (used.len as usize).min(BUFFER)))
    }

    /// Whether the device asked to be told of what was given since the last call.
    pub(super) fn wants_doorbell(&mut self) -> bool {
        if self.avail_considered == self.avail_index {
            return false;
        }
        // The index is published before the device's wish is read; the device does the reverse.
        fence(Ordering::SeqCst);
        let event = self.word(self.used, 2 + 4 * usize::from(self.size)).load(Ordering::Relaxed);
        let published = self.avail_index.wrapping_sub(self.avail_considered);
        self.avail_considered = self.avail_index;
        self.avail_index.wrapping_sub(event).wrapping_sub(1) < published
    }

    /// Asks for no interrupt.
    pub(super) fn park(&mut self) {
        self.set_used_event(self.used_seen.wrapping_sub(1));
    }

    /// Asks for an interrupt at the next used buffer. False if there is one already.
    pub(super) fn ask_for_interrupt(&mut self) -> bool {
        self.set_used_event(self.used_seen);
        // The wish is written before the index is read; the device does the reverse.
        fence(Ordering::SeqCst);
        !self.has_used()
    }

    fn set_used_event(&mut self, index: u16) {
        let event = self.word(self.available, 2 + usize::from(self.size));
        // To write a word that is right already would dirty its page.
        if event.load(Ordering::Relaxed) != index {
            event.store(index, Ordering::Release);
        }
    }

    /// Word `i` of a ring, which the device may read or write at any time.
    fn word(&self, ring: *mut u16, i: usize) -> &AtomicU16 {
        // SAFETY: callers name words within the ring: both rings were allocated with the event word at
        // their end. They are never freed, and all access that may meet the device's is atomic.
        unsafe { AtomicU16::from_ptr(ring.add(i)) }
    }
}

/// Zeroed pages that are never given back.
fn allocate(bytes: usize) -> *mut u8 {
    let layout = Layout::from_size_align(bytes, 4096).expect("queue sizes are small");
    // SAFETY: the layout is not empty.
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() { handle_alloc_error(layout) } else { memory }
}
