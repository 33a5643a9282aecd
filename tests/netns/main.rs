//! The gate, the host's network and the rig, each test in namespaces of its own. Needs root (CAP_SYS_ADMIN,
//! CAP_NET_ADMIN, CAP_BPF).

mod bpf;
mod cleanup;
mod gate;
mod hook;
mod hosts;
mod loss;
mod net;
mod nfqueue;
mod programs;
mod second_lock;
mod server;
mod standalone;
mod term;
mod trigger;
mod verifier;
mod wire;
