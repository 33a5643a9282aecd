//! The gate and the host's network, each test in namespaces of its own. Needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN,
//! CAP_BPF).

mod gate;
mod net;
mod programs;
mod wire;
