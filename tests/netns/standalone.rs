//! Claims about `remus gate`: the real program on a real tap, driven over its socket as a checkpointer would.

use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rig::sys;

use crate::wire::{Wire, frame, number_in, numbered};

const TAP: &str = "guest0";
/// A busy machine takes seconds to load and verify the programs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A run directory, with whatever controller and gate is in it.
struct Standalone {
    dir: tempfile::TempDir,
    controller: Option<Child>,
}

/// A connection to the gate's socket.
struct Client(BufReader<UnixStream>);

impl Drop for Standalone {
    fn drop(&mut self) {
        self.kill();
        let pins = self.dir.path().join(TAP).join("bpf");
        let pins = std::ffi::CString::new(pins.as_os_str().as_encoded_bytes()).unwrap();
        // The gate's bpffs would keep the directory from being removed.
        // SAFETY: a terminated path that lives during the call. No mount there is as good.
        unsafe { libc::umount2(pins.as_ptr(), libc::MNT_DETACH) };
    }
}

impl Standalone {
    /// A controller of a gate on the wire's tap. Call it in the wire's namespaces.
    fn start(options: &[&str]) -> Self {
        let mut gate = Self { dir: tempfile::tempdir().unwrap(), controller: None };
        gate.restart(options);
        gate
    }

    fn restart(&mut self, options: &[&str]) {
        assert!(self.controller.is_none());
        let mut command = Command::new(remus());
        command.args(["gate", "run", "--tap", TAP, "--buffer-mib", "4", "--run-dir"]);
        command.arg(self.dir.path()).args(options);
        // SAFETY: between fork and exec the closure makes one system call; it neither allocates nor locks.
        unsafe { command.pre_exec(|| sys::die_with_parent(libc::SIGKILL)) };
        self.controller = Some(command.stderr(Stdio::piped()).spawn().expect("start remus"));
        let until = Instant::now() + PATIENCE;
        while UnixStream::connect(self.socket()).is_err() {
            assert!(Instant::now() < until, "no socket: {}", self.said());
            sleep(Duration::from_millis(5));
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join(TAP).join("gate.sock")
    }

    fn client(&self) -> Client {
        let stream = UnixStream::connect(self.socket()).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(BufReader::new(stream))
    }

    /// SIGKILL.
    fn kill(&mut self) {
        if let Some(mut controller) = self.controller.take() {
            controller.kill().unwrap();
            controller.wait().unwrap();
        }
    }

    /// SIGTERM; what it said.
    fn terminate(&mut self) -> String {
        let controller = self.controller.as_mut().expect("it runs");
        sys::kill(controller.id(), libc::SIGTERM).unwrap();
        let status = controller.wait().unwrap();
        let said = self.said();
        assert_eq!(status.code(), Some(0), "{said}");
        self.controller = None;
        said
    }

    /// Kills it, and returns its log.
    fn said(&mut self) -> String {
        let mut text = String::new();
        if let Some(controller) = &mut self.controller {
            controller.kill().unwrap();
            controller.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        }
        text
    }

    /// `remus gate VERB ...` on this run directory.
    fn verb(&self, words: &[&str]) -> Output {
        let mut command = Command::new(remus());
        command.arg("gate").args(words).arg("--run-dir").arg(self.dir.path()).output().unwrap()
    }

    fn list(&self) -> serde_json::Value {
        let output = self.verb(&["list", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
    }
}

impl Client {
    fn ask(&mut self, request: &str) -> String {
        self.0.get_mut().write_all(format!("{request}\n").as_bytes()).expect("ask");
        self.answer()
    }

    fn answer(&mut self) -> String {
        let mut answer = String::new();
        self.0.read_line(&mut answer).expect("an answer in time");
        answer.trim_end().to_owned()
    }

    /// Asks what must be followed; the value called `name`.
    fn value(&mut self, request: &str, name: &str) -> String {
        let answer = self.ask(request);
        let words = answer.strip_prefix("ok ").unwrap_or_else(|| panic!("{request}: {answer}"));
        let value = words.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("no {name} in {answer}")).to_owned()
    }

    /// Asks what must be refused with `code`.
    fn is_refused(&mut self, request: &str, code: &str) {
        let answer = self.ask(request);
        assert!(answer.starts_with(&format!("error {code} ")), "{request}: {answer}");
    }

    /// Whether the other side has hung up.
    fn is_ended(&mut self) -> bool {
        match self.0.read(&mut [0; 64]) {
            Ok(n) => n == 0,
            Err(e) => e.kind() == ErrorKind::ConnectionReset,
        }
    }
}

/// The program, beside the rig.
fn remus() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_remus-rig")).with_file_name("remus")
}

fn arrived(wire: &mut Wire) -> Vec<u32> {
    wire.arrivals().iter().map(|frame| number_in(frame)).collect()
}

/// What arrives outside, once something does: nothing says when a controller releases of itself.
fn arrived_in_time(wire: &mut Wire) -> Vec<u32> {
    let until = Instant::now() + PATIENCE;
    loop {
        let numbers = arrived(wire);
        if !numbers.is_empty() || Instant::now() >= until {
            return numbers;
        }
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn an_epoch_leaves_when_the_checkpointer_commits_it() {
    let mut wire = Wire::new();
    let gate = Standalone::start(&[]);
    let mut client = gate.client();
    wire.send(&numbered(1));
    assert_eq!(client.value("hold", "open"), "1");
    wire.send(&numbered(2));
    assert_eq!(client.value("seal", "epoch"), "1");
    wire.send(&numbered(3));
    assert_eq!(arrived(&mut wire), [] as [u32; 0], "1 came to a closed gate, 2 and 3 are held");
    client.value("commit 1", "held");
    assert_eq!(arrived(&mut wire), [2]);
    assert_eq!(client.value("seal", "epoch"), "2");
    client.value("commit 2", "held");
    assert_eq!(arrived(&mut wire), [3]);
    assert_eq!(client.value("stats", "released"), "2");
    assert_eq!(client.value("stats", "dropped_closed"), "1");
}

#[test]
fn words_in_the_wrong_order_release_nothing() {
    let mut wire = Wire::new();
    let gate = Standalone::start(&[]);
    let mut client = gate.client();
    client.is_refused("seal", "not-holding");
    client.ask("hold");
    wire.send(&numbered(1));
    client.is_refused("commit 1", "not-sealed");
    client.ask("seal");
    client.ask("seal");
    wire.send(&numbered(2));
    client.is_refused("commit 3", "not-sealed");
    client.is_refused("commit 1099511627775", "not-sealed");
    assert_eq!(arrived(&mut wire), [] as [u32; 0]);
    client.value("commit 2", "held");
    assert_eq!(arrived(&mut wire), [1]);
    client.is_refused("commit 1", "going-back");
    client.value("commit 2", "held");
    assert_eq!(arrived(&mut wire), [] as [u32; 0], "frame 2 is of epoch 3");
}

#[test]
fn whatever_a_client_sends_the_others_are_served() {
    let mut wire = Wire::new();
    let gate = Standalone::start(&[]);
    let mut client = gate.client();
    client.ask("hold");
    client.ask("seal");
    wire.send(&numbered(1));

    let mut hostile = gate.client();
    for line in ["", "\0", "commit", "commit -1", "commit 1 1", "commit 0", "x y z", "seal\r"] {
        hostile.is_refused(line, "syntax");
    }
    hostile.0.get_mut().write_all(&[0xff, 0xfe, b'\n']).unwrap();
    assert!(hostile.answer().starts_with("error syntax "));
    let mut endless = gate.client();
    endless.0.get_mut().write_all(&[b'a'; 64]).unwrap();
    assert!(endless.answer().starts_with("error too-long "));
    assert!(endless.is_ended());
    // In the middle of a word that would be another one.
    let mut dying = gate.client();
    dying.0.get_mut().write_all(b"commit 1").unwrap();
    drop(dying);

    let mut many: Vec<_> = (0..40).map(|_| gate.client()).collect();
    assert!(many.last_mut().unwrap().answer().starts_with("error busy "));
    assert_eq!(client.value("status", "committed"), "0");
    assert_eq!(client.value("status", "open"), "2");
    client.is_refused("commit 2", "not-sealed");
    assert_eq!(arrived(&mut wire), [] as [u32; 0]);
}

#[test]
fn only_root_and_its_own_user_may_drive_it() {
    let _wire = Wire::new();
    let gate = Standalone::start(&[]);
    let socket = gate.socket();
    // The file's mode is one lock, who the peer is another: take the first away.
    for path in [socket.as_path(), socket.parent().unwrap(), gate.dir.path()] {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let stranger = std::thread::spawn(move || {
        // SAFETY: the bare system call, unlike the function of that name, concerns this thread alone.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(result, 0);
        let mut stranger = Client(BufReader::new(UnixStream::connect(socket).unwrap()));
        // The answer is the end of the connection; that may come before the question is written.
        stranger.0.get_mut().write_all(b"status\n").ok();
        assert!(stranger.is_ended());
    });
    stranger.join().unwrap();
    assert_eq!(gate.client().value("status", "mode"), "closed");
}

#[test]
fn a_killed_controller_leaks_nothing_and_the_next_one_releases_by_what_is_committed() {
    let mut wire = Wire::new();
    let mut gate = Standalone::start(&[]);
    let mut client = gate.client();
    client.ask("hold");
    wire.send(&numbered(1));
    client.ask("seal");
    wire.send(&numbered(2));
    client.ask("seal");
    wire.send(&numbered(3));
    gate.kill();
    wire.send(&numbered(4));
    assert_eq!(arrived(&mut wire), [] as [u32; 0], "held on without a controller");
    let seen = gate.list();
    assert_eq!(seen["held"]["frames"], 4);
    assert_eq!((&seen["mode"], &seen["attached"]), (&"hold".into(), &"first".into()));
    assert!(seen["controller"].is_null());

    gate.restart(&[]);
    let mut client = gate.client();
    assert_eq!(client.value("status", "held"), "4");
    assert_eq!(arrived(&mut wire), [] as [u32; 0], "nothing was committed");
    assert_eq!(client.value("status", "open"), "3");
    client.value("commit 1", "held");
    assert_eq!(arrived(&mut wire), [1]);
    client.value("commit 2", "held");
    assert_eq!(arrived(&mut wire), [2]);
    assert_eq!(client.value("seal", "epoch"), "3");
    client.value("commit 3", "held");
    assert_eq!(arrived(&mut wire), [3, 4]);
}

#[test]
fn what_was_committed_before_the_controller_died_leaves_with_the_next_one() {
    let mut wire = Wire::new();
    // Under a lease that is over: committed, and not out.
    let mut gate = Standalone::start(&["--lease-ms", "1000"]);
    let mut client = gate.client();
    client.ask("hold");
    wire.send(&numbered(1));
    client.ask("seal");
    wire.send(&numbered(2));
    client.ask("commit 1");
    assert_eq!(arrived(&mut wire), [] as [u32; 0]);
    gate.kill();
    gate.restart(&[]);
    assert_eq!(arrived_in_time(&mut wire), [1]);
    assert!(
        gate.said().contains("it holds 2 frames (120 bytes) of epochs 1 to 2, 1 of them committed")
    );
}

#[test]
fn nothing_leaves_without_the_lease() {
    let mut wire = Wire::new();
    let gate = Standalone::start(&["--lease-ms", "200"]);
    let mut client = gate.client();
    client.ask("hold");
    wire.send(&numbered(1));
    client.ask("seal");
    client.ask("commit 1");
    client.is_refused("open", "lease");
    client.is_refused("lease 201", "lease");
    assert_eq!(arrived(&mut wire), [] as [u32; 0]);
    client.value("lease 200", "lease_ms");
    assert_eq!(arrived(&mut wire), [1]);
    sleep(Duration::from_millis(200));
    wire.send(&numbered(2));
    client.ask("seal");
    client.ask("commit 2");
    assert_eq!(arrived(&mut wire), [] as [u32; 0], "over again");
}

#[test]
fn a_discard_throws_away_what_the_restored_guest_never_said() {
    let mut wire = Wire::new();
    let gate = Standalone::start(&[]);
    let mut client = gate.client();
    client.ask("hold");
    wire.send(&numbered(1));
    client.ask("seal");
    wire.send(&numbered(2));
    client.ask("seal");
    wire.send(&numbered(3));
    client.ask("commit 1");
    assert_eq!(client.value("discard", "discarded"), "2");
    assert_eq!(arrived(&mut wire), [1]);
    client.is_refused("commit 2", "going-back");
    wire.send(&numbered(4));
    assert_eq!(client.value("status", "held"), "1", "it goes on holding");
    assert_eq!(client.value("seal", "epoch"), "4");
    client.ask("commit 4");
    assert_eq!(arrived(&mut wire), [4]);
}

#[test]
fn an_opened_gate_releases_all_before_what_comes() {
    let mut wire = Wire::new();
    let gate = Standalone::start(&[]);
    let mut client = gate.client();
    client.ask("hold");
    for n in 0..3000 {
        wire.send(&numbered(n));
        if n % 500 == 0 {
            client.ask("seal");
        }
    }
    assert_eq!(client.value("open", "held"), "0");
    wire.send(&numbered(3000));
    let out = arrived(&mut wire);
    assert!(out.is_sorted(), "in order");
    assert_eq!(out.last(), Some(&3000));
    assert_eq!(client.value("stats", "released"), "3000");
    assert_eq!(client.value("hold", "open"), client.value("status", "open"));
    wire.send(&numbered(3001));
    assert_eq!(arrived(&mut wire), [] as [u32; 0]);
}

#[test]
fn a_gate_that_fills_wakes_those_who_wait() {
    let mut wire = Wire::new();
    let gate = Standalone::start(&[]);
    let (mut client, mut waiter) = (gate.client(), gate.client());
    client.ask("hold");
    for waiting in [&mut waiter, &mut gate.client()] {
        waiting.0.get_mut().write_all(b"wait\n").unwrap();
    }
    assert_eq!(client.value("status", "held"), "0", "the one who waits keeps nobody waiting");
    // Of 4 MiB.
    for _ in 0..1500 {
        wire.send(&frame(0x88b5, &[7; 1480]));
    }
    let answer = waiter.answer();
    assert!(answer.starts_with("ok held=") && answer.ends_with(" capacity=4194304"), "{answer}");
    client.ask("seal");
    client.ask("commit 1");
    wire.arrivals();
    assert_eq!(client.value("status", "held"), "0");
}

#[test]
fn a_lost_gate_is_told_at_the_next_seal() {
    let mut wire = Wire::new();
    let gate = Standalone::start(&[]);
    let mut client = gate.client();
    client.ask("hold");
    wire.recreate_tap();
    client.is_refused("seal", "gate-lost");
    client.is_refused("hold", "gate-lost");
    assert_eq!(client.value("status", "attached"), "lost");
    assert_eq!(gate.list()["attached"], "gone");
}

#[test]
fn a_controller_that_is_told_to_end_leaves_the_gate_as_asked() {
    let mut wire = Wire::new();
    let mut gate = Standalone::start(&[]);
    gate.client().ask("hold");
    wire.send(&numbered(1));
    let said = gate.terminate();
    assert!(said.contains("the gate on guest0 is closed and stays, with 1 frames"), "{said}");
    assert_eq!(gate.list()["mode"], "closed");

    gate.restart(&["--at-exit", "keep"]);
    gate.client().ask("hold");
    gate.terminate();
    wire.send(&numbered(2));
    assert_eq!((&gate.list()["mode"], &gate.list()["held"]["frames"]), (&"hold".into(), &2.into()));

    gate.restart(&["--at-exit", "remove"]);
    gate.terminate();
    assert!(!gate.dir.path().join(TAP).exists(), "nothing is left");
    wire.send(&numbered(3));
    assert_eq!(arrived(&mut wire), [3]);
}

#[test]
fn an_operator_can_shut_any_gate_and_remove_an_orphaned_one() {
    let mut wire = Wire::new();
    let mut gate = Standalone::start(&[]);
    let mut client = gate.client();
    client.ask("hold");
    wire.send(&numbered(1));
    let pid = gate.controller.as_ref().unwrap().id();
    assert_eq!(gate.list()["controller"]["pid"], pid);

    let removed = gate.verb(&["remove", TAP]);
    assert_eq!(removed.status.code(), Some(1));
    assert!(text(&removed.stderr).contains(&format!("(process {pid})")), "{removed:?}");
    assert_eq!(gate.verb(&["close", TAP]).status.code(), Some(0));
    client.is_refused("seal", "not-holding");
    wire.send(&numbered(2));
    assert_eq!(client.value("status", "held"), "1", "2 was dropped");

    gate.kill();
    let removed = gate.verb(&["remove", TAP]);
    assert_eq!(removed.status.code(), Some(1));
    assert!(text(&removed.stderr).contains("holds 1 frames"), "{removed:?}");
    let removed = gate.verb(&["remove", TAP, "--force"]);
    assert_eq!(removed.status.code(), Some(0), "{removed:?}");
    wire.send(&numbered(3));
    assert_eq!(arrived(&mut wire), [3], "the held frame is gone with the gate");
    assert_eq!(text(&gate.verb(&["list", "--json"]).stdout), "");
}

#[test]
fn a_tap_that_has_a_gate_gets_no_second_one() {
    let _wire = Wire::new();
    let gate = Standalone::start(&[]);
    let again = gate.verb(&["run", "--tap", TAP]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("already runs here"), "{again:?}");
    let other = gate.verb(&["run", "--tap", TAP, "--name", "other"]);
    assert_eq!(other.status.code(), Some(1));
    assert!(text(&other.stderr).contains("guest0 already has a gate"), "{other:?}");
    let bridge = gate.verb(&["run", "--tap", "br0"]);
    assert!(text(&bridge.stderr).contains("br0 is a bridge, not a tap"), "{bridge:?}");
    let nothing = gate.verb(&["run", "--tap", "tap9"]);
    assert!(text(&nothing.stderr).contains("there is no tap tap9 here"), "{nothing:?}");
}
