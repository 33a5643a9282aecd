//! Which pages stay writable: a page that is written in every epoch is copied in every pause instead of paying
//! a write-protect fault in every epoch.
//!
//! With manual protection a dirty bit that is not cleared stays set: the page is writable and reported again.
//! The comparer says of each copy whether it changed. A page unchanged in K epochs running *cools*: it is
//! protected again, in a pause, after it was copied there and before anything resumes.
//!
//! K is ski rental: keep paying for copies until they have cost as much as the fault that protecting would
//! cost, then protect. A loop longer than K epochs pays both; it is the pause budget that bounds it, not this.

use std::time::Duration;

use super::{PageSet, encoder::Verdict};

/// K where a fault costs about 40 copies, as under KVM-PVM.
pub const QUIET_EPOCHS_DEFAULT: u8 = 40;

/// For how many epochs each page was reported and found unchanged.
///
/// Call order: [`handle_verdicts`](Self::handle_verdicts) as they come from the encoder; in each pause, after the
/// copy, [`poll_cool`](Self::poll_cool) and clear what it says.
pub struct HotSet {
    quiet: Box<[u8]>,
    cool_after: u8,
}

impl HotSet {
    /// `cool_after` is K; at least 1.
    pub fn new(ram_pages: u32, cool_after: u8) -> Self {
        Self {
            quiet: vec![0; ram_pages as usize].into_boxed_slice(),
            cool_after: cool_after.max(1),
        }
    }

    /// K from one measured write-protect fault and the cost of copying and comparing one page.
    pub fn cool_after(fault: Duration, copy: Duration) -> u8 {
        let ratio = fault.as_nanos().div_ceil(copy.as_nanos().max(1));
        u8::try_from(ratio.clamp(1, 250)).expect("clamped")
    }

    pub fn handle_verdicts(&mut self, verdicts: &[Verdict]) {
        for Verdict { page, changed } in verdicts {
            let quiet = &mut self.quiet[page.0 as usize];
            *quiet = if *changed { 0 } else { quiet.saturating_add(1) };
        }
    }

    /// Puts into `cool` the pages to protect now: of those reported *and copied* in this pause, the ones that were
    /// long quiet. `cool` is emptied first.
    pub fn poll_cool(&mut self, copied: &PageSet, cool: &mut PageSet) {
        cool.clear();
        for page in copied.iter() {
            let quiet = &mut self.quiet[page.0 as usize];
            if *quiet >= self.cool_after {
                *quiet = 0;
                cool.insert(page);
            }
        }
    }

    /// Forgets everything: a new session compares with nothing, so its first verdicts say nothing.
    pub fn clear(&mut self) {
        self.quiet.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Page;
    use super::*;

    fn verdict(page: u32, changed: bool) -> Verdict {
        Verdict { page: Page(page), changed }
    }

    #[test]
    fn only_a_page_that_was_copied_and_long_quiet_cools() {
        let (mut hot, mut copied, mut cool) =
            (HotSet::new(10, 3), PageSet::new(10), PageSet::new(10));
        copied.insert(Page(1));
        copied.insert(Page(2));
        for epoch in 0..3 {
            hot.poll_cool(&copied, &mut cool);
            assert!(cool.is_empty(), "epoch {epoch}");
            hot.handle_verdicts(&[verdict(1, false), verdict(2, epoch == 1), verdict(3, false)]);
        }
        hot.poll_cool(&copied, &mut cool);
        assert_eq!(
            cool.iter().collect::<Vec<_>>(),
            [Page(1)],
            "3 is quiet too, but was not copied now"
        );
        hot.poll_cool(&copied, &mut cool);
        assert!(cool.is_empty(), "counting begins anew");
    }

    #[test]
    fn k_is_the_price_of_a_fault_in_copies() {
        let us = |n| Duration::from_nanos(n);
        assert_eq!(HotSet::cool_after(us(22_000), us(550)), 40);
        assert_eq!(HotSet::cool_after(us(100), us(550)), 1);
        assert_eq!(HotSet::cool_after(us(u64::MAX), us(0)), 250);
    }
}
