//! What the pipeline permits, as values that nobody else can make.

use remus_abi::{Epoch, Stamp};

use crate::{
    replication::{LeaseUntil, next_epoch::NextEpoch},
    wire::Session,
};

/// An epoch ended: what to capture, and what the guest runs in from now on.
#[derive(PartialEq, Eq, Debug)]
pub struct Sealed {
    pub session: Session,
    /// The epoch that ends, and names the checkpoint.
    pub checkpoint: Stamp,
    /// The checkpoint before it in this session; [`Epoch::NONE`] for the first.
    pub predecessor: Epoch,
    /// For the gate, before anything resumes.
    pub next: NextEpoch,
}

/// A checkpoint is committed at the backup: what the gate may do now.
#[derive(PartialEq, Eq, Debug)]
pub struct Acked {
    pub committed: Committed,
    /// Until when the gate may release.
    pub lease_until: Option<LeaseUntil>,
}

/// Permission to release the output of a term up to an epoch: its checkpoint is committed at the backup.
///
/// Only an ack makes one, or the word of a checkpointer that is not ours; not `Clone`. The gate's commit takes it.
#[derive(PartialEq, Eq, Debug)]
pub struct Committed {
    pub(super) stamp: Stamp,
}

impl Committed {
    /// On the word of somebody else's checkpointer, which `remus gate run` takes: only
    /// [`Standalone`](crate::replication::Standalone) does this.
    pub(in crate::replication) fn by_checkpointer(stamp: Stamp) -> Self {
        Self { stamp }
    }

    pub fn stamp(&self) -> Stamp {
        self.stamp
    }
}
