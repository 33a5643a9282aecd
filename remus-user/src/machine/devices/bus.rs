//! From a vCPU's exit to the device it was meant for.

use std::sync::Arc;

use remus_abi::boot::{POWER_PORT, PowerOff, SERIAL_PORT, VIRTIO_MMIO_BASE, VIRTIO_MMIO_SIZE};

use super::board::Board;
use super::port::Registers;
use super::power;
use crate::machine::end::End;

/// Ports of a 16550.
const SERIAL_PORTS: u16 = 8;

/// The keyboard controller's status and command port. There is no such controller but for one command, by which a PC
/// is reset: `reboot=k`, and Linux' way out when it knows no other.
const KEYBOARD: u16 = 0x64;
/// It pulses the reset line.
const KEYBOARD_RESET: u8 = 0xfe;
/// What its status reads as: a byte to be read, for ever (a probe gives up on that after 16 reads; an
/// idle controller it would send a command to and wait half a second for the answer), and ready for a
/// command (or a reboot would wait for that).
const KEYBOARD_STATUS: u8 = 0x01;

/// Everything that answers to an address or a port. Shared by all vCPU threads.
pub(in crate::machine) struct Bus(Arc<Board>);

impl Bus {
    pub(in crate::machine) fn new(board: Arc<Board>) -> Self {
        Self(board)
    }

    /// A load from device memory. Where nothing is, all bits are set.
    pub(in crate::machine) fn load(&self, address: u64, data: &mut [u8]) {
        match self.device(address) {
            Some((device, offset)) => device.load(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A store to device memory. Where nothing is, it is lost.
    pub(in crate::machine) fn store(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.device(address) {
            device.store(offset, data);
        }
    }

    /// An IN from a port. Where nothing is, all bits are set.
    pub(in crate::machine) fn port_in(&self, port: u16, data: &mut [u8]) {
        match (serial_register(port), port) {
            (Some(register), _) => self.0.serial.port_in(register, data),
            (None, KEYBOARD) => data.fill(KEYBOARD_STATUS),
            (None, _) => data.fill(power::read(port).unwrap_or(0xff)),
        }
    }

    /// An OUT to a port; `Some` when the guest ends itself with it.
    pub(in crate::machine) fn port_out(&self, port: u16, data: &[u8]) -> Option<End> {
        if let Some(register) = serial_register(port) {
            self.0.serial.port_out(register, data);
        }
        let end = end_by(port, data)?;
        self.0.serial.end();
        Some(end)
    }

    /// Returns the virtio device with a register at `address`, and the register's offset in its page.
    fn device(&self, address: u64) -> Option<(&dyn Registers, u64)> {
        let offset = address.checked_sub(VIRTIO_MMIO_BASE)?;
        let n = usize::try_from(offset / VIRTIO_MMIO_SIZE).ok()?;
        Some((self.0.device(n)?, offset % VIRTIO_MMIO_SIZE))
    }
}

fn serial_register(port: u16) -> Option<u8> {
    let offset = port.checked_sub(SERIAL_PORT).filter(|offset| *offset < SERIAL_PORTS)?;
    u8::try_from(offset).ok()
}

/// Returns how a guest ends itself with a byte to a port, if it does.
fn end_by(port: u16, data: &[u8]) -> Option<End> {
    let byte = *data.first()?;
    match port {
        POWER_PORT if byte == PowerOff::Done as u8 => Some(End::PowerOff),
        POWER_PORT if byte == PowerOff::Crash as u8 => Some(End::Crash),
        POWER_PORT if byte == PowerOff::Reset as u8 => Some(End::Reset),
        KEYBOARD if byte == KEYBOARD_RESET => Some(End::Reset),
        _ => power::end_by(port, byte),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_ends_itself_by_the_bytes_that_say_so_and_by_no_others() {
        assert_eq!(end_by(POWER_PORT, &[1]), Some(End::PowerOff));
        assert_eq!(end_by(POWER_PORT, &[2]), Some(End::Crash));
        assert_eq!(end_by(POWER_PORT, &[3]), Some(End::Reset));
        assert_eq!(end_by(KEYBOARD, &[0xfe]), Some(End::Reset));
        // Its self test, its configuration byte, keys; other ports; no bytes.
        for (port, byte) in [(KEYBOARD, 0xaa), (KEYBOARD, 0x20), (0x60, 0xfe), (POWER_PORT, 0)] {
            assert_eq!(end_by(port, &[byte]), None, "{port:#x} {byte:#x}");
        }
        assert_eq!(end_by(KEYBOARD, &[]), None);
    }

    #[test]
    fn the_serial_port_has_eight_registers() {
        let registers = [0x3f7, 0x3f8, 0x3ff, 0x400].map(serial_register);
        assert_eq!(registers, [None, Some(0), Some(7), None]);
    }
}
