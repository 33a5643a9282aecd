//! The device against rings that a guest wrote.

use proptest::prelude::*;

use super::super::super::driver::{AVAIL, Driver, INDIRECT, NEXT, SIZE, WRITE};
use super::super::super::interrupt::USED_BUFFER;
use super::{Rng, *};

fn driver() -> Driver<Rng> {
    Driver::new(Rng::new().unwrap(), 0)
}

impl Driver<Rng> {
    fn fill(&mut self) -> Progress {
        self.device.fill(self.memory.ram(), &self.interrupt).unwrap()
    }
}

#[test]
fn buffers_are_filled_with_bytes_that_differ_and_their_pages_are_marked() {
    let mut guest = driver();
    guest.harvest();
    guest.chain(&[(0x8000, 100, WRITE), (0x9000, 28, WRITE)]);
    assert_eq!(guest.harvest(), [1, 2], "the test's own writes");
    assert_eq!(guest.fill(), Progress::Idle);
    assert_eq!(guest.used_entry(0), (0, 128));
    let (first, second) = (guest.bytes_at(0x8000, 100), guest.bytes_at(0x9000, 28));
    assert_ne!(first, [0; 100]);
    assert_ne!(first[..28], second);
    assert_eq!(guest.bytes_at(0x8000 + 100, 1), [0], "and no byte more");
    assert_eq!(guest.harvest(), [3, 8, 9]);
    assert_eq!((guest.line.read().unwrap(), guest.interrupt.status()), (1, USED_BUFFER));
}

#[test]
fn a_request_gets_a_chunk_at_most_and_a_notification_a_few_requests() {
    let mut guest = driver();
    guest.describe(0, 0x10_0000, u32::MAX >> 13, WRITE, 0);
    for _ in 0..SIZE {
        guest.offer(0);
    }
    assert_eq!(usize::from(SIZE), BUDGET);
    assert_eq!(guest.fill(), Progress::More);
    guest.offer(0);
    assert_eq!(guest.fill(), Progress::Idle);
    let lengths: Vec<_> = (0..SIZE).map(|n| guest.used_entry(n).1).collect();
    assert_eq!(lengths, [u32::try_from(CHUNK).unwrap(); SIZE as usize]);
    assert_eq!(guest.bytes_at(0x10_0000 + CHUNK as u64, 4), [0; 4]);
}

#[test]
fn a_buffer_of_no_bytes_comes_back_with_none() {
    let mut guest = driver();
    guest.chain(&[(0x8000, 0, WRITE)]);
    assert_eq!(guest.fill(), Progress::Idle);
    assert_eq!(guest.used_entry(0), (0, 0));
    assert!(guest.device.transport.is_live());
}

#[test]
fn chains_that_break_the_rules_break_the_device_until_its_reset() {
    let mut guest = driver();
    // A loop; a next beyond the table; outside of RAM, whole and in part; for reading; indirect, which is not offered;
    // a head beyond the table.
    let cases: [(u64, u32, u16, u16, u16); 7] = [
        (0x8000, 1, WRITE | NEXT, 0, 0),
        (0x8000, 1, WRITE | NEXT, SIZE, 0),
        (u64::MAX - 4, 64, WRITE, 0, 0),
        (0x1f_fff0, 100, WRITE, 0, 0),
        (0x8000, 64, 0, 0, 0),
        (0x8000, 64, INDIRECT, 0, 0),
        (0x8000, 64, WRITE, 0, SIZE + 3),
    ];
    for (address, len, flags, next, head) in cases {
        guest.describe(0, address, len, flags, next);
        guest.offer(head);
        assert_eq!(guest.fill(), Progress::Starved, "{address:#x} {len} {flags} {next} {head}");
        assert!(guest.is_broken());
        assert_eq!(guest.fill(), Progress::Idle, "nothing is looked at any more");
        guest.set_up();
    }
    guest.put(AVAIL + 2, &(SIZE + 1).to_le_bytes());
    assert_eq!(guest.fill(), Progress::Starved, "an index that runs away");
    assert!(guest.is_broken());
}

#[test]
fn a_device_goes_on_elsewhere_where_it_was() {
    let mut guest = driver();
    guest.chain(&[(0x8000, 16, WRITE)]);
    guest.fill();
    let state = guest.saved();
    let mut elsewhere = Rng::new().unwrap();
    elsewhere.restore(guest.ram(), &state).unwrap();
    guest.device = elsewhere;
    guest.chain(&[(0x9000, 16, WRITE)]);
    assert_eq!(guest.fill(), Progress::Idle);
    assert_eq!((guest.used(), guest.used_entry(1)), (2, (0, 16)));
    let more = DeviceState { driver_features: 1 << 5 | state.driver_features, ..state };
    Rng::new().unwrap().restore(guest.ram(), &more).unwrap_err();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_the_ring_holds_the_host_goes_on(
        ring in prop::collection::vec(any::<u8>(), 16 * SIZE as usize),
        heads in prop::collection::vec(0..2 * SIZE, 0..20),
    ) {
        let mut guest = driver();
        guest.put(super::super::super::driver::DESCRIPTORS, &ring);
        for head in heads {
            guest.offer(head);
        }
        for _ in 0..4 {
            guest.fill();
        }
    }
}
