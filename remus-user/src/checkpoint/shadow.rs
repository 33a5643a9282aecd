//! What the backup has: a copy of each page as it was last sent in this session.
//!
//! May hold every page of RAM; memory is taken in chunks, when a page that is not zero is first sent.
//! Emptied for a new session: a delta against what another session sent would be one on the wrong base.

use super::{PAGE_SIZE, Page, PageSet, walk::is_zero};

/// Pages in a chunk.
const CHUNK: usize = 64;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Copy([u8; PAGE_SIZE]);

/// Copies of pages as last sent.
pub(super) struct Shadow {
    /// Pages sent in this session.
    sent: PageSet,
    /// A chunk that is not there holds zero pages only.
    chunks: Vec<Option<Box<[Copy; CHUNK]>>>,
}

impl Shadow {
    pub(super) fn new(ram_pages: u32) -> Self {
        let chunks = (ram_pages as usize).div_ceil(CHUNK);
        Self {
            sent: PageSet::new(ram_pages),
            chunks: std::iter::repeat_with(|| None).take(chunks).collect(),
        }
    }

    /// Forgets what was sent, and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.sent.clear();
    }

    /// The copy of a page that was sent in this session and is kept; `None` when it was not sent.
    ///
    /// For a zero page in a chunk that is not there the chunk is made: the caller is about to write to it.
    pub(super) fn sent_mut(&mut self, page: Page) -> Option<&mut [u8; PAGE_SIZE]> {
        if self.sent.contains(page) { Some(self.copy_mut(page)) } else { None }
    }

    /// Whether the page was sent as zero and its chunk is not there, so that a zero page is unchanged.
    pub(super) fn is_absent_zero(&self, page: Page) -> bool {
        self.sent.contains(page) && self.chunks[page.0 as usize / CHUNK].is_none()
    }

    /// Keeps `bytes` as the copy of a page that is sent for the first time in this session.
    pub(super) fn keep(&mut self, page: Page, bytes: &[u8; PAGE_SIZE]) {
        self.sent.insert(page);
        if self.chunks[page.0 as usize / CHUNK].is_some() || !is_zero(bytes) {
            *self.copy_mut(page) = *bytes;
        }
    }

    fn copy_mut(&mut self, page: Page) -> &mut [u8; PAGE_SIZE] {
        let chunk = &mut self.chunks[page.0 as usize / CHUNK];
        let chunk = chunk.get_or_insert_with(|| {
            let copies = vec![Copy([0; PAGE_SIZE]); CHUNK].into_boxed_slice();
            copies.try_into().ok().expect("CHUNK copies")
        });
        &mut chunk[page.0 as usize % CHUNK].0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_session_knows_no_page() {
        let mut shadow = Shadow::new(100);
        shadow.keep(Page(70), &[3; PAGE_SIZE]);
        assert_eq!(shadow.sent_mut(Page(70)).unwrap()[0], 3);
        shadow.clear();
        assert!(shadow.sent_mut(Page(70)).is_none());
    }

    #[test]
    fn zero_pages_take_no_memory_and_read_as_zero() {
        let mut shadow = Shadow::new(100);
        shadow.keep(Page(1), &[0; PAGE_SIZE]);
        assert!(shadow.is_absent_zero(Page(1)) && !shadow.is_absent_zero(Page(2)));
        assert!(shadow.chunks.iter().all(Option::is_none));
        shadow.keep(Page(2), &[5; PAGE_SIZE]);
        assert!(is_zero(shadow.sent_mut(Page(1)).unwrap()));
    }

    #[test]
    fn a_chunk_kept_from_an_earlier_session_holds_nothing_of_it() {
        let mut shadow = Shadow::new(64);
        shadow.keep(Page(1), &[7; PAGE_SIZE]);
        shadow.clear();
        shadow.keep(Page(1), &[0; PAGE_SIZE]);
        assert!(is_zero(shadow.sent_mut(Page(1)).unwrap()));
    }
}
