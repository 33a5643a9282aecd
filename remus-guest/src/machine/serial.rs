//! Ports: the serial log, the legacy interrupt controllers, and the port that ends the machine.
//!
//! Each byte is an exit to the VMM: the guest logs its start, its end, and nothing between.

use core::arch::asm;
use core::fmt::{self, Write};
use remus_abi::boot::{POWER_PORT, PowerOff, SERIAL_PORT};

/// The serial port as a sink of text.
pub(super) struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| {
            // SAFETY: the port takes bytes and gives nothing back.
            unsafe { out(SERIAL_PORT, byte) };
        });
        Ok(())
    }
}

/// A line of the log.
macro_rules! println {
    ($($arg:tt)*) => {{
        use core::fmt::Write;
        writeln!($crate::machine::serial::Serial, $($arg)*).expect("the serial port takes everything");
    }};
}
pub(super) use println;

/// No interrupt shall come by way of the two 8259 controllers.
pub(super) fn mask_legacy_interrupts() {
    for port in [0x21, 0xa1] {
        // SAFETY: writing ones to an interrupt mask only keeps interrupts away.
        unsafe { out(port, 0xff) };
    }
}

/// Ends the machine on purpose.
pub(super) fn power_off(how: PowerOff) -> ! {
    // SAFETY: the VMM ends the machine at this write.
    unsafe { out(POWER_PORT, how as u8) };
    loop {
        super::boot::wait_for_interrupt();
    }
}

/// # Safety
/// What stands behind the port must not touch memory of this program.
unsafe fn out(port: u16, byte: u8) {
    // SAFETY: ports are open to ring 3; the caller answers for the device.
    unsafe { asm!("out dx, al", in("dx") port, in("al") byte, options(nostack, preserves_flags)) };
}
