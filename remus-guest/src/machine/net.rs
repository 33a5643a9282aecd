//! The virtio-net device (virtio 1.2, 5.1) on virtio-mmio, as smoltcp's device and for raw frames.
//!
//! Features: VERSION_1, MAC and EVENT_IDX, and no other. No checksum is left to the device, no segment is
//! larger than a frame. The interrupt status is never read: the interrupt is an edge that only wakes.

use alloc::vec::Vec;
use core::ptr;
use remus_abi::boot::{VIRTIO_MMIO_BASE, VIRTIO_MMIO_SIZE};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::queue::{BUFFER, Direction, Owned, Queue, SIZE_MAX};

/// Ethernet header and payload.
const FRAME_MAX: usize = 1514;
/// `struct virtio_net_hdr` of VERSION_1. All zero: nothing is asked of the device.
const HEADER: usize = 12;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const NETWORK: u32 = 1;

const FEATURE_MAC: u64 = 1 << 5;
const FEATURE_EVENT_IDX: u64 = 1 << 29;
const FEATURE_VERSION_1: u64 = 1 << 32;

const STATUS_ACKNOWLEDGE: u32 = 1;
const STATUS_DRIVER: u32 = 2;
const STATUS_DRIVER_OK: u32 = 4;
const STATUS_FEATURES_OK: u32 = 8;

const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;

/// Registers of virtio-mmio, by offset.
#[derive(Clone, Copy)]
enum Register {
    Magic = 0x00,
    Version = 0x04,
    DeviceId = 0x08,
    DeviceFeatures = 0x10,
    DeviceFeaturesSelect = 0x14,
    DriverFeatures = 0x20,
    DriverFeaturesSelect = 0x24,
    QueueSelect = 0x30,
    QueueSizeMax = 0x34,
    QueueSize = 0x38,
    QueueReady = 0x44,
    QueueNotify = 0x50,
    Status = 0x70,
    QueueDescriptors = 0x80,
    QueueAvailable = 0x90,
    QueueUsed = 0xa0,
    Config = 0x100,
}

/// The network device.
pub(super) struct Nic {
    registers: Registers,
    mac: [u8; 6],
    rx: Receiver,
    tx: Transmitter,
}

/// The device's registers; every access is an exit.
#[derive(Clone, Copy)]
struct Registers {
    base: usize,
}

pub(super) struct Receiver {
    queue: Queue,
}

pub(super) struct Transmitter {
    queue: Queue,
    free: Vec<Owned>,
}

impl Nic {
    /// Starts virtio device `number`.
    ///
    /// # Panics
    /// If it is no network device, or does not offer what is needed.
    pub(super) fn new(number: u64) -> Self {
        let registers = Registers { base: (VIRTIO_MMIO_BASE + number * VIRTIO_MMIO_SIZE) as usize };
        assert!(
            registers.read(Register::Magic) == MAGIC
                && registers.read(Register::Version) == 2
                && registers.read(Register::DeviceId) == NETWORK,
            "virtio device {number} is no network device"
        );
        // The order is the specification's (3.1.1): each step tells the device what the next may rely on.
        registers.write(Register::Status, 0);
        registers.write(Register::Status, STATUS_ACKNOWLEDGE);
        let status = STATUS_ACKNOWLEDGE | STATUS_DRIVER;
        registers.write(Register::Status, status);
        registers.negotiate(FEATURE_VERSION_1 | FEATURE_MAC | FEATURE_EVENT_IDX);
        let status = status | STATUS_FEATURES_OK;
        registers.write(Register::Status, status);
        assert!(
            registers.read(Register::Status) & STATUS_FEATURES_OK != 0,
            "the device refuses its own features"
        );
        let mac = registers.mac();

        let (mut rx_queue, buffers) = Queue::new(registers.select(RECEIVE), Direction::FromDevice);
        buffers.for_each(|buffer| rx_queue.give(buffer, BUFFER as u32));
        let (tx_queue, buffers) = Queue::new(registers.select(TRANSMIT), Direction::ToDevice);
        let free = buffers.collect();
        registers.set_up(RECEIVE, &rx_queue);
        registers.set_up(TRANSMIT, &tx_queue);
        registers.write(Register::Status, status | STATUS_DRIVER_OK);

        let mut rx = Receiver { queue: rx_queue };
        let mut tx = Transmitter { queue: tx_queue, free };
        rx.queue.park();
        tx.queue.park();
        Self { registers, mac, rx, tx }
    }

    pub(super) fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Whether a frame has come.
    pub(super) fn has_frames(&self) -> bool {
        self.rx.queue.has_used()
    }

    /// Whether no frame can be sent now.
    pub(super) fn is_full(&self) -> bool {
        self.tx.free.is_empty() && !self.tx.queue.has_used()
    }

    /// Sends a whole frame; loses it if there is no room.
    pub(super) fn send(&mut self, frame: &[u8]) {
        if self.tx.has_room() {
            self.tx.send(frame.len(), |to| to.copy_from_slice(frame));
        }
    }

    /// Tells the device of what is new, if it wants to be told. How many doorbells that took.
    pub(super) fn kick(&mut self) -> u64 {
        let mut rung = 0;
        for (number, queue) in [(RECEIVE, &mut self.rx.queue), (TRANSMIT, &mut self.tx.queue)] {
            if queue.wants_doorbell() {
                self.registers.write(Register::QueueNotify, number);
                rung += 1;
            }
        }
        rung
    }

    /// Asks for the interrupts that are to end a sleep. False if there is something to do already.
    pub(super) fn may_sleep(&mut self) -> bool {
        let wait_for_room = self.tx.free.is_empty();
        // With no room to send, received frames are not looked at: only room ends the sleep.
        let quiet = if wait_for_room {
            self.tx.queue.ask_for_interrupt()
        } else {
            self.rx.queue.ask_for_interrupt()
        };
        if !quiet {
            self.is_awake();
        }
        quiet
    }

    /// Asks for no more interrupts.
    pub(super) fn is_awake(&mut self) {
        self.rx.queue.park();
        self.tx.queue.park();
    }
}

impl Transmitter {
    /// Whether a frame can be sent; takes back the buffers of frames that were.
    fn has_room(&mut self) -> bool {
        while let Some((buffer, _)) = self.queue.take() {
            self.free.push(buffer);
        }
        !self.free.is_empty()
    }

    /// Sends a frame of `len` bytes that `fill` writes.
    ///
    /// # Panics
    /// Without room, or if the frame is longer than a frame may be.
    fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        assert!(len <= FRAME_MAX, "a frame of {len} bytes");
        let mut buffer = self.free.pop().expect("the caller has made sure of room");
        // The header's bytes were zero from the start and are never written.
        let result = fill(&mut self.queue.bytes(&mut buffer)[HEADER..HEADER + len]);
        self.queue.give(buffer, (HEADER + len) as u32);
        result
    }
}

impl Registers {
    fn address(self, register: Register) -> *mut u32 {
        (self.base + register as usize) as *mut u32
    }

    fn read(self, register: Register) -> u32 {
        // SAFETY: the boot contract maps the device's registers; reading them changes nothing in memory.
        unsafe { ptr::read_volatile(self.address(register)) }
    }

    fn write(self, register: Register, value: u32) {
        // SAFETY: as above; the addresses that the device is told are those of memory made for it.
        unsafe { ptr::write_volatile(self.address(register), value) };
    }

    fn write_address(self, register: Register, address: u64) {
        let low = self.address(register);
        // SAFETY: as in `write`; an address is two registers, low half first.
        unsafe {
            ptr::write_volatile(low, address as u32);
            ptr::write_volatile(low.add(1), (address >> 32) as u32);
        }
    }

    fn negotiate(self, wanted: u64) {
        for half in 0..2 {
            let wanted = (wanted >> (32 * half)) as u32;
            self.write(Register::DeviceFeaturesSelect, half);
            let offered = self.read(Register::DeviceFeatures);
            assert!(
                offered & wanted == wanted,
                "the device lacks features: {:#x}",
                wanted & !offered
            );
            self.write(Register::DriverFeaturesSelect, half);
            self.write(Register::DriverFeatures, wanted);
        }
    }

    fn mac(self) -> [u8; 6] {
        let config = self.address(Register::Config).cast::<u8>();
        // SAFETY: the MAC address is the first six bytes of the configuration.
        core::array::from_fn(|i| unsafe { ptr::read_volatile(config.add(i)) })
    }

    /// Selects a queue; how large it will be.
    fn select(self, queue: u32) -> u16 {
        self.write(Register::QueueSelect, queue);
        let max = self.read(Register::QueueSizeMax).min(SIZE_MAX.into());
        assert!(max > 0, "the device has no queue {queue}");
        // Was limited to what fits; a size must be a power of two.
        1 << max.ilog2() as u16
    }

    fn set_up(self, number: u32, queue: &Queue) {
        let [descriptors, available, used] = queue.addresses();
        self.write(Register::QueueSelect, number);
        self.write(Register::QueueSize, queue.size().into());
        self.write_address(Register::QueueDescriptors, descriptors);
        self.write_address(Register::QueueAvailable, available);
        self.write_address(Register::QueueUsed, used);
        self.write(Register::QueueReady, 1);
    }
}

impl Device for Nic {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Room<'_>)> {
        // Without room for a reply the frame stays where it is.
        if !self.tx.has_room() || !self.rx.queue.has_used() {
            return None;
        }
        Some((Received(&mut self.rx), Room(&mut self.tx)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        self.tx.has_room().then_some(Room(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = FRAME_MAX;
        caps
    }
}

/// A frame that has come and is not taken yet.
pub(super) struct Received<'a>(&'a mut Receiver);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let queue = &mut self.0.queue;
        let (mut buffer, len) = queue.take().expect("the token was made because there is one");
        let result = f(queue.bytes(&mut buffer)[..len].get(HEADER..).unwrap_or(&[]));
        queue.give(buffer, BUFFER as u32);
        result
    }
}

/// Room for one frame at least.
pub(super) struct Room<'a>(&'a mut Transmitter);

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.0.send(len, f)
    }
}
