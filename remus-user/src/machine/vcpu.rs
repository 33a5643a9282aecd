//! vCPU threads: running, stopping at a pause, capturing their own state.
//!
//! One word, the [`Phase`], says what all vCPUs are to do; it only grows, so that a pause that follows
//! another at once is never taken for it. A vCPU is stopped like this:
//!
//! 1. the phase is set to a pause
//! 2. `immediate_exit` is set in its `kvm_run`, which keeps it from (re)entering the guest
//! 3. a signal takes it out of KVM_RUN if it is there
//!
//! The thread clears `immediate_exit` *before* it looks at the phase again. A pause that comes in between
//! is then either seen in the phase, or sets the flag after it was cleared: no kick is lost.
//!
//! Each side looks out for the other a while before it sleeps, unless both are on one host CPU: there the one
//! that spins is what the other waits for.
//!
//! After an exit for I/O the instruction is not finished until KVM_RUN is entered again. So a thread that
//! stops enters once more with `immediate_exit` set, which finishes the instruction and nothing else.
//!
//! A pause is a barrier: no vCPU captures itself before *all* have stopped. One that still ran could send an
//! interrupt to one that has been captured, which would then be sent in the one's state and never have come
//! in the other's; and what it read in shared memory would be newer than what the other has written. It holds
//! for each way to be out of the guest: a vCPU that is halted or that waits for its start (INIT, SIPI) sleeps
//! inside KVM_RUN, is taken out of it like any other, and is parked in the same place.
//!
//! When the guest has ended on one vCPU it has ended: none is entered again, unless all threads are ended and others
//! begin with what a reset makes of their vCPUs ([`Vcpus::stop`]).

use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use kvm_bindings::Msrs;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

use super::barrier::{Cell, Control, Flag, Phase};
use super::capture::{self, Registers};
use super::devices::bus::Bus;
use super::end::End;
use super::futex::{wait_while, wake_all};
use super::help::Help;
use crate::{
    checkpoint::VcpuState,
    os::{cpu_time_of, run_on},
};

/// How long a stopped vCPU looks out for the end of the pause before it sleeps: about a pause, since being
/// woken takes the guest another 50 us.
const PARKED_SPIN: Duration = Duration::from_micros(600);
/// How long the pausing thread looks out for a vCPU to leave the guest before it sleeps: longer than a kick
/// takes, since its own wake-up would be part of the pause. Not at all where the vCPU needs this very core.
const LEAVE_SPIN: Duration = Duration::from_micros(200);
/// And for its state, which follows by some 110 us: the thread that is woken by the one is awake for the
/// other.
const CAPTURE_SPIN: Duration = Duration::from_micros(300);
/// A vCPU that does not stop for this long never will.
const PAUSE_LIMIT: Duration = Duration::from_secs(2);
/// Exits in which one instruction may end while a vCPU is being stopped.
const COMPLETIONS_MAX: usize = 64;

/// All vCPUs of a running machine.
pub(super) struct Vcpus {
    control: Arc<Control>,
    cells: Arc<[Cell]>,
    /// As many as cells, in their order, once all are started.
    threads: Vec<JoinHandle<VcpuFd>>,
}

impl Vcpus {
    /// Lets these vCPUs run, each in a thread of its own on the host CPU given for it, if any.
    pub(super) fn start(
        vcpus: Vec<VcpuFd>,
        cpus: &[u32],
        msrs: &[u32],
        registers: Registers,
        bus: &Arc<Bus>,
        control: Arc<Control>,
    ) -> Result<Self> {
        install_kick_handler()?;
        let mut vcpus = vcpus;
        let cells = vcpus.iter_mut().map(|fd| Cell {
            stopped: AtomicU32::new(0),
            cpu: AtomicI32::new(-1),
            parked: AtomicU32::new(0),
            captured: Mutex::default(),
            immediate_exit: Flag((&raw const fd.get_kvm_run().immediate_exit).cast()),
        });
        let cells = cells.collect();
        let mut started = Self { control, cells, threads: Vec::with_capacity(vcpus.len()) };
        for (n, mut fd) in vcpus.into_iter().enumerate() {
            registers.prepare(&mut fd);
            let thread = Thread {
                fd,
                number: n,
                cells: Arc::clone(&started.cells),
                control: Arc::clone(&started.control),
                bus: Arc::clone(bus),
                msrs: capture::msr_buffer(msrs)?,
                registers,
                owes_completion: true,
            };
            let cpu = cpus.get(n).copied();
            let run = move || {
                // A vCPU that vanishes would leave the pause waiting: a bug here stops the process.
                let abort = AbortOnPanic;
                if let Err(e) = run_on(cpu.as_slice()) {
                    tracing::warn!("vCPU {n} runs on any host CPU: CPU {cpu:?} refuses it: {e}");
                }
                // The starting thread may have had it blocked.
                if let Err(e) = unblock_signal(SIGRTMIN()) {
                    tracing::error!("a vCPU that cannot be stopped: {e}");
                }
                let fd = thread.run();
                std::mem::forget(abort);
                fd
            };
            let thread = std::thread::Builder::new().name(format!("vcpu{n}")).spawn(run);
            started.threads.push(thread.context("start a vCPU thread")?);
        }
        Ok(started)
    }

    /// Stops all vCPUs: on return each has left the guest, with its last instruction finished, and is about to
    /// capture its state.
    ///
    /// # Errors
    /// When one does not stop. Nothing is known of the guest then.
    pub(super) fn pause(&self) -> Result<()> {
        let phase = self.control.word() + 1;
        assert!(Phase::of(phase) == Phase::Pause, "paused twice, or after the end");
        self.control.pauser_cpu.store(this_cpu(), Ordering::SeqCst);
        self.control.phase.store(phase, Ordering::SeqCst);
        self.kick();
        self.wait_for(|cell| &cell.stopped, LEAVE_SPIN)
    }

    /// Waits until every vCPU has captured its state, and will not touch the guest until it is resumed.
    ///
    /// # Errors
    /// When one does not come that far.
    pub(super) fn wait_captured(&self) -> Result<()> {
        self.wait_for(|cell| &cell.parked, CAPTURE_SPIN)
    }

    /// Waits until each vCPU has reached the current pause in `word`.
    fn wait_for(&self, word: impl Fn(&Cell) -> &AtomicU32, spin: Duration) -> Result<()> {
        let phase = self.control.word();
        for (n, cell) in self.cells.iter().enumerate() {
            let word = word(cell);
            let mut now = word.load(Ordering::SeqCst);
            while now != phase {
                let spin = spin_unless_on(cell.cpu.load(Ordering::SeqCst), spin);
                let next = wait_while(word, now, spin, Some(PAUSE_LIMIT));
                now = next.with_context(|| format!("vCPU {n} does not stop"))?;
            }
        }
        Ok(())
    }

    /// Ends the pause.
    pub(super) fn resume(&self) {
        let phase = self.control.word() + 1;
        assert!(Phase::of(phase) == Phase::Run, "resumed without a pause");
        self.control.change(phase);
    }

    /// Exchanges the captured states for the buffers in `states`, which the next pause writes.
    ///
    /// # Errors
    /// When a vCPU could not be captured.
    pub(super) fn take_states(&self, states: &mut Vec<VcpuState>) -> Result<()> {
        self.wait_captured()?;
        states.resize_with(self.cells.len(), VcpuState::default);
        for (n, (cell, into)) in self.cells.iter().zip(states).enumerate() {
            let mut captured = cell.captured.lock().expect("the thread aborts rather than panics");
            if let Some(e) = captured.failed.take() {
                return Err(e.context(format!("capture vCPU {n}")));
            }
            std::mem::swap(&mut captured.state, into);
        }
        Ok(())
    }

    /// Keeps all vCPUs from the guest after its end on one of them.
    pub(super) fn end(&self) {
        assert!(self.control.over.load(Ordering::SeqCst), "the guest has not ended");
        self.kick();
    }

    /// Returns the place where a parked vCPU's thread looks for work.
    pub(super) fn help(&self) -> &Help {
        &self.control.help
    }

    /// Returns the CPU time that all vCPU threads have used, in the guest and for it.
    pub(super) fn time(&self) -> Duration {
        self.threads.iter().map(cpu_time_of).sum()
    }

    /// Ends the threads in a pause, and gives the vCPUs back: no instruction of the guest's is left unfinished.
    ///
    /// # Errors
    /// When a thread has panicked.
    pub(super) fn stop(&mut self) -> Result<Vec<VcpuFd>> {
        assert!(Phase::of(self.control.word()) == Phase::Pause, "stopped without a pause");
        self.wait_captured()?;
        self.control.change(Phase::EXIT);
        let threads = self.threads.drain(..);
        threads.map(|thread| thread.join().map_err(|_| anyhow!("a vCPU has panicked"))).collect()
    }

    /// Takes every vCPU out of the guest. All flags before the first signal: a thread that is woken may take
    /// this one's CPU.
    fn kick(&self) {
        let started = &self.cells[..self.threads.len()];
        started.iter().for_each(|cell| cell.immediate_exit.set(true));
        for thread in &self.threads {
            // SAFETY: the thread was not joined yet, so its id is valid; the signal has a handler.
            let sent = unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
            if sent != 0 && sent != libc::ESRCH {
                tracing::error!("cannot signal a vCPU thread: error {sent}");
            }
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.control.change(Phase::EXIT);
        // After a pause that one of them did not reach the others still wait for it.
        self.control.all_stopped.store(Phase::EXIT, Ordering::SeqCst);
        wake_all(&self.control.all_stopped);
        self.kick();
        for thread in self.threads.drain(..) {
            // The descriptor, and with it the page of `immediate_exit`, goes here: after the last kick, and
            // after the thread's own last use.
            drop(thread.join());
        }
    }
}

/// A vCPU in its thread.
struct Thread {
    fd: VcpuFd,
    number: usize,
    cells: Arc<[Cell]>,
    control: Arc<Control>,
    bus: Arc<Bus>,
    msrs: Msrs,
    registers: Registers,
    /// The last KVM_RUN may have left an instruction unfinished.
    owes_completion: bool,
}

impl Thread {
    fn run(mut self) -> VcpuFd {
        loop {
            let word = self.control.word();
            match Phase::of(word) {
                Phase::Run if self.control.over.load(Ordering::SeqCst) => {
                    wait_while(&self.control.phase, word, Duration::ZERO, None);
                }
                Phase::Run => self.enter(),
                Phase::Pause => self.park(word),
                Phase::Exit => return self.fd,
            }
        }
    }

    /// Runs the guest until its next exit, and deals with it.
    fn enter(&mut self) {
        let outcome = match self.fd.run() {
            Ok(exit) => {
                self.owes_completion = true;
                handle(&self.bus, exit)
            }
            Err(e) if e.errno() == libc::EINTR => {
                self.owes_completion = false;
                Outcome::GoOn
            }
            // An application processor that waits for its start.
            Err(e) if e.errno() == libc::EAGAIN => Outcome::GoOn,
            Err(e) => Outcome::Fault(format!("KVM_RUN: {e}")),
        };
        match outcome {
            Outcome::GoOn => {}
            Outcome::End(end) => self.control.end(end),
            Outcome::Fault(what) => {
                let at = self.fd.get_regs().map_or(0, |regs| regs.rip);
                self.control.end(End::Fault(format!("{what} at rip {at:#x}")));
            }
        }
    }

    fn cell(&self) -> &Cell {
        &self.cells[self.number]
    }

    /// Stops: finishes the last instruction, captures once all have come so far, and waits for the end of pause
    /// `word`.
    fn park(&mut self, word: u32) {
        self.cell().cpu.store(this_cpu(), Ordering::SeqCst);
        let completed = self.complete();
        self.control.arrive(word, self.cells.len());
        let cell = self.cell();
        cell.stopped.store(word, Ordering::SeqCst);
        wake_all(&cell.stopped);
        let spin = self.spin_unless_in_the_way(word, |cell| &cell.stopped, LEAVE_SPIN);
        if self.control.wait_all_stopped(word, spin) {
            self.capture(completed);
        }
        let cell = self.cell();
        cell.parked.store(word, Ordering::SeqCst);
        wake_all(&cell.parked);
        let spin = self.spin_unless_in_the_way(word, |cell| &cell.parked, PARKED_SPIN);
        self.control.help.lend_a_hand(spin, || self.control.word() == word);
        wait_while(&self.control.phase, word, Duration::ZERO, None);
        // Before the phase is looked at again: see the module's head.
        self.cell().immediate_exit.set(false);
    }

    fn capture(&mut self, completed: Result<()>) {
        let mut captured = self.cells[self.number].captured.lock().expect("nobody panics under it");
        let saved = completed.and_then(|()| {
            capture::save(&self.fd, self.registers, &mut self.msrs, &mut captured.state)
        });
        captured.failed = saved.err();
    }

    /// Returns how long to look out for what others do in pause `word`: not at all while one of them, as `reached`
    /// says, or the pausing thread needs this very core for that.
    fn spin_unless_in_the_way(
        &self,
        word: u32,
        reached: impl Fn(&Cell) -> &AtomicU32,
        spin: Duration,
    ) -> Duration {
        let here = this_cpu();
        let waits = |cell: &Cell| {
            cell.cpu.load(Ordering::SeqCst) == here && reached(cell).load(Ordering::SeqCst) != word
        };
        let in_the_way =
            self.control.pauser_cpu.load(Ordering::SeqCst) == here || self.cells.iter().any(waits);
        if in_the_way { Duration::ZERO } else { spin }
    }

    /// Finishes the instruction of the last exit, without entering the guest.
    fn complete(&mut self) -> Result<()> {
        self.cell().immediate_exit.set(true);
        for _ in 0..COMPLETIONS_MAX {
            if !self.owes_completion {
                return Ok(());
            }
            match self.fd.run() {
                // A device access that comes in pieces. If the guest ends itself with one of them, it does
                // so again when it is entered.
                Ok(exit) => match handle(&self.bus, exit) {
                    Outcome::GoOn => {}
                    Outcome::End(end) => self.control.end(end),
                    Outcome::Fault(what) => self.control.end(End::Fault(what)),
                },
                Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => {
                    self.owes_completion = false;
                }
                Err(e) => return Err(e).context("KVM_RUN with immediate_exit"),
            }
        }
        ensure!(!self.owes_completion, "an instruction that never ends");
        Ok(())
    }
}

/// What follows from an exit.
enum Outcome {
    GoOn,
    End(End),
    Fault(String),
}

fn handle(bus: &Bus, exit: VcpuExit<'_>) -> Outcome {
    match exit {
        VcpuExit::MmioRead(address, data) => bus.load(address, data),
        VcpuExit::MmioWrite(address, data) => bus.store(address, data),
        VcpuExit::IoIn(port, data) => bus.port_in(port, data),
        VcpuExit::IoOut(port, data) => {
            return bus.port_out(port, data).map_or(Outcome::GoOn, Outcome::End);
        }
        VcpuExit::Intr => {}
        VcpuExit::Shutdown => return Outcome::Fault("triple fault".to_owned()),
        VcpuExit::InternalError => {
            return Outcome::Fault("an instruction that KVM cannot emulate".to_owned());
        }
        other => return Outcome::Fault(format!("exit {other:?}")),
    }
    Outcome::GoOn
}

/// Returns the host CPU that this thread is on, for now; -1 if the kernel does not say.
fn this_cpu() -> i32 {
    // SAFETY: takes nothing and touches no memory.
    unsafe { libc::sched_getcpu() }
}

/// Returns how long to look out for a thread that was last seen on `cpu`.
fn spin_unless_on(cpu: i32, spin: Duration) -> Duration {
    if cpu == this_cpu() { Duration::ZERO } else { spin }
}

/// Ends the process when a thread unwinds.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// Installs the signal whose only effect is that a system call returns.
fn install_kick_handler() -> Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.load(Ordering::Acquire) {
        register_signal_handler(SIGRTMIN(), nothing).context("handle SIGRTMIN")?;
        DONE.store(true, Ordering::Release);
    }
    Ok(())
}
