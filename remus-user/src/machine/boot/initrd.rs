//! The initial RAM disk: where it fits, and putting it there.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use vm_memory::{Bytes, GuestAddress};

use crate::checkpoint::PAGE_SIZE;
use crate::machine::memory::Memory;

/// Where the disk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Initrd {
    pub(super) address: u64,
    pub(super) bytes: u64,
}

/// Loads the file at `path` as high below `limit` as RAM under the device hole goes, and above `kernel_end`.
pub(super) fn load(memory: &Memory, path: &Path, kernel_end: u64, limit: u64) -> Result<Initrd> {
    let mut file = super::file::open(path)?;
    let (low, _) = memory.layout().low_and_high_bytes();
    let Initrd { address, bytes } = fit(&file, path, kernel_end, low.min(limit), low)?;
    let length = usize::try_from(bytes).expect("it fits into RAM");
    memory
        .ram()
        .read_exact_volatile_from(GuestAddress(address), &mut file, length)
        .with_context(|| format!("read {}", path.display()))?;
    Ok(Initrd { address, bytes })
}

/// Checks that the disk at `path` fits between `from` and `to`, in RAM of which `low` bytes are under the device hole.
///
/// # Errors
/// When it does not, or cannot be read.
pub(super) fn check(path: &Path, from: u64, to: u64, low: u64) -> Result<()> {
    fit(&super::file::open(path)?, path, from, to, low).map(drop)
}

fn fit(file: &File, path: &Path, from: u64, to: u64, low: u64) -> Result<Initrd> {
    let bytes = file.metadata().with_context(|| format!("look at {}", path.display()))?.len();
    ensure!(bytes > 0, "initrd {}: it is empty", path.display());
    let address = place(bytes, from, to).with_context(|| {
        format!(
            "{} and the kernel do not fit into RAM together ({} MiB of {} are left to it): raise machine.memory_mib",
            path.display(),
            to.saturating_sub(from) >> 20,
            low >> 20,
        )
    })?;
    Ok(Initrd { address, bytes })
}

fn place(bytes: u64, from: u64, to: u64) -> Option<u64> {
    let page = PAGE_SIZE as u64;
    let address = to.checked_sub(bytes)? / page * page;
    (address >= from).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_page_that_leaves_room_is_taken() {
        assert_eq!(place(5000, 0x1000, 0x10_0000), Some(0xf_e000));
        assert_eq!(place(0x1000, 0x1000, 0x2000), Some(0x1000));
        assert_eq!(place(0x1001, 0x1000, 0x2000), None);
        assert_eq!(place(u64::MAX, 0, 0x2000), None);
    }
}
