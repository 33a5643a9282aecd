//! Where a pause copies pages to: made once, touched once, used again for every epoch.

use super::{PAGE_SIZE, Page};

/// A page-aligned, pre-touched buffer of page copies, and which pages they are.
///
/// Aligned so that non-temporal stores may fill it; touched when made, so that no pause pays a first touch.
pub struct Staging {
    pages: Vec<Page>,
    data: Vec<StagedPage>,
}

/// A copy of a page, aligned as one.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
pub struct StagedPage([u8; PAGE_SIZE]);

impl StagedPage {
    pub fn bytes_mut(&mut self) -> &mut [u8; PAGE_SIZE] {
        &mut self.0
    }
}

/// Not zero: a zeroed allocation would be memory that the kernel has yet to provide.
const TOUCHED: StagedPage = StagedPage([0xa5; PAGE_SIZE]);
/// Pages by which a buffer grows.
const GROWTH: usize = 1024;

impl Staging {
    /// Makes room for `capacity` pages.
    pub fn new(capacity: usize) -> Self {
        Self { pages: Vec::with_capacity(capacity), data: vec![TOUCHED; capacity] }
    }

    pub fn capacity(&self) -> usize {
        self.data.len()
    }

    /// Makes room for `capacity` pages in all. It costs a first touch of each page that is new, and happens only
    /// when more is dirtied than ever before.
    pub fn reserve(&mut self, capacity: usize) {
        if capacity > self.data.len() {
            self.data.resize(capacity.next_multiple_of(GROWTH), TOUCHED);
            self.pages.reserve(self.data.len() - self.pages.len());
        }
    }

    pub fn len(&self) -> usize {
        self.pages.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    pub fn clear(&mut self) {
        self.pages.clear();
    }

    /// Returns room for the copy of `page`, which the caller fills whole; `None` when the buffer is full.
    pub fn push(&mut self, page: Page) -> Option<&mut [u8; PAGE_SIZE]> {
        let slot = self.data.get_mut(self.pages.len())?;
        self.pages.push(page);
        Some(&mut slot.0)
    }

    /// Returns the pages from number `first` on, and their copies, for the caller to fill.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn from_mut(&mut self, first: usize) -> (&[Page], &mut [StagedPage]) {
        let end = self.pages.len();
        (&self.pages[first..], &mut self.data[first..end])
    }

    /// Returns the copy that was pushed as number `at`, from 0.
    ///
    /// # Panics
    /// When there is none.
    pub fn copy(&self, at: usize) -> &[u8; PAGE_SIZE] {
        assert!(at < self.pages.len());
        &self.data[at].0
    }

    /// Returns the copies in the order in which they were pushed.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Page, &[u8; PAGE_SIZE])> {
        self.pages.iter().zip(&self.data).map(|(page, data)| (*page, &data.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_come_back_with_their_pages_until_full() {
        let mut staging = Staging::new(2);
        staging.push(Page(9)).unwrap().fill(1);
        staging.push(Page(3)).unwrap().fill(2);
        assert!(staging.push(Page(4)).is_none());
        let seen: Vec<_> = staging.iter().map(|(p, d)| (p.0, d[0], d[4095])).collect();
        assert_eq!(seen, [(9, 1, 1), (3, 2, 2)]);
        staging.reserve(3);
        staging.push(Page(4)).unwrap().fill(3);
        assert_eq!(staging.iter().map(|(p, d)| (p.0, d[0])).last(), Some((4, 3)));
        staging.clear();
        assert!(staging.is_empty());
    }
}
