//! Which pages are owed to the backup, so that no harvested dirty bit is ever lost.
//!
//! Invariant (ARCHITECTURE 7): a bit that was harvested is either *owed* (not yet in a checkpoint), or in a
//! checkpoint on its way, or that checkpoint is committed. A lost session puts everything on its way back.

use std::collections::VecDeque;

use remus_abi::Epoch;

use super::PageSet;

/// The books of dirty pages.
///
/// Call order: [`owe`](Self::owe) with every harvest; in the pause [`capture`](Self::capture), and copy exactly the
/// pages it returns; [`commit`](Self::commit) with the ack; [`owe_everything`](Self::owe_everything) for a new
/// session.
pub struct DirtyBook {
    owed: PageSet,
    on_the_way: VecDeque<(Epoch, PageSet)>,
    spare: Vec<PageSet>,
}

impl DirtyBook {
    pub fn new(ram_pages: u32) -> Self {
        Self { owed: PageSet::new(ram_pages), on_the_way: VecDeque::new(), spare: Vec::new() }
    }

    /// Books the pages that the dirty log or a device reported.
    pub fn owe(&mut self, harvest: &PageSet) {
        self.owed.union(harvest);
    }

    pub fn owed(&self) -> &PageSet {
        &self.owed
    }

    /// Moves the owed pages into `taken`, for live pre-copy; the caller copies and sends them. They are owed no longer, and
    /// are owed anew when they are dirtied again. The log must be cleared *before* these copies are made.
    pub fn take_for_sync(&mut self, taken: &mut PageSet) {
        taken.clear();
        std::mem::swap(taken, &mut self.owed);
    }

    /// Puts all that is owed into the checkpoint of `epoch`, and returns it.
    pub fn capture(&mut self, epoch: Epoch) -> &PageSet {
        let next = self.spare.pop().unwrap_or_else(|| PageSet::new(self.owed.ram_pages()));
        let captured = std::mem::replace(&mut self.owed, next);
        self.on_the_way.push_back((epoch, captured));
        &self.on_the_way.back().expect("just pushed").1
    }

    /// Notes that the checkpoints up to `epoch` are committed.
    pub fn commit(&mut self, epoch: Epoch) {
        while self.on_the_way.front().is_some_and(|(first, _)| *first <= epoch) {
            self.spare.extend(self.on_the_way.pop_front().map(|(_, pages)| emptied(pages)));
        }
    }

    /// Notes that the session is lost: what was on its way is owed again.
    pub fn put_back(&mut self) {
        for (_, pages) in self.on_the_way.drain(..) {
            self.owed.union(&pages);
            self.spare.push(emptied(pages));
        }
    }

    /// Notes that a session begins with a full sync: every page is owed.
    pub fn owe_everything(&mut self) {
        self.put_back();
        self.owed.insert_all();
    }
}

/// Empties the set here rather than in the pause that uses it next.
fn emptied(mut pages: PageSet) -> PageSet {
    pages.clear();
    pages
}

#[cfg(test)]
mod tests {
    use super::super::Page;
    use super::*;

    fn set(pages: &[u32]) -> PageSet {
        let mut set = PageSet::new(64);
        pages.iter().for_each(|page| set.insert(Page(*page)));
        set
    }

    #[test]
    fn a_lost_session_puts_back_what_was_not_committed() {
        let (one, two) = (Epoch::FIRST, Epoch::FIRST.next());
        let mut book = DirtyBook::new(64);
        book.owe(&set(&[1, 2]));
        assert_eq!(book.capture(one), &set(&[1, 2]));
        book.owe(&set(&[2, 3]));
        book.capture(two);
        book.owe(&set(&[4]));
        book.commit(one);
        book.put_back();
        assert_eq!(book.owed(), &set(&[2, 3, 4]));
    }

    #[test]
    fn a_page_taken_for_the_sync_is_owed_again_when_dirtied_again() {
        let (mut book, mut taken) = (DirtyBook::new(64), PageSet::new(64));
        book.owe_everything();
        book.take_for_sync(&mut taken);
        assert_eq!((taken.len(), book.owed().len()), (64, 0));
        book.owe(&set(&[5]));
        assert_eq!(book.owed(), &set(&[5]));
    }
}
