//! The demo guest's binary: the machine below the library. See `machine`.
//!
//! Built for `x86_64-unknown-none`. For any other target this is a program that says so.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
#[expect(
    clippy::cast_possible_truncation,
    reason = "addresses have the 64 bits of the only target, and device registers take halves of words"
)]
mod machine;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!(
        "remus-guest is no program of this system: build it with --target x86_64-unknown-none"
    );
    std::process::exit(2);
}
