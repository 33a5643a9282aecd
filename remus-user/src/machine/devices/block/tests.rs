//! The device against rings that a guest wrote, over a file.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::time::Duration;

use proptest::prelude::*;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_mmio as reg;
use vmm_sys_util::eventfd::EventFd;

use super::super::super::driver::{
    AVAIL, DESCRIPTORS, Driver, INDIRECT, NEXT, SIZE, USED as USED_RING, WRITE,
};
use super::super::super::interrupt::USED_BUFFER;
use super::super::super::parking::Parking;
use super::super::super::port::{Port, Registers};
use super::super::{DiskShape, Worker};
use super::*;
use crate::machine::layout::Layout;
use crate::machine::memory::Memory;

const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x9000;
const DATA: u64 = 0x10_0000;
const SECTORS: usize = 1024;
const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;

/// A guest with a disk whose sector n holds n mod 251 in every byte.
struct Guest {
    driver: Driver<Block>,
    disk: Arc<Disk>,
    work: Work,
    image: tempfile::NamedTempFile,
}

fn image() -> tempfile::NamedTempFile {
    let mut image = tempfile::NamedTempFile::new().unwrap();
    for n in 0..SECTORS {
        image.write_all(&[u8::try_from(n % 251).unwrap(); 512]).unwrap();
    }
    image
}

fn disk(image: &tempfile::NamedTempFile, readonly: bool) -> Arc<Disk> {
    let shape = DiskShape::of(image.path(), "serial-7", readonly).unwrap();
    Arc::new(Disk::open(&shape).unwrap())
}

impl Guest {
    fn new(readonly: bool, features: u64) -> Self {
        let image = image();
        let disk = disk(&image, readonly);
        let driver = Driver::new(Block::new(Arc::clone(&disk)).unwrap(), features);
        Self { driver, disk, work: Work::new(), image }
    }

    fn turn(&mut self) -> Next {
        let Driver { device, memory, interrupt, .. } = &mut self.driver;
        device.turn(&mut self.work, memory.ram(), interrupt).unwrap()
    }

    /// Does what the disk's thread does, and returns the number of calls to the disk that it took.
    fn serve(&mut self) -> usize {
        let mut calls = 0;
        loop {
            match self.turn() {
                Next::Perform => {
                    self.work.perform(&self.disk);
                    calls += 1;
                }
                Next::Again => {}
                Next::Wait => return calls,
            }
        }
    }

    fn put_header(&self, what: u32, sector: u64) {
        let header = [&what.to_le_bytes()[..], &[9; 4], &sector.to_le_bytes()].concat();
        self.driver.put(HEADER, &header);
        self.driver.put(STATUS, &[0xff]);
    }

    /// A request with its data in one buffer.
    fn ask(&mut self, what: u32, sector: u64, data: u32) {
        self.put_header(what, sector);
        let flags = if what == VIRTIO_BLK_T_OUT { 0 } else { WRITE };
        self.driver.chain(&[(HEADER, 16, 0), (DATA, data, flags), (STATUS, 1, WRITE)]);
    }

    fn status(&self) -> u32 {
        self.driver.bytes_at(STATUS, 1)[0].into()
    }
}

#[test]
fn the_guest_is_told_size_and_segments_and_whether_it_may_write() {
    for readonly in [true, false] {
        let guest = Guest::new(readonly, FLUSH);
        let transport = guest.driver.device.transport();
        let mut config = [0; 16];
        transport.read(reg::VIRTIO_MMIO_CONFIG.into(), &mut config, 0);
        assert_eq!(config[..8], (SECTORS as u64).to_le_bytes());
        assert_eq!(config[12..], 126_u32.to_le_bytes());
        assert_eq!(transport.features() & 1 << VIRTIO_BLK_F_RO != 0, readonly);
    }
}

#[test]
fn a_read_fills_buffers_of_any_cut_and_marks_their_pages_before_it_is_done() {
    let mut guest = Guest::new(true, FLUSH);
    guest.put_header(VIRTIO_BLK_T_IN, 5);
    guest.driver.chain(&[
        (HEADER, 3, 0),
        (HEADER + 3, 13, 0),
        (DATA, 700, WRITE),
        (DATA + 0x2000, 0, WRITE),
        (DATA + 0x3000, 324 + 1, WRITE),
    ]);
    guest.driver.harvest();
    assert_eq!(guest.turn(), Next::Perform);
    assert_eq!(guest.driver.harvest(), [] as [u32; 0], "nothing before the disk has answered");
    guest.work.perform(&guest.disk);
    assert_eq!(guest.turn(), Next::Wait);
    assert_eq!(guest.driver.harvest(), [3, 0x100, 0x103]);
    assert_eq!(guest.driver.used_entry(0), (0, 1025));
    let read =
        [guest.driver.bytes_at(DATA, 700), guest.driver.bytes_at(DATA + 0x3000, 325)].concat();
    assert_eq!(read, [&[5; 512][..], &[6; 512], &[0]].concat(), "the last byte is the status");
    assert_eq!(guest.driver.line.read().unwrap(), 1);
    assert_eq!(guest.driver.interrupt.status(), USED_BUFFER);
}

#[test]
fn what_is_written_is_on_the_disk_and_read_again() {
    let mut guest = Guest::new(false, FLUSH);
    let data: Vec<u8> = (0..3 * CHUNK + 512).map(|n| (n / 3).to_le_bytes()[0]).collect();
    let bytes = u32::try_from(data.len()).unwrap();
    guest.driver.put(DATA - 0x8_0000, &data);
    guest.put_header(VIRTIO_BLK_T_OUT, 100);
    // Three buffers, cut where no call to the disk is.
    let cut = [1000, 100_001, bytes - 101_001];
    let at = DATA - 0x8_0000;
    guest.driver.chain(&[
        (HEADER, 16, 0),
        (at, cut[0], 0),
        (at + 1000, cut[1], 0),
        (at + 101_001, cut[2], 0),
        (STATUS, 1, WRITE),
    ]);
    assert_eq!(guest.serve(), 4, "a chunk at a time");
    assert_eq!((guest.status(), guest.driver.used_entry(0)), (0, (0, 1)));
    let mut stored = vec![0; data.len()];
    guest.image.as_file().read_exact_at(&mut stored, 100 * 512).unwrap();
    assert!(stored == data);

    guest.ask(VIRTIO_BLK_T_FLUSH, 0, 0);
    assert_eq!((guest.serve(), guest.status()), (1, 0));
    guest.ask(VIRTIO_BLK_T_IN, 100, bytes);
    assert_eq!((guest.serve(), guest.status()), (4, 0));
    assert!(guest.driver.bytes_at(DATA, data.len()) == data);
    assert_eq!(guest.driver.used_entry(2), (0, bytes + 1));
}

#[test]
fn a_driver_that_cannot_flush_has_what_it_wrote_on_the_disk() {
    for (features, calls) in [(FLUSH, 1), (0, 2)] {
        let mut guest = Guest::new(false, features);
        guest.ask(VIRTIO_BLK_T_OUT, 0, 512);
        assert_eq!((guest.serve(), guest.status()), (calls, 0), "{features:#x}");
    }
}

#[test]
fn the_name_is_told_and_what_is_not_on_offer_is_said_to_be_so() {
    let mut guest = Guest::new(true, FLUSH);
    guest.ask(VIRTIO_BLK_T_GET_ID, 0, 20);
    assert_eq!((guest.serve(), guest.status(), guest.driver.used_entry(0)), (0, 0, (0, 21)));
    assert_eq!(guest.driver.bytes_at(DATA, 20), b"serial-7\0\0\0\0\0\0\0\0\0\0\0\0");
    guest.ask(VIRTIO_BLK_T_GET_ID, 0, 3);
    assert_eq!((guest.serve(), guest.driver.used_entry(1)), (0, (0, 4)));
    for (n, what) in (2..).zip([11, 13, 3, 0x8000_0000, u32::MAX]) {
        guest.ask(what, 0, 512);
        assert_eq!((guest.serve(), guest.status()), (0, VIRTIO_BLK_S_UNSUPP), "{what}");
        assert_eq!(guest.driver.used_entry(n).1, 1);
    }
}

#[test]
fn what_the_disk_cannot_do_costs_the_guest_that_request() {
    let mut guest = Guest::new(false, FLUSH);
    let last = SECTORS as u64 - 1;
    // Beyond the end, whole and in part; where no number can be; not whole sectors.
    for (sector, bytes) in
        [(last + 1, 512), (last, 1024), (u64::MAX, 512), (1 << 55, 512), (0, 511), (0, 1 << 31)]
    {
        for what in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT] {
            guest.ask(what, sector, bytes);
            assert_eq!(
                (guest.serve(), guest.status()),
                (0, VIRTIO_BLK_S_IOERR),
                "{what} {sector:#x} {bytes}"
            );
        }
    }
    guest.ask(VIRTIO_BLK_T_IN, last, 512);
    assert_eq!((guest.serve(), guest.status()), (1, 0), "and no other");
    // A disk that lost its end.
    guest.image.as_file().set_len(512).unwrap();
    guest.ask(VIRTIO_BLK_T_IN, last, 512);
    assert_eq!((guest.serve(), guest.status()), (1, VIRTIO_BLK_S_IOERR));

    let mut guest = Guest::new(true, FLUSH);
    guest.ask(VIRTIO_BLK_T_OUT, 0, 512);
    assert_eq!((guest.serve(), guest.status()), (0, VIRTIO_BLK_S_IOERR), "read only");
    assert!(guest.driver.device.transport.is_live());
}

#[test]
fn chains_that_break_the_rules_break_the_device_until_its_reset() {
    let mut guest = Guest::new(false, FLUSH);
    guest.put_header(VIRTIO_BLK_T_IN, 0);
    let cases: [&[(u64, u32, u16)]; 9] = [
        // No status; no header; half a header; a status of no bytes.
        &[(HEADER, 16, 0)],
        &[(STATUS, 1, WRITE)],
        &[(HEADER, 15, 0), (STATUS, 1, WRITE)],
        &[(HEADER, 16, 0), (STATUS, 0, WRITE)],
        // Something to read behind something to write.
        &[(HEADER, 16, 0), (DATA, 512, WRITE), (HEADER, 16, 0), (STATUS, 1, WRITE)],
        // Header, data, status outside of RAM.
        &[(u64::MAX - 8, 16, 0), (STATUS, 1, WRITE)],
        &[(HEADER, 16, 0), (0x1f_ff00, 512, WRITE), (STATUS, 1, WRITE)],
        &[(HEADER, 16, 0), (DATA, 512, WRITE), (0x20_0000, 1, WRITE)],
        &[(HEADER, 16, 0), (u64::MAX, 2, WRITE)],
    ];
    for case in cases {
        guest.driver.chain(case);
        guest.serve();
        assert!(guest.driver.is_broken(), "{case:x?}");
        assert_eq!(guest.serve(), 0, "nothing is looked at any more");
        assert_eq!(guest.driver.used(), 0);
        guest.driver.put(USED_RING, &[0; 4]);
        guest.driver.set_up();
    }
    // A loop; a next, and a head, beyond the table; an indirect table, which is not offered.
    for (flags, next, head) in [(NEXT, 0, 0), (NEXT, SIZE, 0), (0, 0, SIZE + 3), (INDIRECT, 0, 0)] {
        guest.driver.describe(0, HEADER, 16, flags, next);
        guest.driver.offer(head);
        assert_eq!(guest.turn(), Next::Wait);
        assert!(guest.driver.is_broken(), "{flags} {next} {head}");
        guest.driver.set_up();
    }
    guest.driver.put(AVAIL + 2, &(SIZE + 1).to_le_bytes());
    assert_eq!(guest.turn(), Next::Wait);
    assert!(guest.driver.is_broken(), "an index that runs away");
    // After all that it works.
    guest.driver.set_up();
    guest.ask(VIRTIO_BLK_T_IN, 7, 512);
    assert_eq!((guest.serve(), guest.status()), (1, 0));
}

#[test]
fn a_request_that_a_reset_cuts_off_writes_nothing_more() {
    let mut guest = Guest::new(true, FLUSH);
    guest.ask(VIRTIO_BLK_T_IN, 7, 512);
    assert_eq!(guest.turn(), Next::Perform);
    guest.driver.set_up();
    guest.driver.put(USED_RING, &[0; 4]);
    guest.driver.harvest();
    guest.work.perform(&guest.disk);
    assert_eq!(guest.turn(), Next::Wait);
    assert_eq!(guest.driver.bytes_at(DATA, 512), [0; 512]);
    assert_eq!((guest.status(), guest.driver.used()), (0xff, 0));
    // The next one is not taken for it.
    guest.ask(VIRTIO_BLK_T_IN, 9, 512);
    assert_eq!((guest.serve(), guest.status()), (1, 0));
    assert_eq!(guest.driver.bytes_at(DATA, 512), [9; 512]);
}

#[test]
fn descriptors_that_change_under_a_request_change_nothing() {
    let mut guest = Guest::new(true, FLUSH);
    guest.ask(VIRTIO_BLK_T_IN, 7, 512);
    assert_eq!(guest.turn(), Next::Perform);
    guest.driver.describe(1, u64::MAX, u32::MAX, NEXT, 0);
    guest.work.perform(&guest.disk);
    assert_eq!((guest.turn(), guest.status()), (Next::Wait, 0));
    assert_eq!(guest.driver.bytes_at(DATA, 512), [7; 512]);
}

#[test]
fn a_request_under_way_at_a_checkpoint_is_done_again_elsewhere() {
    let mut guest = Guest::new(true, FLUSH);
    guest.ask(VIRTIO_BLK_T_IN, 0, 512);
    guest.serve();
    // The second of three chunks is on its way.
    guest.ask(VIRTIO_BLK_T_IN, 20, u32::try_from(3 * CHUNK).unwrap());
    for _ in 0..2 {
        assert_eq!(guest.turn(), Next::Perform);
        guest.work.perform(&guest.disk);
    }
    let state = guest.driver.saved();
    assert_eq!((state.queues[0].next_avail, state.queues[0].next_used), (1, 1));

    let mut elsewhere = Block::new(disk(&guest.image, true)).unwrap();
    elsewhere.restore(guest.driver.ram(), &state).unwrap();
    guest.driver.device = elsewhere;
    guest.work = Work::new();
    guest.driver.put(DATA, &[0; 512]);
    assert_eq!((guest.serve(), guest.status()), (3, 0));
    assert_eq!(guest.driver.bytes_at(DATA, 512), [20; 512]);
    assert_eq!(guest.driver.used(), 2);
    // And here, where the pause was only a pause, it is done once.
    assert_eq!(guest.driver.saved().queues[0].next_avail, 2);
}

#[test]
fn many_requests_that_need_no_disk_do_not_make_a_turn_long() {
    let mut guest = Guest::new(true, FLUSH);
    guest.put_header(VIRTIO_BLK_T_GET_ID, 0);
    guest.driver.describe(0, HEADER, 16, NEXT, 1);
    guest.driver.describe(1, STATUS, 1, WRITE, 0);
    for _ in 0..SIZE {
        guest.driver.offer(0);
    }
    assert_eq!(usize::from(SIZE), BUDGET);
    assert_eq!(guest.turn(), Next::Again);
    assert_eq!((guest.turn(), guest.driver.used()), (Next::Wait, SIZE));
}

#[test]
fn the_disks_thread_serves_between_pauses_and_stands_still_in_them() {
    let image = image();
    let disk = disk(&image, true);
    // A guest that has set up its device and asks for sector 3; then its device moves behind a port.
    let mut guest = Guest::new(true, FLUSH);
    guest.ask(VIRTIO_BLK_T_IN, 3, 512);
    let state = guest.driver.saved();
    let memory = Arc::new(Memory::new(Layout::of_mib(2)).unwrap());
    memory
        .ram()
        .write_slice(&guest.driver.bytes_at(0, 2 << 20), vm_memory::GuestAddress(0))
        .unwrap();
    let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let doorbell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let port = Port::new(
        Block::new(Arc::clone(&disk)).unwrap(),
        Interrupt::new(line.try_clone().unwrap()),
        vec![doorbell],
        Arc::clone(&memory),
    );
    let (port, parking) = (Arc::new(port), Arc::new(Parking::default()));
    port.restore(&state).unwrap();

    parking.park();
    Worker::start(0, &[], Arc::clone(&port), disk, Arc::clone(&parking)).unwrap();
    port.ring(0).unwrap();
    assert!(!raised_within(&line, Duration::from_millis(50)), "served in a pause");
    parking.resume();
    assert!(raised_within(&line, Duration::from_secs(10)));
    let mut data = [0; 512];
    memory.ram().read_slice(&mut data, vm_memory::GuestAddress(DATA)).unwrap();
    assert_eq!(data, [3; 512]);
    // It lets go of everything when it is given no turn any more.
    parking.shut();
    port.ring(0).unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while Arc::strong_count(&port) > 1 {
        assert!(std::time::Instant::now() < until, "the thread does not end");
        std::thread::yield_now();
    }
}

fn raised_within(line: &EventFd, limit: Duration) -> bool {
    let mut ready = libc::pollfd { fd: line.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let limit = i32::try_from(limit.as_millis()).unwrap();
    // SAFETY: one pollfd, alive during the call.
    unsafe { libc::poll(&raw mut ready, 1, limit) == 1 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_the_ring_holds_the_host_and_its_disk_go_on(
        ring in prop::collection::vec(
            // Mostly within RAM and short, so that requests get far enough to be odd; some anything.
            (prop_oneof![3 => 0x8000..0x1f_ff00_u64, 1 => any::<u64>()],
             prop_oneof![1 => Just(1_u32), 2 => Just(16), 2 => Just(512), 1 => any::<u32>()],
             0..8_u16, 0..=SIZE),
            SIZE as usize,
        ),
        header in (0..12_u32, prop_oneof![0..2048_u64, any::<u64>()]),
        heads in prop::collection::vec(0..=SIZE, 1..12),
        resets in prop::collection::vec(0..6_usize, 0..3),
    ) {
        let mut guest = Guest::new(false, FLUSH);
        let header = [&header.0.to_le_bytes()[..], &[0; 4], &header.1.to_le_bytes()].concat();
        for at in (0x8000..0x1f_0000).step_by(4096) {
            guest.driver.put(at, &header);
        }
        for (n, (address, len, flags, next)) in (0..).zip(ring) {
            guest.driver.describe(n, address & !0xfff, len, flags, next);
        }
        for head in heads {
            guest.driver.offer(head);
        }
        for n in 0..64 {
            if resets.contains(&n) {
                let kept = guest.driver.bytes_at(DESCRIPTORS, 16 * usize::from(SIZE));
                guest.driver.set_up();
                guest.driver.put(DESCRIPTORS, &kept);
                guest.driver.offer(0);
            }
            match guest.turn() {
                Next::Perform => guest.work.perform(&guest.disk),
                Next::Again => {}
                Next::Wait => break,
            }
        }
        prop_assert_eq!(guest.image.as_file().metadata().unwrap().len(), 512 * SECTORS as u64);
    }
}
