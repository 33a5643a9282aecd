//! What each signal does.

use std::{
    fs::{self, OpenOptions},
    os::unix::{fs::OpenOptionsExt, process::ExitStatusExt},
    process::Command,
    time::Duration,
};

use remus::{machine::open_tap, observe::status::Protection};
use rig::{
    host::{Death, Process, Share},
    pair::{Pair, ended, has_tap, lost_nothing, patience, replies_more, tap_goes, with_hosts},
    pty::Pty,
    remus::{Daemon, TAP},
};
use tokio::time::{Instant, sleep};

/// Every signal that ends or stops a process by itself, but for those that cannot be changed (SIGKILL, SIGSTOP), that
/// ask for an end (SIGTERM, SIGINT), and that tell of a fault of the process's own.
fn harmless() -> impl Iterator<Item = libc::c_int> {
    let known = [
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGPIPE,
        libc::SIGXFSZ,
        libc::SIGXCPU,
        libc::SIGALRM,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGPWR,
        libc::SIGSTKFLT,
    ];
    known.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
}

/// Sends them all.
fn send_harmless(process: &Process) {
    for signal in harmless() {
        process.signal(signal).unwrap();
    }
}

/// Whether a process is stopped: state T in the kernel's table.
fn is_stopped(process: &Process) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
    stat.rsplit_once(") ").unwrap().1.starts_with('T')
}

#[test]
fn no_signal_but_a_request_to_end_disturbs_a_primary_a_backup_or_a_promoted_guest() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(2).await;
        for daemon in [&mut primary, &mut backup] {
            send_harmless(&daemon.process);
        }
        replies_more(&client, 200).await;
        for daemon in [&mut primary, &mut backup] {
            daemon.still_runs().unwrap();
            assert!(!is_stopped(&daemon.process));
            let status = daemon.status(None).await.unwrap();
            assert_eq!(status.protection, Protection::Protected, "{}", status.reason);
        }
        let armed = pair.topology.primary.arm().await.unwrap();
        pair.topology.primary.die(Death::Host, &armed, &mut primary.process).await.unwrap();
        backup.wait_for(Protection::Promoted, patience()).await.unwrap();
        send_harmless(&backup.process);
        replies_more(&client, 200).await;
        backup.still_runs().unwrap();
        assert!(!is_stopped(&backup.process));
        lost_nothing(client, 2).await;
        backup.process.signal(libc::SIGTERM).unwrap();
        assert_eq!(ended(&mut backup).await.code(), Some(0), "{}", backup.tail());
        tap_goes(&pair.topology.backup).await;
    });
}

#[test]
fn a_second_request_to_end_does_not_cut_the_first_one_short() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            primary.process.signal(signal).unwrap();
        }
        assert_eq!(ended(&mut primary).await.code(), Some(0), "{}", primary.tail());
        tap_goes(&pair.topology.primary).await;
        backup.still_runs().unwrap();
        let said = pair.logged("backup");
        assert!(!said.contains("takes over"), "{said}");
    });
}

#[test]
fn a_vm_that_is_told_to_end_while_it_starts_leaves_nothing_behind() {
    with_hosts(async |pair| {
        let mut primary = pair.start_primary(&[]);
        let until = Instant::now() + patience();
        while !has_tap(&pair.topology.primary).await {
            primary.still_runs().unwrap();
            assert!(Instant::now() < until, "no tap{}", primary.tail());
        }
        primary.process.signal(libc::SIGTERM).unwrap();
        assert_eq!(ended(&mut primary).await.code(), Some(0), "{}", primary.tail());
        tap_goes(&pair.topology.primary).await;
        assert!(!pair.vm_dir().exists());
    });
}

#[test]
fn a_start_that_waits_for_a_file_can_be_interrupted() {
    with_hosts(async |pair| {
        let fifo = pair.folder.path().join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        for signal in [libc::SIGINT, libc::SIGTERM] {
            let mut command = Command::new(&pair.programs.remus);
            command.arg("run").arg(&fifo);
            let log = pair.log("waiting");
            let mut waiting = pair.topology.primary.spawn(command, Share::Host, &log).unwrap();
            // It waits in its open: a writer that does not wait itself is let in.
            let opening =
                || OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&fifo);
            let until = Instant::now() + patience();
            let writer = loop {
                assert!(Instant::now() < until, "{}", pair.logged("waiting"));
                match opening() {
                    Ok(writer) => break writer,
                    Err(_) => sleep(Duration::from_millis(5)).await,
                }
            };
            waiting.signal(signal).unwrap();
            let status = loop {
                assert!(Instant::now() < until, "it goes on: {}", pair.logged("waiting"));
                match waiting.ended().unwrap() {
                    Some(status) => break status,
                    None => sleep(Duration::from_millis(5)).await,
                }
            };
            assert_eq!(status.signal(), Some(signal));
            drop(writer);
        }
    });
}

#[test]
fn an_interrupt_that_was_ignored_before_stays_ignored() {
    with_hosts(async |pair| {
        // As of what a script starts with `&`: Ctrl-C is for the script.
        let words = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"];
        let mut primary = pair.start_primary_behind(&words, &[]);
        let client = pair.client(1).await;
        primary.process.signal(libc::SIGINT).unwrap();
        replies_more(&client, 200).await;
        lost_nothing(client, 1).await;
        primary.process.signal(libc::SIGTERM).unwrap();
        assert_eq!(ended(&mut primary).await.code(), Some(0), "{}", primary.tail());
    });
}

#[test]
fn keys_at_a_terminal_that_is_the_guests_console_no_more_stop_nothing() {
    const LEAVE: u8 = 0x1d;
    with_hosts(async |pair| {
        let backup = pair.start_backup();
        let mut pty = Pty::open().unwrap();
        let mut primary = pair.start_primary_behind(&pty.console(), &[]);
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        let client = pair.client(1).await;
        pty.type_in(&[LEAVE]).unwrap();
        let (mut shown, until) = (String::new(), Instant::now() + patience());
        while !shown.contains("the console is closed") {
            assert!(Instant::now() < until, "{shown}");
            shown += &pty.shown();
            sleep(Duration::from_millis(5)).await;
        }
        // Ctrl-Z, and the key beside Ctrl-].
        pty.type_in(b"\x1a\x1c").unwrap();
        replies_more(&client, 200).await;
        assert!(!is_stopped(&primary.process));
        primary.still_runs().unwrap();
        // Ctrl-C ends the VM in order.
        lost_nothing(client, 1).await;
        pty.type_in(b"\x03").unwrap();
        assert_eq!(ended(&mut primary).await.code(), Some(0), "{}", pty.shown());
        let said = pair.logged("backup");
        assert!(!said.contains("takes over"), "{said}");
        drop(backup);
    });
}

#[test]
fn a_console_is_refused_to_a_process_in_the_background_of_its_terminal() {
    with_hosts(async |pair| {
        let mut pty = Pty::open().unwrap();
        let [.., terminal] = pty.console();
        let file = pair.folder.path().join("vm.toml");
        fs::write(&file, pair.config(&[])).unwrap();
        let (remus, file) = (pair.programs.remus.to_str().unwrap(), file.to_str().unwrap());
        // A shell with job control gives what it starts with `&` a process group of its own.
        let job = "set -m; \"$0\" run --console \"$1\" & wait $!; echo \"its code is $?\"";
        let outer = "exec setsid --ctty sh -c \"$1\" \"$2\" \"$3\" < \"$0\" > \"$0\" 2> \"$0\"";
        let mut command = Command::new("sh");
        command.args(["-c", outer, terminal, job, remus, file]);
        let log = pair.log("shell");
        let mut shell = pair.topology.primary.spawn(command, Share::Host, &log).unwrap();
        assert_eq!(shell.finish(patience()).await.unwrap(), Some(0));
        let shown = pty.shown();
        assert!(shown.contains("another process has"), "{shown}");
        assert!(shown.contains("its code is 1"), "{shown}");
        assert!(!has_tap(&pair.topology.primary).await);
    });
}

#[test]
fn a_limit_on_the_size_of_files_costs_lines_of_log_and_no_vm() {
    with_hosts(async |pair| {
        let mut backup = pair.start_backup();
        let log = pair.log("limited");
        // The log is at the limit from its first line on.
        fs::write(&log, vec![b'\n'; 1 << 16]).unwrap();
        let words = [
            "prlimit",
            "--fsize=65536",
            "sh",
            "-c",
            "exec \"$@\" 2>> \"$0\"",
            log.to_str().unwrap(),
        ];
        let mut primary = pair.start_primary_behind(&words, &[]);
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        assert!(primary.status(None).await.unwrap().lost.log_lines > 0);
        survives(&pair, primary, &mut backup).await;
    });
}

async fn survives(pair: &Pair, mut primary: Daemon, backup: &mut Daemon) {
    let client = pair.client(1).await;
    let armed = pair.topology.primary.arm().await.unwrap();
    pair.topology.primary.die(Death::Host, &armed, &mut primary.process).await.unwrap();
    backup.wait_for(Protection::Promoted, patience()).await.unwrap();
    replies_more(&client, 100).await;
    lost_nothing(client, 1).await;
}

#[test]
fn a_gate_alone_is_disturbed_by_no_signal_either() {
    with_hosts(async |pair| {
        let host = &pair.topology.primary;
        let tap = {
            let _entered = host.netns().enter().unwrap();
            open_tap(TAP).unwrap()
        };
        let run_dir = pair.folder.path().join("gate.d");
        fs::create_dir(&run_dir).unwrap();
        let mut command = Command::new(&pair.programs.remus);
        command
            .args(["gate", "run", "--tap", TAP, "--at-exit", "remove", "--run-dir"])
            .arg(&run_dir);
        let log = pair.log("gate");
        let mut gate = host.spawn(command, Share::Host, &log).unwrap();
        let (socket, until) = (run_dir.join(TAP).join("gate.sock"), Instant::now() + patience());
        while !socket.exists() {
            assert!(Instant::now() < until, "{}", pair.logged("gate"));
            sleep(Duration::from_millis(5)).await;
        }
        send_harmless(&gate);
        sleep(Duration::from_millis(100)).await;
        assert!(gate.ended().unwrap().is_none() && !is_stopped(&gate), "{}", pair.logged("gate"));
        assert!(socket.exists());
        gate.signal(libc::SIGTERM).unwrap();
        assert_eq!(gate.finish(patience()).await.unwrap(), Some(0), "{}", pair.logged("gate"));
        drop(tap);
    });
}
