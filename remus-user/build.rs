//! Takes the gate's eBPF object as `cargo xtask build` left it; this crate does not build it itself, since
//! it needs a toolchain that only xtask sets up.

use std::{env, path::PathBuf, process::exit};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("..");
    let object = root.join("target/ebpf/gate.o");
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rerun-if-changed=build.rs");
    if !object.exists() {
        eprintln!(
            "the gate's eBPF object is not built: run `cargo xtask build` once, then this again"
        );
        exit(1);
    }
    println!("cargo::rustc-env=REMUS_GATE_OBJECT={}", object.display());
}
