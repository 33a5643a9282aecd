//! The virtio network device, over a tap.
//!
//! Offers VERSION_1, MAC and EVENT_IDX, and nothing that lets a frame leave unfinished: the gate copies
//! frames, which loses what the kernel keeps beside them (a checksum still to be filled in, a segment size).
//!
//! A frame is copied once each way, through a buffer made with the device; the loops allocate nothing. What
//! the tap does not take at once is dropped and counted, as on a wire. What the guest has no buffer for
//! stays in the tap.

mod device;
mod port;
mod state;
mod tap;

pub use device::NetCounters;
pub(in crate::machine) use device::{Net, Progress, RECEIVE, TRANSMIT};
pub(in crate::machine) use port::NetPort;
pub use tap::open_tap;
