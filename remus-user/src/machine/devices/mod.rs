//! What the guest finds behind I/O ports and device memory.
//!
//! vCPU threads bring register accesses here through [`bus`]. The thread that serves the machine moves frames and
//! entropy; each disk has a thread of its own, which touches guest RAM and its device only in turns that a pause
//! takes away ([`parking`]). All meet in a device's lock ([`port`]), which nobody holds while the guest is paused.

mod block;
pub(super) mod board;
pub(super) mod bus;
#[cfg(test)]
mod driver;
mod interrupt;
mod log_limit;
mod mmio;
pub(super) mod net;
mod parking;
pub(super) mod port;
pub(super) mod power;
mod ring;
pub(super) mod rng;
mod serial;

pub use block::{DISK_ID_MAX, DISK_PATH_MAX, DiskShape, compressed_by};
pub use serial::Console;
