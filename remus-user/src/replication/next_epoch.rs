//! Permission to stamp with the next epoch.

use remus_abi::Stamp;

/// An epoch has ended, in a pause that takes its checkpoint; the gate stamps what the guest sends next with the epoch after
/// it.
///
/// Only a brain makes one, when it seals; not `Clone`, since an epoch ends once. It names no session: a checkpointer that
/// is not ours has none, and the gate asks for none.
#[derive(PartialEq, Eq, Debug)]
pub struct NextEpoch {
    stamp: Stamp,
    is_first: bool,
}

impl NextEpoch {
    /// `stamp` follows the epoch that was sealed. With `is_first` its checkpoint is the first of a session.
    pub(super) fn after_seal(stamp: Stamp, is_first: bool) -> Self {
        Self { stamp, is_first }
    }

    /// The epoch that is open from now on.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Whether the sealed checkpoint is the first of a session: if the gate was open, holding begins in this pause.
    pub fn is_first(&self) -> bool {
        self.is_first
    }
}
