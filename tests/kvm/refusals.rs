//! What a user gets for a mistake, a missing privilege, a backup that does not want: the documented exit code,
//! one message, nothing left behind.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    os::fd::AsRawFd,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use remus::{
    machine::{self, CpuProfile, open_tap},
    observe::status::Protection,
    wire::{HEADER_LEN, Lane, Refusal, Refuse, ToBackup, ToPrimary, WIRE_VERSION},
};
use remus_abi::Term;
use rig::{
    host::{Host, Share},
    peer::{ask, backup_listens, connect, hello, receive},
    remus::{Daemon, TAP, primary_run_dir},
    topology::BACKUP,
};
use tokio::time::sleep;
use xxhash_rust::xxh3::xxh3_64;

use rig::pair::{Pair, ended, has_tap, lost_nothing, patience, replies_more, tap_goes, with_hosts};

const CONFIG: i32 = 2;
const PREFLIGHT: i32 = 3;

/// Runs `remus run` on the primary host, with errors logged and nothing else, behind the words `before`; says
/// how it ended and what it said.
async fn run(pair: &Pair, config: &str, before: &[&str]) -> (i32, String) {
    let file = pair.folder.path().join("refused.toml");
    fs::write(&file, config).unwrap();
    fs::create_dir_all(primary_run_dir(pair.folder.path())).unwrap();
    let remus = pair.programs.remus.to_str().unwrap();
    let words = [before, &[remus, "--log", "error", "run", file.to_str().unwrap()]].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    let log = pair.log("refused");
    fs::write(&log, "").unwrap();
    let mut process = pair.topology.primary.spawn(command, Share::Host, &log).unwrap();
    let end = async {
        loop {
            if let Some(status) = process.ended().unwrap() {
                return status;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    let status = tokio::time::timeout(patience(), end).await.expect("it runs, unrefused");
    (status.code().expect("an exit code"), fs::read_to_string(log).unwrap())
}

/// `remus run` is refused with `code`; its one message has all of `words`; no link and no file is left.
async fn refused(pair: &Pair, config: &str, before: &[&str], code: i32, words: &[&str]) {
    let links = pair.topology.primary.links().list().await.unwrap();
    let (found, said) = run(pair, config, before).await;
    assert_eq!(found, code, "{said}");
    assert!(said.starts_with("remus: error: "), "{said}");
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
    if code == PREFLIGHT {
        let is_refusal = |line: &&str| line.starts_with("  ") && !line.starts_with("    ");
        assert_eq!(said.lines().filter(is_refusal).count(), 1, "{said}");
    }
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
    assert_eq!(pair.topology.primary.links().list().await.unwrap(), links, "{said}");
    assert!(!pair.vm_dir().exists(), "its directory is left: {said}");
}

#[test]
fn a_config_that_cannot_be_read_or_has_a_wrong_key_points_at_it() {
    with_hosts(async |pair| {
        let wrong = pair.config(&[("memory_mib", "memory_mb")]);
        let words = ["refused.toml:5:1: machine.memory_mb: there is no such key", "help: "];
        refused(&pair, &wrong, &[], CONFIG, &words).await;
        refused(&pair, "name = ", &[], CONFIG, &["refused.toml:1:", "not TOML"]).await;
        let gone = ["sh", "-c", "for last; do :; done; rm \"$last\" && exec \"$@\"", "sh"];
        let words = ["refused.toml: ", "No such file"];
        refused(&pair, "", &gone, CONFIG, &words).await;
    });
}

#[test]
fn a_kernel_that_is_not_there_or_no_guest_is_named() {
    with_hosts(async |pair| {
        let guest = pair.programs.guest.to_str().unwrap().to_owned();
        let missing = pair.config(&[(&guest, "/nowhere/guest.elf")]);
        let words = ["open /nowhere/guest.elf: No such file", "machine.kernel"];
        refused(&pair, &missing, &[], PREFLIGHT, &words).await;
        let script = pair.config(&[(&guest, "/bin/sh.txt")]);
        let text = pair.folder.path().join("guest.txt");
        fs::write(&text, "#!/bin/sh\n").unwrap();
        let script = script.replace("/bin/sh.txt", text.to_str().unwrap());
        refused(
            &pair,
            &script,
            &[],
            PREFLIGHT,
            &["it is no kernel: name a bzImage", "machine.kernel"],
        )
        .await;
        if machine::kind() == machine::Kind::Pvm {
            let mut linux = vec![0; 1024];
            linux[0x202..0x206].copy_from_slice(b"HdrS");
            fs::write(&text, linux).unwrap();
            let words = ["Linux, which KVM without VMX or SVM cannot run"];
            refused(&pair, &script, &[], PREFLIGHT, &words).await;
        }
    });
}

#[test]
fn a_kernel_that_is_cut_short_leaves_nothing_behind() {
    with_hosts(async |pair| {
        let guest = pair.programs.guest.to_str().unwrap().to_owned();
        let cut = pair.folder.path().join("cut.elf");
        fs::write(&cut, &fs::read(&guest).unwrap()[..4096]).unwrap();
        let config = pair.config(&[(&guest, cut.to_str().unwrap())]);
        refused(&pair, &config, &[], PREFLIGHT, &["cut.elf", "it is cut short"]).await;
    });
}

#[test]
fn somebody_elses_tap_is_refused_and_left_as_it_is() {
    with_hosts(async |pair| {
        let words = ["tap: tap0 is somebody else's", "choose another name"];
        let held = {
            let _entered = pair.topology.primary.netns().enter().unwrap();
            open_tap(TAP).unwrap()
        };
        refused(&pair, &pair.config(&[]), &[], PREFLIGHT, &words).await;
        // SAFETY: TUNSETPERSIST takes an int by value, and the descriptor is a tap's.
        let done = unsafe { libc::ioctl(held.as_raw_fd(), libc::TUNSETPERSIST, 1) };
        assert_eq!(done, 0);
        drop(held);
        refused(&pair, &pair.config(&[]), &[], PREFLIGHT, &words).await;
        assert!(has_tap(&pair.topology.primary).await);
    });
}

#[test]
fn a_bridge_that_is_not_there_is_named_with_how_to_make_it() {
    with_hosts(async |pair| {
        let config = pair.config(&[("\"br0\"", "\"br9\"")]);
        let words = ["bridge: br9 is not there", "ip link add br9 type bridge"];
        refused(&pair, &config, &[], PREFLIGHT, &words).await;
    });
}

#[test]
fn a_host_without_kvm_is_refused() {
    with_hosts(async |pair| {
        let hidden = "mount --bind /dev/null /dev/kvm && exec \"$@\"";
        let hidden = ["unshare", "--mount", "sh", "-c", hidden, "sh"];
        refused(&pair, &pair.config(&[]), &hidden, PREFLIGHT, &["kvm: /dev/kvm"]).await;
        let gone = "mount -t tmpfs none /dev && mkdir /dev/net && mknod /dev/net/tun c 10 200 && exec \"$@\"";
        let gone = ["unshare", "--mount", "sh", "-c", gone, "sh"];
        let words = ["/dev/kvm is not there: load", "load kvm_intel or kvm_amd"];
        refused(&pair, &pair.config(&[]), &gone, PREFLIGHT, &words).await;
    });
}

#[test]
fn a_missing_capability_is_named_with_what_it_is_for() {
    with_hosts(async |pair| {
        for (number, name) in
            [("-cap_12", "CAP_NET_ADMIN (to make"), ("-cap_39", "CAP_BPF (to load")]
        {
            let drop = ["setpriv", "--bounding-set", number];
            let words = ["privileges: missing: ", name, "run remus as root"];
            refused(&pair, &pair.config(&[]), &drop, PREFLIGHT, &words).await;
        }
    });
}

/// A backup that answers every Hello with the same bytes. Counts them.
fn refusing_backup(host: &Host, answer: Vec<u8>) -> Arc<AtomicU32> {
    let listener = {
        let _entered = host.netns().enter().unwrap();
        TcpListener::bind(BACKUP).unwrap()
    };
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    // It ends with the process, as everything of a test does.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let hello = receive(&mut stream, Lane::ControlToBackup, ToBackup::decode);
            assert!(matches!(hello, ToBackup::Hello(_)));
            count.fetch_add(1, Ordering::Relaxed);
            stream.write_all(&answer).unwrap();
        }
    });
    asked
}

fn refusal(why: Refusal, text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    ToPrimary::Refuse(Refuse::new(why, Term::NONE, text)).encode(&mut bytes);
    bytes
}

/// The same frame as another version of the protocol would send it.
fn of_version(mut frame: Vec<u8>, version: u16) -> Vec<u8> {
    frame[4..6].copy_from_slice(&version.to_le_bytes());
    let summed = [&frame[..16], &frame[HEADER_LEN..]].concat();
    frame[16..HEADER_LEN].copy_from_slice(&xxh3_64(&summed).to_le_bytes());
    frame
}

#[test]
fn a_backup_that_refuses_is_quoted_and_asked_again() {
    let refusals = [
        of_version(refusal(Refusal::Version, "I speak version 9"), WIRE_VERSION + 8),
        refusal(Refusal::Cpu, "this host's CPU lacks what the guest has: avx2"),
        refusal(Refusal::Memory, "the VM wants 256 MiB, and this host has 12 MiB left"),
    ];
    let texts = [
        "I speak version 9",
        "this host's CPU lacks what the guest has: avx2",
        "the VM wants 256 MiB, and this host has 12 MiB left",
    ];
    for (answer, text) in refusals.into_iter().zip(texts) {
        with_hosts(async |pair| {
            let asked = refusing_backup(&pair.topology.backup, answer);
            let mut primary = pair.start_primary(&[("\"unprotected\"", "\"protected\"")]);
            primary.wait_for(Protection::Waiting, patience()).await.unwrap();
            while asked.load(Ordering::Relaxed) < 3 {
                primary.still_runs().unwrap();
                sleep(Duration::from_millis(20)).await;
            }
            let status = primary.status(None).await.unwrap();
            assert_eq!(status.protection, Protection::Waiting);
            assert_eq!(status.reason, format!("the backup refuses: {text}"));
            assert_eq!(pair.seen().frames_from_primary, 0, "its gate is shut");
            ends_without_a_trace(&pair, primary).await;
        });
    }
}

async fn ends_without_a_trace(pair: &Pair, mut primary: Daemon) {
    primary.process.signal(libc::SIGTERM).unwrap();
    assert_eq!(ended(&mut primary).await.code(), Some(0), "{}", pair.logged("primary"));
    tap_goes(&pair.topology.primary).await;
    assert!(!pair.vm_dir().exists());
}

#[test]
fn a_backup_says_what_it_lacks_and_makes_nothing_for_a_vm_that_it_refuses() {
    with_hosts(async |pair| {
        let mut backup = pair.start_backup();
        backup_listens(&pair, &mut backup).await;
        let cpu = serde_json::to_string(&CpuProfile::of_host().unwrap()).unwrap();
        // Its frequency apart, a CPU with every feature of leaf 7 that there could be.
        let mut better: serde_json::Value = serde_json::from_str(&cpu).unwrap();
        for leaf in better["leaves"].as_array_mut().unwrap() {
            if leaf["function"] == 7 && leaf["index"] == 0 {
                leaf["ebx"] = u32::MAX.into();
            }
        }
        for (hello, why, text) in [
            (hello(60 << 10, &cpu), Refusal::Memory, "the VM wants 61440 MiB, and this host has "),
            (
                hello(64, &better.to_string()),
                Refusal::Cpu,
                "this host's CPU lacks what the guest has: ",
            ),
        ] {
            let ToPrimary::Refuse(refuse) = ask(&pair, hello) else { panic!("it is not refused") };
            assert_eq!(refuse.why, why, "{}", refuse.text);
            assert!(refuse.text.starts_with(text), "{}", refuse.text);
            assert!(!has_tap(&pair.topology.backup).await);
        }
        // Nothing of it stands in the way of a VM that fits.
        let mut primary = pair.start_primary(&[]);
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        backup.still_runs().unwrap();
    });
}

#[test]
fn garbage_on_the_backups_port_does_not_disturb_a_session() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(2).await;
        let mut frame = Vec::new();
        ToBackup::Hello(hello(64, "{}")).encode(&mut frame);
        let mut endless = frame.clone();
        endless[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut torn = frame.clone();
        torn[30] ^= 1;
        let noise: Vec<u8> =
            (0..4096u32).map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()[3]).collect();
        let texts = [&noise[..], &endless, &torn, &frame[..40], b"GET / HTTP/1.1\r\n\r\n", b""];
        // Some are held open, more than may wait to say what they want.
        let held: Vec<_> = (0..48)
            .map(|n| {
                let mut stream = connect(&pair);
                // The backup may have hung up by now.
                stream.write_all(texts[n % texts.len()]).ok();
                stream
            })
            .collect();
        replies_more(&client, 200).await;
        for daemon in [&mut primary, &mut backup] {
            daemon.still_runs().unwrap();
            let status = daemon.status(None).await.unwrap();
            assert_eq!(status.protection, Protection::Protected, "{}", status.reason);
        }
        drop(held);
        // The same session: none was lost meanwhile.
        assert_eq!(pair.logged("backup").matches(": session ").count(), 1);
        lost_nothing(client, 2).await;
    });
}
