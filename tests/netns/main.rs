//! The gate, the host's network and the rig, each test in namespaces of its own. Needs root (CAP_SYS_ADMIN,
//! CAP_NET_ADMIN, CAP_BPF).

mod cleanup;
mod gate;
mod hosts;
mod net;
mod programs;
mod second_lock;
mod server;
mod standalone;
mod trigger;
mod wire;
