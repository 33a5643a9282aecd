//! The gate's rule: what `hold` stores and `flush` lets go.

use remus::wire::Moment;
use remus_abi::Stamp;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Mode {
    Closed,
    Hold,
    Open,
}

/// The maps, and the frames in the slots: each a stamp and a number said.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Gate {
    pub(crate) mode: Mode,
    pub(crate) open: Stamp,
    pub(crate) committed: Stamp,
    pub(crate) lease_until: Option<Moment>,
    pub(crate) slots: Vec<(Stamp, u8)>,
}

impl Gate {
    pub(crate) fn new(mode: Mode, open: Stamp) -> Self {
        Self { mode, open, committed: Stamp::NONE, lease_until: None, slots: Vec::new() }
    }

    /// What the guest says now: kept, dropped, or let through.
    pub(crate) fn hold(&mut self, said: u8) -> Option<u8> {
        match self.mode {
            Mode::Closed => None,
            Mode::Open => Some(said),
            Mode::Hold => {
                self.slots.push((self.open, said));
                None
            }
        }
    }

    pub(crate) fn has_committed(&self) -> bool {
        self.slots.iter().any(|(stamp, _)| stamp.is_covered_by(self.committed))
    }

    pub(crate) fn lease_holds(&self, now: Moment) -> bool {
        self.lease_until.is_some_and(|until| now <= until)
    }

    /// Everything whose epoch is committed, in order.
    pub(crate) fn flush(&mut self) -> Vec<u8> {
        assert!(self.committed < self.open, "a committed epoch that is not below the open one");
        let committed = self.committed;
        let mut out = Vec::new();
        self.slots.retain(|(stamp, said)| {
            let goes = stamp.is_covered_by(committed);
            if goes {
                out.push(*said);
            }
            !goes
        });
        out
    }
}
