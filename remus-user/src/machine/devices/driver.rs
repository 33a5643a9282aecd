//! A driver for tests: a guest that can write its rings as it likes.

use virtio_bindings::virtio_mmio as reg;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::{CONFIGURATION, Interrupt};
use super::mmio::Effect;
use super::port::Device;
use crate::checkpoint::{DeviceState, PageSet};
use crate::machine::layout::Layout;
use crate::machine::memory::{Memory, Ram};

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;
/// Entries of the ring.
pub(super) const SIZE: u16 = 8;
/// Where the one queue's descriptors, available ring and used ring are.
pub(super) const DESCRIPTORS: u64 = 0x1000;
pub(super) const AVAIL: u64 = 0x2000;
pub(super) const USED: u64 = 0x3000;
const VERSION_1: u64 = 1 << 32;

/// A device with one queue, and its guest.
pub(super) struct Driver<D> {
    pub(super) device: D,
    pub(super) memory: Memory,
    pub(super) interrupt: Interrupt,
    pub(super) line: EventFd,
    features: u64,
    avail: u16,
}

impl<D: Device> Driver<D> {
    /// Makes a driver that has taken VERSION_1 and `features`, in 2 MiB of RAM.
    pub(super) fn new(device: D, features: u64) -> Self {
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let mut driver = Self {
            device,
            memory: Memory::new(Layout::of_mib(2)).unwrap(),
            interrupt: Interrupt::new(line.try_clone().unwrap()),
            line,
            features: features | VERSION_1,
            avail: 0,
        };
        driver.set_up();
        driver
    }

    pub(super) fn ram(&self) -> &Ram {
        self.memory.ram()
    }

    pub(super) fn register(&mut self, at: u32, value: u32) -> Effect {
        self.device.write(self.memory.ram(), at.into(), &value.to_le_bytes())
    }

    /// Resets the device and takes it anew.
    pub(super) fn set_up(&mut self) {
        self.avail = 0;
        self.interrupt.set_status(0);
        self.register(reg::VIRTIO_MMIO_STATUS, 0);
        self.register(reg::VIRTIO_MMIO_STATUS, 3);
        for (half, features) in [(0, self.features & 0xffff_ffff), (1, self.features >> 32)] {
            self.register(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.register(reg::VIRTIO_MMIO_DRIVER_FEATURES, u32::try_from(features).unwrap());
        }
        assert_eq!(self.register(reg::VIRTIO_MMIO_STATUS, 11), Effect::Negotiated);
        self.register(reg::VIRTIO_MMIO_QUEUE_SEL, 0);
        self.register(reg::VIRTIO_MMIO_QUEUE_NUM, SIZE.into());
        let address = |at: u64| u32::try_from(at).unwrap();
        self.register(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, address(DESCRIPTORS));
        self.register(reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, address(AVAIL));
        self.register(reg::VIRTIO_MMIO_QUEUE_USED_LOW, address(USED));
        self.register(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        self.put(AVAIL, &[0; 4]);
        self.register(reg::VIRTIO_MMIO_STATUS, 15);
        assert!(self.device.transport().is_live());
    }

    pub(super) fn put(&self, at: u64, bytes: &[u8]) {
        self.ram().write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub(super) fn bytes_at(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub(super) fn describe(&self, n: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.put(DESCRIPTORS + u64::from(n) * 16, &bytes);
    }

    /// A chain of (address, length, flags without NEXT) that begins with descriptor 0, made available.
    pub(super) fn chain(&mut self, buffers: &[(u64, u32, u16)]) {
        for (n, (address, len, flags)) in (0..).zip(buffers) {
            let more = if usize::from(n) + 1 < buffers.len() { NEXT } else { 0 };
            self.describe(n, *address, *len, flags | more, n + 1);
        }
        self.offer(0);
    }

    pub(super) fn offer(&mut self, head: u16) {
        self.put(AVAIL + 4 + u64::from(self.avail % SIZE) * 2, &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.put(AVAIL + 2, &self.avail.to_le_bytes());
    }

    /// Returns the number of buffers that came back.
    pub(super) fn used(&self) -> u16 {
        self.ram().read_obj(GuestAddress(USED + 2)).unwrap()
    }

    /// Returns the head and length of used entry `n`.
    pub(super) fn used_entry(&self, n: u16) -> (u32, u32) {
        let at = USED + 4 + u64::from(n % SIZE) * 8;
        let of = |at| self.ram().read_obj::<u32>(GuestAddress(at)).unwrap();
        (of(at), of(at + 4))
    }

    pub(super) fn saved(&self) -> DeviceState {
        let mut state = DeviceState::default();
        self.device.transport().save(self.interrupt.status(), &mut state);
        state
    }

    /// Returns the pages that were written since the last call.
    pub(super) fn harvest(&self) -> Vec<u32> {
        let mut pages = PageSet::new(self.memory.layout().pages());
        self.memory.harvest_touched(&mut pages);
        pages.iter().map(|page| page.0).collect()
    }

    /// Returns whether the device has found the driver's breach, and says so.
    pub(super) fn is_broken(&self) -> bool {
        !self.device.transport().is_live() && self.interrupt.status() & CONFIGURATION != 0
    }
}
