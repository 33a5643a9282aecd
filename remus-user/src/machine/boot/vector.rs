//! All that there is of a BIOS: its entry point, which starts the machine anew.
//!
//! Linux on hardware-reduced ACPI takes its firmware to be UEFI and resets by that, not by the FADT's register
//! (arch/x86/kernel/reboot.c, `reboot_init`). Where there is none it goes back to real mode and jumps to `ffff:0`, as every
//! PC starts.

use crate::machine::devices::power;

/// Where a BIOS is entered.
pub(super) const ADDRESS: u64 = 0xf_fff0;

/// Returns the code at the vector, for real mode.
pub(super) fn code() -> [u8; 9] {
    let [low, high] = power::RESET.to_le_bytes();
    [
        0xba,
        low,
        high, // mov dx, RESET
        0xb0,
        power::RESET_VALUE, // mov al, RESET_VALUE
        0xee,               // out dx, al
        0xf4,               // hlt
        0xeb,
        0xfd, // jmp to the hlt
    ]
}

#[cfg(test)]
mod tests {
    use super::super::map;
    use super::*;

    #[test]
    fn the_entry_point_is_reserved_and_its_code_ends_with_the_first_megabyte() {
        assert!((map::TABLES..remus_abi::boot::GUEST_BASE).contains(&ADDRESS));
        assert!(ADDRESS + code().len() as u64 <= remus_abi::boot::GUEST_BASE);
        assert_eq!(u16::from_le_bytes([code()[1], code()[2]]), power::RESET);
    }
}
