//! The main job, with the programs that users run: a host dies, sleeps, says goodbye, or loses its backup, and
//! clients keep what they were told.

use std::time::Duration;

use remus::observe::status::Protection;
use rig::{
    client::connection::Connection, guest::Guest, host::Death, remus::Daemon, topology::GUEST,
};
use tokio::time::sleep;

use super::pair::{
    PATIENCE, Pair, ended, has_tap, lost_nothing, replies_more, tap_goes, with_hosts,
};

/// Long enough for a backup to suspect and to take over, were it to.
const MEANWHILE: Duration = Duration::from_secs(1);

async fn promoted(backup: &mut Daemon) {
    backup.wait_for(Protection::Promoted, PATIENCE).await.unwrap();
}

#[test]
fn a_takeover_keeps_connections_and_loses_nothing() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let mut guest = pair.guest().await;
        guest.start_work(500, 64, 20_000).await.unwrap();
        guest.start_beacon(10).await.unwrap();
        let client = pair.client(4).await;
        let armed = pair.topology.primary.arm().await.unwrap();
        pair.topology.primary.die(Death::Host, &armed, &mut primary.process).await.unwrap();
        promoted(&mut backup).await;
        replies_more(&client, 100).await;
        lost_nothing(client, 4).await;
        let seen = pair.seen();
        let beacons = seen.judge();
        assert!(beacons.seen_from_primary > 0 && beacons.seen_from_backup > 0, "{beacons:?}");
        assert_eq!((beacons.ahead_total(), seen.frames_of_the_dead), (0, 0));
    });
}

#[test]
fn a_promoted_backup_refuses_the_old_primary_which_then_stands_down() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(4).await;
        primary.process.signal(libc::SIGSTOP).unwrap();
        promoted(&mut backup).await;
        replies_more(&client, 100).await;
        primary.process.signal(libc::SIGCONT).unwrap();
        assert_eq!(ended(&mut primary).await.code(), Some(1));
        let said = pair.logged("primary");
        assert_eq!(
            said.matches("remus: error: another host speaks for VM demo").count(),
            1,
            "{said}"
        );
        // Awake and asleep, it has said nothing since the backup spoke.
        assert_eq!(pair.seen().frames_of_the_dead, 0);
        replies_more(&client, 100).await;
        lost_nothing(client, 4).await;
        backup.still_runs().unwrap();
    });
}

#[test]
fn a_guest_that_powers_off_says_goodbye_and_is_not_taken_over() {
    with_hosts(async |pair| {
        let (primary, backup) = pair.protected().await;
        drop(pair.guest().await);
        let mut connection = Connection::open(pair.topology.client.netns(), GUEST).await.unwrap();
        let asked = connection.ask(&["POWEROFF"]);
        // Its answer is the guest's last output: nobody promises that it comes.
        let (_answer, ()) = tokio::join!(
            async { tokio::time::timeout(MEANWHILE, asked).await.is_ok() },
            is_over_on_purpose(&pair, primary, backup),
        );
    });
}

#[test]
fn sigterm_ends_the_guest_on_purpose() {
    with_hosts(async |pair| {
        let (primary, backup) = pair.protected().await;
        drop(pair.guest().await);
        primary.process.signal(libc::SIGTERM).unwrap();
        is_over_on_purpose(&pair, primary, backup).await;
    });
}

/// The primary ends well, the backup does not take over, and nothing of the VM is left on either host.
async fn is_over_on_purpose(pair: &Pair, mut primary: Daemon, mut backup: Daemon) {
    let status = ended(&mut primary).await;
    assert_eq!(status.code(), Some(0), "{}", pair.logged("primary"));
    assert!(!has_tap(&pair.topology.primary).await);
    assert!(!pair.vm_dir().exists());
    tap_goes(&pair.topology.backup).await;
    sleep(MEANWHILE).await;
    backup.still_runs().unwrap();
    assert_eq!(pair.seen().frames_from_backup, 0);
    let said = pair.logged("backup");
    assert!(!said.contains("takes over"), "{said}");
}

#[test]
fn a_primary_waits_shut_for_its_backup() {
    with_hosts(async |pair| {
        let mut primary = pair.start_primary(&[("\"unprotected\"", "\"protected\"")]);
        primary.wait_for(Protection::Waiting, PATIENCE).await.unwrap();
        let client = pair.topology.client.netns();
        Guest::wait(client, GUEST, Duration::from_secs(1)).await.unwrap_err();
        let status = primary.status(None).await.unwrap();
        assert_eq!(status.protection, Protection::Waiting);
        assert!(status.reason.contains("10.99.0.2:7000"), "{:?}", status.reason);
        assert_eq!(pair.seen().frames_from_primary, 0);

        let _backup = pair.start_backup();
        primary.wait_for(Protection::Protected, PATIENCE).await.unwrap();
        pair.guest().await;
    });
}

#[test]
fn a_backup_that_dies_stalls_its_primary_and_a_new_one_is_synced() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(4).await;
        backup.process.kill().unwrap();
        primary.wait_for(Protection::Stalled, PATIENCE).await.unwrap();
        sleep(Duration::from_millis(200)).await;
        let (before, released) =
            (client.replies(), primary.status(None).await.unwrap().gate.released);
        sleep(MEANWHILE).await;
        let now = primary.status(None).await.unwrap().gate.released;
        assert_eq!((client.replies(), now), (before, released), "output left without a commit");

        let mut backup = pair.start_backup();
        primary.wait_for(Protection::Protected, PATIENCE).await.unwrap();
        replies_more(&client, 100).await;

        // The new one is as good as the first.
        let armed = pair.topology.primary.arm().await.unwrap();
        pair.topology.primary.die(Death::Host, &armed, &mut primary.process).await.unwrap();
        promoted(&mut backup).await;
        replies_more(&client, 100).await;
        lost_nothing(client, 4).await;
    });
}
