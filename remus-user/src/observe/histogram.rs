//! A histogram that one thread writes and others read, without locks, for as long as the process lives.
//!
//! Log-linear: 32 buckets to each power of two, so that a percentile is at most 3 % above the value that was
//! recorded. The maximum is exact.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::status::Distribution;

const SUB_BITS: u32 = 5;
const SUB: usize = 1 << SUB_BITS;
/// Values are `u32`: the linear start, then one row for each further power of two.
const BUCKETS: usize = SUB * (32 - SUB_BITS as usize + 1);

pub(super) struct Histogram {
    buckets: Box<[AtomicU64]>,
    max: AtomicU64,
}

impl Histogram {
    pub(super) fn new() -> Self {
        let buckets = (0..BUCKETS).map(|_| AtomicU64::new(0)).collect();
        Self { buckets, max: AtomicU64::new(0) }
    }

    pub(super) fn record(&self, value: u32) {
        self.buckets[bucket(value)].fetch_add(1, Relaxed);
        self.max.fetch_max(value.into(), Relaxed);
    }

    pub(super) fn distribution(&self) -> Distribution {
        let counts: Vec<u64> = self.buckets.iter().map(|b| b.load(Relaxed)).collect();
        let max = self.max.load(Relaxed);
        let count = counts.iter().sum();
        let percentile = |per_cent: u64| {
            let rank = rank(count, per_cent);
            let mut below = 0;
            let at = counts.iter().position(|n| {
                below += n;
                below >= rank
            });
            at.filter(|_| count > 0).map_or(0, |at| highest(at).min(max))
        };
        Distribution { count, p50: percentile(50), p90: percentile(90), p99: percentile(99), max }
    }
}

/// Sorts `values`, and returns their exact distribution.
pub(super) fn exact(values: &mut [u32]) -> Distribution {
    values.sort_unstable();
    let count = values.len() as u64;
    let percentile = |per_cent: u64| {
        let at = usize::try_from(rank(count, per_cent)).expect("an index");
        values.get(at.saturating_sub(1)).map_or(0, |v| u64::from(*v))
    };
    Distribution {
        count,
        p50: percentile(50),
        p90: percentile(90),
        p99: percentile(99),
        max: values.last().map_or(0, |v| u64::from(*v)),
    }
}

/// Returns the nearest rank, from 1, of a percentile among `count` values.
fn rank(count: u64, per_cent: u64) -> u64 {
    (count * per_cent).div_ceil(100).max(1)
}

fn bucket(value: u32) -> usize {
    let row = (32 - value.leading_zeros()).saturating_sub(SUB_BITS + 1);
    // The row's values have their highest bit at place `row + SUB_BITS`; the next bits choose the bucket.
    (row as usize) * SUB + (value >> row) as usize
}

/// Returns the highest value that falls into a bucket.
fn highest(bucket: usize) -> u64 {
    let row = (bucket / SUB).saturating_sub(1);
    let sub = (bucket - row * SUB) as u64;
    ((sub + 1) << row) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_holds_its_value_within_three_per_cent(value: u32) {
            let top = highest(bucket(value));
            prop_assert!(top >= u64::from(value));
            prop_assert!(top - u64::from(value) <= u64::from(value) / 32);
        }

        #[test]
        fn percentiles_agree_with_the_exact_ones(mut values in prop::collection::vec(0u32..2_000_000, 1..300)) {
            let histogram = Histogram::new();
            for v in &values {
                histogram.record(*v);
            }
            let (near, exact) = (histogram.distribution(), exact(&mut values));
            prop_assert_eq!((near.count, near.max), (exact.count, exact.max));
            for (near, exact) in [(near.p50, exact.p50), (near.p90, exact.p90), (near.p99, exact.p99)] {
                prop_assert!(near >= exact && near - exact <= exact / 32);
            }
        }
    }

    #[test]
    fn the_largest_value_has_a_bucket_and_none_gives_zeros() {
        assert_eq!(bucket(u32::MAX), BUCKETS - 1);
        assert_eq!(Histogram::new().distribution().p99, 0);
        assert_eq!(exact(&mut []).max, 0);
    }
}
