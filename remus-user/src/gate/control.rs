//! Map values of a few words, shared with the programs by mmap: the pause path writes one without a system call.

use std::{
    os::fd::{AsFd, AsRawFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, Result};
use aya::maps::MapData;

use super::words::Write;

/// The one value of an mmapable array map, as words.
pub(super) struct Words {
    words: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: a mapping of shared memory that this struct owns, only reached through atomics.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

/// The value of an mmapable array starts on a page of its own and is padded to whole pages
/// (`array_map_alloc` in kernel/bpf/arraymap.c, 6.18).
const MAPPED: usize = 4096;

impl Words {
    /// Maps the only value of `map`.
    pub(super) fn map(map: &MapData) -> Result<Self> {
        let bytes = map.info().context("read about a map")?.value_size() as usize;
        assert!(bytes.is_multiple_of(8) && bytes <= MAPPED, "a value of whole words on one page");
        // SAFETY: a new mapping at an address of the kernel's choice; the result is checked.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                MAPPED,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error()).context("map a map's value into memory");
        }
        let words = NonNull::new(address.cast()).context("mmap at address 0")?;
        Ok(Self { words, len: bytes / 8 })
    }

    pub(super) fn get(&self, word: usize) -> u64 {
        self.word(word).load(Ordering::Acquire)
    }

    pub(super) fn set(&self, word: usize, to: u64) {
        self.word(word).store(to, Ordering::SeqCst);
    }

    /// Performs writes of the controller, in their order.
    pub(super) fn perform(&self, writes: impl IntoIterator<Item = Write>) {
        for (word, to) in writes {
            self.set(word as usize, to);
        }
    }

    fn word(&self, word: usize) -> &AtomicU64 {
        assert!(word < self.len, "word {word} of {}", self.len);
        // SAFETY: within the mapping, which lives as long as `self`; aligned, since the mapping is.
        unsafe { self.words.add(word).as_ref() }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made, and nobody has a reference beyond `self`'s life.
        unsafe { libc::munmap(self.words.as_ptr().cast(), MAPPED) };
    }
}
