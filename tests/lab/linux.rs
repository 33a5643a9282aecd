//! A stock Linux under our VMM: Debian's cloud kernel and redis-server, as `cargo xtask guest linux` makes them.

use remus::observe::status::Protection;
use rig::{
    host::Death,
    pair::{Pair, ended, lost_nothing, patience, replies_more, with_hosts_for},
    remus::{Daemon, Machine, Options, Software, Timing},
};

use super::in_the_lab;

/// What a pair of hosts runs here.
fn linux(vcpus: u8) -> Options {
    Options {
        machine: Machine { vcpus, ..Machine::default() },
        guest: Software::Linux,
        timing: Timing::of_this_machine(),
        ..Options::default()
    }
}

/// Starts a guest without a backup, with these words more on its kernel's command line.
fn start(pair: &Pair, words: &str) -> Daemon {
    pair.start_primary(&[("quiet", &format!("quiet {words}"))])
}

/// What the guest has said on its console.
fn console(pair: &Pair, of: &str) -> Vec<String> {
    let log = pair.logged(of);
    log.lines().filter_map(|line| Some(line.split_once(" guest: ")?.1.to_owned())).collect()
}

#[test]
fn it_boots_with_all_of_its_cpus_and_ends_itself_both_ways() {
    in_the_lab();
    for (vcpus, word, how) in [
        (1, "remus.poweroff", "PowerOff"),
        (2, "remus.reboot", "reboot"),
        (4, "remus.poweroff", "PowerOff"),
    ] {
        with_hosts_for(linux(vcpus), async |pair| {
            let mut primary = start(&pair, word);
            let status = ended(&mut primary).await;
            let said = console(&pair, "primary");
            let log = pair.logged("primary");
            assert!(status.success(), "{log}");
            let ready = said.iter().find(|line| line.starts_with("remus-guest: ready"));
            let ready = ready.unwrap_or_else(|| panic!("{log}"));
            assert!(ready.ends_with(&format!("cpus={vcpus} clocksource=kvm-clock")), "{ready}");
            assert!(log.contains(how), "{log}");
        });
    }
}

#[test]
fn a_takeover_keeps_its_connections_and_it_does_not_notice() {
    in_the_lab();
    for vcpus in [1, 2] {
        with_hosts_for(linux(vcpus), async |pair| {
            let mut primary = pair.start_primary(&[]);
            primary.wait_for(Protection::Unprotected, patience()).await.unwrap();
            drop(pair.guest().await);
            let mut backup = pair.start_backup();
            primary.wait_for(Protection::Protected, patience()).await.unwrap();
            let client = pair.client(4).await;
            let off_before = pair.guest().await.clock_off_ms().await.unwrap();
            let armed = pair.topology.primary.arm().await.unwrap();
            pair.topology.primary.die(Death::Host, &armed, &mut primary.process).await.unwrap();
            backup.wait_for(Protection::Promoted, patience()).await.unwrap();
            replies_more(&client, 100).await;
            lost_nothing(client, 4).await;
            assert_eq!(pair.seen().frames_of_the_dead, 0);
            let step = pair.guest().await.clock_off_ms().await.unwrap() - off_before;
            assert!(step.abs() < 100.0, "its clock went {step:.0} ms astray");
            // Its console has warnings and what is worse: no lockup, no other clock, no lost interrupt.
            assert_eq!(console(&pair, "backup"), [""; 0], "{vcpus} vCPUs");
        });
    }
}
