//! A machine that runs.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::barrier::Control;
use super::capture::Registers;
use super::cpu::CpuProfile;
use super::devices::Console;
use super::devices::board::Board;
use super::devices::bus::Bus;
use super::devices::net::{NetCounters, RECEIVE, TRANSMIT};
use super::devices::port::Progress;
use super::devices::rng::REQUESTS;
use super::end::End;
use super::memory::Memory;
use super::paused::Paused;
use super::restore::put_in;
use super::shape::Placement;
use super::vcpu::Vcpus;
use super::vm::{Vm, event};
use crate::checkpoint::{BootImage, Page, PageSet, Staging};

/// A machine whose vCPUs run, and the thread that serves it.
///
/// One thread owns it. It waits on the machine's descriptor together with its own ones and calls
/// [`service`](Self::service) when that is readable; whenever it likes it calls [`pause`](Self::pause).
/// Since it is the thread that moves the frames, none is under way in a pause. Disks have threads of their own, which
/// the pause parks.
pub struct Machine {
    // In the order in which they must go: threads, then what they run on.
    vcpus: Vcpus,
    board: Arc<Board>,
    vm: Vm,
    control: Arc<Control>,
    cpu: CpuProfile,
    placement: Placement,
    /// Signalled when the guest ends.
    ended: EventFd,
    /// The devices' descriptors, behind one of its own.
    epoll: Epoll,
    /// The tap is waited for. It is not while the guest has no buffer for what is in it.
    tap_armed: bool,
    /// It is recorded which pages are written.
    tracks: bool,
}

/// What a call of [`Machine::service`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Frames were moved, or there were none.
    Served,
    /// The guest has ended. It can still be paused and captured.
    Ended(End),
}

/// Whose descriptor is ready.
#[derive(Clone, Copy)]
enum Source {
    Receive,
    Transmit,
    Tap,
    Entropy,
    End,
}

const SOURCES: [Source; 5] =
    [Source::Receive, Source::Transmit, Source::Tap, Source::Entropy, Source::End];

impl Machine {
    /// Lets the guest run on these parts.
    ///
    /// # Errors
    /// When a thread or event cannot be had.
    pub(super) fn start(
        vcpus: Vec<VcpuFd>,
        vm: Vm,
        board: Arc<Board>,
        cpu: CpuProfile,
        placement: Placement,
    ) -> Result<Self> {
        let ended = event()?;
        let (vcpus, control) = run(vcpus, &vm, &board, &cpu, &placement, &ended)?;
        let epoll = Epoll::new().context("epoll")?;
        let (net, rng) = (&board.net, &board.rng);
        let tap = net.lock().tap_fd();
        for (token, source) in (0..).zip(SOURCES) {
            let (fd, events) = match source {
                Source::Receive => (net.doorbell(RECEIVE).as_raw_fd(), EventSet::IN),
                Source::Transmit => (net.doorbell(TRANSMIT).as_raw_fd(), EventSet::IN),
                Source::Tap => (tap, EventSet::empty()),
                Source::Entropy => (rng.doorbell(REQUESTS).as_raw_fd(), EventSet::IN),
                Source::End => (ended.as_raw_fd(), EventSet::IN),
            };
            epoll
                .ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))
                .context("wait for the devices")?;
        }
        Ok(Self {
            vcpus,
            board,
            vm,
            control,
            cpu,
            placement,
            ended,
            epoll,
            tap_armed: false,
            tracks: false,
        })
    }

    /// Guest RAM.
    pub fn memory(&self) -> &Arc<Memory> {
        self.vm.memory()
    }

    /// Returns the numbers of frames so far.
    pub fn net_counters(&self) -> NetCounters {
        self.board.net.lock().counters()
    }

    /// Returns the far end of the guest's serial port.
    pub fn console(&self) -> Console {
        Console(Arc::clone(&self.board.serial))
    }

    /// Moves the frames that wait, up to some number, without blocking. `given` is told of each frame that the guest is
    /// given, as [`Prepared::give`](super::Prepared::give) takes it.
    ///
    /// To be called when the machine's descriptor ([`AsRawFd`]) is readable, and again for as long as it
    /// is. Never called in a pause: [`Paused`] holds the machine.
    ///
    /// # Errors
    /// When the tap is gone or the kernel refuses an event. The guest's faults are none.
    pub fn service(&mut self, given: &mut dyn FnMut(&[u8])) -> Result<Event> {
        let mut ready = [EpollEvent::default(); SOURCES.len()];
        let n = self.epoll.wait(0, &mut ready).context("wait for the devices")?;
        let mut event = Event::Served;
        for ready in &ready[..n] {
            let token = usize::try_from(ready.data()).ok();
            match token.and_then(|token| SOURCES.get(token)).copied() {
                Some(Source::Transmit) => self.transmit()?,
                Some(Source::Receive) => {
                    // Cleared before the queue is looked at, lest a ring in between be lost.
                    self.board.net.doorbell(RECEIVE).read().ok();
                    self.receive(given)?;
                }
                Some(Source::Tap) => {
                    // Reported whether asked for or not, and for ever.
                    ensure!(!ready.event_set().contains(EventSet::ERROR), "the tap is gone");
                    self.receive(given)?;
                }
                Some(Source::Entropy) => self.fill()?,
                Some(Source::End) => {
                    if let Some(end) = self.control.take_end() {
                        self.vcpus.end();
                        event = Event::Ended(end);
                    }
                }
                None => unreachable!("a token of ours"),
            }
        }
        Ok(event)
    }

    /// Stops the guest. On return every vCPU has left it and captures its own state.
    ///
    /// # Errors
    /// When a vCPU does not stop: nothing is known of the guest then, and it must not be trusted again.
    pub fn pause(&mut self) -> Result<Paused<'_>> {
        self.vcpus.pause()?;
        // Not before: a vCPU's last instruction may be a register access that waits for a device's lock.
        self.board.parking().park();
        Ok(Paused::new(&self.vcpus, &self.vm, &self.board))
    }

    /// Puts a guest that has ended back to where it began, and lets it run: what a reset button does.
    ///
    /// RAM is the boot image's then, which is not in the record of written pages: whoever copies that record must copy
    /// the boot image too. `between` is called every few milliseconds of the work, which takes 0.1 s a GiB.
    ///
    /// # Errors
    /// When a vCPU does not stop or does not take its state; the machine is of no use then.
    pub fn reboot(&mut self, boot: &BootImage, between: &mut dyn FnMut()) -> Result<()> {
        self.vcpus.pause()?;
        self.board.parking().park();
        let vcpus = self.vcpus.stop()?;
        put_in(boot.state(), 0, &self.cpu, &vcpus, &self.vm, &self.board)
            .context("reset the machine")?;
        // After that: until then KVM may still write what the guest had asked for, its steal time.
        self.memory().reset(boot, between)?;
        // No device is live any more, and none writes.
        self.board.parking().resume();
        if self.tracks {
            let mut written = PageSet::new(self.memory().layout().pages());
            self.harvest_and_clear_live(&mut written)?;
        }
        let Self { vm, board, cpu, placement, ended, .. } = &*self;
        (self.vcpus, self.control) = run(vcpus, vm, board, cpu, placement, ended)?;
        Ok(())
    }

    /// Returns whether dirty logging is on.
    pub fn tracks_dirty(&self) -> bool {
        self.tracks
    }

    /// Starts or stops recording which pages are written. A record begins with every page in it.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn track_dirty(&mut self, on: bool) -> Result<()> {
        self.vm.log_dirty_pages(on)?;
        self.tracks = on;
        if on {
            self.memory().touch_all();
        }
        Ok(())
    }

    /// While the guest runs: makes `pages` what was written since the last harvest, and begins anew.
    ///
    /// To be copied after, never before: a page written in between is then found again by the next harvest.
    ///
    /// # Errors
    /// When KVM refuses. Pages already taken out of the record are in `pages`.
    pub fn harvest_and_clear_live(&mut self, pages: &mut PageSet) -> Result<()> {
        self.vm.dirty_pages(pages)?;
        // No mark is taken between a device thread's write and its being marked.
        self.board.parking().park();
        self.memory().harvest_touched(pages);
        self.board.parking().resume();
        self.vm.protect(pages)
    }

    /// Returns the CPU time that all vCPUs together have used.
    pub fn vcpu_time(&self) -> Duration {
        self.vcpus.time()
    }

    /// While the guest runs: makes `pages` what a pause would find dirty now. Changes nothing.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn look_at_dirty(&self, pages: &mut PageSet) -> Result<()> {
        self.vm.dirty_pages(pages)?;
        self.memory().look_at_touched(pages);
        Ok(())
    }

    /// While the guest runs: appends copies of `pages` to `staging`. A page that the guest writes
    /// meanwhile may be torn; the next harvest has it again.
    ///
    /// # Errors
    /// When the staging is full, or a page is beyond the end of RAM.
    pub fn copy_live(
        &mut self,
        pages: impl IntoIterator<Item = Page>,
        staging: &mut Staging,
    ) -> Result<()> {
        self.memory().copy(pages, staging)
    }

    fn transmit(&mut self) -> Result<()> {
        let doorbell = self.board.net.doorbell(TRANSMIT);
        doorbell.read().ok();
        let progress =
            self.board.net.lock().transmit(self.vm.memory().ram(), self.board.net.interrupt())?;
        match progress {
            Progress::Idle | Progress::Starved => Ok(()),
            Progress::More => self.board.net.ring(TRANSMIT).context("ring for the rest"),
        }
    }

    fn receive(&mut self, given: &mut dyn FnMut(&[u8])) -> Result<()> {
        let net = &self.board.net;
        let progress = net.lock().receive(self.vm.memory().ram(), net.interrupt(), given)?;
        if progress == Progress::More {
            // The rest need not be in the tap.
            net.ring(RECEIVE).context("ring for the rest")?;
        }
        // The tap's descriptor is level-triggered: left armed while the guest has no buffers it would be
        // ready for ever. The guest rings when it has some.
        self.arm_tap(match progress {
            Progress::Idle | Progress::More => true,
            Progress::Starved => false,
        })
    }

    fn fill(&mut self) -> Result<()> {
        let rng = &self.board.rng;
        rng.doorbell(REQUESTS).read().ok();
        let progress = rng.lock().fill(self.vm.memory().ram(), rng.interrupt())?;
        match progress {
            Progress::Idle | Progress::Starved => Ok(()),
            Progress::More => rng.ring(REQUESTS).context("ring for the rest"),
        }
    }

    fn arm_tap(&mut self, armed: bool) -> Result<()> {
        if armed == self.tap_armed {
            return Ok(());
        }
        self.tap_armed = armed;
        let events = if armed { EventSet::IN } else { EventSet::empty() };
        let tap = self.board.net.lock().tap_fd();
        self.epoll
            .ctl(ControlOperation::Modify, tap, EpollEvent::new(events, Source::Tap as u64))
            .context("wait for the tap")
    }
}

/// Lets vCPUs run, each in a thread of its own.
///
/// Every queue is processed and every device's interrupt raised once: a doorbell or an interrupt that was on its way at
/// a capture is in no state, and a needless one does no harm.
fn run(
    vcpus: Vec<VcpuFd>,
    vm: &Vm,
    board: &Arc<Board>,
    cpu: &CpuProfile,
    placement: &Placement,
    ended: &EventFd,
) -> Result<(Vcpus, Arc<Control>)> {
    let control = Arc::new(Control::new(ended.try_clone().context("eventfd")?));
    let bus = Arc::new(Bus::new(Arc::clone(board)));
    board.replay()?;
    let registers = Registers::of(vm.fd(), vcpus.len());
    let cpus = &placement.vcpu_cpus;
    let vcpus = Vcpus::start(vcpus, cpus, cpu.msrs(), registers, &bus, Arc::clone(&control))?;
    Ok((vcpus, control))
}

impl AsRawFd for Machine {
    /// Readable when [`Machine::service`] has something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}
