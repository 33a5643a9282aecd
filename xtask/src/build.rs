//! `build`: the eBPF objects (the gate, and the sink that measures it), the demo guest, then the binaries. In
//! this order: `remus` takes the gate's object in.

use std::{env, ffi::OsString, fs, io, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{
    invoke::{self, cargo},
    setup::Toolchain,
    tree::Tree,
};

/// Rust flags of the gate. Line tables for the verifier's log; BTF, which the maps and aya need.
const EBPF_FLAGS: [&str; 2] = ["-Cdebuginfo=2", "-Clink-arg=--btf"];
/// Rust flags of the guest: it runs at the address it is linked for, nothing relocates it.
const GUEST_FLAGS: [&str; 1] = ["-Crelocation-model=static"];

pub(crate) fn run(tree: &Tree, _: &Toolchain) -> Result<()> {
    let target = tree.ebpf();
    invoke::run(ebpf(tree, "build")?.args(["--quiet", "--profile=bpf"]))?;
    for object in ["gate", "sink"] {
        let built = target.join("bpfel-unknown-none/bpf").join(object);
        refresh(&built, &target.join(object).with_extension("o"))?;
    }

    let target = tree.guest();
    invoke::run(guest(tree, "build").args(["--quiet", "--profile=guest"]))?;
    refresh(
        &target.join("x86_64-unknown-none/guest/remus-guest"),
        &target.join("remus-guest.elf"),
    )?;

    invoke::run(cargo(tree).args(["build", "--release", "--bin=remus", "--bin=remus-rig"]))
}

/// `cargo VERB` on the gate's crate. Needs an unstable feature of cargo (building `core` for a target that
/// has none); `RUSTC_BOOTSTRAP` opens it on a stable toolchain, for this crate's build alone.
pub(crate) fn ebpf(tree: &Tree, verb: &str) -> Result<Command> {
    let mut path = OsString::from(tree.tools().join("bin"));
    path.push(":");
    path.push(env::var_os("PATH").context("PATH is not set")?);
    let mut command = cargo(tree);
    command
        .args([verb, "--package=remus-ebpf", "--target=bpfel-unknown-none", "-Zbuild-std=core"])
        .arg("--target-dir")
        .arg(tree.ebpf())
        .env("CARGO_ENCODED_RUSTFLAGS", EBPF_FLAGS.join("\x1f"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("PATH", path);
    Ok(command)
}

/// `cargo VERB` on the demo guest's crate.
pub(crate) fn guest(tree: &Tree, verb: &str) -> Command {
    let mut command = cargo(tree);
    command
        .args([verb, "--package=remus-guest", "--target=x86_64-unknown-none"])
        .arg("--target-dir")
        .arg(tree.guest())
        .env("CARGO_ENCODED_RUSTFLAGS", GUEST_FLAGS.join("\x1f"));
    command
}

/// Copies `from` to `to` unless they are equal.
fn refresh(from: &Path, to: &Path) -> Result<()> {
    refresh_with(fs::read(from).with_context(|| format!("read {}", from.display()))?, to)
}

/// Writes `new` to `to` unless it is there: a new time on `to` would rebuild what depends on it.
pub(crate) fn refresh_with(new: Vec<u8>, to: &Path) -> Result<()> {
    match fs::read(to) {
        Ok(old) if old == new => return Ok(()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("read {}", to.display())),
    }
    fs::write(to, new).with_context(|| format!("write {}", to.display()))
}
