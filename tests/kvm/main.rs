//! Tests with guests of their own on /dev/kvm: of the machine alone, and of whole hosts that run `remus`.

mod devices;
mod epochs;
mod machine;
mod offloads;
mod refusals;
mod small_guest;
mod smp;
mod takeover;
