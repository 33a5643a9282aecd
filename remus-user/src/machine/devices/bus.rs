//! From a vCPU's exit to the device it was meant for.

use std::sync::{Arc, Mutex, PoisonError};

use remus_abi::boot::{POWER_PORT, PowerOff, SERIAL_PORT, VIRTIO_MMIO_BASE, VIRTIO_MMIO_SIZE};

use super::console::{self, Console};
use super::net::NetPort;

/// Ports of a 16550.
const SERIAL_PORTS: u16 = 8;

/// Everything that answers to an address or a port. Shared by all vCPU threads.
pub(in crate::machine) struct Bus {
    console: Mutex<Console>,
    net: Arc<NetPort>,
}

impl Bus {
    pub(in crate::machine) fn new(net: Arc<NetPort>) -> Self {
        Self { console: Mutex::default(), net }
    }

    /// A load from device memory. Where nothing is, all bits are set.
    pub(in crate::machine) fn load(&self, address: u64, data: &mut [u8]) {
        match virtio_offset(address) {
            Some(offset) => self.net.load(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A store to device memory. Where nothing is, it is lost.
    pub(in crate::machine) fn store(&self, address: u64, data: &[u8]) {
        if let Some(offset) = virtio_offset(address) {
            self.net.store(offset, data);
        }
    }

    /// An IN from a port. Where nothing is, all bits are set.
    pub(in crate::machine) fn port_in(&self, port: u16, data: &mut [u8]) {
        data.fill(match port.checked_sub(SERIAL_PORT) {
            Some(console::LINE_STATUS) => console::TRANSMITTER_IDLE,
            Some(0..SERIAL_PORTS) => 0,
            _ => 0xff,
        });
    }

    /// An OUT to a port; `Some` when the guest ends itself with it.
    pub(in crate::machine) fn port_out(&self, port: u16, data: &[u8]) -> Option<PowerOff> {
        if port == SERIAL_PORT + console::TRANSMIT {
            self.console().transmit(data);
        }
        if port != POWER_PORT {
            return None;
        }
        self.console().flush();
        match data.first() {
            Some(&byte) if byte == PowerOff::Done as u8 => Some(PowerOff::Done),
            Some(&byte) if byte == PowerOff::Crash as u8 => Some(PowerOff::Crash),
            _ => None,
        }
    }

    fn console(&self) -> std::sync::MutexGuard<'_, Console> {
        self.console.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The offset within the register page of the one virtio device, number 0.
fn virtio_offset(address: u64) -> Option<u64> {
    address.checked_sub(VIRTIO_MMIO_BASE).filter(|offset| *offset < VIRTIO_MMIO_SIZE)
}
