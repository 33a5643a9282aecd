//! What only the lab has: a KVM on (emulated) hardware virtualization, and an old stock kernel. `cargo xtask test lab`
//! runs these tests there, as root; no other command does.

mod debian;
mod kernel;
mod kvm;
mod linux;
mod smp;

/// Fails outside the lab, where none of these tests can hold.
fn in_the_lab() {
    assert!(rig::sys::is_the_lab(), "these tests want the lab: cargo xtask test lab");
}
