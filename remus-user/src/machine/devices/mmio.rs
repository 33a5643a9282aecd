//! The virtio-mmio transport (version 2): a device's registers as the driver sees them.
//!
//! A register machine without side effects of its own: what a write means for the device is returned. The
//! guest chooses every access, so each is judged against the state that the specification wants it in, and
//! what is out of place is dropped: features only between DRIVER and FEATURES_OK, queues only between
//! FEATURES_OK and DRIVER_OK, status bits only in their order and never taken back but by a reset.
//!
//! A device that finds its guest breaking the rules of a ring is *broken*: it says so (DEVICE_NEEDS_RESET)
//! and looks at no ring until the driver resets it.
//!
//! Absent: version 1 ("legacy"), shared memory regions, writable configuration, queue reset.

use anyhow::{Context, Result, ensure};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};

use super::super::memory::Ram;
use crate::checkpoint::{DeviceState, QueueState};

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"Rmus");

const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;
const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;

/// What a device is, for as long as it exists.
pub(super) struct Identity {
    /// For people.
    pub(super) name: &'static str,
    pub(super) device_id: u32,
    /// Features on offer; VERSION_1 must be among them.
    pub(super) features: u64,
    /// Numbers of features that a driver may take only together with another.
    pub(super) requires: &'static [(u32, u32)],
    pub(super) queues: usize,
    /// Entries of each queue at most, a power of two.
    pub(super) queue_max: u16,
    /// The device's configuration space, read-only.
    pub(super) config: Vec<u8>,
}

/// What the device has to do after a register write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::machine) enum Effect {
    None,
    /// The driver rings for queue n, which exists.
    Notify(usize),
    /// The driver has chosen its features, for good until it resets the device.
    Negotiated,
    /// The driver has reset the device.
    Reset,
    /// The driver has set up a queue that is not in RAM: the device is broken.
    Broken,
}

/// The registers of one device.
pub(in crate::machine) struct Transport {
    identity: Identity,
    status: u32,
    driver_features: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    queues: Vec<Queue>,
}

impl Transport {
    pub(super) fn new(identity: Identity) -> Result<Self> {
        let queues = (0..identity.queues).map(|_| Queue::new(identity.queue_max));
        let queues = queues.collect::<Result<_, _>>().context("virtqueue")?;
        Ok(Self {
            identity,
            status: 0,
            driver_features: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            queues,
        })
    }

    /// Returns the name by which people know the device.
    pub(super) fn name(&self) -> &'static str {
        self.identity.name
    }

    /// Returns the number of the device's queues.
    pub(super) fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Returns whether the driver is ready and the device is whole, so that rings may be looked at.
    pub(super) fn is_live(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    pub(super) fn queue(&mut self, n: usize) -> &mut Queue {
        &mut self.queues[n]
    }

    /// The guest broke the rules: nothing happens until it resets the device.
    pub(super) fn break_down(&mut self) {
        self.status |= NEEDS_RESET;
    }

    /// A load from `offset` of the register page.
    pub(super) fn read(&self, offset: u64, data: &mut [u8], interrupt_status: u32) {
        data.fill(0);
        let Ok(offset) = u32::try_from(offset) else { return };
        if let Some(at) = offset.checked_sub(reg::VIRTIO_MMIO_CONFIG) {
            for (byte, at) in data.iter_mut().zip(at as usize..) {
                *byte = self.identity.config.get(at).copied().unwrap_or(0);
            }
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            *word = self.register(offset, interrupt_status).to_le_bytes();
        }
    }

    fn register(&self, offset: u32, interrupt_status: u32) -> u32 {
        let queue = self.queues.get(self.queue_sel as usize);
        match offset {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => self.identity.device_id,
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => {
                half(self.identity.features, self.device_features_sel)
            }
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |q| q.max_size().into()),
            reg::VIRTIO_MMIO_QUEUE_READY => queue.map_or(0, |q| q.ready().into()),
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => interrupt_status,
            reg::VIRTIO_MMIO_STATUS => self.status,
            // No shared memory regions: length and base read as -1.
            0x0b0..=0x0bf => u32::MAX,
            // ConfigGeneration too: the configuration never changes.
            _ => 0,
        }
    }

    /// Takes a store to `offset` of the register page. InterruptACK is the interrupt's, not ours.
    pub(super) fn write(&mut self, ram: &Ram, offset: u64, data: &[u8]) -> Effect {
        let (Ok(offset), Ok(word)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) else {
            return Effect::None;
        };
        let value = u32::from_le_bytes(word);
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => self.write_features(value),
            reg::VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => return self.notify(value),
            reg::VIRTIO_MMIO_STATUS => return self.write_status(value),
            reg::VIRTIO_MMIO_QUEUE_NUM..=reg::VIRTIO_MMIO_QUEUE_READY
            | reg::VIRTIO_MMIO_QUEUE_DESC_LOW..=reg::VIRTIO_MMIO_QUEUE_USED_HIGH => {
                return self.write_queue(ram, offset, value);
            }
            _ => {}
        }
        Effect::None
    }

    fn write_features(&mut self, value: u32) {
        if self.status & (DRIVER | FEATURES_OK) == DRIVER {
            self.driver_features = match self.driver_features_sel {
                0 => self.driver_features & !0xffff_ffff | u64::from(value),
                1 => self.driver_features & 0xffff_ffff | u64::from(value) << 32,
                // Beyond 64 features we offer none, so the driver may choose none.
                _ => self.driver_features,
            };
        }
    }

    fn notify(&self, value: u32) -> Effect {
        match usize::try_from(value) {
            Ok(n) if n < self.queues.len() => Effect::Notify(n),
            _ => Effect::None,
        }
    }

    fn write_status(&mut self, value: u32) -> Effect {
        if value == 0 {
            self.reset();
            return Effect::Reset;
        }
        let before = self.status;
        self.status |= value & FAILED;
        if self.status & NEEDS_RESET != 0 {
            return Effect::None;
        }
        for (bit, needs) in [
            (ACKNOWLEDGE, 0),
            (DRIVER, ACKNOWLEDGE),
            (FEATURES_OK, DRIVER),
            (DRIVER_OK, FEATURES_OK),
        ] {
            let wanted = value & bit != 0 && self.status & needs == needs;
            if wanted && (bit != FEATURES_OK || self.are_fine(self.driver_features)) {
                self.status |= bit;
            }
        }
        if self.status & !before & FEATURES_OK != 0 { Effect::Negotiated } else { Effect::None }
    }

    fn are_fine(&self, features: u64) -> bool {
        let has = |bit: u32| features & 1 << bit != 0;
        features & !self.identity.features == 0
            && has(VIRTIO_F_VERSION_1)
            && self.identity.requires.iter().all(|(one, other)| !has(*one) || has(*other))
    }

    /// Returns the features on offer.
    pub(super) fn features(&self) -> u64 {
        self.identity.features
    }

    /// Returns the features that the driver has chosen; none before it has.
    pub(super) fn negotiated(&self) -> u64 {
        if self.status & FEATURES_OK != 0 { self.driver_features } else { 0 }
    }

    fn write_queue(&mut self, ram: &Ram, offset: u32, value: u32) -> Effect {
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        if self.status & (FEATURES_OK | DRIVER_OK | NEEDS_RESET) != FEATURES_OK {
            return Effect::None;
        }
        let Some(queue) = self.queues.get_mut(self.queue_sel as usize) else {
            return Effect::None;
        };
        if offset == reg::VIRTIO_MMIO_QUEUE_READY {
            queue.set_event_idx(event_idx);
            queue.set_ready(value == 1);
            if value == 1 && !queue.is_valid(ram) {
                self.break_down();
                return Effect::Broken;
            }
        } else if !queue.ready() {
            // Sizes and addresses that no ring can have are dropped by the queue itself; a queue without
            // them is refused when it is made ready.
            match offset {
                reg::VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
                reg::VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
                reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
                reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
                reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => {
                    queue.set_avail_ring_address(None, Some(value))
                }
                reg::VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
                reg::VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
                _ => {}
            }
        }
        Effect::None
    }

    fn reset(&mut self) {
        self.status = 0;
        self.driver_features = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.queue_sel = 0;
        self.queues.iter_mut().for_each(QueueT::reset);
    }

    /// Writes the registers into `state`, whose buffers are used again.
    pub(super) fn save(&self, interrupt_status: u32, state: &mut DeviceState) {
        state.status = self.status;
        state.driver_features = self.driver_features;
        state.device_features_sel = self.device_features_sel;
        state.driver_features_sel = self.driver_features_sel;
        state.queue_sel = self.queue_sel;
        state.interrupt_status = interrupt_status;
        state.queues.clear();
        state.queues.extend(self.queues.iter().map(|queue| {
            let queue = queue.state();
            QueueState {
                size: queue.size,
                next_avail: queue.next_avail,
                next_used: queue.next_used,
                ready: queue.ready,
                event_idx: queue.event_idx_enabled,
                descriptors: queue.desc_table,
                avail: queue.avail_ring,
                used: queue.used_ring,
            }
        }));
    }

    /// Takes over the registers of the same device elsewhere.
    ///
    /// # Errors
    /// When they are none that this device could have had.
    pub(super) fn restore(&mut self, ram: &Ram, state: &DeviceState) -> Result<()> {
        let all = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | NEEDS_RESET | FAILED;
        ensure!(state.status & !all == 0, "device status {:#x}", state.status);
        ensure!(
            state.driver_features & !self.identity.features == 0,
            "features {:#x} of {:#x} on offer",
            state.driver_features,
            self.identity.features
        );
        ensure!(
            state.status & FEATURES_OK == 0 || self.are_fine(state.driver_features),
            "features {:#x} that no driver can have chosen",
            state.driver_features
        );
        ensure!(
            state.queues.len() == self.queues.len(),
            "{} queues where the device has {}",
            state.queues.len(),
            self.queues.len()
        );
        for (queue, from) in self.queues.iter_mut().zip(&state.queues) {
            let restored = Queue::try_from(virtio_queue::QueueState {
                max_size: self.identity.queue_max,
                next_avail: from.next_avail,
                next_used: from.next_used,
                event_idx_enabled: from.event_idx,
                size: from.size,
                ready: from.ready,
                desc_table: from.descriptors,
                avail_ring: from.avail,
                used_ring: from.used,
            });
            *queue = restored.context("virtqueue registers")?;
            let broken = state.status & NEEDS_RESET != 0;
            ensure!(!queue.ready() || broken || queue.is_valid(ram), "virtqueue outside of RAM");
        }
        self.status = state.status;
        self.driver_features = state.driver_features;
        self.device_features_sel = state.device_features_sel;
        self.driver_features_sel = state.driver_features_sel;
        self.queue_sel = state.queue_sel;
        Ok(())
    }
}

fn half(features: u64, selector: u32) -> u32 {
    match selector {
        0 => (features & 0xffff_ffff) as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
