//! The device against rings that a guest wrote, with a socket for a tap.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use virtio_bindings::virtio_mmio as reg;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::checkpoint::{Page, PageSet};
use crate::machine::layout::Layout;
use crate::machine::memory::Memory;

const SIZE: u16 = 8;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

struct Guest {
    net: Net,
    memory: Memory,
    interrupt: Interrupt,
    line: EventFd,
    wire: UnixDatagram,
    avail: [u16; 2],
}

/// Where queue `n` has its descriptors, available ring and used ring.
fn rings(n: usize) -> [u64; 3] {
    [0x1000, 0x2000, 0x3000].map(|at| at + 0x1_0000 * n as u64)
}

impl Guest {
    fn new() -> Self {
        let (wire, tap) = UnixDatagram::pair().unwrap();
        wire.set_nonblocking(true).unwrap();
        let tap = Tap::non_blocking(OwnedFd::from(tap)).unwrap();
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let mut guest = Self {
            net: Net::over([2, 0, 0, 0, 0, 1], tap).unwrap(),
            memory: Memory::new(Layout::of_mib(2)).unwrap(),
            interrupt: Interrupt::new(line.try_clone().unwrap()),
            line,
            wire,
            avail: [0; 2],
        };
        guest.set_up();
        guest
    }

    fn set_up(&mut self) {
        self.avail = [0; 2];
        let mut write = |at, value: u32| {
            let bytes = value.to_le_bytes();
            self.net.transport.write(self.memory.ram(), u64::from(at), &bytes);
        };
        write(reg::VIRTIO_MMIO_STATUS, 0);
        write(reg::VIRTIO_MMIO_STATUS, 3);
        write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        write(reg::VIRTIO_MMIO_DRIVER_FEATURES, 1);
        write(reg::VIRTIO_MMIO_STATUS, 11);
        for n in [RECEIVE, TRANSMIT] {
            let at = rings(n).map(|at| u32::try_from(at).unwrap());
            write(reg::VIRTIO_MMIO_QUEUE_SEL, u32::try_from(n).unwrap());
            write(reg::VIRTIO_MMIO_QUEUE_NUM, SIZE.into());
            write(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, at[0]);
            write(reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, at[1]);
            write(reg::VIRTIO_MMIO_QUEUE_USED_LOW, at[2]);
            write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        }
        write(reg::VIRTIO_MMIO_STATUS, 15);
        for n in [RECEIVE, TRANSMIT] {
            self.put(rings(n)[1] + 2, &[0, 0]);
        }
        assert!(self.net.is_live());
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.ram().write_slice(bytes, GuestAddress(at)).unwrap();
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
        let slot = u64::from(self.avail[queue] % SIZE);
        self.put(rings(queue)[1] + 4 + slot * 2, &head.to_le_bytes());
        self.avail[queue] = self.avail[queue].wrapping_add(1);
        self.put(rings(queue)[1] + 2, &self.avail[queue].to_le_bytes());
    }

    fn used(&self, queue: usize) -> u16 {
        self.u16_at(rings(queue)[2] + 2)
    }

    fn transmit(&mut self) -> Progress {
        self.net.transmit(self.memory.ram(), &self.interrupt).unwrap()
    }

    fn receive(&mut self) -> Progress {
        self.net.receive(self.memory.ram(), &self.interrupt).unwrap()
    }

    fn frame_on_wire(&self) -> Option<Vec<u8>> {
        let mut frame = [0; 4096];
        self.wire.recv(&mut frame).ok().map(|n| frame[..n].to_vec())
    }

    /// The device has found out, says so, and touches nothing until it is reset.
    fn is_broken(&mut self) {
        assert!(!self.net.is_live());
        assert_eq!(self.interrupt.status() & CONFIGURATION, CONFIGURATION);
        assert_eq!(self.frame_on_wire(), None);
        assert_eq!(self.transmit(), Progress::Idle);
        assert_eq!(self.receive(), Progress::Starved);
        self.set_up();
    }
}

#[test]
fn a_frame_in_pieces_leaves_whole_behind_a_blank_header() {
    let mut guest = Guest::new();
    guest.put(0x8000, &[0xff; 12]);
    guest.put(0x9000, &[7; 60]);
    guest.describe(TRANSMIT, 3, 0x8000, 12, NEXT, 5);
    guest.describe(TRANSMIT, 5, 0x9000, 60, 0, 0);
    guest.offer(TRANSMIT, 3);
    assert_eq!(guest.transmit(), Progress::Idle);
    assert_eq!(guest.frame_on_wire(), Some([[0; 12].as_slice(), &[7; 60]].concat()));
    assert_eq!(guest.used(TRANSMIT), 1);
    assert_eq!((guest.line.read().unwrap(), guest.interrupt.status()), (1, USED_BUFFER));
    assert_eq!(guest.transmit(), Progress::Idle);
    assert!(guest.line.read().is_err(), "no interrupt when nothing was used");
}

#[test]
fn frames_that_no_wire_takes_are_dropped_and_their_buffers_given_back() {
    let mut guest = Guest::new();
    for (n, len) in [(0, 4), (1, 12 + 13), (2, 12 + 1523), (3, u32::MAX), (4, 0)] {
        guest.describe(TRANSMIT, n, 0x8000, len, 0, 0);
        guest.offer(TRANSMIT, n);
    }
    assert_eq!(guest.transmit(), Progress::Idle);
    assert_eq!(guest.frame_on_wire(), None);
    assert_eq!(guest.used(TRANSMIT), 5);
    assert_eq!(guest.net.counters().sent_dropped, 5);
    assert!(guest.net.is_live());
}

#[test]
fn broken_transmit_chains_break_the_device_and_nothing_else() {
    let mut guest = Guest::new();
    // A loop; a next beyond the table; a buffer outside of RAM; one for writing; an indirect table that is
    // none; a head beyond the table.
    let cases: [(u64, u32, u16, u16, u16); 6] = [
        (0x8000, 1, NEXT, 0, 0),
        (0x8000, 1, NEXT, SIZE, 0),
        (0x1f_fff0, 100, 0, 0, 0),
        (0x8000, 60, WRITE, 0, 0),
        (u64::MAX - 4, 64, INDIRECT, 0, 0),
        (0x8000, 60, 0, 0, SIZE + 3),
    ];
    for (address, len, flags, next, head) in cases {
        guest.describe(TRANSMIT, 0, address, len, flags, next);
        guest.offer(TRANSMIT, head);
        assert_eq!(guest.transmit(), Progress::Starved, "{address:#x} {flags} {next} {head}");
        guest.is_broken();
    }
    // An index that runs away.
    guest.put(rings(TRANSMIT)[1] + 2, &(SIZE + 1).to_le_bytes());
    guest.transmit();
    guest.is_broken();
}

#[test]
fn a_received_frame_is_whole_and_its_pages_are_marked() {
    let mut guest = Guest::new();
    guest.describe(RECEIVE, 1, 0x8000 - 6, 12, WRITE | NEXT, 2);
    guest.describe(RECEIVE, 2, 0x9000, 2048, WRITE, 0);
    guest.wire.send(&[[9; 12].as_slice(), &[5; 100]].concat()).unwrap();
    assert_eq!(guest.receive(), Progress::Starved, "no buffer, and the frame waits in the tap");
    guest.offer(RECEIVE, 1);
    let mut marked = PageSet::new(guest.memory.layout().pages());
    guest.memory.harvest_touched(&mut marked);
    assert_eq!(guest.receive(), Progress::Starved);
    let mut frame = [0; 101];
    guest.memory.ram().read_slice(&mut frame, GuestAddress(0x9000)).unwrap();
    assert_eq!(frame[..], [[5; 100].as_slice(), &[0]].concat());
    assert_eq!(guest.u16_at(0x8000 - 6 + 10), 1, "num_buffers");
    assert_eq!(guest.used(RECEIVE), 1);
    marked.clear();
    guest.memory.harvest_touched(&mut marked);
    let pages: Vec<_> = marked.iter().collect();
    assert_eq!(pages, [Page(3), Page(7), Page(8), Page(9)]);
}

#[test]
fn broken_receive_chains_break_the_device_and_nothing_else() {
    let mut guest = Guest::new();
    let cases: [(u64, u32, u16); 4] =
        [(0x8000, 2048, 0), (0x8000, 20, WRITE), (1 << 40, 2048, WRITE), (0x8000, 9, WRITE | NEXT)];
    for (address, len, flags) in cases {
        guest.describe(RECEIVE, 0, address, len, flags, 0);
        guest.offer(RECEIVE, 0);
        guest.wire.send(&[1; 112]).unwrap();
        assert_eq!(guest.receive(), Progress::Starved, "{address:#x} {len} {flags}");
        guest.is_broken();
    }
}

#[test]
fn frames_too_long_for_the_guest_use_no_buffer() {
    let mut guest = Guest::new();
    guest.describe(RECEIVE, 0, 0x8000, 2048, WRITE, 0);
    guest.offer(RECEIVE, 0);
    guest.wire.send(&[1; HEADER + FRAME_MAX + 1]).unwrap();
    guest.wire.send(&[2; HEADER + FRAME_MAX]).unwrap();
    assert_eq!(guest.receive(), Progress::Starved);
    assert_eq!(guest.net.counters().received_dropped, 1);
    assert_eq!(guest.used(RECEIVE), 1);
}
