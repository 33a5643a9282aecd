//! Pages that the VMM itself wrote: its half of the dirty log.
//!
//! KVM logs what the guest writes and what the kernel writes for it, but not what this process writes
//! through its own mapping: used rings and received frames. vm-memory marks those here, after the bytes are
//! in place, for every write that goes through it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, RefSlice, WithBitmapSlice};

use crate::checkpoint::{PAGE_SIZE, bits};

/// Words that one word of the index stands for.
const GROUP: u32 = 64;

/// One bit for each page of a memory region.
pub(super) struct Touched {
    words: Box<[AtomicU64]>,
    /// A bit for each word, set after the word's first bit is.
    index: Box<[AtomicU64]>,
}

impl Touched {
    /// For a region of `pages` pages, a multiple of 64.
    pub(super) fn new(pages: u32) -> Self {
        let words = pages.div_ceil(64);
        let zeros = |n: u32| (0..n).map(|_| AtomicU64::new(0)).collect();
        Self { words: zeros(words), index: zeros(words.div_ceil(GROUP)) }
    }

    /// Hands the marked pages to `add`, as numbers of words and what is marked in them, and forgets them.
    pub(super) fn harvest(&self, mut add: impl FnMut(usize, u64)) {
        for (index, group) in self.index.iter().zip(0..) {
            // Almost all are zero: a plain load spares them the locked exchange.
            if index.load(Ordering::Relaxed) != 0 {
                let in_use = bits(index.swap(0, Ordering::AcqRel));
                in_use.map(|bit| (group * GROUP + bit) as usize).for_each(|n| {
                    add(n, self.words[n].swap(0, Ordering::AcqRel));
                });
            }
        }
    }

    /// Hands the marked pages to `add`.
    pub(super) fn look(&self, mut add: impl FnMut(usize, u64)) {
        for (index, group) in self.index.iter().zip(0..) {
            let in_use = bits(index.load(Ordering::Acquire));
            in_use.map(|bit| (group * GROUP + bit) as usize).for_each(|n| {
                add(n, self.words[n].load(Ordering::Relaxed));
            });
        }
    }

    /// Marks every page.
    pub(super) fn mark_all(&self) {
        self.words.iter().for_each(|word| word.store(u64::MAX, Ordering::Release));
        let in_use = (0..self.words.len()).map(|n| (n / 64, 1 << (n % 64)));
        in_use.for_each(|(n, bit)| _ = self.index[n].fetch_or(bit, Ordering::Release));
    }

    /// Marks a page of the region.
    pub(super) fn mark(&self, page: usize) {
        let n = page / 64;
        if let Some(word) = self.words.get(n) {
            let bit = 1 << (page % 64);
            // A page is written many times an epoch and marked once: skip the locked operation then. No mark is
            // lost between the two: pages are harvested by the thread that writes most of them, while all others
            // that do are parked.
            if word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Release) == 0
            {
                self.index[n / 64].fetch_or(1 << (n % 64), Ordering::Release);
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

    fn harvested(touched: &Touched) -> Vec<(usize, u64)> {
        let mut found = Vec::new();
        touched.harvest(|n, word| found.push((n, word)));
        found
    }

    #[test]
    fn a_write_across_pages_marks_each_once_and_harvest_forgets() {
        let touched = Touched::new(128);
        touched.mark_dirty(64 * PAGE_SIZE - 1, 2);
        touched.mark_dirty(0, 0);
        let mut seen = Vec::new();
        touched.look(|n, word| seen.push((n, word)));
        assert_eq!(seen, [(0, 1 << 63), (1, 1)]);
        assert_eq!(harvested(&touched), seen);
        assert_eq!(harvested(&touched), []);
        touched.mark(64);
        assert_eq!(harvested(&touched), [(1, 1)]);
    }

    #[test]
    fn marks_beyond_the_region_are_nothing() {
        let touched = Touched::new(64);
        touched.mark_dirty(usize::MAX - 3, 2);
        touched.mark_dirty(63 * PAGE_SIZE, 3 * PAGE_SIZE);
        assert_eq!(harvested(&touched), [(0, 1 << 63)]);
    }
}
