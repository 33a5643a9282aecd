//! A stock Linux under our VMM: Debian's cloud kernel and redis-server, as `cargo xtask guest linux` makes them.

use std::time::{Duration, Instant};

use remus::observe::status::Protection;
use rig::{
    host::Death,
    pair::{Pair, ended, lost_nothing, patience, replies_more, with_hosts_for},
    remus::{Daemon, Machine, Options, Software, Timing},
};

use tokio::time::sleep;

use super::in_the_lab;

/// Its kernel, packed and unpacked: what it is entered by goes by its file.
pub(super) const BZIMAGE: &str = "vmlinuz";
const VMLINUX: &str = "vmlinux";

/// What a pair of hosts runs here.
fn linux(vcpus: u8) -> Options {
    Options {
        machine: Machine { vcpus, ..Machine::default() },
        guest: Software::Linux,
        timing: Timing::of_this_machine(),
        ..Options::default()
    }
}

/// Starts a guest without a backup, from this file, with these words more on its kernel's command line.
fn start(pair: &Pair, kernel: &str, words: &str) -> Daemon {
    pair.start_primary(&[("vmlinuz", kernel), ("quiet", &format!("quiet {words}"))])
}

/// What the guest has said on its console.
pub(super) fn console(pair: &Pair, of: &str) -> Vec<String> {
    let log = pair.logged(of);
    log.lines().filter_map(|line| Some(line.split_once(" guest: ")?.1.to_owned())).collect()
}

/// Boots a guest, which then powers itself off; its host ends too.
pub(super) fn boots_and_powers_off(kernel: &str, vcpus: u8) {
    in_the_lab();
    with_hosts_for(linux(vcpus), async |pair| {
        let mut primary = start(&pair, kernel, "remus.poweroff");
        let status = ended(&mut primary).await;
        let log = pair.logged("primary");
        assert!(status.success(), "{log}");
        assert_eq!(ready(&pair, vcpus), 1, "{log}");
        assert!(log.contains("PowerOff"), "{log}");
    });
}

/// Boots a guest, which then reboots again and again.
pub(super) fn reboots(kernel: &str, vcpus: u8) {
    in_the_lab();
    with_hosts_for(linux(vcpus), async |pair| {
        let mut primary = start(&pair, kernel, "remus.reboot");
        let deadline = Instant::now() + patience();
        while ready(&pair, vcpus) < 3 {
            primary.still_runs().unwrap();
            assert!(Instant::now() < deadline, "{}", pair.logged("primary"));
            sleep(Duration::from_millis(200)).await;
        }
        primary.process.signal(libc::SIGTERM).unwrap();
        assert!(ended(&mut primary).await.success(), "{}", pair.logged("primary"));
    });
}

/// How often the guest has said that it is ready, with all its CPUs.
fn ready(pair: &Pair, vcpus: u8) -> usize {
    let said = console(pair, "primary");
    let all = said.iter().filter(|line| line.starts_with("remus-guest: ready"));
    let wanted = format!("cpus={vcpus} clocksource=kvm-clock");
    all.inspect(|line| assert!(line.ends_with(&wanted), "{line}")).count()
}

#[test]
fn with_1_cpu_it_boots_and_powers_itself_off() {
    boots_and_powers_off(BZIMAGE, 1);
}

#[test]
fn by_pvh_it_boots_and_powers_itself_off() {
    boots_and_powers_off(VMLINUX, 1);
}

#[test]
fn with_1_cpu_it_reboots_in_place() {
    reboots(BZIMAGE, 1);
}

/// Protects a guest, lets its host die under load, and asks its clients, its clock and its console.
pub(super) fn a_takeover(vcpus: u8) {
    in_the_lab();
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

#[test]
fn with_1_cpu_it_does_not_notice_a_takeover_and_keeps_its_connections() {
    a_takeover(1);
}
