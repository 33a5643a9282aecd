//! A line of log costs no VM.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use remus::observe::status::Protection;
use rig::{
    host::{Death, Host, Share},
    pair::{Pair, ended, lost_nothing, patience, replies_more, tap_goes, with_hosts},
    pty::Pty,
    remus::Daemon,
};
use tokio::time::sleep;

/// Longer than the end of a process may take when nobody reads what it says.
const AT_ONCE: Duration = Duration::from_secs(3);

/// A FIFO to which a daemon writes its log, and who reads it.
struct Reader {
    path: PathBuf,
    near: File,
}

impl Reader {
    fn new(pair: &Pair, name: &str) -> Self {
        let path = pair.folder.path().join(name);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let near = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
        Self { near: near.unwrap(), path }
    }

    /// One that never reads; the pipe is full before the first line.
    fn stalled(pair: &Pair, name: &str) -> Self {
        let reader = Self::new(pair, name);
        let mut options = OpenOptions::new();
        let mut far =
            options.write(true).custom_flags(libc::O_NONBLOCK).open(&reader.path).unwrap();
        while far.write(b"x").is_ok() {}
        reader
    }

    /// Words behind which a program's stdout and stderr lead here.
    fn words(&self) -> [&str; 4] {
        ["sh", "-c", "exec \"$@\" > \"$0\" 2>&1", self.path.to_str().unwrap()]
    }

    fn more(&mut self) -> String {
        let mut bytes = [0; 4096];
        match self.near.read(&mut bytes) {
            Ok(read) => String::from_utf8_lossy(&bytes[..read]).into_owned(),
            Err(e) if e.kind() == ErrorKind::WouldBlock => String::new(),
            Err(e) => panic!("{e}"),
        }
    }
}

/// The primary's host dies, and the backup, whatever became of its log, takes over. Its clients lose nothing.
async fn is_taken_over(pair: &Pair, mut primary: Daemon, backup: &mut Daemon) {
    primary.wait_for(Protection::Protected, patience()).await.unwrap();
    let client = pair.client(2).await;
    let armed = pair.topology.primary.arm().await.unwrap();
    pair.topology.primary.die(Death::Host, &armed, &mut primary.process).await.unwrap();
    backup.wait_for(Protection::Promoted, patience()).await.unwrap();
    replies_more(&client, 100).await;
    lost_nothing(client, 2).await;
}

/// SIGTERM ends it in order, soon, and its host has nothing left of the VM.
async fn ends_in_order(host: &Host, mut daemon: Daemon) {
    daemon.process.signal(libc::SIGTERM).unwrap();
    let began = Instant::now();
    assert_eq!(ended(&mut daemon).await.code(), Some(0), "{}", daemon.tail());
    assert!(began.elapsed() < AT_ONCE, "it took {:?} to end", began.elapsed());
    tap_goes(host).await;
}

async fn lines_lost(daemon: &Daemon) -> u64 {
    daemon.status(None).await.unwrap().lost.log_lines
}

#[test]
fn a_backup_whose_logs_reader_has_gone_takes_over() {
    with_hosts(async |pair| {
        let mut reader = Reader::new(&pair, "log");
        let mut backup = pair.start_backup_behind(&reader.words());
        let mut primary = pair.start_primary(&[]);
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        let read = reader.more();
        assert!(read.contains("waiting for primaries"), "{read}");
        assert_eq!(lines_lost(&backup).await, 0);
        drop(reader);
        is_taken_over(&pair, primary, &mut backup).await;
        assert!(lines_lost(&backup).await > 0);
    });
}

/// Where a log can lead that takes nothing, and whether that is a loss: a full device, a descriptor that is open for
/// reading alone, one that is closed.
const NOTHING: [(&str, bool); 3] = [
    ("exec \"$@\" 2> /dev/full", true),
    ("exec \"$@\" 2>&0 < /dev/null", true),
    ("exec \"$@\" 2>&-", false),
];

#[test]
fn a_backup_whose_log_takes_nothing_takes_over() {
    for (words, is_a_loss) in NOTHING {
        with_hosts(async |pair| {
            let mut backup = pair.start_backup_behind(&["sh", "-c", words, "sh"]);
            is_taken_over(&pair, pair.start_primary(&[]), &mut backup).await;
            assert_eq!(lines_lost(&backup).await > 0, is_a_loss, "{words}");
        });
    }
}

#[test]
fn a_backup_whose_log_nobody_reads_takes_over_and_ends_in_order() {
    with_hosts(async |pair| {
        let reader = Reader::stalled(&pair, "log");
        let mut backup = pair.start_backup_behind(&reader.words());
        is_taken_over(&pair, pair.start_primary(&[]), &mut backup).await;
        ends_in_order(&pair.topology.backup, backup).await;
    });
}

/// Behind these a program's log is on a small file system of its own, `$0`, which is full.
const ON_A_FULL_FILE_SYSTEM: &str = "mount -t tmpfs -o size=64k none \"$0\"; : > \"$0/log\"; \
    cat /dev/zero > \"$0/filler\" 2> /dev/null; exec \"$@\" 2>> \"$0/log\"";

#[test]
fn a_backup_whose_logs_file_system_is_full_takes_over_and_writes_on_when_there_is_room() {
    with_hosts(async |pair| {
        let small = pair.folder.path().join("small");
        fs::create_dir(&small).unwrap();
        let words = ["unshare", "--mount", "sh", "-c", ON_A_FULL_FILE_SYSTEM, path(&small)];
        let mut backup = pair.start_backup_behind(&words);
        is_taken_over(&pair, pair.start_primary(&[]), &mut backup).await;
        let lost = lines_lost(&backup).await;
        assert!(lost > 0);
        // As its process sees it.
        let inside = format!("/proc/{}/root{}", backup.process.id(), small.display());
        let log = Path::new(&inside).join("log");
        assert_eq!(fs::read_to_string(&log).unwrap(), "");
        let mut log = File::open(log).unwrap();
        fs::remove_file(Path::new(&inside).join("filler")).unwrap();
        backup.process.signal(libc::SIGTERM).unwrap();
        assert_eq!(ended(&mut backup).await.code(), Some(0));
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        let missing =
            text.strip_prefix("remus: ").and_then(|rest| rest.split_once(" lines of the log"));
        // One may have been lost since the status was asked.
        assert!(missing.unwrap().0.parse::<u64>().unwrap() >= lost, "{text}");
        assert!(text.contains("the backup ends"), "{text}");
    });
}

#[test]
fn a_primary_whose_log_nobody_reads_runs_its_guest_and_ends_in_order() {
    with_hosts(async |pair| {
        let reader = Reader::stalled(&pair, "log");
        let backup = pair.start_backup();
        let mut primary = pair.start_primary_behind(&reader.words(), &[]);
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        let client = pair.client(2).await;
        replies_more(&client, 200).await;
        lost_nothing(client, 2).await;
        ends_in_order(&pair.topology.primary, primary).await;
        let said = pair.logged("backup");
        assert!(!said.contains("takes over"), "{said}");
        drop(backup);
    });
}

#[test]
fn a_primary_whose_log_nobody_reads_is_taken_over_from() {
    with_hosts(async |pair| {
        let reader = Reader::stalled(&pair, "log");
        let mut backup = pair.start_backup();
        let primary = pair.start_primary_behind(&reader.words(), &[]);
        is_taken_over(&pair, primary, &mut backup).await;
    });
}

/// A backup that dies costs clients a wait, and a new one ends it.
async fn runs_on_without_its_backup(
    pair: &Pair,
    primary: &mut Daemon,
    mut backup: Daemon,
) -> Daemon {
    let client = pair.client(2).await;
    backup.process.kill().unwrap();
    primary.wait_for(Protection::Stalled, patience()).await.unwrap();
    let backup = pair.start_backup();
    primary.wait_for(Protection::Protected, patience()).await.unwrap();
    replies_more(&client, 100).await;
    lost_nothing(client, 2).await;
    backup
}

#[test]
fn a_primary_whose_log_takes_nothing_runs_on_when_its_backup_dies() {
    with_hosts(async |pair| {
        let backup = pair.start_backup();
        let full = ["sh", "-c", "exec \"$@\" > /dev/full 2>&1", "sh"];
        let mut primary = pair.start_primary_behind(&full, &[]);
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        let _backup = runs_on_without_its_backup(&pair, &mut primary, backup).await;
        assert!(lines_lost(&primary).await > 0);
        ends_in_order(&pair.topology.primary, primary).await;
    });
}

#[test]
fn a_console_whose_terminal_is_closed_costs_no_vm_when_the_backup_dies_as_well() {
    with_hosts(async |pair| {
        let backup = pair.start_backup();
        let mut pty = Pty::open().unwrap();
        let mut primary = pair.start_primary_behind(&pty.console(), &[]);
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        assert!(pty.shown().contains("Console of VM demo;"));
        // It hangs up: reads and writes of it fail, and the process is sent SIGHUP.
        drop(pty);
        let _backup = runs_on_without_its_backup(&pair, &mut primary, backup).await;
        assert!(lines_lost(&primary).await > 0);
        ends_in_order(&pair.topology.primary, primary).await;
    });
}

#[test]
fn a_terminal_that_nobody_reads_keeps_no_vm_from_running_and_ending() {
    with_hosts(async |pair| {
        let backup = pair.start_backup();
        let pty = Pty::open().unwrap();
        // More than a terminal's buffer holds, at once and all the time.
        let loud = [&["env", "RUST_LOG=trace"], &pty.console()[..]].concat();
        let mut primary = pair.start_primary_behind(&loud, &[]);
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        let client = pair.client(2).await;
        replies_more(&client, 200).await;
        lost_nothing(client, 2).await;
        ends_in_order(&pair.topology.primary, primary).await;
        let said = pair.logged("backup");
        assert!(!said.contains("takes over"), "{said}");
        drop(backup);
    });
}

/// The section that leads the guest's console to `log`.
fn console(log: &Path) -> String {
    format!("[console]\nlog = {log:?}\n[net]")
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_consoles_log_on_a_full_file_system_is_written_on_when_there_is_room() {
    with_hosts(async |pair| {
        let small = pair.folder.path().join("small");
        fs::create_dir(&small).unwrap();
        let fill = "mount -t tmpfs -o size=64k none \"$0\"; : > \"$0/console\"; \
            cat /dev/zero > \"$0/filler\" 2> /dev/null; exec \"$@\"";
        let words = ["unshare", "--mount", "sh", "-c", fill, path(&small)];
        let section = console(&small.join("console"));
        let primary = pair.start_primary_behind(&words, &[("[net]", &section)]);
        let mut guest = pair.guest().await;
        assert!(primary.status(None).await.unwrap().lost.console_bytes > 0);
        let inside = format!("/proc/{}/root{}", primary.process.id(), small.display());
        let inside = Path::new(&inside);
        fs::remove_file(inside.join("filler")).unwrap();
        guest.reboot().await.unwrap();
        let until = Instant::now() + patience();
        while !fs::read_to_string(inside.join("console")).unwrap().contains("remus-guest") {
            assert!(Instant::now() < until, "nothing comes{}", primary.tail());
            sleep(Duration::from_millis(10)).await;
        }
        ends_in_order(&pair.topology.primary, primary).await;
    });
}

#[test]
fn a_consoles_log_that_fails_is_complained_of_once_and_counted() {
    with_hosts(async |pair| {
        let section = console(Path::new("/dev/full"));
        let mut primary = pair.start_primary(&[("[net]", &section)]);
        drop(pair.guest().await);
        // The guest says several lines when it starts, byte by byte.
        let lost = primary.status(None).await.unwrap().lost;
        assert!(lost.console_bytes > 50 && lost.log_lines == 0, "{lost:?}");
        primary.still_runs().unwrap();
        let log = pair.logged("primary");
        let complaints = log.lines().filter(|line| line.contains("/dev/full")).count();
        assert_eq!(complaints, 1, "{log}");
        ends_in_order(&pair.topology.primary, primary).await;
    });
}

/// Runs a program on the primary host to its end, which is soon: its exit code, and what it said.
async fn run(pair: &Pair, words: &[&str]) -> (Option<i32>, String) {
    let log = pair.log("refused");
    fs::write(&log, "").unwrap();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    let mut process = pair.topology.primary.spawn(command, Share::Host, &log).unwrap();
    let code = process.finish(AT_ONCE).await.unwrap();
    (code, fs::read_to_string(log).unwrap())
}

#[test]
fn a_consoles_log_that_is_no_file_is_refused_by_preflight_and_run_alike() {
    with_hosts(async |pair| {
        let fifo = Reader::new(&pair, "fifo");
        let fifo_without_a_reader = pair.folder.path().join("other");
        assert!(Command::new("mkfifo").arg(&fifo_without_a_reader).status().unwrap().success());
        let folder = pair.folder.path().to_owned();
        let kernel = pair.programs.guest.clone();
        for (log, why) in [
            (fifo.path.clone(), "it is a FIFO"),
            (fifo_without_a_reader, "it is a FIFO"),
            (folder.clone(), "it is a directory"),
            (folder.join("none/console"), "its directory"),
            (kernel, "is also machine.kernel"),
        ] {
            let config = pair.config(&[("[net]", &console(&log))]);
            let file = folder.join("refused.toml");
            fs::write(&file, config).unwrap();
            for verb in ["preflight", "run"] {
                let (code, said) =
                    run(&pair, &[path(&pair.programs.remus), verb, path(&file)]).await;
                assert_eq!(code, Some(3), "{verb} {}: {said}", log.display());
                assert!(said.contains("console") && said.contains(why), "{verb}: {said}");
                assert!(said.contains("leave the key out"), "{said}");
            }
        }
    });
}

#[test]
fn an_error_that_nobody_takes_keeps_no_process_from_ending() {
    with_hosts(async |pair| {
        let reader = Reader::stalled(&pair, "log");
        let remus = path(&pair.programs.remus);
        let stalled = format!("exec \"$@\" 2> {}", reader.path.display());
        let words = [stalled.as_str(), "exec \"$@\" 2> /dev/full", "exec \"$@\" 2>&-"];
        for words in words {
            for (verb, code) in [
                (&["run", "/nowhere.toml"][..], 2),
                (&["backup", "--listen", "203.0.113.1:7000"], 3),
                (&["status", "--run-dir", "/nowhere", "demo"], 1),
                (&["status", "--run-dir", "/nowhere"], 1),
                (&["gate", "list", "--run-dir", "/nowhere"], 1),
                (&["--log", "?", "status"], 2),
            ] {
                let words = [&["sh", "-c", words, "sh", remus][..], verb].concat();
                assert_eq!(run(&pair, &words).await.0, Some(code), "{words:?}");
            }
        }
    });
}
