//! The demo guest: a Redis-protocol server, a work generator and a beacon on bare metal.
//!
//! It is what Remus protects when there is nothing else to protect: small enough to boot in a
//! millisecond, and speaking a protocol whose clients are everywhere, so that a client that has seen a
//! reply can tell whether the guest that lives on remembers it.
//!
//! This library is everything about the guest that is not the machine; it runs, and is tested, anywhere.
//! The binary beside it (`main.rs`, `machine/`) is the machine: it boots, and gives this library a clock, a
//! network device and memory.
//!
//! ```text
//! frames -> server (smoltcp) -> resp -> command -> store
//!                                          |-----> crew -> work, one a CPU  (dirties memory)
//!                                          |-----> beacon  (frames of its own)
//! ```
//!
//! The commands are listed in [`command`]; the kernel command line in [`options`]. The commands that are
//! not Redis's (`WORK`, `BEACON`, `DIGEST`, `POWEROFF`, and a `TIME` of its own) steer and examine the guest.
//!
//! Deterministic: given the same frames and clock readings it does the same. There is no random number in
//! it and no hash table.
#![no_std]

extern crate alloc;

pub mod beacon;
pub mod command;
pub mod crew;
mod info;
pub mod node;
pub mod options;
pub mod resp;
pub mod server;
pub mod store;
pub mod work;
