//! A guest decides how often some lines are logged; this decides how many of them are.

use std::time::Duration;

use crate::{names::Moment, os::boot_now};

const PERIOD: Duration = Duration::from_secs(1);
/// Lines in a period.
const LINES: u32 = 200;

/// Passes so many lines a second, and counts the others.
#[derive(Default)]
pub(super) struct LogLimit {
    since: Option<Moment>,
    passed: u32,
    held_back: u64,
}

impl LogLimit {
    /// Returns whether to log now. A new period begins by saying how many lines the last one kept back.
    pub(super) fn passes(&mut self) -> bool {
        let now = boot_now();
        if self.since.is_none_or(|since| now.since(since) >= PERIOD) {
            if self.held_back > 0 {
                tracing::warn!("{} lines of the guest's were not logged", self.held_back);
            }
            *self = Self { since: Some(now), ..Self::default() };
        }
        let passes = self.passed < LINES;
        if passes {
            self.passed += 1;
        } else {
            self.held_back += 1;
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_off_and_counted() {
        let mut limit = LogLimit::default();
        let passed = (0..3 * LINES).filter(|_| limit.passes()).count();
        assert!(passed >= LINES as usize && passed < 3 * LINES as usize);
        assert!(limit.held_back > 0);
    }
}
