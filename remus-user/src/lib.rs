//! Remus for KVM: the library behind the `remus` binary. ARCHITECTURE.md is the map.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests wait by any clock"))]

// The ground, which every room may stand on.
pub mod names;
mod os;
mod outlet;
mod signals;

// Pure: no clock, socket, file, thread, ioctl.
pub mod checkpoint;
pub mod replication;
pub mod wire;

// Each owns one kind of resource and knows no other.
pub mod gate;
pub mod link;
pub mod machine;
pub mod net;
pub mod observe;
pub mod store;

// What the operator wants, in the words of the rooms before.
pub mod config;

// What joins resources.
pub mod checks;
mod engine;
mod standby;
mod supervisor;
mod watch;

// The roles, and what an operator touches.
pub mod backup;
pub mod cli;
pub mod primary;
pub mod standalone;
pub mod terminal;
