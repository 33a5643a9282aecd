//! Tests with guests of their own on /dev/kvm.

mod machine;
mod small_guest;
