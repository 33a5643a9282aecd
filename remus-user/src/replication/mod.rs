//! The brains of replication, and what they conclude from time and silence.
//!
//! - [`Pipeline`]: the primary's. Epochs open, captured, acked, released; when to seal; sessions lost and begun.
//! - [`Tempo`]: how long epochs last, as the operator wants it.
//! - [`Backup`]: the backup's. Which checkpoints are taken, what is answered, when the image may be promoted.
//! - [`Standalone`]: that of a gate alone, which a checkpointer that is not ours drives.
//! - [`judge`]: whose state comes from whose; in a split nobody follows and nobody stands down.
//! - [`Detector`]: silence that was *heard*. [`PrimaryLease`], [`BackupLease`]: who may still release, and when
//!   nobody can any more.
//! - Permissions, which only these brains make and nobody can copy: [`Fenced`] to speak for a guest, [`NextEpoch`] to
//!   stamp with the next epoch, [`Committed`] to release an epoch, [`LeaseUntil`] to release for a while.
//!
//! Pure: `now` is an argument, `handle_*` takes an event, `poll_*` says what to do. No clock, socket, file, thread
//! or ioctl in here. A peer's mistake is an error value, and means: drop the session. A broken invariant is a
//! panic: a primary that stops is the case all this is built for.

mod ancestry;
mod backup;
mod cadence;
mod detector;
mod fenced;
mod lease;
mod next_epoch;
mod pipeline;
mod standalone;
mod stream;

pub(crate) use ancestry::split_advice;
pub use ancestry::{Relation, judge};
pub use backup::{
    Backup, FollowError, Known, NotPromotable, NotPromoted, Promoted, Promotion, Readiness,
};
pub use cadence::{Mode, Seen, Tempo};
pub use detector::{Detector, Suspicion, SuspicionWhy};
pub use fenced::{Fenced, FencedBy};
pub use lease::{BackupLease, LeaseError, LeaseUntil, PrimaryLease};
pub use next_epoch::NextEpoch;
pub use pipeline::{
    Acked, Committed, Pipeline, Policy, SealWhen, Sealed, SessionError, Standing, Stopped, SyncNext,
};
pub use standalone::{Inconsistent, Refused, Standalone};
pub use stream::AckError;
