//! What other threads tell the engine, and what the engine asks of the task that keeps its sessions.

use remus_abi::{Epoch, Term};

use super::shipment::Shipment;
use crate::{
    link::Bulk,
    observe::Asked,
    wire::{Ack, Ancestry, Digest, GoodbyeWhy, Moment, Nonce, Refusal, Session, Welcome},
};

/// Everything that happens to the engine from outside of its own devices.
pub(crate) enum Input {
    /// A backup has welcomed a session; its bulk connection.
    Connected { session: Session, welcome: Welcome, bulk: Bulk },
    /// One of the session's connections is gone.
    Lost { session: Session, why: String },
    /// No session could be made, and another try follows. The reason is for people.
    NoSession { why: String },
    /// The backup refused a session, for now; what it said is for people. The terms that it has heard of.
    Refused { why: Refusal, text: String, ancestry: Ancestry },
    /// What a takeover by the backup lacks, in words; nothing when they are empty.
    BackupLacks { what: String },
    /// The backup answered a heartbeat that was sent at this moment.
    Answered { session: Session, sent: Moment },
    /// The sender has a checkpoint ready to send, with this digest; said before its last byte leaves.
    Encoded { session: Session, epoch: Epoch, digest: Digest },
    /// The backup has committed a checkpoint.
    Acked(Ack),
    /// The sender has dealt with a shipment.
    Shipped(Box<Shipment>),
    /// Another host speaks for the guest, in the newest of these terms: the word of that host.
    StandDown { ancestry: Ancestry },
    /// A host that speaks at this moment is in a split with this one, in words.
    Split { text: String },
    /// The backup has taken the goodbye, or there is none to take it.
    GoodbyeSaid,
    /// An operator's order.
    Asked(Asked),
    /// The operator ends the guest.
    Stop,
}

/// What the engine asks of the task that keeps its sessions.
pub(crate) enum Order {
    /// The session is of no use any more; make another.
    Drop(Session),
    /// The guest may have been heard in this term: the next hello says so.
    Spoken,
    /// The guest goes on in this term: that of all sessions from now on.
    BeginTerm(NewTerm),
    /// Say goodbye, then end.
    Goodbye { epoch: Epoch, why: GoodbyeWhy },
}

/// A term that a guest goes on in, and its speaker.
pub(crate) struct NewTerm {
    pub(crate) term: Term,
    pub(crate) nonce: Nonce,
    /// With this term as the newest.
    pub(crate) ancestry: Ancestry,
}
