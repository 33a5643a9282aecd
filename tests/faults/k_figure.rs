//! Figures that any machine of the kind gives.
//!
//! The claims' bounds and their scaling have unit tests in the rig (`report::bounds`, `bench::gate::claims`).

use std::{fs, process::Command};

use rig::{
    host::{Host, Share},
    pair::{patience, with_hosts},
};

/// A client that gives way to busy hosts tells how long it waited for a CPU, and no figure of the hosts.
#[test]
fn a_client_has_the_priority_of_the_hosts_that_it_shares_a_cpu_with() {
    with_hosts(async |pair| {
        let client = niceness(&pair.topology.client, Share::Load, &pair.log("client")).await;
        let host = niceness(&pair.topology.primary, Share::Host, &pair.log("host")).await;
        assert_eq!(client, host);
    });
}

/// What `nice` says of itself.
async fn niceness(host: &Host, share: Share, log: &std::path::Path) -> String {
    let mut process = host.spawn(Command::new("nice"), share, log).unwrap();
    assert_eq!(process.finish(patience()).await.unwrap(), Some(0));
    fs::read_to_string(log).unwrap().trim().to_owned()
}

/// The bounds are for what the options ask: with four vCPUs no pause is measured by a bound for one.
#[test]
fn a_run_with_more_vcpus_fails_no_claim_that_is_made_for_one() {
    let rig = env!("CARGO_BIN_EXE_remus-rig");
    let run = Command::new(rig)
        .args(["run", "--vcpus", "4", "--no-failover", "--seconds", "0.3"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}{}", String::from_utf8_lossy(&run.stderr));
    for claim in ["pause_idle_p50", "pause_p50"] {
        let line = said.lines().find(|line| line.split_whitespace().nth(1) == Some(claim));
        let line = line.unwrap_or_else(|| panic!("no claim {claim} in: {said}"));
        assert!(line.trim_start().starts_with("holds"), "{line}");
    }
}
