//! Remus for KVM: the library behind the `remus` binary. See ARCHITECTURE.md for the map.

pub mod checkpoint;
pub mod gate;
pub mod store;
pub mod replication;
pub mod wire;
pub mod machine;
