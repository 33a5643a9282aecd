//! Remus for KVM: the library behind the `remus` binary. ARCHITECTURE.md is the map.

// Pure: no clock, socket, file, thread, ioctl.
pub mod checkpoint;
pub mod replication;
pub mod wire;

// The ground, which every module may stand on.
pub mod names;
mod os;
mod outlet;
mod signals;

// Each owns one kind of resource and knows no other.
pub mod gate;
pub mod link;
pub mod machine;
pub mod net;
pub mod observe;
pub mod store;

// The shells, which join them.
pub mod backup;
pub mod checks;
mod engine;
pub mod primary;
pub mod standalone;
mod standby;
mod supervisor;
mod watch;

// What an operator touches.
pub mod cli;
pub mod config;
pub mod terminal;
