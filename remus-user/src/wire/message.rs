//! The messages, in the order of the table of kinds.

use std::time::Duration;

use remus_abi::{Epoch, Term};

use super::{
    AckTo, Ancestry, Digest, Feature, Features, Instance, Moment, Nonce, Session, TermId, Timing,
    VmId, WireError,
    field::{Field, Reader, fields, put_run},
};
use crate::names::VmName;

/// The first word of a session: who speaks for which machine, in which term, and what it needs.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Hello {
    pub vm: VmName,
    /// Which VM of that name.
    pub id: VmId,
    pub session: Session,
    /// What the primary knows.
    pub features: Features,
    pub term: Term,
    /// Who speaks in this term: the primary.
    pub nonce: Nonce,
    /// The terms that its state comes from, this one included once the guest may have been heard in it.
    pub ancestry: Ancestry,
    /// Pages of guest RAM: to be compared with what the host has before anything is made for it.
    pub ram_pages: u32,
    pub timing: Timing,
    /// Acks are to come as datagrams too, if the primary's gate can make use of them.
    pub acks_to: Option<AckTo>,
    /// The machine's shape, in the shell's own encoding; at most [`Hello::SHAPE_MAX`] bytes.
    pub shape: Vec<u8>,
    /// What the guest sees of the CPU, likewise; at most [`Hello::CPU_MAX`] bytes.
    pub cpu: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Welcome {
    pub session: Session,
    /// What the backup knows.
    pub features: Features,
    pub backup: Instance,
    /// The terms that the backup knows to have been spoken in.
    pub ancestry: Ancestry,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Refuse {
    pub why: Refusal,
    /// The newest term that the backup has heard of; [`Term::NONE`] if it has heard of none.
    pub newest: Term,
    /// For people; at most [`Refuse::TEXT_MAX`] bytes.
    pub text: String,
    /// The terms that the backup knows to have been spoken in. For a peer of this version alone: the others take no
    /// body that goes on after the text.
    pub ancestry: Option<Ancestry>,
}

/// Why a backup does not take a session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u16)]
pub enum Refusal {
    /// It speaks another version of the protocol.
    Version = 1,
    /// It cannot build such a machine.
    Shape = 2,
    /// It lacks a CPU feature that the guest has seen.
    Cpu = 3,
    /// It has not the memory.
    Memory = 4,
    /// It has heard of a newer term, or of one that the primary lacks; or no term is left.
    OutdatedTerm = 5,
    /// It speaks for the guest itself.
    Promoted = 6,
    /// It follows another primary, or keeps the guest of one.
    OtherPrimary = 7,
    /// The timing breaks an inequality.
    Timing = 8,
    /// It is ending, or not yet ready: try again.
    NotReady = 9,
    /// Both have spoken, or know who has, in terms of which neither comes from the other: an operator must choose.
    Split = 10,
    /// It knows another VM by this name.
    OtherVm = 11,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Heartbeat {
    pub term: Term,
    pub seq: u64,
    /// On the primary's clock; comes back in the answer.
    pub sent: Moment,
    /// How long ago the engine's last turn was, in milliseconds on the wire; `Some` in a session that has
    /// [`Feature::EngineAge`], and in no other.
    pub engine_age: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HeartbeatAck {
    pub term: Term,
    pub seq: u64,
    /// As it came.
    pub sent: Moment,
}

/// The guest has ended on purpose: nothing is to be promoted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Goodbye {
    pub term: Term,
    /// The last checkpoint, committed before this was said.
    pub epoch: Epoch,
    pub why: GoodbyeWhy,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u16)]
pub enum GoodbyeWhy {
    /// The guest powered itself off.
    PowerOff = 1,
    /// The operator stopped the machine.
    Stopped = 2,
    /// The guest cannot go on, here or anywhere.
    Crashed = 3,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GoodbyeAck {
    pub term: Term,
    pub epoch: Epoch,
}

/// Another host speaks for the guest now, in the newest term of this ancestry: the word of that speaker.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct StandDown {
    pub ancestry: Ancestry,
}

/// What a takeover by this backup lacks: said when it changes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Lacks {
    /// For people, at most [`Lacks::TEXT_MAX`] bytes; empty when nothing is lacking.
    pub what: String,
}

/// Joins a bulk connection to the session that was welcomed on a control connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Attach {
    pub session: Session,
}

/// A checkpoint begins. `Pages` and one or more `State` follow, then [`End`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Begin {
    pub session: Session,
    pub term: Term,
    pub epoch: Epoch,
    /// The checkpoint it follows; [`Epoch::NONE`] for the first of a session, which completes the sync.
    pub predecessor: Epoch,
    /// The chain's value before this frame.
    pub predecessor_digest: Digest,
    /// When it was sent, on the primary's clock; comes back in the ack.
    pub sent: Moment,
    /// Pages staged: no more than this many will follow, fewer if some turn out to be unchanged.
    pub pages_max: u32,
    /// Bytes of state that follow.
    pub state_len: u32,
    /// The guest was reset in it: RAM is the boot image's before its pages are put in.
    pub reset: bool,
}

/// The checkpoint is complete.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct End {
    pub epoch: Epoch,
    /// Pages sent since `Begin`.
    pub pages: u32,
    /// The chain's value after everything since `Begin`: the checkpoint's digest.
    pub digest: Digest,
}

/// The checkpoint is committed: whole, in memory, its digest holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ack {
    pub session: Session,
    pub term: Term,
    pub epoch: Epoch,
    pub digest: Digest,
    /// As it came in `Begin`.
    pub sent: Moment,
}

fields! {
    HeartbeatAck { term, seq, sent }
    Goodbye { term, epoch, why }
    GoodbyeAck { term, epoch }
    StandDown { ancestry }
    Attach { session }
    Begin { session, term, epoch, predecessor, predecessor_digest, sent, pages_max, state_len, reset }
    End { epoch, pages, digest }
    Ack { session, term, epoch, digest, sent }
    Timing { epoch_max, heartbeat, detect, lease, margin }
}

impl Hello {
    pub const SHAPE_MAX: usize = 4 << 10;
    pub const CPU_MAX: usize = 48 << 10;

    /// The term in which the primary speaks, or wants to.
    pub fn of(&self) -> TermId {
        TermId::new(self.term, self.nonce)
    }
}

impl Refuse {
    pub const TEXT_MAX: usize = 512;

    /// Shortens `text` to what a frame takes.
    pub fn new(why: Refusal, newest: Term, text: &str) -> Self {
        let end = text.floor_char_boundary(Self::TEXT_MAX);
        Self { why, newest, text: text[..end].to_owned(), ancestry: None }
    }

    /// The same, to a peer of this version.
    pub fn with(self, ancestry: Ancestry) -> Self {
        Self { ancestry: Some(ancestry), ..self }
    }
}

impl Lacks {
    pub const TEXT_MAX: usize = Refuse::TEXT_MAX;

    /// Shortens `what` to what a frame takes.
    pub fn new(what: &str) -> Self {
        let end = what.floor_char_boundary(Self::TEXT_MAX);
        Self { what: what[..end].to_owned() }
    }
}

impl Field for Hello {
    fn put(&self, out: &mut Vec<u8>) {
        let Self {
            vm,
            id,
            session,
            features,
            term,
            nonce,
            ancestry,
            ram_pages,
            timing,
            acks_to,
            shape,
            cpu,
        } = self;
        session.put(out);
        features.put(out);
        term.put(out);
        nonce.put(out);
        id.put(out);
        ram_pages.put(out);
        timing.put(out);
        acks_to.put(out);
        put_run(out, vm.as_str().as_bytes(), VmName::LEN_MAX);
        put_run(out, shape, Self::SHAPE_MAX);
        put_run(out, cpu, Self::CPU_MAX);
        ancestry.put(out);
    }

    fn take(body: &mut Reader<'_>) -> Result<Self, WireError> {
        let (session, features) = (Field::take(body)?, Field::take(body)?);
        let hello = Self {
            session,
            features,
            term: Field::take(body)?,
            nonce: Field::take(body)?,
            id: Field::take(body)?,
            ram_pages: Field::take(body)?,
            timing: Field::take(body)?,
            acks_to: Field::take(body)?,
            vm: std::str::from_utf8(body.run(VmName::LEN_MAX)?)
                .ok()
                .and_then(|name| VmName::new(name).ok())
                .ok_or(WireError::Value("VM name"))?,
            shape: body.run(Self::SHAPE_MAX)?.to_vec(),
            cpu: body.run(Self::CPU_MAX)?.to_vec(),
            ancestry: Field::take(body)?,
        };
        body.skip_unknown(features);
        Ok(hello)
    }
}

impl Field for Welcome {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { session, features, backup, ancestry } = self;
        session.put(out);
        features.put(out);
        backup.put(out);
        ancestry.put(out);
    }

    fn take(body: &mut Reader<'_>) -> Result<Self, WireError> {
        let (session, features) = (Field::take(body)?, Field::take(body)?);
        let (backup, ancestry) = (Field::take(body)?, Field::take(body)?);
        body.skip_unknown(features);
        Ok(Self { session, features, backup, ancestry })
    }
}

impl Field for Heartbeat {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { term, seq, sent, engine_age } = self;
        term.put(out);
        seq.put(out);
        sent.put(out);
        if let Some(age) = engine_age {
            u32::try_from(age.as_millis()).unwrap_or(u32::MAX).put(out);
        }
    }

    fn take(body: &mut Reader<'_>) -> Result<Self, WireError> {
        let (term, seq, sent) = (Field::take(body)?, Field::take(body)?, Field::take(body)?);
        let millis: Option<u32> = body.field_of(Feature::EngineAge)?;
        let engine_age = millis.map(|millis| Duration::from_millis(millis.into()));
        Ok(Self { term, seq, sent, engine_age })
    }
}

impl Field for Refuse {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { why, newest, text, ancestry } = self;
        why.put(out);
        newest.put(out);
        put_run(out, text.as_bytes(), Self::TEXT_MAX);
        if let Some(ancestry) = ancestry {
            ancestry.put(out);
        }
    }

    fn take(body: &mut Reader<'_>) -> Result<Self, WireError> {
        let (why, newest) = (Field::take(body)?, Field::take(body)?);
        let text = for_people(body.run(Self::TEXT_MAX)?);
        let ancestry = if body.is_empty() { None } else { Some(Field::take(body)?) };
        Ok(Self { why, newest, text, ancestry })
    }
}

impl Field for Lacks {
    fn put(&self, out: &mut Vec<u8>) {
        put_run(out, self.what.as_bytes(), Self::TEXT_MAX);
    }

    fn take(body: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self { what: for_people(body.run(Self::TEXT_MAX)?) })
    }
}

/// A text ends up on a terminal, and a stranger may have written it.
fn for_people(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl Field for Refusal {
    fn put(&self, out: &mut Vec<u8>) {
        (*self as u16).put(out);
    }

    fn take(body: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(match u16::take(body)? {
            1 => Self::Version,
            2 => Self::Shape,
            3 => Self::Cpu,
            4 => Self::Memory,
            5 => Self::OutdatedTerm,
            6 => Self::Promoted,
            7 => Self::OtherPrimary,
            8 => Self::Timing,
            9 => Self::NotReady,
            10 => Self::Split,
            11 => Self::OtherVm,
            _ => return Err(WireError::Value("Refusal")),
        })
    }
}

impl Field for GoodbyeWhy {
    fn put(&self, out: &mut Vec<u8>) {
        (*self as u16).put(out);
    }

    fn take(body: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(match u16::take(body)? {
            1 => Self::PowerOff,
            2 => Self::Stopped,
            3 => Self::Crashed,
            _ => return Err(WireError::Value("GoodbyeWhy")),
        })
    }
}
