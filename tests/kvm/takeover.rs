//! The main job, with the programs that users run: a host dies, sleeps, says goodbye, or loses its backup, and
//! clients keep what they were told.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use remus::observe::status::{Protection, Status};
use remus_abi::gate::Counter;
use rig::{
    client::{Client, Outcome, connection::Connection, history::Gap},
    guest::Guest,
    host::Death,
    remus::{Daemon, Machine, Options, primary_run_dir},
    resp::Reply,
    sys::{self, StoppedThread},
    topology::GUEST,
};
use tokio::time::sleep;

use rig::pair::{
    Pair, ended, has_tap, lost_nothing, patience, replies_more, tap_goes, with_hosts,
    with_hosts_for,
};

/// Long enough for a backup to suspect and to take over, were it to.
const MEANWHILE: Duration = Duration::from_secs(1);

/// The usual options, for a guest of this shape.
fn of(machine: Machine) -> Options {
    Options { machine, ..Options::default() }
}

/// The primary's host dies, its backup takes over, and nothing that `client` was told is lost, nor any of its four
/// connections.
async fn taken_over(pair: &Pair, primary: &mut Daemon, backup: &mut Daemon, client: Client) {
    let armed = pair.topology.primary.arm().await.unwrap();
    pair.topology.primary.die(Death::Host, &armed, &mut primary.process).await.unwrap();
    promoted(backup).await;
    replies_more(&client, 100).await;
    lost_nothing(client, 4).await;
}

async fn promoted(backup: &mut Daemon) {
    backup.wait_for(Protection::Promoted, patience()).await.unwrap();
}

#[test]
fn a_takeover_keeps_connections_and_loses_nothing() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let mut guest = pair.guest().await;
        guest.start_work(500, 64, 20_000).await.unwrap();
        guest.start_beacon(10).await.unwrap();
        let client = pair.client(4).await;
        taken_over(&pair, &mut primary, &mut backup, client).await;
        let seen = pair.seen();
        let beacons = seen.judge();
        assert!(beacons.seen_from_primary > 0 && beacons.seen_from_backup > 0, "{beacons:?}");
        assert_eq!((beacons.ahead_total(), seen.frames_of_the_dead), (0, 0));
    });
}

/// From here on no checkpoint reaches the backup, as over a link that is too slow for them; all that is small does.
/// (IPv4 packets of 1 KiB and more: any of the upper six bits of the length.)
const NO_CHECKPOINTS: &str = "
    ip link add hole type bridge
    tc qdisc add dev repl0 clsact 2> /dev/null || true
    for bit in 0x400 0x800 0x1000 0x2000 0x4000 0x8000; do
        tc filter add dev repl0 egress protocol ip pref 1 \
            u32 match u16 $bit $bit at 2 action mirred egress redirect dev hole
    done";

/// What the guest was given and no committed checkpoint knows is given to it again, so clients need not send it again:
/// they are answered in less than TCP's shortest timer for that, 200 ms, of which detection takes half. On a machine that
/// has other things to do it may take a second life to see that.
#[test]
fn requests_that_died_with_the_primary_are_answered_without_being_sent_again() {
    let timer_ns = if sys::is_the_lab() { u64::MAX } else { 200_000_000 };
    let mut lives = Vec::new();
    while lives.len() < 5 {
        with_hosts(async |pair| {
            let (mut primary, mut backup) = pair.protected().await;
            let mut guest = pair.guest().await;
            guest.start_work(500, 64, 20_000).await.unwrap();
            let client = pair.client(4).await;
            let armed = pair.topology.primary.arm().await.unwrap();
            pair.on(&pair.topology.primary, NO_CHECKPOINTS).await;
            let replies = loop {
                let before = client.replies();
                // As long as an epoch: what was committed by then is said by now.
                sleep(Duration::from_millis(25)).await;
                if client.replies() == before {
                    break before;
                }
            };
            let died_ns = sys::boottime_ns();
            pair.topology.primary.die(Death::Host, &armed, &mut primary.process).await.unwrap();
            assert_eq!(client.replies(), replies, "all connections wait");
            promoted(&mut backup).await;
            replies_more(&client, 100).await;
            let failover = backup.status(None).await.unwrap().failover.unwrap();
            let Outcome { connections_kept, verdict, gaps, .. } =
                client.finish_around(died_ns).await;
            assert_eq!((connections_kept, verdict.unanswered), (4, 0));
            assert!(verdict.contradictions.is_empty(), "{:?}", verdict.contradictions);
            let longest = gaps.into_iter().map(Gap::length_ns).max().unwrap();
            lives.push((failover.given_again, longest));
        });
        if lives.last().is_some_and(|(frames, gap_ns)| *frames > 0 && *gap_ns < timer_ns) {
            return;
        }
    }
    panic!("frames given again, and the longest gap in ns, of each life: {lives:?}");
}

/// Who asks for the guest while it runs nowhere is heard at the backup's host, to which the switch sends what is for an
/// address that it has lost sight of. A connection is there before TCP asks for it again, a second later.
#[test]
fn who_asks_between_the_death_and_the_takeover_is_heard() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(4).await;
        let armed = pair.topology.primary.arm().await.unwrap();
        pair.topology.primary.die(Death::Host, &armed, &mut primary.process).await.unwrap();
        let asked = Instant::now();
        let mut late = Connection::open(pair.topology.client.netns(), GUEST).await.unwrap();
        let heard = asked.elapsed();
        late.ask(&["PING"]).await.unwrap();
        assert!(heard < Duration::from_secs(1), "{heard:?}");
        promoted(&mut backup).await;
        let failover = backup.status(None).await.unwrap().failover.unwrap();
        assert!(failover.overheard > 0, "{failover:?}");
        replies_more(&client, 100).await;
        lost_nothing(client, 4).await;
    });
}

#[test]
fn every_mode_and_compression_loses_nothing() {
    for settings in [
        "mode = \"throughput\"\ncompression = \"lz4\"",
        "mode = \"fixed\"\ncompression = \"zstd\"",
        "mode = \"latency\"\ndelta_cache_mib = 2\npause_max_us = 400",
    ] {
        with_hosts(async |pair| {
            let mut backup = pair.start_backup();
            let settings = format!("epoch_ms = 25\n{settings}");
            let mut primary = pair.start_primary(&[("epoch_ms = 25", &settings)]);
            primary.wait_for(Protection::Protected, patience()).await.unwrap();
            let mut guest = pair.guest().await;
            guest.start_work(2000, 64, 0).await.unwrap();
            let client = pair.client(4).await;
            taken_over(&pair, &mut primary, &mut backup, client).await;
        });
    }
}

#[test]
fn a_guest_of_several_vcpus_is_taken_over_with_all_of_them() {
    for vcpus in [2, 4] {
        with_hosts_for(of(Machine { vcpus, ..Machine::default() }), async |pair| {
            let (mut primary, mut backup) = pair.protected().await;
            let mut guest = pair.guest().await;
            assert_eq!(guest.vcpus_started().await.unwrap(), vcpus);
            guest.start_work(500, 64, 20_000).await.unwrap();
            guest.start_beacon(10).await.unwrap();
            let client = pair.client(4).await;
            let before = guest.progress_of_vcpus().await.unwrap();
            assert!(before.len() == usize::from(vcpus) && !before.contains(&0), "{before:?}");
            taken_over(&pair, &mut primary, &mut backup, client).await;

            // The guest remembers what it told, and each of its vCPUs goes on: also one that is told anew.
            let promoted = guest.progress_of_vcpus().await.unwrap();
            assert!(
                promoted.iter().zip(&before).all(|(now, before)| now >= before),
                "{promoted:?}"
            );
            all_work(&mut guest, &promoted).await;
            guest.stop_work().await.unwrap();
            guest.start_work(100, 64, 0).await.unwrap();
            let restarted = guest.progress_of_vcpus().await.unwrap();
            all_work(&mut guest, &restarted).await;
            let seen = pair.seen();
            assert_eq!((seen.judge().ahead_total(), seen.frames_of_the_dead), (0, 0));
        });
    }
}

/// RAM on both sides of the device hole: the guest's image and heap are below it, what it works on above.
#[test]
fn a_guest_of_5_gib_is_taken_over_with_all_of_its_memory() {
    with_hosts_for(of(Machine { memory_mib: 5 << 10, ..Machine::default() }), async |pair| {
        let mut backup = pair.start_backup();
        let mut primary = pair.start_primary(&[]);
        primary.wait_for(Protection::Protected, 4 * patience()).await.unwrap();
        let mut guest = pair.guest().await;
        guest.start_work(1000, 64, 0).await.unwrap();
        let client = pair.client(4).await;
        taken_over(&pair, &mut primary, &mut backup, client).await;
        let promoted = guest.progress_of_vcpus().await.unwrap();
        all_work(&mut guest, &promoted).await;
    });
}

/// Waits until every vCPU of the guest has done more than `before`.
async fn all_work(guest: &mut Guest, before: &[u64]) {
    let until = tokio::time::Instant::now() + patience();
    loop {
        let now = guest.progress_of_vcpus().await.unwrap();
        if now.iter().zip(before).all(|(now, before)| now > before) {
            return;
        }
        assert!(tokio::time::Instant::now() < until, "{before:?}, and then {now:?}");
    }
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

/// The guest reboots on its first host, under protection, and is taken over after that; it reboots on its second host too.
#[test]
fn a_guest_reboots_in_place_and_is_protected_all_the_while() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        drop(pair.guest().await);
        set(&pair, "before").await;
        let sessions = pair.logged("primary").matches("syncing").count();
        reboot(&pair).await;
        set(&pair, "between").await;
        let status = primary.status(None).await.unwrap();
        assert_eq!(status.protection, Protection::Protected, "{}", pair.logged("primary"));
        assert_eq!(pair.logged("primary").matches("syncing").count(), sessions, "no new sync");

        let client = pair.client(4).await;
        replies_more(&client, 100).await;
        taken_over(&pair, &mut primary, &mut backup, client).await;
        assert_eq!(keys(&pair).await.unwrap(), ["between"]);
        reboot(&pair).await;
        assert_eq!(keys(&pair).await.unwrap(), [""; 0]);
        set(&pair, "after").await;
        backup.still_runs().unwrap();
    });
}

/// Of those that a test here sets.
async fn keys(pair: &Pair) -> io::Result<Vec<&'static str>> {
    let mut found = Vec::new();
    for key in ["before", "between", "after"] {
        if ask(pair, &["EXISTS", key]).await? == Reply::Integer(1) {
            found.push(key);
        }
    }
    Ok(found)
}

async fn set(pair: &Pair, key: &str) {
    assert_eq!(ask(pair, &["SET", key, "1"]).await.unwrap(), Reply::Status("OK".into()));
}

/// The guest's answer, on a connection that lives no longer.
async fn ask(pair: &Pair, words: &[&str]) -> io::Result<Reply> {
    Connection::open(pair.topology.client.netns(), GUEST).await?.ask(words).await
}

/// Has the guest reboot, and waits until it answers again, with nothing of what it knew.
async fn reboot(pair: &Pair) {
    assert_eq!(ask(pair, &["REBOOT"]).await.unwrap(), Reply::Status("OK".into()));
    let deadline = Instant::now() + patience();
    // A connection that it had still taken is reset.
    while !keys(pair).await.is_ok_and(|keys| keys.is_empty()) {
        assert!(Instant::now() < deadline, "it does not reboot: {}", pair.logged("primary"));
    }
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
        primary.wait_for(Protection::Waiting, patience()).await.unwrap();
        let client = pair.topology.client.netns();
        Guest::wait(client, GUEST, Duration::from_secs(1)).await.unwrap_err();
        let status = primary.status(None).await.unwrap();
        assert_eq!(status.protection, Protection::Waiting);
        assert!(status.reason.contains("10.99.0.2:7000"), "{:?}", status.reason);
        assert_eq!(pair.seen().frames_from_primary, 0);

        let _backup = pair.start_backup();
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        pair.guest().await;
    });
}

#[test]
fn a_backup_that_dies_stalls_its_primary_and_a_new_one_is_synced() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(4).await;
        backup.process.kill().unwrap();
        primary.wait_for(Protection::Stalled, patience()).await.unwrap();
        sleep(Duration::from_millis(200)).await;
        let released = |status: Status| status.gate.counters.get(Counter::Released);
        let (before, released_before) =
            (client.replies(), released(primary.status(None).await.unwrap()));
        sleep(MEANWHILE).await;
        let now = released(primary.status(None).await.unwrap());
        assert_eq!(
            (client.replies(), now),
            (before, released_before),
            "output left without a commit"
        );

        let mut backup = pair.start_backup();
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        replies_more(&client, 100).await;

        // The new one is as good as the first.
        taken_over(&pair, &mut primary, &mut backup, client).await;
    });
}

/// The guest was paused, its primary ends by itself for the reason `why`, and the backup goes on.
async fn is_taken_over_for(pair: &Pair, primary: &mut Daemon, backup: &mut Daemon, why: &str) {
    promoted(backup).await;
    assert_eq!(ended(primary).await.code(), Some(1));
    let said = pair.logged("primary");
    assert!(said.contains("the gate is lost, the guest is paused") && said.contains(why), "{said}");
}

#[test]
fn a_tap_deleted_under_load_is_a_takeover_and_no_client_is_contradicted() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let mut guest = pair.guest().await;
        guest.start_work(500, 64, 20_000).await.unwrap();
        let client = pair.client(4).await;
        let links = pair.topology.primary.links();
        let all = links.list().await.unwrap();
        let tap = all.iter().find(|link| link.name == rig::remus::TAP).unwrap();
        links.delete(tap).await.unwrap();
        is_taken_over_for(&pair, &mut primary, &mut backup, "tap0 was deleted").await;
        replies_more(&client, 100).await;
        lost_nothing(client, 4).await;
    });
}

#[test]
fn a_gate_that_can_be_put_back_is_and_the_guest_goes_on_where_it_was() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(4).await;
        let pins = pair.vm_dir().join("bpf");
        pair.on(&pair.topology.primary, &format!("umount -l {}", pins.display())).await;
        let until = tokio::time::Instant::now() + patience();
        while !pair.logged("primary").contains("the gate is back") {
            assert!(tokio::time::Instant::now() < until, "{}", pair.logged("primary"));
            sleep(Duration::from_millis(5)).await;
        }
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        replies_more(&client, 100).await;
        assert_eq!(primary.status(None).await.unwrap().gate.mode, "hold");

        // And it is as good as the first.
        taken_over(&pair, &mut primary, &mut backup, client).await;
    });
}

#[test]
fn a_tap_that_is_steered_past_its_gate_shows_and_is_taken_over_from() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(4).await;
        pair.on(&pair.topology.primary, "echo 1 > /sys/class/net/tap0/queues/rx-0/rps_cpus").await;
        let status = primary.wait_for(Protection::GateLost, patience()).await.unwrap();
        assert!(status.reason.contains("rps_cpus is 1"), "{}", status.reason);
        assert_eq!(status.gate.mode, "closed");
        is_taken_over_for(&pair, &mut primary, &mut backup, "receive packet steering").await;
        replies_more(&client, 100).await;
        lost_nothing(client, 4).await;
    });
}

#[test]
fn a_disk_is_there_after_a_takeover_and_a_backup_that_lacks_it_says_so() {
    with_hosts(async |pair| {
        let disks = pair.folder.path().join("disks");
        fs::create_dir(&disks).unwrap();
        let image = disks.join("data.img");
        fs::write(&image, vec![7; 1 << 20]).unwrap();
        let (disks, log) = (disks.to_str().unwrap(), pair.folder.path().join("console.log"));
        let sections = format!(
            "[[disk]]\npath = {image:?}\nreadonly = true\nid = \"data\"\n[console]\nlog = {log:?}\n[net]"
        );

        let mut backup = pair.start_backup();
        let mut primary = pair.start_primary(&[("[net]", &sections)]);
        let until = Instant::now() + patience();
        while !primary.status(None).await.is_ok_and(|status| status.reason.contains("--disks DIR"))
        {
            assert!(Instant::now() < until, "{}", pair.logged("primary"));
            sleep(Duration::from_millis(20)).await;
        }
        backup.process.signal(libc::SIGTERM).unwrap();
        assert_eq!(ended(&mut backup).await.code(), Some(0));

        let mut backup = pair.start_backup_with(&["--disks", disks]);
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        let client = pair.client(2).await;
        let armed = pair.topology.primary.arm().await.unwrap();
        pair.topology.primary.die(Death::Host, &armed, &mut primary.process).await.unwrap();
        promoted(&mut backup).await;
        replies_more(&client, 100).await;
        lost_nothing(client, 2).await;
        // The demo guest's first words, raw: with the return that a terminal wants and a log does not.
        let said = fs::read_to_string(&log).unwrap();
        assert!(said.contains("remus-guest: 10.") && said.ends_with('\n'), "{said:?}");
    });
}

#[test]
fn a_guest_whose_engine_hangs_behind_live_heartbeats_is_taken_over() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(4).await;
        let engine = StoppedThread::of(primary.process.id(), "engine").expect("it has an engine");
        promoted(&mut backup).await;
        assert!(pair.logged("backup").contains("whose engine last turned"));
        replies_more(&client, 100).await;
        // The engine that wakes hears that another host speaks, and says nothing more.
        drop(engine);
        assert_eq!(ended(&mut primary).await.code(), Some(1));
        lost_nothing(client, 4).await;
    });
}

/// Gives the primary's operator's word that the backup is off; returns the exit code and what was said.
async fn unprotect(pair: &Pair) -> (i32, String) {
    let run_dir = primary_run_dir(pair.folder.path());
    let run_dir = run_dir.to_str().unwrap();
    let words = ["unprotect", "demo", "--run-dir", run_dir, "--other-host-is-off", "beta"];
    pair.remus(&pair.topology.primary, &[], &words).await
}

#[test]
fn a_guest_goes_on_without_its_backup_by_an_operators_word_and_is_protected_again_in_a_new_term() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(4).await;
        let before = primary.status(None).await.unwrap().term;
        backup.process.kill().unwrap();
        primary.wait_for(Protection::Stalled, patience()).await.unwrap();
        // Whatever clients have asked for meanwhile is answered, and waits in the gate.
        sleep(Duration::from_millis(200)).await;
        let (code, said) = unprotect(&pair).await;
        assert_eq!(code, 0, "{said}");
        let status = primary.wait_for(Protection::Unprotected, patience()).await.unwrap();
        assert!(status.term > before, "term {} after {before}", status.term);
        replies_more(&client, 100).await;

        // Another host in the old one's place, which knows nothing of it.
        fs::remove_dir_all(pair.backup_state()).unwrap();
        let mut backup = pair.start_backup();
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        replies_more(&client, 100).await;
        assert_eq!(primary.status(None).await.unwrap().term, status.term);
        taken_over(&pair, &mut primary, &mut backup, client).await;
    });
}

#[test]
fn a_guest_whose_backup_answers_is_not_unprotected_by_a_word() {
    with_hosts(async |pair| {
        let (mut primary, _backup) = pair.protected().await;
        let (code, said) = unprotect(&pair).await;
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("answers") && said.contains("beta"), "{said}");
        let status = primary.status(None).await.unwrap();
        assert_eq!((status.protection, status.term), (Protection::Protected, 1));
        primary.still_runs().unwrap();
    });
}
