//! How the rest of the process sees that the engine's thread still turns.
//!
//! A thread that keeps its heartbeat while the guest's engine hangs would keep a dead guest alive for ever. So each
//! heartbeat carries the age of the engine's last turn, and the backup answers none that is too old.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{os::boot_now, wire::Moment};

/// When the engine last turned.
#[derive(Clone, Debug)]
pub(crate) struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// A pulse whose engine turns now.
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicU64::new(boot_now().0)))
    }

    /// The engine turns. Also called within whatever takes the engine longer than a few milliseconds.
    pub(crate) fn beat(&self) {
        self.0.store(boot_now().0, Relaxed);
    }

    /// The engine does something that takes it until `then` at the longest, and cannot turn meanwhile.
    pub(crate) fn excuse_until(&self, then: Moment) {
        self.0.store(then.0, Relaxed);
    }

    /// The time since the engine last turned; zero while it is excused.
    pub(crate) fn age(&self) -> Duration {
        boot_now().since(Moment(self.0.load(Relaxed)))
    }
}
