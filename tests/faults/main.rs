//! What broke when Remus was used, a file for each kind of fault: small inputs, the real programs, and the right value.
//! docs/testing.md lists them all. Needs root, /dev/kvm, eBPF and network namespaces, and fails where one is missing.

mod a_log;
mod b_takeover;
mod c_refusal;
mod d_start;
mod e_signal;
mod f_protected;
mod g_preflight;
mod h_timers;
mod i_announce;
mod j_message;
mod k_figure;
mod l_split;
