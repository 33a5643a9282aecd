//! The two ends nobody wanted: an exception, and a panic. Both say what happened and end the machine.

use core::panic::PanicInfo;
use remus_abi::boot::PowerOff;

use super::serial::{power_off, println};

/// Where the stub takes every exception that is not a request to it. Ring 3, on a stack of its own.
pub(super) extern "C" fn exception(vector: u64, error: u64, rip: u64, cr2: u64) -> ! {
    println!("remus-guest: exception {vector}, error {error:#x}, rip {rip:#x}, cr2 {cr2:#x}");
    power_off(PowerOff::Crash)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("remus-guest: {info}");
    power_off(PowerOff::Crash)
}
