//! `lint`: rustfmt, clippy and rustdoc with warnings as errors. The gate and the guest are linted for their
//! own targets. Every step runs, so that one look shows all there is to repair.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{
    build,
    invoke::{self, cargo},
    setup::Toolchain,
    test::PRIVILEGED,
    tree::Tree,
};

const STRICT: [&str; 3] = ["--", "-D", "warnings"];

pub(crate) fn run(tree: &Tree, toolchain: &Toolchain) -> Result<()> {
    // remus-user takes in the gate's object, so there is nothing to lint before there is one.
    build::run(tree, toolchain)?;
    let mut format = cargo(tree);
    format.args(["fmt", "--all", "--check"]);
    let mut hosts = cargo(tree);
    hosts.args(["clippy", "--release", "--all-targets"]).arg(PRIVILEGED);
    // No default, and so not among all targets: only `test lab` runs it.
    let mut lab = cargo(tree);
    lab.args(["clippy", "--release", "--package=remus-tests", "--test=lab"]).arg(PRIVILEGED);
    let mut ebpf = build::ebpf(tree, "clippy")?;
    ebpf.arg("--profile=bpf");
    let mut guest = build::guest(tree, "clippy");
    guest.arg("--profile=guest");
    let mut documents = cargo(tree);
    documents.args(["doc", "--release", "--no-deps", "--document-private-items"]);
    // Modules introduce their private parts: whoever reads these documents reads the code beside them.
    documents.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links");

    let steps: [&mut Command; 6] = [
        &mut format,
        hosts.args(STRICT),
        lab.args(STRICT),
        ebpf.args(STRICT),
        guest.args(STRICT),
        &mut documents,
    ];
    let failed = steps.into_iter().filter_map(|step| invoke::run(step).err());
    let failed: Vec<_> = failed.map(|error| error.to_string()).collect();
    if failed.is_empty() {
        println!("lint: clean");
        return Ok(());
    }
    bail!("{}", failed.join("\n"))
}
