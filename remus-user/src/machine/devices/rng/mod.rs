//! The virtio entropy device.
//!
//! One queue of buffers that the guest wants filled with bytes that nobody can guess; the host's generator
//! (getrandom) fills them. The thread that serves the machine does so: it is a copy within this process and waits for
//! nothing. A request gets at most `CHUNK` bytes, as the specification allows, and a notification at most `BUDGET`
//! requests, so that a guest which asks for much does not keep that thread from its other duties.
//!
//! The device has no state of its own. What the guest was given is in its RAM, marked as written before the guest
//! finds it used, and so in the checkpoint or not at all: after a takeover the guest asks again, and gets other
//! bytes.
//!
//! Offers VERSION_1 and EVENT_IDX.

mod device;

pub(in crate::machine) use device::{REQUESTS, Rng};
