//! The programs' counters, summed over the CPUs.

use anyhow::{Context, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use remus_abi::{
    counters::{Counted, Counts},
    gate::{Counters, RESIDENCE_BUCKETS, TICK_SHIFT, residence_limit},
};

use super::control::Words;

pub(super) struct CounterMap(PerCpuArray<MapData, u64>);

impl CounterMap {
    pub(super) fn new(map: MapData) -> Result<Self> {
        Ok(Self(PerCpuArray::try_from(Map::PerCpuArray(map))?))
    }

    /// Returns a snapshot. It is not an atomic one: counters of running programs move on.
    pub(super) fn read(&self) -> Result<Counters> {
        summed(&self.0)
    }
}

/// Returns each counter of a map, summed over the CPUs.
pub(super) fn summed<T: Counted, const N: usize>(
    map: &PerCpuArray<MapData, u64>,
) -> Result<Counts<T, N>> {
    let mut sums = [0; N];
    for (index, sum) in (0..).zip(&mut sums) {
        *sum = map.get(&index, 0).context("read the gate's counters")?.iter().sum();
    }
    Ok(Counts::new(sums))
}

/// How long frames waited in the gate, from the tap to their release: counted in the kernel, for one frame in
/// sixteen and each that came when nothing was held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Residence([u64; RESIDENCE_BUCKETS]);

impl Residence {
    pub(super) fn read(buckets: &Words) -> Self {
        Self(std::array::from_fn(|bucket| buckets.get(bucket)))
    }

    /// Frames that were timed, and released.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The longest residence, in microseconds; at most a quarter too long.
    pub fn max_us(&self) -> u64 {
        self.percentile_us(100)
    }

    /// The residence that `per_cent` of the frames did not exceed, in microseconds; at most a quarter too long.
    pub fn percentile_us(&self, per_cent: u64) -> u64 {
        let rank = (self.count() * per_cent).div_ceil(100).max(1);
        let mut below = 0;
        let bucket = self.0.iter().position(|frames| {
            below += frames;
            below >= rank
        });
        let ticks = bucket.map_or(0, |at| residence_limit(u32::try_from(at).expect("a bucket")));
        (ticks << TICK_SHIFT) / 1000
    }
}

impl Default for Residence {
    fn default() -> Self {
        Self([0; RESIDENCE_BUCKETS])
    }
}

#[cfg(test)]
mod tests {
    use remus_abi::gate::residence_bucket;

    use super::*;

    #[test]
    fn percentiles_are_at_most_a_quarter_too_long() {
        let mut residence = Residence::default();
        for us in 1..=1000u32 {
            let ticks = (us * 1000) >> TICK_SHIFT;
            residence.0[residence_bucket(ticks) as usize] += 1;
        }
        for per_cent in [50, 90, 99] {
            let told = residence.percentile_us(per_cent);
            assert!((per_cent * 10..=per_cent * 13).contains(&told), "p{per_cent} {told}");
        }
        assert_eq!(Residence::default().percentile_us(99), 0, "nothing was released");
    }
}
