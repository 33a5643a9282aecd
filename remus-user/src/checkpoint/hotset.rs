//! Which pages stay writable: a page that is written in every epoch is copied in every pause instead of paying
//! a write-protect fault in every epoch.
//!
//! With manual protection a dirty bit that is not cleared stays set: the page is writable and reported again.
//! The comparer says of each copy whether it changed. A page unchanged in K epochs running *cools*: it is
//! protected again, in a pause, after it was copied there and before anything resumes.
//!
//! The comparer says nothing of a page without a copy, and that counts as quiet too. A page that *is* busy then pays a fault
//! every K epochs, which is no more than K copies cost; while a page that is quiet would otherwise be copied, and sent whole,
//! for ever.
//!
//! - K is ski rental: keep paying for copies until they have cost as much as the fault that protection would cost, then
//!   protect. K comes from one fault that was measured.
//! - A loop over more pages than it writes in K epochs pays for both. Its pages give it away: they come back soon after they
//!   cooled. Then K is doubled, and goes back when they stay away.
//! - The set is bounded by what a pause may copy. Beyond that the quietest pages cool whatever K says, and the guest
//!   pays for faults with its own time: it is paced. A page that was reported is copied in any case.

use std::time::Duration;

use super::{Page, PageSet, encoder::Verdict};

/// K where a fault costs about 40 copies, as under KVM-PVM.
pub const QUIET_EPOCHS_DEFAULT: u8 = 40;
/// The largest K, since its counter has 8 bits.
const QUIET_EPOCHS_MAX: u8 = 250;
/// Epochs over which pages that come back are counted.
const WINDOW: u32 = 64;
/// If fewer pages than this come back in a window, there is no loop.
const BACK_MIN: u32 = 64;

/// For how many epochs each page was reported and not seen to have changed.
///
/// Call order: [`handle_verdicts`](Self::handle_verdicts) as they come from the encoder; in each pause, after the
/// copy, [`poll_cool`](Self::poll_cool) and clear what it says.
pub struct HotSet {
    quiet: Box<[u8]>,
    /// Long quiet pages that have cooled in this window, and in the one before, and were not reported since.
    cooled: [PageSet; 2],
    cool_after: u8,
    /// K as the fault costs; `cool_after` is wider while a loop needs it.
    cool_after_least: u8,
    window: Window,
}

/// What happened in some epochs, by which K is judged.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    epochs: u32,
    /// Pages that cooled because they were long quiet.
    cooled: u32,
    /// Pages that were reported again after that.
    back: u32,
    /// Pages that changed after so long a quiet that the least K would have cooled them.
    spared: u32,
}

impl HotSet {
    /// Makes an empty set. `cool_after` is K, and at least 1.
    pub fn new(ram_pages: u32, cool_after: u8) -> Self {
        let cool_after = cool_after.clamp(1, QUIET_EPOCHS_MAX);
        Self {
            quiet: vec![0; ram_pages as usize].into_boxed_slice(),
            cooled: [PageSet::new(ram_pages), PageSet::new(ram_pages)],
            cool_after,
            cool_after_least: cool_after,
            window: Window::default(),
        }
    }

    /// Computes K from one measured write-protect fault and the cost of copying and comparing one page.
    pub fn cool_after(fault: Duration, copy: Duration) -> u8 {
        let ratio = fault.as_nanos().div_ceil(copy.as_nanos().max(1));
        u8::try_from(ratio.clamp(1, QUIET_EPOCHS_MAX.into())).expect("clamped")
    }

    pub fn handle_verdicts(&mut self, verdicts: &[Verdict]) {
        for Verdict { page, changed } in verdicts {
            let quiet = &mut self.quiet[page.0 as usize];
            if *changed {
                self.window.spared += u32::from(*quiet >= self.cool_after_least);
                *quiet = 0;
            } else {
                *quiet = quiet.saturating_add(1);
            }
        }
    }

    /// Puts into `cool` the pages to protect now: of those reported *and copied* in this pause, the ones that were long
    /// quiet, and of the rest the quietest, as many as exceed `pages_max`. `cool` is emptied first. Returns the number of
    /// pages that stay writable.
    pub fn poll_cool(&mut self, copied: &PageSet, cool: &mut PageSet, pages_max: usize) -> usize {
        cool.clear();
        let mut staying = 0;
        for page in copied.iter() {
            for cooled in &mut self.cooled {
                if cooled.contains(page) {
                    cooled.remove(page);
                    self.window.back += 1;
                }
            }
            let quiet = &mut self.quiet[page.0 as usize];
            if *quiet >= self.cool_after {
                *quiet = 0;
                cool.insert(page);
                self.cooled[0].insert(page);
                self.window.cooled += 1;
            } else {
                staying += 1;
            }
        }
        if staying > pages_max {
            self.cool_quietest(copied, cool, staying - pages_max);
            staying = pages_max;
        }
        self.end_epoch();
        staying
    }

    /// Forgets everything, since a new session knows nothing of any page.
    pub fn clear(&mut self) {
        self.quiet.fill(0);
        self.cooled.iter_mut().for_each(PageSet::clear);
        self.cool_after = self.cool_after_least;
        self.window = Window::default();
    }

    /// Adds the `excess` quietest of the pages that were copied and have not cooled. Among equals it adds those at the bottom
    /// of RAM, and so the same ones epoch after epoch, while the others stay as they are.
    fn cool_quietest(&self, copied: &PageSet, cool: &mut PageSet, mut excess: usize) {
        let mut by_quiet = [0usize; 256];
        let quiet = |page: Page| usize::from(self.quiet[page.0 as usize]);
        for page in copied.iter().filter(|page| !cool.contains(*page)) {
            by_quiet[quiet(page)] += 1;
        }
        let mut least = by_quiet.len() - 1;
        while least > 0 && by_quiet[least] < excess {
            excess -= by_quiet[least];
            least -= 1;
        }
        for page in copied.iter() {
            if cool.contains(page) {
                continue;
            }
            let quiet = quiet(page);
            if quiet > least {
                cool.insert(page);
            } else if quiet == least && excess > 0 {
                excess -= 1;
                cool.insert(page);
            }
        }
    }

    fn end_epoch(&mut self) {
        self.window.epochs += 1;
        if self.window.epochs < WINDOW {
            return;
        }
        let Window { epochs: _, cooled, back, spared } = std::mem::take(&mut self.window);
        if back >= BACK_MIN && back * 2 >= cooled {
            self.cool_after = self.cool_after.saturating_mul(2).min(QUIET_EPOCHS_MAX);
        } else if spared < BACK_MIN {
            self.cool_after = (self.cool_after / 2).max(self.cool_after_least);
        }
        self.cooled.swap(0, 1);
        self.cooled[0].clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(page: u32, changed: bool) -> Verdict {
        Verdict { page: Page(page), changed }
    }

    fn set(pages: impl IntoIterator<Item = u32>) -> PageSet {
        let mut set = PageSet::new(1024);
        pages.into_iter().for_each(|page| set.insert(Page(page)));
        set
    }

    const NO_BOUND: usize = usize::MAX;

    #[test]
    fn only_a_page_that_was_copied_and_long_quiet_cools() {
        let (mut hot, copied, mut cool) = (HotSet::new(1024, 3), set([1, 2]), set([]));
        for epoch in 0..3 {
            assert_eq!(hot.poll_cool(&copied, &mut cool, NO_BOUND), 2);
            assert!(cool.is_empty(), "epoch {epoch}");
            hot.handle_verdicts(&[verdict(1, false), verdict(2, epoch == 1), verdict(3, false)]);
        }
        assert_eq!(hot.poll_cool(&copied, &mut cool, NO_BOUND), 1);
        assert_eq!(cool, set([1]), "3 is quiet too, but was not copied now");
        hot.poll_cool(&copied, &mut cool, NO_BOUND);
        assert!(cool.is_empty(), "counting begins anew");
    }

    #[test]
    fn what_a_pause_cannot_copy_cools_quietest_first_and_the_same_each_time() {
        let (mut hot, copied, mut cool) = (HotSet::new(1024, 40), set(0..10), set([]));
        hot.handle_verdicts(&[verdict(7, false), verdict(3, false), verdict(0, true)]);
        hot.handle_verdicts(&[verdict(7, false)]);
        for (pages_max, expected) in [(9, set([7])), (8, set([3, 7])), (6, set([0, 1, 3, 7]))] {
            assert_eq!(hot.poll_cool(&copied, &mut cool, pages_max), pages_max);
            assert_eq!(cool, expected);
        }
        assert_eq!(hot.poll_cool(&copied, &mut cool, 10), 10);
        assert!(cool.is_empty());
    }

    /// Writes a loop of `pages` pages, one of `length` parts in each epoch, as protection lets it be seen. Says how many
    /// writes faulted in the last of `rounds` rounds.
    fn loop_over(hot: &mut HotSet, pages: u32, length: u32, rounds: u32) -> usize {
        let (mut reported, mut cool, mut faults) = (set([]), set([]), 0);
        for epoch in 0..length * rounds {
            if epoch % length == 0 {
                faults = 0;
            }
            let part = (0..pages).filter(|page| page % length == epoch % length);
            for page in part.clone().map(Page) {
                faults += usize::from(!reported.contains(page));
                reported.insert(page);
            }
            let written = set(part);
            let verdicts: Vec<_> =
                reported.iter().map(|p| verdict(p.0, written.contains(p))).collect();
            hot.poll_cool(&reported, &mut cool, NO_BOUND);
            cool.iter().for_each(|page| reported.remove(page));
            hot.handle_verdicts(&verdicts);
        }
        faults
    }

    #[test]
    fn a_loop_longer_than_k_widens_k_until_it_does_not_fault_and_k_goes_back_after_it() {
        let mut hot = HotSet::new(1024, 4);
        assert_eq!(loop_over(&mut hot, 600, 30, 2), 600, "it thrashes at first");
        assert_eq!(loop_over(&mut hot, 600, 30, 30), 0);
        assert!(hot.cool_after > 30);
        assert_eq!(loop_over(&mut hot, 600, 30, 30), 0, "and it stays so");
        loop_over(&mut hot, 10, 1, 20 * WINDOW);
        assert_eq!(hot.cool_after, 4);
    }

    #[test]
    fn a_loop_shorter_than_k_leaves_k_alone() {
        let mut hot = HotSet::new(1024, 40);
        assert_eq!(loop_over(&mut hot, 600, 30, 20), 0);
        assert_eq!(hot.cool_after, 40);
    }

    #[test]
    fn k_is_the_price_of_a_fault_in_copies() {
        let us = |n| Duration::from_nanos(n);
        assert_eq!(HotSet::cool_after(us(22_000), us(550)), 40);
        assert_eq!(HotSet::cool_after(us(100), us(550)), 1);
        assert_eq!(HotSet::cool_after(us(u64::MAX), us(0)), 250);
    }
}
