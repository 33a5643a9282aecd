//! Linux with several CPUs, which start each other.

use super::linux::{BZIMAGE, a_takeover, boots_and_powers_off, reboots};

#[test]
fn with_2_cpus_it_reboots_in_place() {
    reboots(BZIMAGE, 2);
}

#[test]
fn with_4_cpus_it_boots_and_powers_itself_off() {
    boots_and_powers_off(BZIMAGE, 4);
}

#[test]
fn with_8_cpus_it_boots_and_powers_itself_off() {
    boots_and_powers_off(BZIMAGE, 8);
}

#[test]
fn with_2_cpus_it_does_not_notice_a_takeover_and_keeps_its_connections() {
    a_takeover(2);
}
