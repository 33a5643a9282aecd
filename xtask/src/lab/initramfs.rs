//! What the lab boots into: busybox, the few modules without which it does not see the machine's files, and
//! init.sh.

use anyhow::Result;

use super::{
    cpio::Archive,
    kernel::{self, Kernel},
};

const INIT: &str = include_str!("init.sh");
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

pub(crate) fn build(kernel: &Kernel, busybox: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys"] {
        archive.folder(folder)?;
    }
    archive.program("init", INIT.as_bytes())?;
    archive.program("bin/busybox", busybox)?;
    add_modules(&mut archive, kernel, &MODULES)?;
    archive.finish()
}

/// Adds modules and what they need as /modules/NNN-NAME.ko, so that the order of names is the order to insert
/// them in.
pub(crate) fn add_modules(archive: &mut Archive, kernel: &Kernel, names: &[&str]) -> Result<()> {
    for (n, file) in kernel.files_of(names)?.iter().enumerate() {
        let path = format!("modules/{n:03}-{}", kernel::module_name(file)?);
        archive.file(&path, &kernel::module(file)?)?;
    }
    Ok(())
}
