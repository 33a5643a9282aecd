//! Opening what a guest begins with.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Opens a kernel or an initial RAM disk. Something else than a file, a FIFO for instance, is not waited for.
///
/// # Errors
/// When the file is not there, or something else is; names it.
pub(super) fn open(path: &Path) -> Result<File> {
    let opened = || -> Result<File> {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        ensure!(file.metadata()?.is_file(), "it is not a file");
        Ok(file)
    };
    opened().with_context(|| format!("open {}", path.display()))
}
