//! A takeover does not fail on what could have been known before, and never throws the image away.

use std::{fs, time::Duration};

use remus::observe::status::Protection;
use rig::{
    pair::{Pair, lost_nothing, patience, replies_more, says, with_hosts},
    remus::Daemon,
};
use tokio::time::{Instant, sleep};

const MAKE_BRIDGE: &str =
    "ip link add br0 type bridge && ip link set br0 up && ip link set eth0 master br0";

/// The primary's host dies; its guest lives on, and nothing that `client` was told is lost.
async fn is_survived(
    pair: &Pair,
    primary: &mut Daemon,
    backup: &mut Daemon,
    client: rig::client::Client,
) {
    pair.dies(primary).await;
    backup.wait_for(Protection::Promoted, patience()).await.unwrap();
    replies_more(&client, 100).await;
    lost_nothing(client, 2).await;
}

#[test]
fn a_bridge_that_was_made_again_is_joined_by_the_takeover() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(2).await;
        let again = format!("ip link delete br0 && {MAKE_BRIDGE}");
        pair.on(&pair.topology.backup, &again).await;
        is_survived(&pair, &mut primary, &mut backup, client).await;
    });
}

#[test]
fn a_bridge_that_is_missing_shows_on_both_hosts_and_is_joined_when_it_comes() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(2).await;
        pair.on(&pair.topology.backup, "ip link delete br0").await;
        let missing = "the bridge br0 is not there";
        says(&mut backup, Protection::Impaired, missing).await;
        says(&mut primary, Protection::Impaired, missing).await;
        pair.dies(&mut primary).await;
        says(&mut backup, Protection::Promoted, missing).await;
        pair.on(&pair.topology.backup, MAKE_BRIDGE).await;
        replies_more(&client, 100).await;
        says(&mut backup, Protection::Promoted, "").await;
        lost_nothing(client, 2).await;
    });
}

#[test]
fn what_was_mended_in_time_is_no_longer_told() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(2).await;
        pair.on(&pair.topology.backup, "ip link set br0 down").await;
        says(&mut primary, Protection::Impaired, "br0 is down").await;
        pair.on(&pair.topology.backup, "ip link set br0 up").await;
        for daemon in [&mut primary, &mut backup] {
            let status = daemon.wait_for(Protection::Protected, patience()).await.unwrap();
            assert_eq!(status.reason, "");
        }
        is_survived(&pair, &mut primary, &mut backup, client).await;
    });
}

#[test]
fn a_bridge_that_is_missing_at_a_blink_of_the_link_costs_no_guest() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(2).await;
        pair.on(&pair.topology.backup, "ip link delete br0").await;
        says(&mut primary, Protection::Impaired, "br0").await;
        // Both hosts live. The backup takes over, as it does by the defaults, and the primary hears so.
        pair.set_links(&pair.topology.primary, "repl0", false).await;
        says(&mut backup, Protection::Promoted, "br0 is not there").await;
        pair.set_links(&pair.topology.primary, "repl0", true).await;
        assert_eq!(rig::pair::ended(&mut primary).await.code(), Some(1));
        pair.on(&pair.topology.backup, MAKE_BRIDGE).await;
        replies_more(&client, 100).await;
        lost_nothing(client, 2).await;
    });
}

/// A backup whose state directory is a file system of its own.
async fn protected_with_state_apart(pair: &Pair) -> (Daemon, Daemon) {
    let state = pair.backup_state();
    fs::create_dir_all(&state).unwrap();
    let mount = format!("mount -t tmpfs -o size=64k,mode=755 state {}", state.display());
    pair.on(&pair.topology.backup, &mount).await;
    pair.protected().await
}

/// Makes that file system read-only (`ro`), or writable again (`rw`).
async fn remount(pair: &Pair, how: &str) {
    let line = format!("mount -o remount,{how} {}", pair.backup_state().display());
    pair.on(&pair.topology.backup, &line).await;
}

#[test]
fn a_full_state_directory_delays_no_takeover() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = protected_with_state_apart(&pair).await;
        let client = pair.client(2).await;
        // What a takeover needs of it is there since the watch asked first.
        let reserved = pair.backup_state().join("demo.takeover");
        let fill = format!(
            "n=0; until test -s {}; do n=$((n + 1)); test $n -lt 500; sleep 0.02; done; cat /dev/zero > {}/fill 2> /dev/null || true",
            reserved.display(),
            pair.backup_state().display()
        );
        pair.on(&pair.topology.backup, &fill).await;
        is_survived(&pair, &mut primary, &mut backup, client).await;
    });
}

#[test]
fn a_state_directory_that_cannot_be_written_shows_and_delays_the_takeover_until_it_can() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = protected_with_state_apart(&pair).await;
        let client = pair.client(2).await;
        remount(&pair, "ro").await;
        for daemon in [&mut primary, &mut backup] {
            says(daemon, Protection::Impaired, "cannot be written").await;
        }
        pair.dies(&mut primary).await;
        says(&mut backup, Protection::Stalled, "a takeover cannot be put on record").await;
        let before = client.replies();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(client.replies(), before, "the guest waits");
        remount(&pair, "rw").await;
        backup.wait_for(Protection::Promoted, patience()).await.unwrap();
        replies_more(&client, 100).await;
        lost_nothing(client, 2).await;
    });
}

#[test]
fn a_primary_that_comes_back_before_the_takeover_is_on_record_goes_on() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = protected_with_state_apart(&pair).await;
        let client = pair.client(2).await;
        remount(&pair, "ro").await;
        says(&mut primary, Protection::Impaired, "cannot be written").await;
        pair.set_links(&pair.topology.primary, "repl0", false).await;
        says(&mut backup, Protection::Stalled, "a takeover cannot be put on record").await;
        pair.set_links(&pair.topology.primary, "repl0", true).await;
        remount(&pair, "rw").await;
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        replies_more(&client, 100).await;
        is_survived(&pair, &mut primary, &mut backup, client).await;
    });
}

#[test]
fn a_state_directory_that_is_gone_is_made_again() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(2).await;
        let state = pair.backup_state();
        fs::remove_dir_all(&state).unwrap();
        let until = Instant::now() + patience();
        while !state.join("demo.takeover").exists() {
            assert!(Instant::now() < until, "{}", pair.logged("backup"));
            sleep(Duration::from_millis(20)).await;
        }
        is_survived(&pair, &mut primary, &mut backup, client).await;
        let record = fs::read_to_string(state.join("demo.json")).unwrap();
        assert!(record.contains("promoted"), "{record}");
    });
}

#[test]
fn a_backups_gate_that_is_taken_off_shows_on_both_hosts() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        pair.on(&pair.topology.backup, "ip link delete tap0").await;
        for daemon in [&mut backup, &mut primary] {
            says(daemon, Protection::Impaired, "tap0 was deleted").await;
        }
    });
}
