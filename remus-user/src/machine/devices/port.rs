//! A virtio-mmio device as the machine's threads share it: one shape for all kinds.
//!
//! - vCPU threads bring register accesses ([`Registers`]). Interrupt status and acknowledgement pass by the device's
//!   lock: an interrupt handler never waits for data that is being moved.
//! - Whoever serves the device waits for its doorbells, and works in its lock ([`Port::lock`]).
//! - The pausing thread saves it.
//!
//! What a kind is beside its registers is a [`Device`].

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS};
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::{CONFIGURATION, Interrupt, USED_BUFFER};
use super::mmio::{Effect, Transport};
use crate::checkpoint::DeviceState;
use crate::machine::memory::{Memory, Ram};

/// What is behind a register page.
pub(in crate::machine) trait Device {
    fn transport(&self) -> &Transport;

    /// Takes a store to the register page.
    fn write(&mut self, ram: &Ram, offset: u64, data: &[u8]) -> Effect;

    /// Takes over the registers of the same device elsewhere.
    ///
    /// # Errors
    /// When they are none that this device could have had.
    fn restore(&mut self, ram: &Ram, state: &DeviceState) -> Result<()>;
}

/// What stopped a queue's loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::machine) enum Progress {
    /// Nothing is left to do.
    Idle,
    /// The budget is used up: call again.
    More,
    /// There may be work, but the guest has no buffer for it.
    Starved,
}

/// A device's register page and state, whatever its kind.
pub(in crate::machine) trait Registers {
    /// A load from the register page.
    fn load(&self, offset: u64, data: &mut [u8]);

    /// A store to the register page.
    fn store(&self, offset: u64, data: &[u8]);

    /// Writes the registers into `state`, whose buffers are used again.
    fn save(&self, state: &mut DeviceState);

    /// Takes over the registers of the same device elsewhere.
    ///
    /// # Errors
    /// When they are none that this device could have had.
    fn restore(&self, state: &DeviceState) -> Result<()>;

    /// Makes up for what a restore cannot know: a doorbell that was rung and not heard, and an interrupt
    /// that was on its way. Both are harmless when there was none.
    ///
    /// # Errors
    /// When the kernel refuses an event.
    fn replay(&self) -> io::Result<()>;
}

/// A device behind its register page: the device in its lock; its interrupt and its doorbells, which need none.
pub(in crate::machine) struct Port<D> {
    device: Mutex<D>,
    /// The device's, for people.
    name: &'static str,
    interrupt: Interrupt,
    doorbells: Box<[EventFd]>,
    memory: Arc<Memory>,
}

impl<D: Device> Port<D> {
    /// `doorbells` are rung for the queues, in their order.
    pub(in crate::machine) fn new(
        device: D,
        interrupt: Interrupt,
        doorbells: Vec<EventFd>,
        memory: Arc<Memory>,
    ) -> Self {
        let transport = device.transport();
        assert_eq!(doorbells.len(), transport.queues(), "a doorbell for each queue");
        let (name, doorbells) = (transport.name(), doorbells.into_boxed_slice());
        Self { device: Mutex::new(device), name, interrupt, doorbells, memory }
    }

    /// Rings for a queue as the guest would.
    pub(in crate::machine) fn ring(&self, queue: usize) -> io::Result<()> {
        self.doorbells[queue].write(1)
    }

    pub(in crate::machine) fn doorbell(&self, queue: usize) -> &EventFd {
        &self.doorbells[queue]
    }

    pub(in crate::machine) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    pub(in crate::machine) fn ram(&self) -> &Ram {
        self.memory.ram()
    }

    /// # Panics
    /// When a thread has panicked within the device: its state is then unknown, and going on could do what no
    /// checkpoint accounts for.
    pub(in crate::machine) fn lock(&self) -> MutexGuard<'_, D> {
        self.device.lock().expect("a thread panicked in a device")
    }
}

impl<D: Device> Registers for Port<D> {
    fn load(&self, offset: u64, data: &mut [u8]) {
        // The one register that an interrupt handler reads: not through the lock, which the serving thread
        // may hold for as long as it moves data.
        if offset == u64::from(VIRTIO_MMIO_INTERRUPT_STATUS) {
            if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
                *word = self.interrupt.status().to_le_bytes();
            }
            return;
        }
        self.lock().transport().read(offset, data, self.interrupt.status());
    }

    fn store(&self, offset: u64, data: &[u8]) {
        if offset == u64::from(VIRTIO_MMIO_INTERRUPT_ACK) {
            if let Ok(word) = data.try_into() {
                self.interrupt.acknowledge(u32::from_le_bytes(word));
            }
            return;
        }
        let effect = self.lock().write(self.ram(), offset, data);
        let told = match effect {
            Effect::None | Effect::Negotiated => Ok(()),
            Effect::Notify(queue) => self.ring(queue),
            Effect::Reset => {
                self.interrupt.set_status(0);
                Ok(())
            }
            Effect::Broken => self.interrupt.raise(CONFIGURATION),
        };
        if let Err(e) = told {
            tracing::error!("{}: event: {e}", self.name);
        }
    }

    fn save(&self, state: &mut DeviceState) {
        self.lock().transport().save(self.interrupt.status(), state);
    }

    fn restore(&self, state: &DeviceState) -> Result<()> {
        self.lock().restore(self.ram(), state).context(self.name)?;
        self.interrupt.set_status(state.interrupt_status);
        Ok(())
    }

    fn replay(&self) -> io::Result<()> {
        self.doorbells.iter().try_for_each(|doorbell| doorbell.write(1))?;
        if self.lock().transport().is_live() {
            self.interrupt.raise(USED_BUFFER)?;
        }
        Ok(())
    }
}
