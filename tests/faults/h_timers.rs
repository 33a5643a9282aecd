//! No timer contradicts the config.
//!
//! `detect_ms` alone says how long a host may be silent before its backup takes over. A shorter time in a socket or in
//! the control task must not decide, and a longer one must not delay.

use std::{
    fs,
    time::{Duration, Instant},
};

use remus::observe::status::{Protection, Status};
use rig::{
    client::Client,
    host::{Death, Host},
    links::Link,
    pair::{
        Pair, ended, lost_nothing, patience, replies_more, tap_goes, with_hosts, with_hosts_for,
    },
    remus::{Daemon, Options, Timing},
};
use tokio::time::sleep;

/// Longer than any timer of a connection that does not know the config, and shorter than what a client waits.
const AWAY: Duration = Duration::from_millis(6500);

fn patient(detect_ms: u32, lease_ms: u32) -> Options {
    let timing = Timing { detect_ms, lease_ms, ..Timing::of_this_machine() };
    Options { timing, ..Options::default() }
}

async fn replication_link(host: &Host) -> Link {
    let links = host.links().list().await.unwrap();
    links.into_iter().find(|link| link.name == "repl0").unwrap()
}

/// Within this time of the link's return TCP has sent again what was lost: a second where the kernel lets us say so,
/// otherwise as long as the link was away.
fn sent_again_within() -> Duration {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    if version >= (6, 15) { Duration::from_millis(2500) } else { AWAY + Duration::from_secs(2) }
}

/// How many syncs the primary has begun.
fn syncs(pair: &Pair) -> usize {
    pair.logged("primary").matches("syncing").count()
}

/// The VM runs where it did, in the session that it had, and its clients are answered again soon. Returns how long that
/// took.
async fn goes_on(pair: &Pair, primary: &mut Daemon, client: Client, since: Instant) -> Duration {
    replies_more(&client, 1).await;
    let took = since.elapsed();
    replies_more(&client, 100).await;
    primary.wait_for(Protection::Protected, patience()).await.unwrap();
    let said = pair.logged("backup");
    assert!(!said.contains("takes over"), "{said}");
    assert_eq!(syncs(pair), 1, "{}", pair.logged("primary"));
    lost_nothing(client, 4).await;
    took
}

async fn promoted(backup: &mut Daemon) -> Status {
    backup.wait_for(Protection::Promoted, patience()).await.unwrap()
}

#[test]
fn a_link_that_is_away_for_less_than_detect_ms_costs_no_takeover_and_no_sync() {
    let longer = AWAY + Duration::from_millis(500);
    for (detect_ms, lease_ms, away) in [(20_000, 60, AWAY), (60_000, 15_000, longer)] {
        with_hosts_for(patient(detect_ms, lease_ms), async |pair| {
            let (mut primary, _backup) = pair.protected().await;
            let client = pair.client(4).await;
            let host = &pair.topology.primary;
            let link = replication_link(host).await;
            host.links().set_down(std::slice::from_ref(&link)).await.unwrap();
            sleep(away).await;
            host.links().set_up(&[link]).await.unwrap();
            let took = goes_on(&pair, &mut primary, client, Instant::now()).await;
            println!("detect_ms = {detect_ms}: the first answer {took:?} after the link is back");
            assert!(took < sent_again_within(), "{took:?} after the link is back");
        });
    }
}

/// The backup hears its primary all the while, and its answers get nowhere.
#[test]
fn a_way_back_that_is_cut_for_less_than_detect_ms_costs_no_takeover_and_no_sync() {
    with_hosts_for(patient(20_000, 60), async |pair| {
        let (mut primary, _backup) = pair.protected().await;
        let client = pair.client(4).await;
        let backup = &pair.topology.backup;
        let all = "u32 match u32 0 0 action mirred egress redirect dev hole";
        let cut = format!(
            "ip link add hole type bridge
             tc qdisc add dev repl0 clsact
             tc filter add dev repl0 egress protocol all pref 1 {all}"
        );
        pair.on(backup, &cut).await;
        sleep(AWAY).await;
        pair.on(backup, "tc filter del dev repl0 egress pref 1").await;
        let took = goes_on(&pair, &mut primary, client, Instant::now()).await;
        assert!(took < sent_again_within(), "{took:?} after the way back is whole");
    });
}

/// Nobody takes over from a guest that was stopped while its link was away, and whose goodbye is late for it.
#[test]
fn an_end_that_is_said_while_the_link_is_away_is_heard_when_it_is_back() {
    with_hosts_for(patient(20_000, 60), async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        drop(pair.guest().await);
        let host = &pair.topology.primary;
        let link = replication_link(host).await;
        host.links().set_down(std::slice::from_ref(&link)).await.unwrap();
        primary.process.signal(libc::SIGTERM).unwrap();
        sleep(Duration::from_millis(4500)).await;
        primary.still_runs().unwrap();
        host.links().set_up(&[link]).await.unwrap();
        assert_eq!(ended(&mut primary).await.code(), Some(0), "{}", pair.logged("primary"));
        tap_goes(&pair.topology.backup).await;
        backup.still_runs().unwrap();
        let said = pair.logged("backup");
        assert!(!said.contains("takes over"), "{said}");
    });
}

#[test]
fn a_backup_that_stands_still_for_less_than_detect_ms_keeps_its_session() {
    with_hosts_for(patient(20_000, 60), async |pair| {
        let (mut primary, backup) = pair.protected().await;
        let client = pair.client(4).await;
        backup.process.signal(libc::SIGSTOP).unwrap();
        sleep(AWAY).await;
        backup.process.signal(libc::SIGCONT).unwrap();
        let took = goes_on(&pair, &mut primary, client, Instant::now()).await;
        assert!(took < sent_again_within(), "{took:?} after it goes on");
    });
}

#[test]
fn a_primary_that_stands_still_for_less_than_detect_ms_keeps_its_session() {
    with_hosts_for(patient(20_000, 60), async |pair| {
        let (mut primary, _backup) = pair.protected().await;
        let client = pair.client(4).await;
        primary.process.signal(libc::SIGSTOP).unwrap();
        sleep(AWAY).await;
        primary.process.signal(libc::SIGCONT).unwrap();
        let took = goes_on(&pair, &mut primary, client, Instant::now()).await;
        assert!(took < sent_again_within(), "{took:?} after it goes on");
    });
}

#[test]
fn a_link_that_dies_is_taken_over_from_after_detect_ms() {
    with_hosts(async |pair| {
        let (_primary, mut backup) = pair.protected().await;
        let client = pair.client(4).await;
        let host = &pair.topology.primary;
        let link = replication_link(host).await;
        host.links().set_down(&[link]).await.unwrap();
        let failover = promoted(&mut backup).await.failover.unwrap();
        let detection = Duration::from_nanos(failover.decided_ns - failover.last_heard_ns);
        let detect_ms = u64::from(Timing::of_this_machine().detect_ms);
        let expected = Duration::from_millis(detect_ms)..Duration::from_millis(detect_ms * 3 / 2);
        assert!(expected.contains(&detection), "{detection:?}");
        drop(client);
    });
}

#[test]
fn a_process_that_is_killed_is_taken_over_from_when_its_lease_is_over() {
    with_hosts_for(patient(20_000, 60), async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(4).await;
        let host = &pair.topology.primary;
        let armed = host.arm().await.unwrap();
        let died = host.die(Death::Process, &armed, &mut primary.process).await.unwrap();
        let failover = promoted(&mut backup).await.failover.unwrap();
        let decided = Duration::from_nanos(failover.decided_ns.saturating_sub(died.began_ns));
        assert!(decided < Duration::from_secs(1), "{decided:?}: {}", pair.logged("backup"));
        assert!(pair.logged("backup").contains("connections are closed"));
        replies_more(&client, 100).await;
        lost_nothing(client, 4).await;
    });
}

/// A connection that is reset says nothing of the host as long as the other one is there, also when no new one can be
/// made for longer than the lease.
#[test]
fn a_connection_that_is_reset_alone_is_no_death() {
    with_hosts_for(patient(20_000, 60), async |pair| {
        let (mut primary, _backup) = pair.protected().await;
        let client = pair.client(4).await;
        // New connections get nowhere: their first segment (SYN without ACK) is led astray.
        pair.on(
            &pair.topology.primary,
            "ip link add hole type bridge
             tc qdisc add dev repl0 clsact
             tc filter add dev repl0 egress protocol ip pref 1 u32 match u8 0x02 0x12 at 33 \
                action mirred egress redirect dev hole",
        )
        .await;
        pair.on(
            &pair.topology.primary,
            &format!("ss --kill --numeric state established sport = :{}", bulk(&pair).await),
        )
        .await;
        sleep(Duration::from_millis(1200)).await;
        let said = pair.logged("backup");
        assert!(said.contains("is lost") && !said.contains("takes over"), "{said}");
        pair.on(&pair.topology.primary, "tc filter del dev repl0 egress pref 1").await;
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        assert!(syncs(&pair) > 1);
        replies_more(&client, 100).await;
        lost_nothing(client, 4).await;
    });
}

/// The primary's port of the bulk connection: the one that has carried more.
async fn bulk(pair: &Pair) -> String {
    pair.on(
        &pair.topology.primary,
        "ss --numeric --info --oneline state established dport = :7000",
    )
    .await;
    let said = pair.logged("shell");
    let sent = |line: &str| {
        let bytes = line.split_whitespace().find_map(|word| word.strip_prefix("bytes_sent:"));
        bytes.and_then(|bytes| bytes.parse::<u64>().ok())
    };
    let (_, line) = said.lines().filter_map(|line| Some((sent(line)?, line))).max().unwrap();
    let here = line.split_whitespace().find(|word| word.starts_with("10.99.0.1:")).unwrap();
    here.rsplit_once(':').unwrap().1.to_owned()
}
