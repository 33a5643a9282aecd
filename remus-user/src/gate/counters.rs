//! The programs' counters, summed over the CPUs.

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray},
};
use remus_abi::gate::{COUNTERS, Counter};

pub(super) struct CounterMap(PerCpuArray<MapData, u64>);

/// A snapshot; not an atomic one, counters of running programs move on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters([u64; COUNTERS as usize]);

impl Counters {
    pub fn get(&self, which: Counter) -> u64 {
        self.0[which as usize]
    }
}

impl CounterMap {
    pub(super) fn take(loaded: &mut Ebpf) -> Result<Self> {
        let map = loaded.take_map("COUNTERS").context("the gate's object has no map COUNTERS")?;
        Ok(Self(PerCpuArray::try_from(map)?))
    }

    pub(super) fn read(&self) -> Result<Counters> {
        let mut sums = [0; COUNTERS as usize];
        for (index, sum) in (0..).zip(&mut sums) {
            *sum = self.0.get(&index, 0).context("read the gate's counters")?.iter().sum();
        }
        Ok(Counters(sums))
    }
}
