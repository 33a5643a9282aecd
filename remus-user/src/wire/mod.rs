//! The replication protocol: bytes in, values out, and back.
//!
//! Two TCP connections make a *session*. Each direction of each is a [`Lane`], and a kind of frame belongs to
//! exactly one lane (`kind.rs` has the table), so that a message on the wrong connection, or from the wrong side, does
//! not decode:
//!
//! ```text
//!            control connection                      bulk connection
//! primary ── Hello, Heartbeat, Inbound, Goodbye ──►  ── Attach, BootPages* BootState, SyncPages*,
//!                                                       (Begin Pages* State End)* ──►
//!         ◄─ Welcome | Refuse, HeartbeatAck,         ◄─ Ack*                                      ── backup
//!            GoodbyeAck, StandDown, Lacks ─
//! ```
//!
//! Every frame, both ways, little-endian:
//!
//! ```text
//!  0        4        6        8        12        16                24
//! ┌────────┬────────┬────────┬─────────┬─────────┬─────────────────┬───────────────┐
//! │ "RmKv" │version │  kind  │ length  │    0    │ xxh3 of 0..16   │ body, `length`│
//! │        │  u16   │  u16   │  u32    │  u32    │ and of the body │ bytes         │
//! └────────┴────────┴────────┴─────────┴─────────┴─────────────────┴───────────────┘
//! ```
//!
//! - Kind 0 is reserved. A length is compared with its kind's limit before anything is done for it, and the
//!   receive buffer ([`FrameBuffer`]) is of one size whatever the peer says.
//! - No byte sequence panics; property tests here feed it everything.
//! - The version is the protocol's, not the release's. Only `Refuse` is understood in any version. What a release adds
//!   has a bit of its own ([`Features`]), and is used where both ends have named the bit.
//! - The checksums of a bulk connection's frames chain into a [`Digest`] ([`Chain`]): it names everything the
//!   session has carried so far, so equal digests mean equal images.
//! - The bodies of `Pages`, `SyncPages` and `BootPages` are `checkpoint::batch`'s: page bytes go from staging to the
//!   socket and from the receive buffer to guest memory without another copy.
//!
//! Deliberately absent: sockets, encryption (the link's), compression of whole frames, and any message that
//! asks for something again: a session that loses a byte is dropped, and the next one begins with a sync.

mod ack_to;
mod ancestry;
mod chain;
mod error;
mod feature;
mod field;
mod frame;
mod inbound;
mod kind;
mod lane;
mod message;
mod timing;
mod version;

#[cfg(test)]
mod tests;

pub use crate::names::{Digest, Instance, Moment, Nonce, Session, VmId};
pub use ack_to::AckTo;
pub use ancestry::{Ancestor, Ancestry, TermId};
pub use chain::Chain;
pub use error::WireError;
pub use feature::{Feature, Features};
pub use frame::{Frame, FrameBuffer, HEADER_LEN, head};
pub use inbound::{Inbound, InboundFrames};
pub use kind::{BODY_MAX, CONTROL_BODY_MAX, Kind, Lane};
pub use lane::{BulkToBackup, BulkToPrimary, ToBackup, ToPrimary};
#[cfg(test)]
pub use lane::{OnTrial, Trial};
pub use message::{
    Ack, Attach, Begin, End, Goodbye, GoodbyeAck, GoodbyeWhy, Heartbeat, HeartbeatAck, Hello,
    Lacks, Refusal, Refuse, StandDown, Welcome,
};
pub use timing::{Timing, TimingError};
pub use version::WIRE_VERSION;
