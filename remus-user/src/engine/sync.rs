//! The live sync of a session: pages go to the backup while the guest runs.
//!
//! Rounds, as in live migration: send all of RAM, then what was dirtied meanwhile, until a pause can take the
//! rest. Within a round pages go in strides, so that the engine is never away from its devices for long.

use crate::checkpoint::{Page, PageSet};

/// Pages copied at once: about 0.2 ms.
const STRIDE: usize = 512;

/// One round under way.
pub(super) struct LiveSync {
    pages: PageSet,
    next: Option<Page>,
}

impl LiveSync {
    pub(super) fn new(ram_pages: u32) -> Self {
        Self { pages: PageSet::new(ram_pages), next: None }
    }

    /// Begins a round over the pages that `take` puts into the set.
    pub(super) fn begin_round(&mut self, take: impl FnOnce(&mut PageSet)) {
        take(&mut self.pages);
        self.next = Some(Page(0));
    }

    /// There are pages of this round left to copy.
    pub(super) fn is_under_way(&self) -> bool {
        self.next.is_some()
    }

    /// The next pages of the round into `stride`; `false` when there are none left.
    pub(super) fn next_stride(&mut self, stride: &mut Vec<Page>) -> bool {
        stride.clear();
        let Some(from) = self.next else { return false };
        stride.extend(self.pages.iter_from(from).take(STRIDE));
        self.next = stride
            .last()
            .map(|last| Page(last.0 + 1))
            .filter(|next| next.0 < self.pages.ram_pages());
        !stride.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_cover_the_round_once() {
        let mut sync = LiveSync::new(2000);
        let mut stride = Vec::new();
        assert!(!sync.next_stride(&mut stride), "no round yet");
        sync.begin_round(PageSet::insert_all);
        let mut seen = Vec::new();
        while sync.next_stride(&mut stride) {
            assert!(stride.len() <= STRIDE);
            seen.extend(stride.iter().map(|page| page.0));
        }
        assert_eq!(seen, (0..2000).collect::<Vec<_>>());
        sync.begin_round(PageSet::clear);
        assert!(!sync.next_stride(&mut stride), "nothing was dirtied");
    }
}
