//! Where things are in a checkout. Nested builds have folders of their own under `target/`, so that they
//! neither wait for nor invalidate one another.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// A checkout of the project.
pub(crate) struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Finds the checkout from which cargo started this program.
    pub(crate) fn find() -> Result<Self> {
        let manifest =
            env::var_os("CARGO_MANIFEST_DIR").context("start this through `cargo xtask`")?;
        let root = Path::new(&manifest).parent().context("xtask has no parent folder")?;
        Ok(Self { root: root.to_owned() })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// `target`: all that builds and runs write.
    pub(crate) fn target(&self) -> PathBuf {
        self.root.join("target")
    }

    /// `target/ebpf`: the gate's build, and `gate.o`, which remus-user takes in.
    pub(crate) fn ebpf(&self) -> PathBuf {
        self.root.join("target/ebpf")
    }

    /// `target/guest`: the demo guest's build, and `remus-guest.elf`.
    pub(crate) fn guest(&self) -> PathBuf {
        self.root.join("target/guest")
    }

    /// `target/tools`: programs that the builds need and no package brings.
    pub(crate) fn tools(&self) -> PathBuf {
        self.root.join("target/tools")
    }

    /// `target/lab`: unpacked Debian packages, jobs that run in the lab, the Linux guests.
    pub(crate) fn lab(&self) -> PathBuf {
        self.root.join("target/lab")
    }

    pub(crate) fn rig(&self) -> PathBuf {
        self.root.join("target/release/remus-rig")
    }
}
