//! What `ack` did with datagrams: its counters, and its newest commit.

use anyhow::Result;
use aya::maps::{Map, MapData, PerCpuArray};
use remus_abi::{
    Stamp,
    ack::{AckCounters, Acked},
};

use super::{control::Words, counters::summed};
use crate::wire::Moment;

pub(super) struct AckMaps {
    counters: PerCpuArray<MapData, u64>,
    acked: Words,
}

impl AckMaps {
    pub(super) fn new(acked: &MapData, counters: MapData) -> Result<Self> {
        let counters = PerCpuArray::try_from(Map::PerCpuArray(counters))?;
        Ok(Self { counters, acked: Words::map(acked)? })
    }

    pub(super) fn counters(&self) -> Result<AckCounters> {
        summed(&self.counters)
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
