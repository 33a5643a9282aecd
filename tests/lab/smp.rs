//! Linux with several CPUs. These tests have a lab of one thread (docs/lab.md): while a guest with several CPUs boots,
//! its kernel rewrites code that they all run, and QEMU's translator gets that wrong where each CPU has a thread.

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
