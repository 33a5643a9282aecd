//! What the vCPU threads and the serving thread share of the network device.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS};
use vmm_sys_util::eventfd::EventFd;

use super::super::interrupt::{CONFIGURATION, Interrupt};
use super::super::mmio::Effect;
use super::Net;
use crate::machine::memory::Memory;

/// The network device behind its register page: the device in its lock; its interrupt and its doorbells,
/// which need none.
pub(in crate::machine) struct NetPort {
    net: Mutex<Net>,
    interrupt: Interrupt,
    doorbells: [EventFd; 2],
    memory: Arc<Memory>,
}

impl NetPort {
    /// `doorbells` are rung for the receive queue (0) and the transmit queue (1).
    pub(in crate::machine) fn new(
        net: Net,
        interrupt: Interrupt,
        doorbells: [EventFd; 2],
        memory: Arc<Memory>,
    ) -> Self {
        Self { net: Mutex::new(net), interrupt, doorbells, memory }
    }

    /// A load from the register page.
    pub(in crate::machine) fn load(&self, offset: u64, data: &mut [u8]) {
        // The one register that an interrupt handler reads: not through the lock, which the serving thread
        // may hold for as long as it moves frames.
        if offset == u64::from(VIRTIO_MMIO_INTERRUPT_STATUS) {
            if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
                *word = self.interrupt.status().to_le_bytes();
            }
            return;
        }
        self.lock().transport().read(offset, data, self.interrupt.status());
    }

    /// A store to the register page.
    pub(in crate::machine) fn store(&self, offset: u64, data: &[u8]) {
        if offset == u64::from(VIRTIO_MMIO_INTERRUPT_ACK) {
            if let Ok(word) = data.try_into() {
                self.interrupt.acknowledge(u32::from_le_bytes(word));
            }
            return;
        }
        let effect = self.lock().write(self.memory.ram(), offset, data);
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
            tracing::error!("network device: event: {e}");
        }
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

    pub(in crate::machine) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// # Panics
    /// When a thread has panicked within the device: its state is then unknown, and going on could send
    /// frames that no checkpoint accounts for.
    pub(in crate::machine) fn lock(&self) -> MutexGuard<'_, Net> {
        self.net.lock().expect("a thread panicked in the network device")
    }
}
