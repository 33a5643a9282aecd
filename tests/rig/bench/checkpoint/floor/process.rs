//! The floor's process: a machine with nothing around it, and a unix socket on which the bench asks for pauses.
//!
//! One thread, as in the engine: it serves the machine's devices and pauses it, on the CPU on which the engine
//! would run, and the vCPU is where the engine's vCPU would be. What the engine does beside that in a pause (the
//! gate, the dirty log, the hot set) is not here, nor is anybody who reads the copies.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use remus::{
    checkpoint::{MachineState, Page, PageSet, Staging},
    machine::{
        CpuProfile, Event, Machine, Offloads, Placement, Prepared, Shape, Software, open_tap,
    },
};

use super::{Pauses, Request};
use crate::{bench::figures::median, sys};

/// The guest's address: the rig's own, by another tap.
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x77, 0, 0x0a];
/// Between two pauses, as between two seals.
const EPOCH: Duration = Duration::from_millis(25);
/// Longer than a first write to a page takes.
const FAULT: Duration = Duration::from_micros(50);

/// `remus-rig floor`, which only the bench calls.
#[derive(Debug, Args)]
pub struct Options {
    #[arg(long)]
    kernel: PathBuf,
    #[arg(long)]
    cmdline: String,
    #[arg(long)]
    tap: String,
    #[arg(long)]
    memory_mib: u32,
    /// Answers come here
    #[arg(long)]
    socket: PathBuf,
}

/// Runs a guest until it is killed.
pub fn serve(options: &Options) -> Result<()> {
    let apart = sys::apart();
    if let Some((_, others)) = apart {
        sys::use_only_cpu(others[0]).context("take the engine's CPU")?;
    }
    let vcpu_cpus = apart.and_then(|(vcpus, _)| u32::try_from(vcpus).ok()).into_iter().collect();
    let mut machine = start(options, vcpu_cpus)?;
    let listener = UnixListener::bind(&options.socket);
    let listener = listener.with_context(|| format!("bind {}", options.socket.display()))?;
    loop {
        let ready = wait(&[machine.as_raw_fd(), listener.as_raw_fd()], Duration::from_secs(1))?;
        serve_devices(&mut machine)?;
        if ready[1] {
            let (stream, _) = listener.accept().context("accept")?;
            answer(&mut machine, &stream)?;
        }
    }
}

fn start(options: &Options, vcpu_cpus: Vec<u32>) -> Result<Machine> {
    let shape = Shape {
        memory_mib: options.memory_mib,
        vcpus: 1,
        mac: MAC,
        mtu_bytes: 1500,
        offloads: Offloads::None,
        disks: Vec::new(),
    };
    let placement = Placement { vcpu_cpus, ..Placement::default() };
    let tap = open_tap(&options.tap).context("open the tap")?;
    let mut machine = Prepared::new(&shape, &CpuProfile::of_host()?, &placement, tap)?;
    let Options { kernel, cmdline, .. } = options;
    machine.load(Software { kernel: Path::new(kernel), initrd: None, cmdline })?;
    machine.start()
}

fn answer(machine: &mut Machine, stream: &UnixStream) -> Result<()> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("read what is asked")?;
    let asked: Request = serde_json::from_str(&line).context("understand what is asked")?;
    let measured = measure(machine, &asked)?;
    let mut text = serde_json::to_vec(&measured).context("encode the answer")?;
    text.push(b'\n');
    (&*stream).write_all(&text).context("answer")
}

fn measure(machine: &mut Machine, asked: &Request) -> Result<Pauses> {
    let pages = written(machine, asked)?;
    let mut staging = Staging::new(pages.len());
    let mut state = MachineState::default();
    // What the log's end took away is mapped again, and buffers have been used once.
    serve_for(machine, settle(asked))?;
    let mut parts: [Vec<f64>; 4] = Default::default();
    for round in 0..=asked.pauses {
        serve_for(machine, EPOCH)?;
        let begun = Instant::now();
        let mut paused = machine.pause()?;
        let stopped = begun.elapsed();
        paused.capture(&mut state)?;
        let captured = begun.elapsed();
        staging.clear();
        paused.copy(pages.iter().copied(), &mut staging)?;
        let copied = begun.elapsed();
        paused.resume();
        if round > 0 {
            let took = [stopped, captured - stopped, copied - captured, copied];
            parts.iter_mut().zip(took).for_each(|(us, part)| us.push(part.as_secs_f64() * 1e6));
        }
    }
    let [kick_us, state_us, copy_us, floor_us] = parts.each_ref().map(|us| median(us));
    Ok(Pauses { pages: pages.len(), kick_us, state_us, copy_us, floor_us })
}

/// The pages that the guest writes at present, by a dirty log that is off again afterwards.
fn written(machine: &mut Machine, asked: &Request) -> Result<Vec<Page>> {
    // What set it to work is over.
    serve_for(machine, settle(asked))?;
    let mut pages = PageSet::new(machine.memory().layout().pages());
    machine.track_dirty(true)?;
    machine.harvest_and_clear_live(&mut pages)?;
    serve_for(machine, EPOCH + FAULT * asked.pages)?;
    let mut state = MachineState::default();
    let mut paused = machine.pause()?;
    paused.capture(&mut state)?;
    paused.harvest(&mut pages)?;
    paused.resume();
    machine.track_dirty(false)?;
    let pages: Vec<Page> = pages.iter().collect();
    ensure!(pages.len() >= asked.pages as usize, "the guest wrote {} pages only", pages.len());
    Ok(pages)
}

fn settle(asked: &Request) -> Duration {
    Duration::from_millis(100) + FAULT * asked.pages
}

fn serve_for(machine: &mut Machine, time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        wait(&[machine.as_raw_fd()], left)?;
        serve_devices(machine)?;
    }
}

fn serve_devices(machine: &mut Machine) -> Result<()> {
    match machine.service(&mut |_| {})? {
        Event::Served => Ok(()),
        Event::Ended(end) => bail!("the guest has ended: {end:?}"),
    }
}

/// Which of the descriptors are readable, after at most `time`.
fn wait<const N: usize>(fds: &[libc::c_int; N], time: Duration) -> Result<[bool; N]> {
    let mut polls = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    let timeout = libc::timespec {
        tv_sec: time.as_secs().try_into().context("a shorter time")?,
        tv_nsec: time.subsec_nanos().into(),
    };
    let count = N as libc::nfds_t;
    // SAFETY: as many pollfds as the count says, and a time; all live.
    let n = unsafe { libc::ppoll(polls.as_mut_ptr(), count, &raw const timeout, std::ptr::null()) };
    if n < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error).context("wait for the machine");
        }
        return Ok([false; N]);
    }
    Ok(polls.map(|poll| poll.revents != 0))
}
