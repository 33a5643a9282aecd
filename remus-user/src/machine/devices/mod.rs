//! What the guest finds behind I/O ports and device memory.
//!
//! vCPU threads bring register accesses here through [`bus`]; the thread that serves the machine moves the
//! frames. Both sides meet in a device's lock, which nobody holds while the guest is paused.

pub(super) mod bus;
mod console;
pub(super) mod interrupt;
mod log_limit;
mod mmio;
pub(super) mod net;
