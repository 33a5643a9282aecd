//! A VM that starts is announced, as one that takes over is.

use std::process::Command;

use remus::observe::status::Protection;
use rig::{
    pair::{Pair, patience, with_hosts},
    topology::{GUEST_MAC, PRIMARY_PORT},
};
use tokio::time::{Instant, sleep};

/// Waits until the switch knows the guest behind the primary's port, of which no client has asked anything.
async fn the_switch_finds_the_guest(pair: &Pair) {
    let until = Instant::now() + patience();
    loop {
        let known = {
            let _entered = pair.topology.switch.enter().unwrap();
            Command::new("bridge").args(["fdb", "show", "dev", PRIMARY_PORT]).output().unwrap()
        };
        let known = String::from_utf8(known.stdout).unwrap();
        if known.contains(GUEST_MAC) {
            return;
        }
        assert!(Instant::now() < until, "the switch does not know the guest: {known}");
        sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[test]
fn a_guest_that_starts_protected_is_found_by_the_switch_before_it_says_a_word() {
    with_hosts(async |pair| {
        let _backup = pair.start_backup();
        let mut primary = pair.start_primary(&[("\"unprotected\"", "\"protected\"")]);
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        the_switch_finds_the_guest(&pair).await;
    });
}

#[test]
fn a_guest_that_starts_unprotected_is_found_by_the_switch_before_it_says_a_word() {
    with_hosts(async |pair| {
        let _primary = pair.start_primary(&[]);
        the_switch_finds_the_guest(&pair).await;
    });
}
