//! The rig's own claims: its hosts reach one another as drawn, a dead one is silent, and its witnesses (the
//! checking client and the sniffer) see what happens.

use std::{
    net::{SocketAddr, SocketAddrV4, UdpSocket},
    path::Path,
    process::Command,
    time::Duration,
};

use remus_abi::beacon;
use rig::{
    client::{Client, connection::Connection},
    guest::Guest,
    host::{Death, Host, Share},
    links::Links,
    sniffer::{Seen, Sniffer},
    topology::{BACKUP, BACKUP_PORT, BRIDGE, GUEST, PRIMARY_PORT, Topology},
};
use tokio::time::{Instant, sleep, timeout};

use super::server::serve;

fn rig<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test)
}

/// A topology whose primary host has the guest's address itself.
async fn without_a_guest() -> Topology {
    let topology = Topology::build().await.unwrap();
    topology.primary.links().add_address(BRIDGE, *GUEST.ip(), 24).await.unwrap();
    topology
}

/// Something that runs until it is killed.
fn idler(host: &Host, folder: &Path) -> rig::host::Process {
    let mut command = Command::new("sleep");
    command.arg("1000");
    host.spawn(command, Share::Load, &folder.join("log")).unwrap()
}

async fn sniffer(topology: &Topology) -> Sniffer {
    let ports = Links::open(&topology.switch).unwrap();
    let primary = ports.index(PRIMARY_PORT).await.unwrap();
    let backup = ports.index(BACKUP_PORT).await.unwrap();
    Sniffer::start(&topology.switch, primary, backup).unwrap()
}

async fn seen(sniffer: &Sniffer, enough: impl Fn(&Seen) -> bool) -> Seen {
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let seen = sniffer.seen().unwrap();
        if enough(&seen) || Instant::now() >= until {
            return seen;
        }
        sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn the_client_reaches_the_guest_and_the_primary_the_backup() {
    rig(async {
        let topology = without_a_guest().await;
        serve(topology.primary.netns(), GUEST.into());
        serve(topology.backup.netns(), BACKUP.into());
        let patience = Duration::from_secs(5);
        Guest::wait(topology.client.netns(), GUEST, patience).await.unwrap();
        Guest::wait(topology.primary.netns(), BACKUP, patience).await.unwrap();
        // The replication link is a link of its own: the client has no way to it.
        Connection::open(topology.client.netns(), BACKUP).await.unwrap_err();
    });
}

#[test]
fn a_host_that_died_says_nothing_and_one_reborn_has_only_its_cables() {
    rig(async {
        let folder = tempfile::tempdir().unwrap();
        let mut topology = Topology::build().await.unwrap();
        let cables = topology.primary.links().list().await.unwrap();
        // A link that the host's processes made, with an address that goes with it.
        let aside = topology.backup.netns();
        topology.primary.links().add_cable("made", "far", aside).await.unwrap();
        topology.primary.links().add_address("made", *GUEST.ip(), 24).await.unwrap();
        let mut process = idler(&topology.primary, folder.path());
        let armed = topology.primary.arm().await.unwrap();
        topology.primary.die(Death::Host, &armed, &mut process).await.unwrap();

        let sniffer = sniffer(&topology).await;
        let _entered = topology.primary.netns().enter().unwrap();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_broadcast(true).unwrap();
        socket.send_to(&beacon::encode(1), "10.99.0.2:9").unwrap_err();
        drop(_entered);
        assert_eq!(sniffer.seen().unwrap().frames_from_primary, 0);

        process.kill().unwrap();
        topology.primary.reborn().await.unwrap();
        assert_eq!(topology.primary.links().list().await.unwrap(), cables);
        serve(topology.backup.netns(), BACKUP.into());
        let patience = Duration::from_secs(5);
        Guest::wait(topology.primary.netns(), BACKUP, patience).await.unwrap();
    });
}

#[test]
fn no_fin_or_rst_escapes_a_dying_host_but_does_from_a_dying_process() {
    for (death, hears) in [(Death::Host, false), (Death::Process, true)] {
        rig(async {
            let folder = tempfile::tempdir().unwrap();
            let topology = without_a_guest().await;
            let mut server = redis_server(&topology.primary, folder.path());
            let patience = Duration::from_secs(5);
            Guest::wait(topology.client.netns(), GUEST, patience).await.unwrap();
            let mut connection = Connection::open(topology.client.netns(), GUEST).await.unwrap();
            connection.ask(&["PING"]).await.unwrap();
            let armed = topology.primary.arm().await.unwrap();
            topology.primary.die(death, &armed, &mut server).await.unwrap();
            let end = timeout(Duration::from_millis(500), connection.ask(&["PING"])).await;
            assert_eq!(end.is_ok(), hears, "{death:?}");
        });
    }
}

#[test]
fn a_server_that_keeps_its_word_passes_the_checking_client() {
    rig(async {
        let topology = without_a_guest().await;
        serve(topology.primary.netns(), GUEST.into());
        let outcome = check(&topology, |_| ()).await;
        assert_eq!((outcome.connections_kept, outcome.connections_lost.len()), (4, 0));
        assert_eq!((outcome.verdict.unanswered, outcome.verdict.contradictions.len()), (0, 0));
        assert!(outcome.verdict.replies > 100, "{}", outcome.verdict.replies);
        assert!(outcome.gaps.len() == 4 && outcome.gaps.iter().all(|gap| gap.length_ns() > 0));
    });
}

#[test]
fn a_server_that_goes_back_in_time_does_not() {
    rig(async {
        let topology = without_a_guest().await;
        let store = serve(topology.primary.netns(), GUEST.into());
        let outcome = check(&topology, |_| {
            let mut store = store.lock().unwrap();
            for value in store.strings.values_mut() {
                if let Ok(count) = value.parse::<u64>() {
                    *value = (count - 1).to_string();
                }
            }
        });
        let verdict = outcome.await.verdict;
        assert!(verdict.contradictions.iter().any(|found| found.asked.starts_with("INCR")));
    });
}

async fn check(topology: &Topology, meanwhile: impl FnOnce(&Client)) -> rig::client::Outcome {
    let netns = topology.client.netns().another().unwrap();
    let client = Client::start(netns, GUEST, 4, "t").await.unwrap();
    sleep(Duration::from_millis(300)).await;
    meanwhile(&client);
    sleep(Duration::from_millis(300)).await;
    client.finish().await
}

#[test]
fn connections_of_a_host_that_dies_for_good_are_lost_and_said_to_be() {
    rig(async {
        let folder = tempfile::tempdir().unwrap();
        let topology = without_a_guest().await;
        let mut server = redis_server(&topology.primary, folder.path());
        Guest::wait(topology.client.netns(), GUEST, Duration::from_secs(5)).await.unwrap();
        let netns = topology.client.netns().another().unwrap();
        let client = Client::start(netns, GUEST, 4, "t").await.unwrap();
        sleep(Duration::from_millis(200)).await;
        let armed = topology.primary.arm().await.unwrap();
        topology.primary.die(Death::Process, &armed, &mut server).await.unwrap();
        let outcome = client.finish().await;
        assert_eq!((outcome.connections_kept, outcome.connections_lost.len()), (0, 4));
        assert!(outcome.verdict.unanswered >= 4);
    });
}

#[test]
fn the_sniffer_tells_the_ports_apart_and_hears_only_what_leaves_the_hosts() {
    rig(async {
        let topology = Topology::build().await.unwrap();
        let sniffer = sniffer(&topology).await;
        topology.primary.links().add_address(BRIDGE, [10, 77, 0, 2], 24).await.unwrap();
        topology.backup.links().add_address(BRIDGE, [10, 77, 0, 3], 24).await.unwrap();
        for (host, counter) in
            [(&topology.primary, 7), (&topology.client, 8), (&topology.backup, 9)]
        {
            let _entered = host.netns().enter().unwrap();
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_broadcast(true).unwrap();
            let to = SocketAddrV4::new([10, 77, 0, 255].into(), beacon::UDP_PORT);
            socket.send_to(&beacon::encode(counter), SocketAddr::from(to)).unwrap();
        }
        let seen = seen(&sniffer, |seen| seen.beacons.len() >= 2).await;
        let verdict = seen.judge();
        assert_eq!((verdict.seen_from_primary, verdict.newest_from_primary), (1, Some(7)));
        assert_eq!((verdict.seen_from_backup, verdict.oldest_from_backup), (1, Some(9)));
        assert_eq!((verdict.ahead_total(), seen.missed), (0, 0));
    });
}

/// The rig's small server, as a process that can die: the test binary is told by its environment to be it.
fn redis_server(host: &Host, folder: &Path) -> rig::host::Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "hosts::be_the_server", "--nocapture"]).env("RIG_TEST_SERVER", "1");
    host.spawn(command, Share::Load, &folder.join("log")).unwrap()
}

#[test]
fn be_the_server() {
    if std::env::var_os("RIG_TEST_SERVER").is_some() {
        serve(&rig::netns::NetNs::current().unwrap(), GUEST.into());
        std::thread::sleep(Duration::from_secs(60));
    }
}
