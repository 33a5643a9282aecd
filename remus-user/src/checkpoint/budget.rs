//! What a pause may cost, in pages.
//!
//! A pause has a fixed part and the copying of its pages. Both are measured in every pause, so that the budget follows the
//! machine: `pages_max = (pause_max - fixed) / page`.

use std::time::Duration;

/// Values before the first measurement, of the order of any machine's.
const FIXED_NS: u64 = 250_000;
const PAGE_NS: u64 = 400;
/// A new measurement counts for one part in this many.
const SHARE: u64 = 16;
/// Fewer pages say nothing about what one costs.
const PAGES_TO_JUDGE: usize = 64;
/// The smallest budget: a guest whose every page faults in every epoch gets nowhere.
const PAGES_MIN: usize = 256;

/// The pause budget. Call [`handle_pause`](Self::handle_pause) after each pause.
#[derive(Clone, Debug)]
pub struct PauseBudget {
    pause_max_ns: u64,
    fixed_ns: u64,
    page_ns: u64,
}

impl PauseBudget {
    pub fn new(pause_max: Duration) -> Self {
        Self { pause_max_ns: nanos(pause_max), fixed_ns: FIXED_NS, page_ns: PAGE_NS }
    }

    /// Notes that a pause copied `pages` pages in `copy`, and took `fixed` besides.
    pub fn handle_pause(&mut self, pages: usize, copy: Duration, fixed: Duration) {
        // A pause that was preempted measures the machine's other work.
        let fixed = nanos(fixed).min(self.fixed_ns * 4);
        self.fixed_ns = blend(self.fixed_ns, fixed);
        if pages >= PAGES_TO_JUDGE {
            let page = (nanos(copy) / pages as u64).clamp(1, self.page_ns * 4);
            self.page_ns = blend(self.page_ns, page);
        }
    }

    /// Returns the number of pages that fit a pause.
    pub fn pages_max(&self) -> usize {
        let pages = self.pause_max_ns.saturating_sub(self.fixed_ns) / self.page_ns.max(1);
        usize::try_from(pages).unwrap_or(usize::MAX).max(PAGES_MIN)
    }

    /// Returns the time that copying one page takes.
    pub fn page_cost(&self) -> Duration {
        Duration::from_nanos(self.page_ns)
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// Rounds up, so that the mean can reach the value that it follows.
fn blend(old: u64, new: u64) -> u64 {
    (old * (SHARE - 1) + new).div_ceil(SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    #[test]
    fn the_budget_follows_what_pauses_cost() {
        let mut budget = PauseBudget::new(us(2000));
        assert_eq!(budget.pages_max(), 4375);
        for _ in 0..200 {
            budget.handle_pause(1000, us(1000), us(100));
        }
        assert!((1800..=1900).contains(&budget.pages_max()), "{}", budget.pages_max());
        assert!(budget.page_cost() >= us(1));
    }

    #[test]
    fn a_pause_of_few_pages_says_nothing_about_a_page_and_one_outlier_little() {
        let mut budget = PauseBudget::new(us(2000));
        let before = budget.pages_max();
        budget.handle_pause(1, us(900), us(250));
        assert_eq!(budget.pages_max(), before);
        budget.handle_pause(1000, us(90_000), us(90_000));
        assert!(budget.pages_max() > before / 2, "{}", budget.pages_max());
    }

    #[test]
    fn a_budget_below_its_fixed_cost_still_copies_something() {
        assert_eq!(PauseBudget::new(us(10)).pages_max(), PAGES_MIN);
    }
}
