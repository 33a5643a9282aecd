//! ACPI's way to switch a machine off or to start it anew: the three registers of a hardware-reduced platform.
//!
//! ACPI 6.5, 4.8.3.6 (reset register) and 4.8.3.7 (sleep control and sleep status registers). A byte each, in I/O space,
//! beside the port by which the demo guest ends itself.

use remus_abi::boot::POWER_PORT;

use crate::machine::end::End;

pub(in crate::machine) const SLEEP_CONTROL: u16 = POWER_PORT + 1;
pub(in crate::machine) const SLEEP_STATUS: u16 = POWER_PORT + 2;
pub(in crate::machine) const RESET: u16 = POWER_PORT + 3;
pub(in crate::machine) const RESET_VALUE: u8 = 1;
/// The type of sleep that is soft off, as the guest's `_S5` names it.
pub(in crate::machine) const SOFT_OFF: u8 = 5;

/// Sleep control: SLP_EN, and where the type of sleep is.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE: (u8, u8) = (2, 7);

/// Returns how the guest ends itself by writing `value` to `port`, if it does.
pub(super) fn end_by(port: u16, value: u8) -> Option<End> {
    let (shift, mask) = SLEEP_TYPE;
    let off = value & SLEEP_ENABLE != 0 && value >> shift & mask == SOFT_OFF;
    match port {
        SLEEP_CONTROL if off => Some(End::PowerOff),
        RESET if value == RESET_VALUE => Some(End::Reset),
        _ => None,
    }
}

/// Returns what `port` reads as, if it is one of the ports of the power registers. The machine never wakes: no bit of
/// the status is ever set.
pub(super) fn read(port: u16) -> Option<u8> {
    matches!(port, SLEEP_CONTROL | SLEEP_STATUS | RESET).then_some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_soft_off_and_a_reset_end_the_machine() {
        assert_eq!(end_by(SLEEP_CONTROL, 0x34), Some(End::PowerOff));
        assert_eq!(end_by(SLEEP_CONTROL, 0x14), None, "not enabled");
        assert_eq!(end_by(SLEEP_CONTROL, 0x30), None, "another sleep");
        assert_eq!(end_by(RESET, 1), Some(End::Reset));
        assert_eq!(end_by(RESET, 0), None);
        assert_eq!(end_by(SLEEP_STATUS, 0x34), None);
        assert_eq!((read(SLEEP_STATUS), read(POWER_PORT)), (Some(0), None));
    }
}
