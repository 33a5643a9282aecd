use proptest::prelude::*;

use super::super::super::layout::Layout;
use super::super::super::memory::Memory;
use super::*;

const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX;

fn transport() -> Transport {
    let config = vec![2, 0, 0, 0, 0, 9];
    let identity = Identity {
        name: "device of the test",
        device_id: 1,
        features: FEATURES | 1 << 7 | 1 << 1,
        requires: &[(7, 1)],
        queues: 2,
        queue_max: 256,
        config,
    };
    Transport::new(identity).unwrap()
}

fn memory() -> Memory {
    Memory::new(Layout::of_mib(2)).unwrap()
}

struct Driver<'a>(Transport, &'a Memory);

impl Driver<'_> {
    fn read(&self, offset: u32) -> u32 {
        let mut word = [0; 4];
        self.0.read(offset.into(), &mut word, 0);
        u32::from_le_bytes(word)
    }

    fn write(&mut self, offset: u32, value: u32) -> Effect {
        self.0.write(self.1.ram(), offset.into(), &value.to_le_bytes())
    }

    fn negotiate(&mut self) {
        self.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
        self.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        for (selector, half) in [(0, 1 << VIRTIO_RING_F_EVENT_IDX), (1, 1)] {
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, selector);
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, half);
        }
        self.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    fn queue_at(&mut self, n: u32, address: u32) -> Effect {
        self.write(reg::VIRTIO_MMIO_QUEUE_SEL, n);
        self.write(reg::VIRTIO_MMIO_QUEUE_NUM, 128);
        self.write(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, address);
        self.write(reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, address + 0x1000);
        self.write(reg::VIRTIO_MMIO_QUEUE_USED_LOW, address + 0x2000);
        self.write(reg::VIRTIO_MMIO_QUEUE_READY, 1)
    }

    fn set_up(&mut self) {
        self.negotiate();
        assert_eq!(self.queue_at(0, 0x10_0000), Effect::None);
        assert_eq!(self.queue_at(1, 0x11_0000), Effect::None);
        let all = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        self.write(reg::VIRTIO_MMIO_STATUS, all);
    }
}

#[test]
fn a_driver_that_keeps_to_the_order_gets_a_live_device() {
    let memory = memory();
    let mut driver = Driver(transport(), &memory);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_VERSION), 2);
    driver.set_up();
    assert!(driver.0.is_live());
    assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 1);
    assert!(driver.0.queue(1).event_idx_enabled());
    assert_eq!(driver.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 1), Effect::Notify(1));
    assert_eq!(driver.write(reg::VIRTIO_MMIO_STATUS, 0), Effect::Reset);
    assert!(!driver.0.is_live());
    assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
}

#[test]
fn status_cannot_skip_a_step() {
    let memory = memory();
    let mut driver = Driver(transport(), &memory);
    driver.write(reg::VIRTIO_MMIO_STATUS, DRIVER_OK);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_STATUS), 0);
    driver.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_STATUS), ACKNOWLEDGE | DRIVER);
}

#[test]
fn features_that_were_not_offered_are_not_accepted() {
    let memory = memory();
    let mut driver = Driver(transport(), &memory);
    driver.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
    for (selector, half) in [(0, 1), (1, 1)] {
        driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, selector);
        driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, half);
    }
    driver.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_STATUS) & FEATURES_OK, 0);
}

#[test]
fn a_queue_outside_of_ram_breaks_the_device_until_reset() {
    let memory = memory();
    let mut driver = Driver(transport(), &memory);
    driver.negotiate();
    assert_eq!(driver.queue_at(0, 0x1f_f000), Effect::Broken);
    driver.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    assert!(!driver.0.is_live());
    assert_ne!(driver.read(reg::VIRTIO_MMIO_STATUS) & NEEDS_RESET, 0);
    driver.write(reg::VIRTIO_MMIO_STATUS, 0);
    driver.set_up();
    assert!(driver.0.is_live());
}

#[test]
fn a_live_queue_cannot_be_moved() {
    let memory = memory();
    let mut driver = Driver(transport(), &memory);
    driver.set_up();
    driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, 0);
    driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    driver.write(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, 0x18_0000);
    assert_eq!(driver.0.queue(0).desc_table(), 0x10_0000);
    assert!(driver.0.queue(0).ready());
}

#[test]
fn configuration_reads_at_any_width_and_past_its_end() {
    let transport = transport();
    let mut bytes = [0xff; 8];
    transport.read(0x104, &mut bytes, 0);
    assert_eq!(bytes, [0, 9, 0, 0, 0, 0, 0, 0]);
    transport.read(u64::MAX, &mut bytes, 0);
    assert_eq!(bytes, [0; 8]);
}

#[test]
fn saved_registers_come_back_and_impossible_ones_do_not() {
    let memory = memory();
    let mut driver = Driver(transport(), &memory);
    driver.set_up();
    driver.0.queue(1).set_next_avail(77);
    let mut state = DeviceState::default();
    driver.0.save(1, &mut state);
    let mut twin = transport();
    twin.restore(memory.ram(), &state).unwrap();
    let mut again = DeviceState::default();
    twin.save(1, &mut again);
    assert_eq!(state, again);
    assert!(twin.is_live());

    let mut moved = state.clone();
    moved.queues[0].used = u64::MAX - 3;
    assert!(transport().restore(memory.ram(), &moved).is_err());
    let mut odd = state.clone();
    odd.queues[0].size = 3;
    assert!(transport().restore(memory.ram(), &odd).is_err());
    let mut greedy = state;
    greedy.driver_features |= 1 << 15;
    assert!(transport().restore(memory.ram(), &greedy).is_err());
}

fn access() -> impl Strategy<Value = (u64, Vec<u8>)> {
    let offset = prop_oneof![4 => 0u64..0x110, 1 => any::<u64>()];
    let offset = offset.prop_map(|o| if o < 0x110 { o & !3 } else { o });
    let small = prop_oneof![0u32..16, Just(0x10_0000), Just(0x11_0000), any::<u32>()];
    let word = small.prop_map(|v| v.to_le_bytes().to_vec());
    (offset, prop_oneof![8 => word, 1 => prop::collection::vec(any::<u8>(), 0..9)])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_sequence_of_writes_makes_a_live_device_with_a_queue_outside_of_ram(
        writes in prop::collection::vec(access(), 0..200),
        negotiated in any::<bool>(),
    ) {
        let memory = memory();
        let mut driver = Driver(transport(), &memory);
        if negotiated {
            driver.negotiate();
        }
        for (offset, data) in writes {
            driver.0.write(memory.ram(), offset, &data);
            let mut out = [0; 8];
            driver.0.read(offset, &mut out, 3);
            if driver.0.is_live() {
                for n in 0..2 {
                    let queue = driver.0.queue(n);
                    prop_assert!(!queue.ready() || queue.is_valid(memory.ram()));
                }
            }
        }
    }
}
