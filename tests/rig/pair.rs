//! Two hosts of the rig and the real `remus` on them: what takeovers and refusals are told with.

use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitStatus},
    time::Duration,
};

use crate::{
    client::{Client, Outcome},
    guest::Guest,
    host::{Death, Host, Process, Share},
    links::Links,
    remus::{
        Daemon, Options, Programs, Software, TAP, VM, backup_command, backup_run_dir, behind,
        primary_command, primary_config, primary_run_dir, start_backup_with, start_primary_with,
    },
    sniffer::{Seen, Sniffer},
    sys,
    topology::{BACKUP_PORT, GUEST, PRIMARY_PORT, Topology},
};
use remus::observe::status::{Protection, Status};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

/// Longer than any of it takes; a claim that fails says so after this.
/// The lab, which is ten times as slow, gets more.
pub fn patience() -> Duration {
    Duration::from_secs(if sys::is_the_lab() { 120 } else { 20 })
}

/// Runs a test with a client, a switch and two hosts of its own.
pub fn with_hosts<F: Future<Output = ()>>(test: impl FnOnce(Pair) -> F) {
    with_hosts_for(Options::default(), test);
}

/// The same for a guest that is not the usual one.
pub fn with_hosts_for<F: Future<Output = ()>>(options: Options, test: impl FnOnce(Pair) -> F) {
    sys::leave_the_guests_cpu().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { test(Pair::new(options).await).await });
}

/// The hosts, and a folder for what their daemons write.
pub struct Pair {
    pub topology: Topology,
    pub programs: Programs,
    pub folder: TempDir,
    options: Options,
    sniffer: Sniffer,
}

impl Pair {
    async fn new(options: Options) -> Self {
        // Tests lie in target/release/deps, the rig that `Programs` asks about one above.
        let test = std::env::current_exe().unwrap();
        let deps = test.parent().unwrap();
        let programs = Programs::beside_the_rig(deps).unwrap();
        programs.check(options.guest).unwrap();
        let topology = Topology::build().await.unwrap();
        let ports = Links::open(&topology.switch).unwrap();
        let primary = ports.index(PRIMARY_PORT).await.unwrap();
        let backup = ports.index(BACKUP_PORT).await.unwrap();
        let sniffer = Sniffer::start(&topology.switch, primary, backup).unwrap();
        Self { topology, programs, folder: tempfile::tempdir().unwrap(), options, sniffer }
    }

    /// The rig's config, with the first of each pair of texts replaced by the second.
    pub fn config(&self, changes: &[(&str, &str)]) -> String {
        let text = primary_config(&self.programs, &self.options, self.folder.path()).unwrap();
        changes.iter().fold(text, |text, (from, to)| {
            assert!(text.contains(from), "no {from:?} in\n{text}");
            text.replace(from, to)
        })
    }

    pub fn start_primary(&self, changes: &[(&str, &str)]) -> Daemon {
        let (host, log) = (&self.topology.primary, self.log("primary"));
        let config = self.config(changes);
        start_primary_with(host, &self.programs, &config, self.folder.path(), &log).unwrap()
    }

    /// A primary that is executed by other words: [`behind`].
    pub fn start_primary_behind(&self, words: &[&str], changes: &[(&str, &str)]) -> Daemon {
        let folder = self.folder.path();
        let command = primary_command(&self.programs, &self.config(changes), folder).unwrap();
        let (host, run_dir) = (&self.topology.primary, primary_run_dir(folder));
        Daemon::start(host, behind(words, &command), &run_dir, &self.log("primary")).unwrap()
    }

    /// The same of a backup.
    pub fn start_backup_behind(&self, words: &[&str]) -> Daemon {
        let folder = self.folder.path();
        let command = backup_command(&self.programs, folder, &[]).unwrap();
        let (host, run_dir) = (&self.topology.backup, backup_run_dir(folder));
        Daemon::start(host, behind(words, &command), &run_dir, &self.log("backup")).unwrap()
    }

    /// A primary with a config that is written already; its run directory is the usual one.
    pub fn start_primary_by(&self, config: &std::path::Path) -> Daemon {
        let config = fs::read_to_string(config).unwrap();
        let (host, log) = (&self.topology.primary, self.log("primary"));
        start_primary_with(host, &self.programs, &config, self.folder.path(), &log).unwrap()
    }

    pub fn start_backup(&self) -> Daemon {
        self.start_backup_with(&[])
    }

    pub fn start_backup_with(&self, more: &[&str]) -> Daemon {
        let (host, log) = (&self.topology.backup, self.log("backup"));
        let [.., disk] = &self.programs.debian;
        let disks = ["--disks", disk.parent().unwrap().to_str().unwrap()];
        let disks = if self.options.guest == Software::Debian { &disks[..] } else { &[] };
        let more = [disks, more].concat();
        start_backup_with(host, &self.programs, self.folder.path(), &log, &more).unwrap()
    }

    /// A backup and its primary, protected.
    pub async fn protected(&self) -> (Daemon, Daemon) {
        let backup = self.start_backup();
        let mut primary = self.start_primary(&[]);
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        (primary, backup)
    }

    pub fn log(&self, of: &str) -> PathBuf {
        self.folder.path().join(format!("{of}.log"))
    }

    pub fn logged(&self, by: &str) -> String {
        fs::read_to_string(self.log(by)).unwrap_or_default()
    }

    /// Runs a shell line of an operator's on a host.
    pub async fn on(&self, host: &Host, line: &str) {
        let mut shell = Command::new("sh");
        shell.args(["-ec", line]);
        let mut shell = host.spawn(shell, Share::Load, &self.log("shell")).unwrap();
        let ended = loop {
            if let Some(status) = shell.ended().unwrap() {
                break status;
            }
            sleep(Duration::from_millis(2)).await;
        };
        assert!(ended.success(), "{line}: {}", self.logged("shell"));
    }

    /// Runs `remus` with these words on a host, behind the words `before`, until it ends by itself. Returns its exit code and
    /// what it said.
    pub async fn remus(&self, host: &Host, before: &[&str], words: &[&str]) -> (i32, String) {
        let program = self.programs.remus.to_str().unwrap();
        let words = [before, &[program, "--log", "warn"], words].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        let log = self.log("asked");
        fs::write(&log, "").unwrap();
        let mut process = host.spawn(command, Share::Host, &log).unwrap();
        let code = exit_code(&mut process, &format!("{words:?}")).await;
        (code, fs::read_to_string(log).unwrap())
    }

    /// Sets links of a host down or up.
    pub async fn set_links(&self, host: &Host, name: &str, up: bool) {
        let all = host.links().list().await.unwrap();
        let found: Vec<_> = all.into_iter().filter(|link| link.name == name).collect();
        assert_eq!(found.len(), 1, "one link is called {name}");
        if up { host.links().set_up(&found).await } else { host.links().set_down(&found).await }
            .unwrap();
    }

    /// Where a backup keeps what must outlive a reboot.
    pub fn backup_state(&self) -> PathBuf {
        self.folder.path().join("backup.d/state")
    }

    /// The primary's host dies.
    pub async fn dies(&self, primary: &mut Daemon) {
        let armed = self.topology.primary.arm().await.unwrap();
        self.topology.primary.die(Death::Host, &armed, &mut primary.process).await.unwrap();
    }

    /// Where a primary keeps what is the VM's, while it runs.
    pub fn vm_dir(&self) -> PathBuf {
        primary_run_dir(self.folder.path()).join(VM)
    }

    pub fn seen(&self) -> Seen {
        self.sniffer.seen().unwrap()
    }

    /// Waits for the guest's first answer.
    pub async fn guest(&self) -> Guest {
        Guest::wait(self.topology.client.netns(), GUEST, patience()).await.unwrap()
    }

    /// A checking client with so many connections, and some replies to remember.
    pub async fn client(&self, connections: usize) -> Client {
        drop(self.guest().await);
        let netns = self.topology.client.netns().another().unwrap();
        let client = Client::start(netns, GUEST, connections, "t").await.unwrap();
        replies_more(&client, 100).await;
        client
    }
}

/// Waits until the client has so many replies more than now.
pub async fn replies_more(client: &Client, more: u64) {
    let enough = client.replies() + more;
    let until = Instant::now() + patience();
    while client.replies() < enough {
        assert!(Instant::now() < until, "{} replies, {enough} expected", client.replies());
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the status says `protection`, and its reason has `word`. Returns that status.
pub async fn says(daemon: &mut Daemon, protection: Protection, word: &str) -> Status {
    let until = Instant::now() + patience();
    loop {
        daemon.still_runs().unwrap();
        let found = daemon.status(None).await;
        if let Ok(status) = &found
            && status.protection == protection
            && status.reason.contains(word)
        {
            return status.clone();
        }
        let found = found.map(|status| format!("{:?}: {}", status.protection, status.reason));
        assert!(
            Instant::now() < until,
            "not {protection:?} for {word:?} but {found:?}{}",
            daemon.tail()
        );
        sleep(Duration::from_millis(10)).await;
    }
}

/// Nothing that the client was told is forgotten, and every connection lives.
pub async fn lost_nothing(client: Client, connections: usize) {
    let Outcome { connections_kept, connections_lost, verdict, .. } = client.finish().await;
    assert_eq!((connections_kept, &connections_lost[..]), (connections, &[][..]));
    assert_eq!(verdict.unanswered, 0);
    assert!(verdict.contradictions.is_empty(), "{:?}", verdict.contradictions);
}

/// Waits until a process, which `what` names, ends by itself. Returns its exit code.
pub async fn exit_code(process: &mut Process, what: &str) -> i32 {
    let until = Instant::now() + patience();
    loop {
        if let Some(status) = process.ended().unwrap() {
            return status.code().expect("an exit code");
        }
        assert!(Instant::now() < until, "{what} goes on");
        sleep(Duration::from_millis(5)).await;
    }
}

/// How a daemon ended by itself.
pub async fn ended(daemon: &mut Daemon) -> ExitStatus {
    let ended = async {
        loop {
            if let Some(status) = daemon.process.ended().unwrap() {
                return status;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    let ended = timeout(patience(), ended).await;
    ended.unwrap_or_else(|_| panic!("the daemon goes on{}", daemon.tail()))
}

pub async fn has_tap(host: &Host) -> bool {
    host.links().list().await.unwrap().iter().any(|link| link.name == TAP)
}

/// Waits until a host has no tap any more.
pub async fn tap_goes(host: &Host) {
    let until = Instant::now() + Duration::from_secs(5);
    while has_tap(host).await {
        assert!(Instant::now() < until, "{TAP} is left on the {}", host.name());
        sleep(Duration::from_millis(10)).await;
    }
}
