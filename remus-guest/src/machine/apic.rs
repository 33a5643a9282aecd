//! Interrupts and sleep.
//!
//! Both APICs are memory that ring 3 may write; every write is an exit. So the timer is left alone when it
//! will fire early enough anyway: to wake too soon costs less than to set it anew each time.

use core::ptr;
use remus_abi::boot::{START_PAGE, VIRTIO_GSI_BASE};

use super::boot::{VECTOR_DEVICE, VECTOR_SPURIOUS, VECTOR_TIMER, VECTOR_WAKE, wait_for_interrupt};

const LOCAL: usize = 0xfee0_0000;
/// Its upper eight bits are the CPU's number.
pub(super) const ID: usize = LOCAL + 0x20;
/// Where the stub ends an interrupt.
pub(super) const EOI: usize = LOCAL + 0xb0;
const SPURIOUS: usize = LOCAL + 0xf0;
const COMMAND: usize = LOCAL + 0x300;
/// Upper half of the command: to whom.
const COMMAND_TO: usize = LOCAL + 0x310;
const TIMER_MODE: usize = LOCAL + 0x320;
const TIMER_COUNT: usize = LOCAL + 0x380;
const TIMER_DIVIDER: usize = LOCAL + 0x3e0;

const IO_SELECT: usize = 0xfec0_0000;
const IO_DATA: usize = IO_SELECT + 0x10;
/// First of the two registers of pin 0.
const IO_PINS: u32 = 0x10;

/// KVM's local APIC counts nanoseconds.
const TIMER_MAX_NS: u64 = u32::MAX as u64;

/// Commands to another CPU's APIC, asserted, edge-triggered.
const FIXED: u32 = 0x4000;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;

/// The local APIC's timer, and with it sleep. Each CPU has its own.
pub(super) struct Apic {
    /// When the timer will fire, by the clock as it was read when it was set.
    armed_ns: Option<u64>,
}

impl Apic {
    /// Switches on this CPU's local APIC and its timer.
    pub(super) fn start() -> Self {
        // Bit 8 switches the APIC on.
        write(SPURIOUS, 0x100 | u32::from(VECTOR_SPURIOUS));
        // Divide by 1, one shot.
        write(TIMER_DIVIDER, 0b1011);
        write(TIMER_MODE, VECTOR_TIMER.into());
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

/// Sends the interrupt of virtio device `device` to the boot CPU.
pub(super) fn route(device: u32) {
    let pin = IO_PINS + 2 * (VIRTIO_GSI_BASE + device);
    // To APIC 0; then: fixed, edge-triggered, active high, not masked.
    write(IO_SELECT, pin + 1);
    write(IO_DATA, 0);
    write(IO_SELECT, pin);
    write(IO_DATA, VECTOR_DEVICE.into());
}

/// Starts CPU `cpu` in the start page. Real hardware wants pauses in between, and to be told twice; KVM keeps both
/// commands until the CPU gets to them.
pub(super) fn start_cpu(cpu: u8) {
    command(cpu, INIT);
    command(cpu, STARTUP | (START_PAGE >> 12) as u32);
}

/// Ends CPU `cpu`'s sleep, or the next one.
pub(super) fn wake_cpu(cpu: u8) {
    command(cpu, FIXED | u32::from(VECTOR_WAKE));
}

/// Only the boot CPU gives any: a command is two writes.
fn command(cpu: u8, command: u32) {
    write(COMMAND_TO, u32::from(cpu) << 24);
    write(COMMAND, command);
}

fn write(register: usize, value: u32) {
    // SAFETY: the boot contract maps the APICs' registers, which are not memory of this program; the
    // interrupts they are told to raise do no more than wake, and a CPU begins where `boot` has prepared it.
    unsafe { ptr::write_volatile(register as *mut u32, value) };
}
