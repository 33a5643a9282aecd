//! A virtio-mmio device's interrupt: why it was raised, and the line to raise it on.
//!
//! Apart from the device's lock, so that a guest that acknowledges an interrupt does not wait for the
//! frames that are being moved meanwhile.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// A buffer was used.
pub(super) const USED_BUFFER: u32 = 1;
/// The configuration changed, or the device needs a reset.
pub(super) const CONFIGURATION: u32 = 2;

/// The interrupt of one device.
pub(in crate::machine) struct Interrupt {
    status: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    /// An interrupt on a line that KVM listens to (an irqfd).
    pub(in crate::machine) fn new(line: EventFd) -> Self {
        Self { status: AtomicU32::new(0), line }
    }

    /// Raises it for `reason`.
    pub(super) fn raise(&self, reason: u32) -> io::Result<()> {
        self.status.fetch_or(reason, Ordering::SeqCst);
        self.line.write(1)
    }

    /// Returns the value of the InterruptStatus register.
    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// A write to the InterruptACK register.
    pub(super) fn acknowledge(&self, reasons: u32) {
        self.status.fetch_and(!reasons, Ordering::SeqCst);
    }

    pub(super) fn set_status(&self, status: u32) {
        self.status.store(status & (USED_BUFFER | CONFIGURATION), Ordering::SeqCst);
    }
}
