//! The device against rings that a guest wrote, with a socket for a tap.

mod receive;
mod registers;
mod transmit;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_net as feature;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::super::super::interrupt::{CONFIGURATION, USED_BUFFER};
use super::*;
use crate::machine::layout::Layout;
use crate::machine::memory::Memory;

const MTU: u16 = 1500;
const FRAME_MAX: usize = 1522;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Entries of the small rings that most tests use.
const SIZE: u16 = 8;
/// Everything that can be negotiated, but for EVENT_IDX.
const ALL: u64 = 1 << feature::VIRTIO_NET_F_CSUM
    | 1 << feature::VIRTIO_NET_F_GUEST_CSUM
    | 1 << feature::VIRTIO_NET_F_GUEST_TSO4
    | 1 << feature::VIRTIO_NET_F_GUEST_TSO6
    | 1 << feature::VIRTIO_NET_F_HOST_TSO4
    | 1 << feature::VIRTIO_NET_F_HOST_TSO6
    | MERGEABLE;
const MERGEABLE: u64 = 1 << feature::VIRTIO_NET_F_MRG_RXBUF;
const VERSION_1: u64 = 1 << 32;

struct Guest {
    net: Net,
    memory: Memory,
    interrupt: Interrupt,
    line: EventFd,
    wire: File,
    size: u16,
    features: u64,
    avail: [u16; 2],
    /// What the device said that the guest was given.
    given: Vec<Vec<u8>>,
}

/// Returns where queue `n` has its descriptors, available ring and used ring.
fn rings(n: usize) -> [u64; 3] {
    [0x1000, 0x2000, 0x3000].map(|at| at + 0x1_0000 * n as u64)
}

fn device(offloads: Offloads) -> (Net, File) {
    let (wire, tap) = UnixDatagram::pair().unwrap();
    wire.set_nonblocking(true).unwrap();
    let tap = Tap::of_socket(OwnedFd::from(tap)).unwrap();
    let net = Net::over([2, 0, 0, 0, 0, 1], MTU, offloads, tap).unwrap();
    (net, File::from(OwnedFd::from(wire)))
}

impl Guest {
    /// Makes a driver that has taken nothing but what every driver must, with rings of [`SIZE`].
    fn new() -> Self {
        Self::with(Offloads::None, 0, SIZE)
    }

    fn with(offloads: Offloads, features: u64, size: u16) -> Self {
        let (net, wire) = device(offloads);
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let mut guest = Self {
            net,
            memory: Memory::new(Layout::of_mib(2)).unwrap(),
            interrupt: Interrupt::new(line.try_clone().unwrap()),
            line,
            wire,
            size,
            features: features | VERSION_1,
            avail: [0; 2],
            given: Vec::new(),
        };
        guest.set_up();
        guest
    }

    fn register(&mut self, at: u32, value: u32) -> Effect {
        self.net.write(self.memory.ram(), at.into(), &value.to_le_bytes())
    }

    fn set_up(&mut self) {
        self.avail = [0; 2];
        self.register(reg::VIRTIO_MMIO_STATUS, 0);
        self.register(reg::VIRTIO_MMIO_STATUS, 3);
        for (half, features) in [(0, self.features & 0xffff_ffff), (1, self.features >> 32)] {
            self.register(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.register(reg::VIRTIO_MMIO_DRIVER_FEATURES, u32::try_from(features).unwrap());
        }
        assert_eq!(self.register(reg::VIRTIO_MMIO_STATUS, 11), Effect::Negotiated);
        for n in [RECEIVE, TRANSMIT] {
            let at = rings(n).map(|at| u32::try_from(at).unwrap());
            self.register(reg::VIRTIO_MMIO_QUEUE_SEL, u32::try_from(n).unwrap());
            self.register(reg::VIRTIO_MMIO_QUEUE_NUM, self.size.into());
            self.register(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, at[0]);
            self.register(reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, at[1]);
            self.register(reg::VIRTIO_MMIO_QUEUE_USED_LOW, at[2]);
            self.register(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        }
        self.register(reg::VIRTIO_MMIO_STATUS, 15);
        for n in [RECEIVE, TRANSMIT] {
            self.put(rings(n)[1] + 2, &[0, 0]);
        }
        assert!(self.net.transport.is_live());
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.ram().write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn bytes_at(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.ram().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn u16_at(&self, at: u64) -> u16 {
        self.memory.ram().read_obj(GuestAddress(at)).unwrap()
    }

    fn describe(&self, queue: usize, n: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.put(rings(queue)[0] + u64::from(n) * 16, &bytes);
    }

    fn offer(&mut self, queue: usize, head: u16) {
        let slot = u64::from(self.avail[queue] % self.size);
        self.put(rings(queue)[1] + 4 + slot * 2, &head.to_le_bytes());
        self.avail[queue] = self.avail[queue].wrapping_add(1);
        self.put(rings(queue)[1] + 2, &self.avail[queue].to_le_bytes());
    }

    /// Sends a frame behind a header, from 0x4_0000 on.
    fn sends(&mut self, header: &[u8; HEADER], frame: &[u8]) -> Progress {
        self.put(0x4_0000, header);
        self.put(0x4_0000 + HEADER as u64, frame);
        let len = u32::try_from(HEADER + frame.len()).unwrap();
        self.describe(TRANSMIT, 0, 0x4_0000, len, 0, 0);
        self.offer(TRANSMIT, 0);
        self.transmit()
    }

    fn used(&self, queue: usize) -> u16 {
        self.u16_at(rings(queue)[2] + 2)
    }

    /// Returns the head and length of used entry `n`.
    fn used_entry(&self, queue: usize, n: u16) -> (u32, u32) {
        let at = rings(queue)[2] + 4 + u64::from(n % self.size) * 8;
        let of = |at| self.memory.ram().read_obj::<u32>(GuestAddress(at)).unwrap();
        (of(at), of(at + 4))
    }

    fn transmit(&mut self) -> Progress {
        self.net.transmit(self.memory.ram(), &self.interrupt).unwrap()
    }

    fn receive(&mut self) -> Progress {
        let Self { net, memory, interrupt, given, .. } = self;
        net.receive(memory.ram(), interrupt, &mut |frame| given.push(frame.to_vec())).unwrap()
    }

    fn put_on_wire(&mut self, header: &[u8; HEADER], frame: &[u8]) {
        self.wire.write_all(&[header, frame].concat()).unwrap();
    }

    /// Returns the next header and frame that the device sent.
    fn frame_on_wire(&mut self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 70_000];
        self.wire.read(&mut frame).ok().map(|n| frame[..n].to_vec())
    }

    /// The device has found out, says so, and touches nothing until it is reset.
    fn is_broken(&mut self) {
        assert!(!self.net.transport.is_live());
        assert_eq!(self.interrupt.status() & CONFIGURATION, CONFIGURATION);
        assert_eq!(self.frame_on_wire(), None);
        assert_eq!(self.transmit(), Progress::Idle);
        assert_eq!(self.receive(), Progress::Starved);
        self.set_up();
    }
}
