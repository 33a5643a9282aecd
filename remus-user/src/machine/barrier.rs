//! The words by which a pause stops all vCPUs and knows that it has: see [`vcpu`](super::vcpu) for the order.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::end::End;
use super::futex::{wait_while, wake_all};
use super::help::Help;
use crate::checkpoint::VcpuState;

/// What all vCPUs are to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Run,
    Pause,
    Exit,
}

impl Phase {
    pub(super) const EXIT: u32 = u32::MAX;

    pub(super) fn of(word: u32) -> Self {
        match word {
            Self::EXIT => Self::Exit,
            even if even.is_multiple_of(2) => Self::Run,
            _ => Self::Pause,
        }
    }
}

/// What the vCPU threads share.
pub(super) struct Control {
    pub(super) phase: AtomicU32,
    /// The host CPU that the last pause came from.
    pub(super) pauser_cpu: AtomicI32,
    /// How many vCPUs have left the guest in the pause that is under way.
    pub(super) stopped: AtomicU32,
    /// The last pause for which all have.
    pub(super) all_stopped: AtomicU32,
    /// The guest has ended: no vCPU is entered again, though each is still captured.
    pub(super) over: AtomicBool,
    pub(super) help: Help,
    pub(super) end: Mutex<Option<End>>,
    pub(super) ended: EventFd,
}

impl Control {
    /// `ended` is signalled when the guest ends.
    pub(super) fn new(ended: EventFd) -> Self {
        Self {
            phase: AtomicU32::new(0),
            pauser_cpu: AtomicI32::new(-1),
            stopped: AtomicU32::new(0),
            all_stopped: AtomicU32::new(0),
            over: AtomicBool::new(false),
            help: Help::default(),
            end: Mutex::new(None),
            ended,
        }
    }

    /// Returns how the guest ended; once.
    pub(super) fn take_end(&self) -> Option<End> {
        // Nobody waits on this event: it is level-triggered and read when seen.
        self.ended.read().ok();
        self.lock_end().take()
    }

    pub(super) fn end(&self, end: End) {
        self.over.store(true, Ordering::SeqCst);
        self.lock_end().get_or_insert(end);
        if let Err(e) = self.ended.write(1) {
            tracing::error!("the guest has ended, and nobody can be told: {e}");
        }
    }

    pub(super) fn lock_end(&self) -> MutexGuard<'_, Option<End>> {
        self.end.lock().expect("nothing panics under this lock")
    }

    pub(super) fn change(&self, phase: u32) {
        self.phase.store(phase, Ordering::SeqCst);
        wake_all(&self.phase);
    }

    pub(super) fn word(&self) -> u32 {
        self.phase.load(Ordering::SeqCst)
    }

    /// One more of `vcpus` has left the guest for pause `word`.
    pub(super) fn arrive(&self, word: u32, vcpus: usize) {
        // Each arrives once in a pause, and no pause begins before all have been captured in the last.
        let stopped = self.stopped.fetch_add(1, Ordering::SeqCst) + 1;
        if stopped as usize == vcpus {
            self.stopped.store(0, Ordering::SeqCst);
            self.all_stopped.store(word, Ordering::SeqCst);
            wake_all(&self.all_stopped);
        }
    }

    /// Waits until every vCPU has left the guest for pause `word`. False if that is not to be: the machine goes.
    pub(super) fn wait_all_stopped(&self, word: u32, spin: Duration) -> bool {
        let mut now = self.all_stopped.load(Ordering::SeqCst);
        while now != word && now != Phase::EXIT {
            if let Some(next) = wait_while(&self.all_stopped, now, spin, None) {
                now = next;
            }
        }
        now == word
    }
}

/// What one vCPU thread shows the others.
pub(super) struct Cell {
    /// The pause for which the vCPU last left the guest.
    pub(super) stopped: AtomicU32,
    /// The host CPU that it was on then.
    pub(super) cpu: AtomicI32,
    /// The pause in which it was last captured.
    pub(super) parked: AtomicU32,
    pub(super) captured: Mutex<Captured>,
    /// `immediate_exit` in its `kvm_run`.
    pub(super) immediate_exit: Flag,
}

/// What a vCPU gave of its state in a pause.
#[derive(Default)]
pub(super) struct Captured {
    /// Its buffers are used again.
    pub(super) state: VcpuState,
    /// Why `state` is of no use.
    pub(super) failed: Option<anyhow::Error>,
}

/// A byte that the kernel reads, in a page that a `VcpuFd` keeps mapped.
pub(super) struct Flag(pub(super) *const AtomicU8);

// SAFETY: the pointer is used for atomic accesses only, which any thread may do while the page is mapped.
unsafe impl Send for Flag {}
// SAFETY: as above.
unsafe impl Sync for Flag {}

impl Flag {
    pub(super) fn set(&self, on: bool) {
        // SAFETY: the page is mapped for as long as the thread's VcpuFd lives. Only that thread and
        // `Vcpus::kick` come here: the thread owns the VcpuFd and hands it back when it is joined, and `kick`
        // is called for threads that were started, and for the last time before any is joined.
        unsafe { &*self.0 }.store(on.into(), Ordering::SeqCst);
    }
}
