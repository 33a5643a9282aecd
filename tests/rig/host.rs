//! A host: a network namespace, a mount namespace with its own view of /sys, and the processes in them. It
//! can die in three ways and be made new for another round.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;

use crate::{
    links::{Link, Links},
    netns::NetNs,
    sys,
};

/// How a host goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Death {
    /// Every link goes down, then SIGKILL: no FIN or RST escapes
    Host,
    /// SIGKILL alone: the kernel says goodbye for the process
    Process,
    /// SIGSTOP, and SIGCONT after the takeover: it wakes up not knowing
    Stop,
}

/// Which CPUs of the machine that three hosts share a process may use. All processes have the same priority: a client
/// that gave way to the hosts would wait for their busy threads, and its figures would tell of that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Share {
    /// Every CPU: the process says itself what runs where.
    Host,
    /// Those of the rig itself, without the guest's (see [`sys::leave_the_guests_cpu`]).
    Load,
}

#[derive(Debug)]
pub struct Host {
    name: &'static str,
    netns: NetNs,
    mounts: Mounts,
    links: Links,
    /// The links it was built with; all others were made by its processes.
    cables: Vec<Link>,
}

impl Host {
    /// A host with no cables yet.
    pub fn new(name: &'static str) -> Result<Self> {
        let netns = NetNs::new()?;
        let mounts = mounts_for(&netns)?;
        let links = Links::open(&netns)?;
        Ok(Self { name, netns, mounts, links, cables: Vec::new() })
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Takes the links it has now for its hardware.
    pub async fn built(&mut self) -> Result<()> {
        self.cables = self.links.list().await?;
        Ok(())
    }

    /// Starts `command` on this host, what it prints appended to `log`. It dies with the thread that called.
    pub fn spawn(&self, mut command: Command, share: Share, log: &Path) -> Result<Process> {
        let log_file = OpenOptions::new().create(true).append(true).open(log);
        let log_file = log_file.with_context(|| format!("open {}", log.display()))?;
        let program = command.get_program().to_owned();
        command
            .stdin(Stdio::null())
            .stdout(log_file.try_clone().context("duplicate the log")?)
            .stderr(log_file);
        let child = self.enter_and_spawn(&mut command, share);
        let child =
            child.with_context(|| format!("start {} on {}", program.display(), self.name))?;
        Ok(Process { child })
    }

    fn enter_and_spawn(&self, command: &mut Command, share: Share) -> io::Result<Child> {
        let fds = [self.netns.as_fd(), self.mounts.namespace.as_fd(), self.mounts.root.as_fd()];
        let fds = fds.map(|fd| fd.as_raw_fd());
        let enter = move || {
            // SAFETY: the host holds these descriptors, and the child has a copy of its table.
            let [netns, mounts, root] = fds.map(|fd| unsafe { BorrowedFd::borrow_raw(fd) });
            sys::die_with_parent(libc::SIGKILL)?;
            sys::setns(netns, libc::CLONE_NEWNET)?;
            sys::setns(mounts, libc::CLONE_NEWNS)?;
            sys::change_root(root)?;
            match share {
                Share::Host => sys::use_every_cpu(),
                Share::Load => Ok(()),
            }
        };
        // SAFETY: between fork and exec the closure makes system calls only; it neither allocates nor locks.
        unsafe { command.pre_exec(enter) };
        command.spawn()
    }

    /// What the host's death takes down, looked up beforehand so that nothing delays it.
    pub async fn arm(&self) -> Result<Armed> {
        let mut links = self.links.list().await?;
        // The uplink first: in the microseconds between, the host may still hear but no more speak.
        links.sort_by_key(|link| (link.name != "eth0", link.index));
        Ok(Armed { links })
    }

    /// The host dies with `process` on it.
    pub async fn die(&self, death: Death, armed: &Armed, process: &mut Process) -> Result<Died> {
        let began_ns = sys::boottime_ns();
        match death {
            Death::Host => {
                self.links.set_down(&armed.links).await?;
                process.signal(libc::SIGKILL)?;
            }
            Death::Process => process.signal(libc::SIGKILL)?,
            Death::Stop => process.signal(libc::SIGSTOP)?,
        }
        Ok(Died { began_ns, over_ns: sys::boottime_ns() })
    }

    /// A new host on the same cables. Call it when none of its processes is left.
    pub async fn reborn(&mut self) -> Result<()> {
        // The switch forgets whom it saw on a port whose cable was pulled.
        self.links.set_down(&self.cables).await?;
        for link in self.links.list().await? {
            if !self.cables.contains(&link) {
                self.links.delete(&link).await?;
            }
        }
        self.links.set_up(&self.cables).await?;
        // What was mounted and pinned goes with the old namespace.
        self.mounts = mounts_for(&self.netns)?;
        Ok(())
    }

    /// Options with which nsenter enters this host from outside, given our PID there.
    pub fn nsenter(&self, rig_pid: u32) -> String {
        let (netns, mounts) = (self.netns.as_fd().as_raw_fd(), self.mounts.namespace.as_raw_fd());
        format!(
            "nsenter --target {rig_pid} --pid --net=/proc/{rig_pid}/fd/{netns} \
             --mount=/proc/{rig_pid}/fd/{mounts}"
        )
    }
}

/// When a host died, in CLOCK_BOOTTIME nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Died {
    /// Just before the first link went down or the signal was sent.
    pub began_ns: u64,
    /// All links are down, the signal is sent.
    pub over_ns: u64,
}

/// The links that a death takes down.
#[derive(Debug)]
pub struct Armed {
    links: Vec<Link>,
}

/// A process on a host. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: libc::c_int) -> Result<()> {
        sys::kill(self.child.id(), signal).context("signal a process of the rig")
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        self.child.try_wait().context("wait for a process of the rig")
    }

    /// Ends it for certain and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("kill a process of the rig")?;
        self.child.wait().context("wait for a process of the rig").map(drop)
    }

    /// Waits until it ends by itself: its exit code, `None` when it had to be killed or died of a signal.
    pub async fn finish(&mut self, patience: Duration) -> Result<Option<i32>> {
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status.code());
            }
            if Instant::now() >= until {
                self.kill()?;
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Asks it to end; kills it when it has not after `patience`. Says whether it ended by itself.
    pub async fn terminate(&mut self, patience: Duration) -> Result<bool> {
        if self.ended()?.is_none() {
            self.signal(libc::SIGTERM)?;
        }
        let until = Instant::now() + patience;
        while self.ended()?.is_none() {
            if Instant::now() >= until {
                self.kill()?;
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(true)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("rig: {error:#}");
        }
    }
}

/// A mount namespace, and the root directory in it. Whoever enters the namespace begins at its very root,
/// which is not ours where the rig runs in a chroot.
#[derive(Debug)]
struct Mounts {
    namespace: OwnedFd,
    root: OwnedFd,
}

/// A mount namespace in which /sys shows the links of `netns`.
fn mounts_for(netns: &NetNs) -> Result<Mounts> {
    let make = || -> io::Result<Mounts> {
        sys::setns(netns, libc::CLONE_NEWNET)?;
        sys::unshare(libc::CLONE_NEWNS)?;
        sys::make_mounts_private()?;
        sys::mount(c"sysfs", c"/sys")?;
        let namespace = File::open("/proc/thread-self/ns/mnt")?.into();
        Ok(Mounts { namespace, root: File::open("/")?.into() })
    };
    let made = thread::scope(|scope| scope.spawn(make).join());
    made.expect("does not panic").context("make a mount namespace")
}
