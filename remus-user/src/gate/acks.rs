//! What `ack` did with datagrams: its counters, and its newest commit.

use anyhow::{Context, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use remus_abi::{
    Stamp,
    ack::{ACK_COUNTERS, AckCounter, Acked},
};

use super::control::Words;
use crate::wire::Moment;

pub(super) struct AckMaps {
    counters: PerCpuArray<MapData, u64>,
    acked: Words,
}

/// A snapshot, in datagrams; see [`AckCounter`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AckCounters([u64; ACK_COUNTERS as usize]);

impl AckCounters {
    pub fn get(&self, which: AckCounter) -> u64 {
        self.0[which as usize]
    }
}

impl AckMaps {
    pub(super) fn new(acked: &MapData, counters: MapData) -> Result<Self> {
        let counters = PerCpuArray::try_from(Map::PerCpuArray(counters))?;
        Ok(Self { counters, acked: Words::map(acked)? })
    }

    pub(super) fn counters(&self) -> Result<AckCounters> {
        let mut sums = [0; ACK_COUNTERS as usize];
        for (index, sum) in (0..).zip(&mut sums) {
            *sum = self.counters.get(&index, 0).context("read the counters of acks")?.iter().sum();
        }
        Ok(AckCounters(sums))
    }

    /// Whether no datagram has moved the gate in this term.
    pub(super) fn are_none(&self) -> bool {
        [Acked::Stamp, Acked::LeaseUntil, Acked::At]
            .iter()
            .all(|word| self.acked.get(*word as usize) == 0)
    }

    /// The newest commit by a datagram, and when it came; a moment of another commit if one came meanwhile.
    pub(super) fn newest(&self) -> Option<(Stamp, Moment)> {
        let stamp = Stamp::from_bits(self.acked.get(Acked::Stamp as usize));
        (stamp != Stamp::NONE).then(|| (stamp, Moment(self.acked.get(Acked::At as usize))))
    }
}
