//! The daemons under test: the configuration they get, how they are started, and what they say of themselves.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use remus::observe::status::{Protection, Status};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{Instant, sleep, timeout},
};

use crate::{
    host::{Host, Process, Share},
    sys,
    topology::{BACKUP, BRIDGE, GUEST, GUEST_MAC},
};

pub const VM: &str = "demo";
pub const TAP: &str = "tap0";
const PATIENCE: Duration = Duration::from_secs(2);

/// The programs, as `cargo xtask build` leaves them.
#[derive(Clone, Debug)]
pub struct Programs {
    pub remus: PathBuf,
    pub guest: PathBuf,
    /// The Linux guest's kernel and initial RAM disk, as `cargo xtask guest linux` leaves them.
    pub linux: [PathBuf; 2],
    /// The Debian guest's kernel, initial RAM disk and disk, as `cargo xtask guest debian` leaves them.
    pub debian: [PathBuf; 3],
    /// The folder `target/run`.
    pub runs: PathBuf,
}

impl Programs {
    /// Those that belong to the rig that is running: its neighbours in `target/`.
    pub fn beside_the_rig(rig: &Path) -> Result<Self> {
        let release = rig.parent().context("the rig is in no folder")?;
        let target = release.parent().context("the rig is not in target/release")?;
        Ok(Self {
            remus: release.join("remus"),
            guest: target.join("guest/remus-guest.elf"),
            linux: ["vmlinuz", "initramfs.cpio.gz"].map(|file| target.join("lab/guest").join(file)),
            debian: ["vmlinuz", "initrd.img", "root.img"]
                .map(|file| target.join("lab/debian").join(file)),
            runs: target.join("run"),
        })
    }

    /// Whether all are there that a run with this guest needs.
    ///
    /// # Errors
    /// When one is not, with what makes it.
    pub fn check(&self, guest: Software) -> Result<()> {
        let (files, made_by) = match guest {
            Software::Demo => (std::slice::from_ref(&self.guest), "cargo xtask build"),
            Software::Linux => (&self.linux[..], "cargo xtask guest linux"),
            Software::Debian => (&self.debian[..], "cargo xtask guest debian"),
        };
        let files = files.iter().map(|file| (file, made_by));
        for (file, made_by) in [(&self.remus, "cargo xtask build")].into_iter().chain(files) {
            if !file.exists() {
                bail!("{} is not there: run `{made_by}`", file.display());
            }
        }
        Ok(())
    }
}

/// The timing that a run asks of Remus.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Timing {
    pub epoch_ms: u32,
    pub depth: u32,
    pub heartbeat_ms: u32,
    pub detect_ms: u32,
    pub lease_ms: u32,
}

impl Timing {
    /// The default; in the lab, where a process may wait for a CPU longer than that, a slower one.
    pub fn of_this_machine() -> Self {
        let slow = Self { heartbeat_ms: 20, detect_ms: 300, lease_ms: 220, ..Self::default() };
        if sys::is_the_lab() { slow } else { Self::default() }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self { epoch_ms: 25, depth: 2, heartbeat_ms: 10, detect_ms: 100, lease_ms: 60 }
    }
}

/// How the primary's gate works: its section of the config.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Args)]
pub struct GateOptions {
    /// Who keeps the frames that wait: the eBPF programs, or netfilter's queue
    #[arg(long, value_enum, default_value_t)]
    pub engine: Engine,
    /// Who sets a release off: the primary's process alone, or the kernel too
    #[arg(long, value_enum, default_value_t)]
    pub trigger: Trigger,
}

/// `gate.engine`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum Engine {
    #[default]
    Bpf,
    NfQueue,
}

/// `gate.release.trigger`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Trigger {
    #[default]
    Controller,
    Kernel,
}

/// The shape of the VM: sections of the config.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Machine {
    pub vcpus: u8,
    pub memory_mib: u32,
}

impl Default for Machine {
    fn default() -> Self {
        Self { vcpus: 1, memory_mib: 256 }
    }
}

/// `protection.mode`: what the primary steers its checkpoints by. Only what is not the default is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    #[default]
    Latency,
    Throughput,
    /// A checkpoint every `epoch_ms`, whatever happens.
    Fixed,
}

/// Which threads of a daemon run where.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Placement {
    /// vCPUs on a CPU, and nothing else there: whichever host runs the guest, the other's vCPUs are idle, and everything
    /// else of the rig stays off it (see [`Share`]).
    #[default]
    Apart,
    /// Wherever the kernel lets them.
    Free,
}

/// What a primary's config says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    pub placement: Placement,
    pub machine: Machine,
    pub timing: Timing,
    pub mode: Mode,
    pub gate: GateOptions,
    pub guest: Software,
}

/// What runs in the VM. All answer to Redis clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Software {
    /// The bare-metal demo guest.
    #[default]
    Demo,
    /// Debian's cloud kernel with its redis-server: `cargo xtask guest linux` makes it. Not on KVM-PVM.
    Linux,
    /// A whole Debian with three servers, from a disk: `cargo xtask guest debian` makes it. Not on KVM-PVM.
    #[value(skip)]
    Debian,
}

/// A daemon on its host.
#[derive(Debug)]
pub struct Daemon {
    pub process: Process,
    name: &'static str,
    socket: PathBuf,
    log: PathBuf,
}

/// Starts the primary, with a guest that runs alone until its backup is there. `folder` takes its files.
pub fn start_primary(
    host: &Host,
    programs: &Programs,
    options: &Options,
    folder: &Path,
    log: &Path,
) -> Result<Daemon> {
    let text = primary_config(programs, options, folder)?;
    start_primary_with(host, programs, &text, folder, log)
}

/// Starts the primary with a config of the caller's own; its `run_dir` is [`primary_run_dir`].
pub fn start_primary_with(
    host: &Host,
    programs: &Programs,
    config: &str,
    folder: &Path,
    log: &Path,
) -> Result<Daemon> {
    let command = primary_command(programs, config, folder)?;
    Daemon::start(host, command, &primary_run_dir(folder), log)
}

/// The command that starts a primary with this config; its `run_dir` is [`primary_run_dir`].
pub fn primary_command(programs: &Programs, config: &str, folder: &Path) -> Result<Command> {
    let run_dir = primary_run_dir(folder);
    let file = folder.join("primary.toml");
    fs::create_dir_all(&run_dir).with_context(|| format!("create {}", run_dir.display()))?;
    fs::write(&file, config).with_context(|| format!("write {}", file.display()))?;
    let mut command = Command::new(&programs.remus);
    command.arg("run").arg(&file);
    Ok(command)
}

/// `command` behind the words of another, which executes what it is given: a shell with other streams, say.
pub fn behind(words: &[&str], command: &Command) -> Command {
    let [first, others @ ..] = words else { panic!("no words") };
    let mut whole = Command::new(first);
    whole.args(others).arg(command.get_program()).args(command.get_args());
    whole
}

/// Where a primary whose files are in `folder` keeps its sockets.
pub fn primary_run_dir(folder: &Path) -> PathBuf {
    folder.join("primary.d")
}

/// Starts the backup.
pub fn start_backup(host: &Host, programs: &Programs, folder: &Path, log: &Path) -> Result<Daemon> {
    start_backup_with(host, programs, folder, log, &[])
}

/// The same with more options.
pub fn start_backup_with(
    host: &Host,
    programs: &Programs,
    folder: &Path,
    log: &Path,
    more: &[&str],
) -> Result<Daemon> {
    let command = backup_command(programs, folder, more)?;
    Daemon::start(host, command, &backup_run_dir(folder), log)
}

/// Where a backup whose files are in `folder` keeps its sockets.
pub fn backup_run_dir(folder: &Path) -> PathBuf {
    folder.join("backup.d")
}

/// The command that starts a backup with `more` options.
pub fn backup_command(programs: &Programs, folder: &Path, more: &[&str]) -> Result<Command> {
    let run_dir = backup_run_dir(folder);
    fs::create_dir_all(&run_dir).with_context(|| format!("create {}", run_dir.display()))?;
    let mut command = Command::new(&programs.remus);
    command.arg("backup").arg("--listen").arg(SocketAddr::from(BACKUP).to_string());
    command.arg("--run-dir").arg(&run_dir);
    command.args(["--bridge", BRIDGE, "--tap", TAP]);
    if let Some((vcpus, io)) = sys::apart() {
        command.args(["--vcpu-cpus", &vcpus.to_string(), "--io-cpus", &listed(io)]);
    }
    command.args(more);
    Ok(command)
}

fn listed(cpus: &[usize]) -> String {
    cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

/// The command line of a Linux guest's kernel, with `more` behind what every guest is told.
pub fn linux_words(more: &str) -> String {
    // Warnings are shown, and all that is worse.
    let words = "console=ttyS0 quiet loglevel=5 panic=-1";
    // QEMU's SVM does not tell KVM that a guest writes XCR0. So KVM takes it back at each entry, and what the guest then
    // believes to have saved of its registers it has not.
    let lab = if sys::is_the_lab() { " noxsave" } else { "" };
    format!("{words}{lab} {more}")
}

/// The words that make a Linux guest the one at [`GUEST`].
pub fn linux_network() -> String {
    format!("remus.ip={}/24 remus.gw={}", GUEST.ip(), crate::topology::CLIENT)
}

/// The config that [`start_primary`] writes.
pub fn primary_config(programs: &Programs, options: &Options, folder: &Path) -> Result<String> {
    let Options { placement: place, machine, timing, mode, gate, guest } = *options;
    let Machine { vcpus, memory_mib } = machine;
    let Timing { epoch_ms, depth, heartbeat_ms, detect_ms, lease_ms } = timing;
    // Debug formatting of a string is a TOML basic string for every path without control characters.
    let quoted = |path: &Path| path.to_str().map(|text| format!("{text:?}")).context("odd path");
    let run_dir = quoted(&primary_run_dir(folder))?;
    let (ip, port, gateway) = (GUEST.ip(), GUEST.port(), crate::topology::CLIENT);
    let software = match guest {
        Software::Demo => {
            let kernel = quoted(&programs.guest)?;
            format!("kernel = {kernel}\ncmdline = \"ip={ip}/24 gw={gateway} port={port}\"")
        }
        Software::Linux => {
            let [kernel, initrd] = &programs.linux;
            let (kernel, initrd) = (quoted(kernel)?, quoted(initrd)?);
            let words = linux_words(&linux_network());
            format!("kernel = {kernel}\ninitrd = {initrd}\ncmdline = \"{words}\"")
        }
        Software::Debian => {
            let [kernel, initrd, disk] = &programs.debian;
            let (kernel, initrd, disk) = (quoted(kernel)?, quoted(initrd)?, quoted(disk)?);
            // What its services warn of is shown too.
            let words = format!(
                "root=/dev/vda ip={ip}::{gateway}:255.255.255.0:::none \
                 systemd.journald.forward_to_console=1 systemd.journald.max_level_console=warning"
            );
            let words = linux_words(&words);
            format!(
                "kernel = {kernel}\ninitrd = {initrd}\ncmdline = \"{words}\"\n\n\
                 [[disk]]\npath = {disk}\nreadonly = true"
            )
        }
    };
    let placement = sys::apart().filter(|_| place == Placement::Apart);
    let placement = placement.map_or_else(String::new, |(vcpus, io)| {
        format!("\n[placement]\nvcpu_cpus = [{vcpus}]\nio_cpus = [{}]\n", listed(io))
    });
    Ok(format!(
        r#"name = "{VM}"
run_dir = {run_dir}

[machine]
memory_mib = {memory_mib}
vcpus = {vcpus}
{software}

[net]
tap = "{TAP}"
bridge = "{BRIDGE}"
mac = "{GUEST_MAC}"

[protection]
backup = "{BACKUP}"
start = "unprotected"
epoch_ms = {epoch_ms}
depth = {depth}
heartbeat_ms = {heartbeat_ms}
detect_ms = {detect_ms}
lease_ms = {lease_ms}
{mode}
[gate]
engine = "{engine}"
buffer_mib = 32
release = {{ trigger = "{trigger}" }}
{placement}"#,
        mode = match mode {
            Mode::Latency => "",
            Mode::Throughput => "mode = \"throughput\"\n",
            Mode::Fixed => "mode = \"fixed\"\n",
        },
        engine = match gate.engine {
            Engine::Bpf => "bpf",
            Engine::NfQueue => "nfqueue",
        },
        trigger = match gate.trigger {
            Trigger::Controller => "controller",
            Trigger::Kernel => "kernel",
        },
    ))
}

impl Daemon {
    /// Starts `command` on its host; `run_dir` is where it keeps its sockets.
    pub fn start(host: &Host, command: Command, run_dir: &Path, log: &Path) -> Result<Self> {
        let process = host.spawn(command, Share::Host, log)?;
        let socket = run_dir.join(VM).join("status.sock");
        Ok(Self { process, name: host.name(), socket, log: log.to_owned() })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its status; distributions over the epochs after `since` alone if given.
    pub async fn status(&self, since: Option<u64>) -> Result<Status> {
        self.document(since).await
    }

    /// The same as whatever the caller makes of the document.
    pub(crate) async fn document<S: DeserializeOwned>(&self, since: Option<u64>) -> Result<S> {
        status(&self.socket, since).await.with_context(|| format!("status of the {}", self.name))
    }

    /// Waits until its protection is `wanted`.
    pub async fn wait_for(&mut self, wanted: Protection, patience: Duration) -> Result<Status> {
        let until = Instant::now() + patience;
        loop {
            self.still_runs()?;
            let found = self.status(None).await;
            if let Ok(status) = &found
                && status.protection == wanted
            {
                return found;
            }
            if Instant::now() >= until {
                let is = found.map_or_else(
                    |error| format!("{error:#}"),
                    |status| format!("it is {:?}: {}", status.protection, status.reason),
                );
                let log = self.tail();
                bail!("the {} is not {wanted:?} after {patience:?}; {is}{log}", self.name);
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// An error with the end of its log when it has ended.
    pub fn still_runs(&mut self) -> Result<()> {
        match self.process.ended()? {
            None => Ok(()),
            Some(status) => bail!("the {} ended ({status}){}", self.name, self.tail()),
        }
    }

    /// How its log ends.
    pub fn tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(12)..].join("\n  ");
        format!("\n{} ends with:\n  {last}", self.log.display())
    }
}

/// Asks a status socket.
pub async fn status<S: DeserializeOwned>(socket: &Path, since: Option<u64>) -> io::Result<S> {
    let exchange = async {
        let line = since.map_or("status\n".to_owned(), |epoch| format!("status since {epoch}\n"));
        serde_json::from_slice(&ask(socket, &line).await?).map_err(io::Error::other)
    };
    timeout(PATIENCE, exchange).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// Says a line to a unix socket and takes all that is answered.
pub(crate) async fn ask(socket: &Path, line: &str) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(line.as_bytes()).await?;
    let mut document = Vec::new();
    stream.take(1 << 20).read_to_end(&mut document).await?;
    Ok(document)
}
