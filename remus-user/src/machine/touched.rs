//! Pages that the VMM itself wrote: its half of the dirty log.
//!
//! KVM logs what the guest writes and what the kernel writes for it, but not what this process writes
//! through its own mapping: used rings and received frames. vm-memory marks those here, after the bytes are
//! in place, for every write that goes through it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, RefSlice, WithBitmapSlice};

use crate::checkpoint::PAGE_SIZE;

/// One bit for each page of a memory region.
pub(super) struct Touched {
    words: Box<[AtomicU64]>,
}

impl Touched {
    /// For a region of `pages` pages, a multiple of 64.
    pub(super) fn new(pages: u32) -> Self {
        Self { words: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Adds the marked pages to `words` and forgets them.
    pub(super) fn harvest(&self, words: &mut [u64]) {
        for (from, to) in self.words.iter().zip(words) {
            // Almost all words are zero: a plain load spares them the locked exchange.
            if from.load(Ordering::Relaxed) != 0 {
                *to |= from.swap(0, Ordering::AcqRel);
            }
        }
    }

    /// Adds the marked pages to `words`.
    pub(super) fn look(&self, words: &mut [u64]) {
        self.words.iter().zip(words).for_each(|(from, to)| *to |= from.load(Ordering::Relaxed));
    }

    /// Marks every page.
    pub(super) fn mark_all(&self) {
        self.words.iter().for_each(|word| word.store(u64::MAX, Ordering::Release));
    }

    /// Marks a page of the region.
    pub(super) fn mark(&self, page: usize) {
        if let Some(word) = self.words.get(page / 64) {
            let bit = 1 << (page % 64);
            // A page is written many times an epoch and marked once: skip the locked operation then. The
            // pages are harvested by the thread that writes them, so no mark can be lost between the two.
            if word.load(Ordering::Relaxed) & bit == 0 {
                word.fetch_or(bit, Ordering::Release);
            }
        }
    }
}

impl Bitmap for Touched {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if let Some(end) = len.checked_sub(1) {
            let last = offset.saturating_add(end) / PAGE_SIZE;
            (offset / PAGE_SIZE..=last).for_each(|page| self.mark(page));
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE_SIZE;
        self.words
            .get(page / 64)
            .is_some_and(|word| word.load(Ordering::Acquire) & 1 << (page % 64) != 0)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl<'a> WithBitmapSlice<'a> for Touched {
    type S = RefSlice<'a, Self>;
}

impl fmt::Debug for Touched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Touched").field("words", &self.words.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_across_pages_marks_each_once_and_harvest_forgets() {
        let touched = Touched::new(128);
        touched.mark_dirty(64 * PAGE_SIZE - 1, 2);
        touched.mark_dirty(0, 0);
        let mut words = [0, 4];
        touched.harvest(&mut words);
        assert_eq!(words, [1 << 63, 1 | 4]);
        let mut again = [0; 2];
        touched.harvest(&mut again);
        assert_eq!(again, [0, 0]);
    }

    #[test]
    fn marks_beyond_the_region_are_nothing() {
        let touched = Touched::new(64);
        touched.mark_dirty(usize::MAX - 3, 2);
        touched.mark_dirty(63 * PAGE_SIZE, 3 * PAGE_SIZE);
        let mut words = [0];
        touched.harvest(&mut words);
        assert_eq!(words, [1 << 63]);
    }
}
