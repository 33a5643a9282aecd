//! The virtio network device, over a tap.
//!
//! Offers VERSION_1, MAC, MTU, EVENT_IDX and MRG_RXBUF, and, where the gate keeps the kernel's buffers whole,
//! checksum offload and TCP segmentation both ways ([`Offloads`]). A gate that copies frames loses what the kernel
//! keeps beside them (a checksum still to be filled in, a segment size): then nothing is offered that lets a frame
//! leave unfinished. What the driver took is part of the device's state, and the tap is set to it. The tap has no
//! state of its own: frames in it are the host's.
//!
//! A frame is copied once each way, through buffers made with the device; the loops allocate nothing. What
//! the tap does not take at once is dropped and counted, as on a wire. What the guest has no buffer for
//! stays in the tap, but for one frame that was read before its length was known.

mod device;
mod frame;
mod header;
mod offloads;
mod segment;
mod tap;

pub use device::NetCounters;
pub(in crate::machine) use device::{Net, RECEIVE, TRANSMIT};
pub use offloads::Offloads;
pub use tap::open_tap;
