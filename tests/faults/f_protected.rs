//! `protected` means that clients are served and that a death would be survived.

use std::fs;

use remus::observe::status::Protection;
use rig::{
    host::Share,
    links::Links,
    pair::{Pair, ended, lost_nothing, patience, replies_more, says, with_hosts},
    remus::{primary_run_dir, start_primary_with},
    topology::{GUEST_MAC, PRIMARY_PORT},
};

/// `harm` on the primary's host shows as `word`; `cure` ends that.
fn shows_and_ends(harm: &str, word: &str, cure: &str) {
    with_hosts(async |pair| {
        let (mut primary, _backup) = pair.protected().await;
        let client = pair.client(2).await;
        pair.on(&pair.topology.primary, harm).await;
        says(&mut primary, Protection::Impaired, word).await;
        pair.on(&pair.topology.primary, cure).await;
        let status = primary.wait_for(Protection::Protected, patience()).await.unwrap();
        assert_eq!(status.reason, "");
        replies_more(&client, 50).await;
        lost_nothing(client, 2).await;
    });
}

#[test]
fn a_tap_that_was_taken_out_of_its_bridge_shows() {
    let (out, back) = ("ip link set tap0 nomaster", "ip link set tap0 master br0");
    shows_and_ends(out, "tap0 is not in br0", back);
}

#[test]
fn a_tap_that_is_down_shows() {
    shows_and_ends("ip link set tap0 down", "tap0 is down", "ip link set tap0 up");
}

#[test]
fn a_bridge_that_is_down_shows() {
    shows_and_ends("ip link set br0 down", "br0 is down", "ip link set br0 up");
}

#[test]
fn a_spanning_tree_that_holds_the_tap_back_shows() {
    let switch = |to: u8| {
        format!(
            "ip link set br0 type bridge stp_state {to}; ip link set tap0 nomaster; ip link set tap0 master br0"
        )
    };
    shows_and_ends(&switch(1), "holds tap0 back", &switch(0));
}

#[test]
fn an_address_that_the_guest_shares_shows() {
    let before = "ip link set br0 address 52:54:00:77:00:01";
    let harm = format!("{before}; ip link set br0 address {GUEST_MAC}");
    shows_and_ends(&harm, "also that of br0, which takes what is for the guest", before);
}

#[test]
fn a_bridge_that_was_made_again_is_joined_by_the_guest_that_runs() {
    with_hosts(async |pair| {
        let (mut primary, _backup) = pair.protected().await;
        let client = pair.client(2).await;
        pair.on(&pair.topology.primary, "ip link delete br0").await;
        says(&mut primary, Protection::Impaired, "the bridge br0 is not there").await;
        let again =
            "ip link add br0 type bridge && ip link set br0 up && ip link set eth0 master br0";
        pair.on(&pair.topology.primary, again).await;
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        replies_more(&client, 50).await;
        lost_nothing(client, 2).await;
    });
}

#[test]
fn an_uplink_without_carrier_shows() {
    with_hosts(async |pair| {
        let (mut primary, _backup) = pair.protected().await;
        let client = pair.client(2).await;
        let ports = Links::open(&pair.topology.switch).unwrap();
        let all = ports.list().await.unwrap();
        let port: Vec<_> = all.into_iter().filter(|link| link.name == PRIMARY_PORT).collect();
        ports.set_down(&port).await.unwrap();
        says(&mut primary, Protection::Impaired, "no port of br0 has carrier").await;
        ports.set_up(&port).await.unwrap();
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        replies_more(&client, 50).await;
        lost_nothing(client, 2).await;
    });
}

/// Heartbeats fit, checkpoints do not: a router or a switch on the way has become narrower than both ends believe.
#[test]
fn a_link_that_lets_only_heartbeats_through_is_stalled_and_not_protected() {
    with_hosts(async |pair| {
        let (mut primary, _backup) = pair.protected().await;
        let mut guest = pair.guest().await;
        guest.start_work(500, 64, 20_000).await.unwrap();
        let client = pair.client(2).await;
        let narrow = "nft add table ip narrow; \
             nft 'add chain ip narrow in { type filter hook input priority 0; }'; \
             nft add rule ip narrow in iifname repl0 meta length gt 1000 drop";
        pair.on(&pair.topology.backup, narrow).await;
        says(&mut primary, Protection::Stalled, "MTU").await;
        pair.on(&pair.topology.backup, "nft delete table ip narrow").await;
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        replies_more(&client, 50).await;
        lost_nothing(client, 2).await;
    });
}

/// What Docker does to a host with bridged guests. Rules may accept what the policy would drop, so this is told and not
/// taken for certain.
#[test]
fn netfilter_that_drops_bridged_packets_by_its_policy_is_told() {
    with_hosts(async |pair| {
        let (mut primary, _backup) = pair.protected().await;
        let switch = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        let harm = format!(
            "nft add table ip filter; \
             nft 'add chain ip filter FORWARD {{ type filter hook forward priority 0; policy drop; }}'; \
             echo 1 > {switch}"
        );
        pair.on(&pair.topology.primary, &harm).await;
        let told = "netfilter drops forwarded packets (table filter, chain FORWARD)";
        says(&mut primary, Protection::Protected, told).await;
        pair.on(&pair.topology.primary, "nft delete table ip filter").await;
        says_nothing(&pair, &mut primary).await;
        pair.on(&pair.topology.primary, "iptables-legacy -P FORWARD DROP").await;
        says(&mut primary, Protection::Protected, "iptables-legacy, chain FORWARD").await;
        pair.on(&pair.topology.primary, "iptables-legacy -P FORWARD ACCEPT").await;
        says_nothing(&pair, &mut primary).await;
    });
}

async fn says_nothing(pair: &Pair, primary: &mut rig::remus::Daemon) {
    let until = tokio::time::Instant::now() + patience();
    while !primary.status(None).await.unwrap().reason.is_empty() {
        assert!(tokio::time::Instant::now() < until, "{}", pair.logged("primary"));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// `remus preflight` and `remus run` refuse the rig's config with these changes, and both say `word`.
async fn is_refused(pair: &Pair, changes: &[(&str, &str)], word: &str) {
    let mut started = pair.start_primary(changes);
    assert_eq!(ended(&mut started).await.code(), Some(3), "{}", pair.logged("primary"));
    let mut preflight = std::process::Command::new(&pair.programs.remus);
    preflight.arg("preflight").arg(pair.folder.path().join("primary.toml"));
    let (host, log) = (&pair.topology.primary, pair.log("preflight"));
    let mut preflight = host.spawn(preflight, Share::Load, &log).unwrap();
    let code = preflight.finish(patience()).await.unwrap();
    assert_eq!(code, Some(3), "{}", pair.logged("preflight"));
    for by in ["primary", "preflight"] {
        assert!(pair.logged(by).contains(word), "no {word:?} in: {}", pair.logged(by));
        fs::write(pair.log(by), "").unwrap();
    }
}

#[test]
fn a_second_guest_with_the_address_of_the_first_is_refused() {
    with_hosts(async |pair| {
        let (_primary, _backup) = pair.protected().await;
        let folder = pair.folder.path().join("second");
        let (first, second) = (primary_run_dir(pair.folder.path()), primary_run_dir(&folder));
        let config = pair.config(&[
            ("\"tap0\"", "\"tap7\""),
            ("name = \"demo\"", "name = \"second\""),
            (first.to_str().unwrap(), second.to_str().unwrap()),
        ]);
        let log = pair.log("second");
        // On both hosts: beside the guest that runs, and beside the one that may have to.
        for host in [&pair.topology.primary, &pair.topology.backup] {
            let started = start_primary_with(host, &pair.programs, &config, &folder, &log);
            assert_eq!(ended(&mut started.unwrap()).await.code(), Some(3));
            let said = pair.logged("second");
            assert!(
                said.contains("another guest of this host, behind tap0, has the address"),
                "{said}"
            );
            fs::write(&log, "").unwrap();
        }
    });
}

#[test]
fn what_would_show_later_is_refused_before_the_start() {
    with_hosts(async |pair| {
        let uplink = |name: &str| format!("release = {{ uplink = \"{name}\", trigger");
        for (name, word) in [
            ("tap0", "tap0 is the guest's own tap"),
            ("lo", "lo leads back to this host"),
            ("eth9", "eth9 is not there"),
            ("br0", "br0 is a bridge"),
        ] {
            is_refused(&pair, &[("release = { trigger", &uplink(name))], word).await;
        }
        pair.on(&pair.topology.primary, &format!("ip link set br0 address {GUEST_MAC}")).await;
        is_refused(&pair, &[], "also that of br0, which takes what is for the guest").await;
    });
}
