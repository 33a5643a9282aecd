//! What people read says what is so: messages, the status and its reasons, and the steps that the docs tell.

use std::{
    fs,
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use remus::observe::status::{Protection, Status};
use rig::{
    host::{Host, Process, Share},
    pair::{
        Pair, ended, exit_code, has_tap, lost_nothing, patience, replies_more, says, tap_goes,
        with_hosts,
    },
    remus::{Daemon, TAP, VM, primary_run_dir, status},
    topology::{BACKUP, BRIDGE, PRIMARY},
};
use tokio::time::{Instant, sleep};

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_user_that_may_not_look_is_not_told_that_nothing_runs() {
    with_hosts(async |pair| {
        fs::set_permissions(pair.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = pair.folder.path().join("remus");
        fs::copy(&pair.programs.remus, &program).unwrap();
        let mut primary = pair.start_primary(&[]);
        primary.wait_for(Protection::Unprotected, patience()).await.unwrap();
        let run_dir = primary_run_dir(pair.folder.path());
        let nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups";
        for vm in ["", VM] {
            let shell = format!(
                "{nobody} {} status --run-dir {} {vm}",
                program.display(),
                run_dir.display()
            );
            let (code, said) = pair.remus(&pair.topology.primary, &["sh", "-c", &shell], &[]).await;
            assert_eq!(code, 1, "{said}");
            assert!(said.contains("only the user that runs VM demo may see its status"), "{said}");
            assert!(!said.contains("no VM"), "{said}");
        }
    });
}

#[test]
fn a_vm_whose_process_is_stopped_is_said_to_be_that_however_often_it_is_asked() {
    with_hosts(async |pair| {
        let mut primary = pair.start_primary(&[]);
        primary.wait_for(Protection::Unprotected, patience()).await.unwrap();
        let run_dir = primary_run_dir(pair.folder.path());
        primary.process.signal(libc::SIGSTOP).unwrap();
        let words = ["status", "--run-dir", path(&run_dir)];
        let asked = async || {
            let (code, said) = pair.remus(&pair.topology.primary, &[], &words).await;
            assert_eq!(code, 1, "{said}");
            assert!(said.contains("VM demo does not answer: its process "), "{said}");
            assert!(said.contains(" is stopped (kill -CONT "), "{said}");
        };
        asked().await;
        // As many as the kernel lets wait for a place.
        let mut held = Vec::new();
        while let Ok(stream) = tokio::net::UnixStream::connect(primary.socket()).await {
            held.push(stream);
            assert!(held.len() < 10_000, "the kernel lets no end of callers wait");
        }
        asked().await;
        drop(held);
        primary.process.signal(libc::SIGCONT).unwrap();
        primary.wait_for(Protection::Unprotected, patience()).await.unwrap();
    });
}

#[test]
fn a_run_directory_that_is_not_there_is_a_mistake_and_not_an_answer() {
    with_hosts(async |pair| {
        let missing = pair.folder.path().join("mistyped");
        for words in [
            &["status"][..],
            &["status", "--json"],
            &["gate", "list"],
            &["gate", "list", "--json"],
            &["gate", "show", "demo"],
            &["clean", "demo"],
        ] {
            let words = [words, &["--run-dir", path(&missing)]].concat();
            let (code, said) = pair.remus(&pair.topology.primary, &[], &words).await;
            assert_eq!(code, 1, "{words:?}: {said}");
            let expected = format!("there is no directory {}: --run-dir names", missing.display());
            assert!(said.contains(&expected), "{words:?}: {said}");
        }
        assert!(!missing.exists());
        let empty = pair.folder.path();
        let words = ["status", "--run-dir", path(empty)];
        let (code, said) = pair.remus(&pair.topology.primary, &[], &words).await;
        assert_eq!((code, said.contains("there is no running VM below")), (0, true), "{said}");
    });
}

#[test]
fn another_backup_at_the_same_address_is_the_reason_and_the_reason_goes_with_it() {
    with_hosts(async |pair| {
        // Long enough for a backup to come back.
        let calm = [("detect_ms = 100", "detect_ms = 20000")];
        let mut backup = pair.start_backup();
        let mut primary = pair.start_primary(&calm);
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        let instance = pair.folder.path().join("backup.d/state/instance");
        let whole = fs::read(&instance).unwrap();
        backup.process.signal(libc::SIGKILL).unwrap();
        ended_by_signal(&mut backup).await;
        primary.wait_for(Protection::Stalled, patience()).await.unwrap();
        fs::remove_file(&instance).unwrap();
        let mut other = pair.start_backup();
        let words = "another backup than before answers";
        let status = says(&mut primary, Protection::Stalled, words).await;
        assert!(status.reason.contains("Bring that one back with its state directory"));
        // Mended.
        other.process.signal(libc::SIGKILL).unwrap();
        ended_by_signal(&mut other).await;
        fs::write(&instance, whole).unwrap();
        let _back = pair.start_backup();
        let status = primary.wait_for(Protection::Protected, patience()).await.unwrap();
        assert_eq!(status.reason, "");
    });
}

async fn ended_by_signal(daemon: &mut Daemon) {
    assert_eq!(ended(daemon).await.code(), None);
}

#[test]
fn idle_connections_keep_no_primary_out_and_are_warned_of() {
    with_hosts(async |pair| {
        let mut backup = pair.start_backup();
        let until = Instant::now() + patience();
        while !pair.logged("backup").contains("waiting for primaries") {
            backup.still_runs().unwrap();
            assert!(Instant::now() < until);
            sleep(Duration::from_millis(5)).await;
        }
        // From the primary's own address; each is made anew when it is dropped.
        let over = Arc::new(AtomicBool::new(false));
        let connect = || {
            let _entered = pair.topology.primary.netns().enter().unwrap();
            TcpStream::connect(BACKUP).unwrap()
        };
        let mut idle: Vec<_> = (0..60).map(|_| connect()).collect();
        let (netns, done) = (pair.topology.primary.netns().another().unwrap(), Arc::clone(&over));
        let crowd = std::thread::spawn(move || {
            let _entered = netns.enter().unwrap();
            for stream in &idle {
                stream.set_nonblocking(true).unwrap();
            }
            while !done.load(Ordering::Relaxed) {
                for stream in &mut idle {
                    let waits = std::io::Read::read(stream, &mut [0])
                        .is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
                    if !waits {
                        *stream = TcpStream::connect(BACKUP).unwrap();
                        stream.set_nonblocking(true).unwrap();
                    }
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let mut primary = pair.start_primary(&[]);
        let protected = primary.wait_for(Protection::Protected, patience()).await;
        over.store(true, Ordering::Relaxed);
        crowd.join().unwrap();
        protected.unwrap();
        let warned = pair.logged("backup");
        assert!(
            warned.contains("connections were dropped, since they did not say what they want"),
            "{warned}"
        );
        assert!(warned.contains("most were from 10.99.0.1"), "{warned}");
        assert!(warned.matches("connections were dropped").count() <= 3, "{warned}");
    });
}

#[test]
fn a_primary_that_stands_down_is_told_no_lie() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(2).await;
        primary.process.signal(libc::SIGSTOP).unwrap();
        backup.wait_for(Protection::Promoted, patience()).await.unwrap();
        primary.process.signal(libc::SIGCONT).unwrap();
        assert_eq!(ended(&mut primary).await.code(), Some(1));
        let said = pair.logged("primary");
        assert!(said.contains("another host speaks for VM demo now, in term 2"), "{said}");
        assert!(said.contains("This host cannot protect it while it runs there"), "{said}");
        assert!(!said.contains("Use this host as that one's backup"), "{said}");
        lost_nothing(client, 2).await;
    });
}

#[test]
fn a_tap_that_takes_its_bridge_down_is_warned_of_before_and_by_run() {
    with_hosts(async |pair| {
        let narrow = [("bridge = \"br0\"", "bridge = \"br0\"\nmtu = 1400")];
        let warning = "bridge: br0 carries packets of 1500 bytes, and only of 1400, the guest's";
        let mut primary = pair.start_primary(&narrow);
        primary.wait_for(Protection::Unprotected, patience()).await.unwrap();
        assert!(pair.logged("primary").contains(warning), "{}", pair.logged("primary"));
    });
}

/// `remus clean` of the VM on a host whose run directory this is.
async fn clean(pair: &Pair, host: &Host, run_dir: &Path, more: &[&str]) -> (i32, String) {
    let words = [&["clean", VM, "--run-dir", path(run_dir)], more].concat();
    pair.remus(host, &[], &words).await
}

#[test]
fn what_a_dead_vm_left_is_taken_down_by_one_verb_and_what_lives_is_left_alone() {
    for engine in ["bpf", "nfqueue"] {
        with_hosts(async |pair| {
            let host = &pair.topology.primary;
            let engine = [("engine = \"bpf\"", &*format!("engine = {engine:?}"))];
            let run_dir = primary_run_dir(pair.folder.path());
            let record = run_dir.join("state/demo.json");
            let mut backup = pair.start_backup();
            let mut primary = pair.start_primary(&engine);
            primary.wait_for(Protection::Protected, patience()).await.unwrap();
            let client = pair.client(1).await;
            let (code, said) = clean(&pair, host, &run_dir, &[]).await;
            assert_eq!(code, 1, "{said}");
            assert!(
                said.contains(
                    " has VM demo: that process runs the VM, or follows it for another host"
                ),
                "{said}"
            );
            let (code, said) = clean(&pair, host, &pair.folder.path().join("backup.d"), &[]).await;
            assert_eq!((code, said.contains(" has VM demo")), (1, true), "{said}");
            // Below another run directory nobody has it, but its tap is in use.
            let (code, said) = clean(&pair, host, pair.folder.path(), &[]).await;
            assert_eq!(
                (code, said.contains("tap tap0 of VM demo is open in process")),
                (1, true),
                "{said}"
            );
            replies_more(&client, 20).await;

            primary.process.signal(libc::SIGKILL).unwrap();
            ended_by_signal(&mut primary).await;
            assert!(has_tap(host).await && pair.vm_dir().join("bpf").is_dir());
            let (code, said) = clean(&pair, host, &run_dir, &[]).await;
            assert_eq!(code, 0, "{said}");
            for word in
                ["tap tap0 is deleted", "the gate is removed", "demo is removed", "demo.json stays"]
            {
                assert!(said.contains(word), "no {word:?} in: {said}");
            }
            tap_goes(host).await;
            assert!(!pair.vm_dir().exists() && record.exists());
            let mut tables = Command::new("sh");
            tables.args(["-c", "! nft list tables | grep remus-"]);
            let mut tables = host.spawn(tables, Share::Load, &pair.log("tables")).unwrap();
            assert_eq!(exit_code(&mut tables, "nft").await, 0, "{}", pair.logged("tables"));
            let (code, said) = clean(&pair, host, &run_dir, &["--record"]).await;
            assert_eq!(code, 0, "{said}");
            for word in ["which may have taken it over", "very first start, in term 1"] {
                assert!(said.contains(word), "no {word:?} in: {said}");
            }
            assert!(!record.exists());
            let (code, said) = clean(&pair, host, &run_dir, &["--record"]).await;
            assert_eq!((code, said.contains("VM demo has left nothing here")), (1, true), "{said}");
            // The other half of it lives.
            backup.wait_for(Protection::Promoted, patience()).await.unwrap();
            lost_nothing(client, 1).await;
        });
    }
}

#[test]
fn what_is_no_vms_or_half_gone_is_cleaned_no_further_than_it_may_be() {
    with_hosts(async |pair| {
        let host = &pair.topology.primary;
        let run_dir = primary_run_dir(pair.folder.path());
        let sh = async |text: &str| {
            let mut command = Command::new("sh");
            command.args(["-ec", text]);
            let mut process = host.spawn(command, Share::Load, &pair.log("sh")).unwrap();
            assert_eq!(exit_code(&mut process, text).await, 0, "{}", pair.logged("sh"));
        };
        // Its tap is gone, as the docs once told to begin with; its bpffs too; or only a directory is left.
        for harm in [
            format!("ip link delete {TAP}"),
            format!("umount -l {}", pair.vm_dir().join("bpf").display()),
            format!(
                "ip link delete {TAP}; umount -l {0}; rmdir {0}",
                pair.vm_dir().join("bpf").display()
            ),
            format!("rm {}", pair.vm_dir().join("bpf/CONTROL").display()),
        ] {
            let mut primary = pair.start_primary(&[]);
            primary.wait_for(Protection::Unprotected, patience()).await.unwrap();
            primary.process.signal(libc::SIGKILL).unwrap();
            ended_by_signal(&mut primary).await;
            sh(&harm).await;
            let (code, said) = clean(&pair, host, &run_dir, &["--record"]).await;
            assert_eq!(code, 0, "{harm}: {said}");
            assert!(!has_tap(host).await && !pair.vm_dir().exists(), "{harm}: {said}");
        }
        // Somebody's file is not removed.
        fs::create_dir(pair.vm_dir()).unwrap();
        fs::set_permissions(pair.vm_dir(), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(pair.vm_dir().join("notes"), "mine").unwrap();
        let (code, said) = clean(&pair, host, &run_dir, &[]).await;
        assert_eq!(
            (code, said.contains("something that remus did not put there")),
            (1, true),
            "{said}"
        );
        assert!(pair.vm_dir().join("notes").exists());
        // Nor the gate of another checkpointer off its tap.
        sh("ip tuntap add tap7 mode tap").await;
        let words =
            ["gate", "run", "--tap", "tap7", "--name", "other", "--run-dir", path(&run_dir)];
        let mut command = Command::new(&pair.programs.remus);
        command.args(words);
        let mut gate = host.spawn(command, Share::Host, &pair.log("gate")).unwrap();
        let until = Instant::now() + patience();
        while !run_dir.join("other/gate.sock").exists() {
            assert!(Instant::now() < until, "{}", pair.logged("gate"));
            sleep(Duration::from_millis(5)).await;
        }
        gate.signal(libc::SIGKILL).unwrap();
        while gate.ended().unwrap().is_none() {
            sleep(Duration::from_millis(5)).await;
        }
        let words = ["clean", "other", "--run-dir", path(&run_dir)];
        let (code, said) = pair.remus(host, &[], &words).await;
        assert_eq!((code, said.contains("remus gate remove other")), (1, true), "{said}");
    });
}

/// `remus` as a daemon on a host, with its status socket.
pub(super) struct Started {
    process: Process,
    socket: PathBuf,
    log: PathBuf,
}

impl Started {
    pub(super) fn new(
        pair: &Pair,
        host: &Host,
        run_dir: &Path,
        name: &str,
        words: &[&str],
    ) -> Self {
        let mut command = Command::new(&pair.programs.remus);
        command.args(words);
        let log = pair.log(name);
        let process = host.spawn(command, Share::Host, &log).unwrap();
        Self { process, socket: run_dir.join(VM).join("status.sock"), log }
    }

    pub(super) async fn is(&mut self, wanted: Protection) {
        let until = Instant::now() + patience();
        loop {
            let found: Result<Status, _> = status(&self.socket, None).await;
            if found.as_ref().is_ok_and(|status| status.protection == wanted) {
                return;
            }
            let log = fs::read_to_string(&self.log).unwrap();
            assert!(
                self.process.ended().unwrap().is_none() && Instant::now() < until,
                "{found:?} {log}"
            );
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// "After a takeover" of docs/operating.md: alpha was the primary, beta has taken over.
#[test]
fn the_steps_after_a_takeover_bring_the_vm_under_protection_again_on_either_host() {
    with_hosts(async |pair| {
        let (alpha, beta) = (&pair.topology.primary, &pair.topology.backup);
        let alphas = primary_run_dir(pair.folder.path());
        let betas = pair.folder.path().join("backup.d");
        let taken_over = async || {
            let (mut primary, mut backup) = pair.protected().await;
            primary.process.signal(libc::SIGKILL).unwrap();
            ended_by_signal(&mut primary).await;
            backup.wait_for(Protection::Promoted, patience()).await.unwrap();
            // It refuses to start: the docs say what to do.
            let mut primary = pair.start_primary(&[]);
            assert_eq!(ended(&mut primary).await.code(), Some(3), "{}", primary.tail());
            assert!(pair.logged("primary").contains("last ran here protected by a backup"));
            // Step 1.
            backup.process.signal(libc::SIGTERM).unwrap();
            assert_eq!(ended(&mut backup).await.code(), Some(0), "{}", backup.tail());
        };
        let clean = async |host: &Host, run_dir: &Path| {
            let (code, said) = clean(&pair, host, run_dir, &["--record"]).await;
            assert_eq!(code, 0, "{said}");
        };

        // Step 3: on alpha again.
        taken_over().await;
        clean(alpha, &alphas).await;
        clean(beta, &betas).await;
        let (mut primary, mut backup) = pair.protected().await;
        for daemon in [&mut primary, &mut backup] {
            daemon.process.signal(libc::SIGTERM).unwrap();
            assert_eq!(ended(daemon).await.code(), Some(0), "{}", daemon.tail());
        }

        // Step 2: on beta from now on.
        taken_over().await;
        clean(alpha, &alphas).await;
        let listen = format!("{PRIMARY}:7000");
        let words = ["backup", "--listen", &listen, "--run-dir", path(&alphas), "--bridge", BRIDGE];
        let mut backup = Started::new(&pair, alpha, &alphas, "alpha", &words);
        let config = pair.config(&[(path(&alphas), path(&betas)), (&BACKUP.to_string(), &listen)]);
        let file = pair.folder.path().join("beta.toml");
        fs::write(&file, config).unwrap();
        let mut primary = Started::new(&pair, beta, &betas, "beta", &["run", path(&file)]);
        primary.is(Protection::Protected).await;
        backup.is(Protection::Protected).await;
        primary.process.signal(libc::SIGTERM).unwrap();
        assert_eq!(exit_code(&mut primary.process, "the primary").await, 0);
    });
}
