//! Remus for KVM: the library behind the `remus` binary. See ARCHITECTURE.md for the map.

pub mod backup;
pub mod checkpoint;
pub mod gate;
pub mod store;
pub mod replication;
pub mod wire;
pub mod machine;
pub mod cli;
pub mod config;
pub mod net;
pub mod observe;
pub mod primary;
