//! Interrupts and sleep.
//!
//! Both APICs are memory that ring 3 may write; every write is an exit. So the timer is left alone when it
//! will fire early enough anyway: to wake too soon costs less than to set it anew each time.

use core::ptr;
use remus_abi::boot::VIRTIO_GSI_BASE;

use super::boot::{VECTOR_DEVICE, VECTOR_SPURIOUS, VECTOR_TIMER, wait_for_interrupt};

const LOCAL: usize = 0xfee0_0000;
/// Where the stub ends an interrupt.
pub(super) const EOI: usize = LOCAL + 0xb0;
const SPURIOUS: usize = LOCAL + 0xf0;
const TIMER_MODE: usize = LOCAL + 0x320;
const TIMER_COUNT: usize = LOCAL + 0x380;
const TIMER_DIVIDER: usize = LOCAL + 0x3e0;

const IO_SELECT: usize = 0xfec0_0000;
const IO_DATA: usize = IO_SELECT + 0x10;
/// First of the two registers of pin 0.
const IO_PINS: u32 = 0x10;

/// KVM's local APIC counts nanoseconds.
const TIMER_MAX_NS: u64 = u32::MAX as u64;

/// The local APIC's timer, and with it sleep.
pub(super) struct Apic {
    /// When the timer will fire, by the clock as it was read when it was set.
    armed_ns: Option<u64>,
}

impl Apic {
    /// Switches on the local APIC, its timer, and the interrupt of virtio device `device`.
    pub(super) fn start(device: u32) -> Self {
        let pin = IO_PINS + 2 * (VIRTIO_GSI_BASE + device);
        // Bit 8 switches the APIC on.
        write(SPURIOUS, 0x100 | u32::from(VECTOR_SPURIOUS));
        // Divide by 1, one shot.
        write(TIMER_DIVIDER, 0b1011);
        write(TIMER_MODE, VECTOR_TIMER.into());
        // To APIC 0, which is the only CPU; then: fixed, edge-triggered, active high, not masked.
        write(IO_SELECT, pin + 1);
        write(IO_DATA, 0);
        write(IO_SELECT, pin);
        write(IO_DATA, VECTOR_DEVICE.into());
        Self { armed_ns: None }
    }

    /// Sleeps until an interrupt, at the latest about when `wake_ns` has come. May return early.
    pub(super) fn sleep(&mut self, now_ns: u64, wake_ns: Option<u64>) {
        if let Some(wake_ns) = wake_ns {
            let is_early_enough = |armed_ns| now_ns < armed_ns && armed_ns <= wake_ns;
            if !self.armed_ns.is_some_and(is_early_enough) {
                let delay_ns = wake_ns.saturating_sub(now_ns).clamp(1, TIMER_MAX_NS);
                // Was clamped to what fits.
                write(TIMER_COUNT, delay_ns as u32);
                self.armed_ns = Some(now_ns + delay_ns);
            }
        }
        wait_for_interrupt();
    }
}

fn write(register: usize, value: u32) {
    // SAFETY: the boot contract maps the APICs' registers, which are not memory of this program; the
    // interrupts they are told to raise do no more than wake.
    unsafe { ptr::write_volatile(register as *mut u32, value) };
}
