//! The messages, lane by lane.

use remus_abi::{Epoch, Term};

use super::{
    AckTo, Digest, Frame, HEADER_LEN, Inbound, Instance, Kind, Moment, Session, Timing, WireError,
    field::{Field, Reader, fixed, put_run},
    head,
};
use crate::names::VmName;

/// What the primary says on the control connection.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ToBackup {
    Hello(Hello),
    Heartbeat(Heartbeat),
    Goodbye(Goodbye),
    Inbound(Inbound),
}

/// What the backup says on the control connection.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ToPrimary {
    Welcome(Welcome),
    Refuse(Refuse),
    HeartbeatAck(HeartbeatAck),
    GoodbyeAck(GoodbyeAck),
    StandDown(StandDown),
    Lacks(Lacks),
}

/// What the primary says on the bulk connection. Bodies of pages are still encoded: `checkpoint::batch`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Bulk<'a> {
    Attach(Attach),
    BootPages(&'a [u8]),
    BootState(&'a [u8]),
    SyncPages(&'a [u8]),
    Begin(Begin),
    Pages(&'a [u8]),
    State(&'a [u8]),
    End(End),
}

/// The first word of a session: who speaks for which machine, in which term, and what it needs.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Hello {
    pub vm: VmName,
    pub session: Session,
    pub primary: Instance,
    pub term: Term,
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

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Welcome {
    pub session: Session,
    pub backup: Instance,
    /// The newest term that the backup has heard of, the session's included.
    pub newest: Term,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Refuse {
    pub why: Refusal,
    /// The newest term that the backup has heard of; [`Term::NONE`] if it has heard of none.
    pub newest: Term,
    /// For people; at most [`Refuse::TEXT_MAX`] bytes.
    pub text: String,
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
    /// It has heard of a newer term: the primary must stand down.
    OutdatedTerm = 5,
    /// It speaks for the guest itself.
    Promoted = 6,
    /// Another primary of the same term is being followed.
    OtherPrimary = 7,
    /// The timing breaks an inequality.
    Timing = 8,
    /// It is ending, or not yet ready: try again.
    NotReady = 9,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Heartbeat {
    pub term: Term,
    pub seq: u64,
    /// On the primary's clock; comes back in the answer.
    pub sent: Moment,
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

/// Another host speaks for the guest now.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StandDown {
    pub newer: Term,
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

fixed! {
    Welcome { session, backup, newest }
    Heartbeat { term, seq, sent }
    HeartbeatAck { term, seq, sent }
    Goodbye { term, epoch, why }
    GoodbyeAck { term, epoch }
    StandDown { newer }
    Attach { session }
    Begin { session, term, epoch, predecessor, predecessor_digest, sent, pages_max, state_len, reset }
    End { epoch, pages, digest }
    Ack { session, term, epoch, digest, sent }
    Timing { epoch_max, heartbeat, detect, lease, margin }
}

impl Hello {
    pub const SHAPE_MAX: usize = 4 << 10;
    pub const CPU_MAX: usize = 48 << 10;
}

impl Refuse {
    pub const TEXT_MAX: usize = 512;

    /// Shortens `text` to what a frame takes.
    pub fn new(why: Refusal, newest: Term, text: &str) -> Self {
        let end = text.floor_char_boundary(Self::TEXT_MAX);
        Self { why, newest, text: text[..end].to_owned() }
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
        let Self { vm, session, primary, term, ram_pages, timing, acks_to, shape, cpu } = self;
        session.put(out);
        primary.put(out);
        term.put(out);
        ram_pages.put(out);
        timing.put(out);
        acks_to.put(out);
        put_run(out, vm.as_str().as_bytes(), VmName::LEN_MAX);
        put_run(out, shape, Self::SHAPE_MAX);
        put_run(out, cpu, Self::CPU_MAX);
    }

    fn take(body: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            session: Field::take(body)?,
            primary: Field::take(body)?,
            term: Field::take(body)?,
            ram_pages: Field::take(body)?,
            timing: Field::take(body)?,
            acks_to: Field::take(body)?,
            vm: std::str::from_utf8(body.run(VmName::LEN_MAX)?)
                .ok()
                .and_then(|name| VmName::new(name).ok())
                .ok_or(WireError::Value("VM name"))?,
            shape: body.run(Self::SHAPE_MAX)?.to_vec(),
            cpu: body.run(Self::CPU_MAX)?.to_vec(),
        })
    }
}

impl Field for Refuse {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { why, newest, text } = self;
        why.put(out);
        newest.put(out);
        put_run(out, text.as_bytes(), Self::TEXT_MAX);
    }

    fn take(body: &mut Reader<'_>) -> Result<Self, WireError> {
        let (why, newest) = (Field::take(body)?, Field::take(body)?);
        Ok(Self { why, newest, text: for_people(body.run(Self::TEXT_MAX)?) })
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

impl ToBackup {
    /// Appends the message as a frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(m) => put_frame(out, Kind::Hello, m),
            Self::Heartbeat(m) => put_frame(out, Kind::Heartbeat, m),
            Self::Goodbye(m) => put_frame(out, Kind::Goodbye, m),
            Self::Inbound(m) => put_frame(out, Kind::Inbound, m),
        };
    }

    /// # Errors
    /// [`WireError`] when the body is not what its kind says, or the kind is another lane's.
    pub fn decode(frame: &Frame<'_>) -> Result<Self, WireError> {
        match frame.kind {
            Kind::Hello => whole(frame.body).map(Self::Hello),
            Kind::Heartbeat => whole(frame.body).map(Self::Heartbeat),
            Kind::Goodbye => whole(frame.body).map(Self::Goodbye),
            Kind::Inbound => whole(frame.body).map(Self::Inbound),
            kind @ (Kind::Welcome
            | Kind::Refuse
            | Kind::HeartbeatAck
            | Kind::GoodbyeAck
            | Kind::StandDown
            | Kind::Lacks
            | Kind::Attach
            | Kind::BootPages
            | Kind::BootState
            | Kind::SyncPages
            | Kind::Begin
            | Kind::Pages
            | Kind::State
            | Kind::End
            | Kind::Ack) => Err(WireError::Lane { kind }),
        }
    }
}

impl ToPrimary {
    /// Appends the message as a frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Welcome(m) => put_frame(out, Kind::Welcome, m),
            Self::Refuse(m) => put_frame(out, Kind::Refuse, m),
            Self::HeartbeatAck(m) => put_frame(out, Kind::HeartbeatAck, m),
            Self::GoodbyeAck(m) => put_frame(out, Kind::GoodbyeAck, m),
            Self::StandDown(m) => put_frame(out, Kind::StandDown, m),
            Self::Lacks(m) => put_frame(out, Kind::Lacks, m),
        };
    }

    /// # Errors
    /// As [`ToBackup::decode`].
    pub fn decode(frame: &Frame<'_>) -> Result<Self, WireError> {
        match frame.kind {
            Kind::Welcome => whole(frame.body).map(Self::Welcome),
            Kind::Refuse => whole(frame.body).map(Self::Refuse),
            Kind::HeartbeatAck => whole(frame.body).map(Self::HeartbeatAck),
            Kind::GoodbyeAck => whole(frame.body).map(Self::GoodbyeAck),
            Kind::StandDown => whole(frame.body).map(Self::StandDown),
            Kind::Lacks => whole(frame.body).map(Self::Lacks),
            kind @ (Kind::Hello
            | Kind::Heartbeat
            | Kind::Goodbye
            | Kind::Inbound
            | Kind::Attach
            | Kind::BootPages
            | Kind::BootState
            | Kind::SyncPages
            | Kind::Begin
            | Kind::Pages
            | Kind::State
            | Kind::End
            | Kind::Ack) => Err(WireError::Lane { kind }),
        }
    }
}

impl<'a> Bulk<'a> {
    /// # Errors
    /// As [`ToBackup::decode`]. What is inside pages and state is not looked at here.
    pub fn decode(frame: &Frame<'a>) -> Result<Self, WireError> {
        match frame.kind {
            Kind::Attach => whole(frame.body).map(Self::Attach),
            Kind::BootPages => Ok(Self::BootPages(frame.body)),
            Kind::BootState => Ok(Self::BootState(frame.body)),
            Kind::SyncPages => Ok(Self::SyncPages(frame.body)),
            Kind::Begin => whole(frame.body).map(Self::Begin),
            Kind::Pages => Ok(Self::Pages(frame.body)),
            Kind::State => Ok(Self::State(frame.body)),
            Kind::End => whole(frame.body).map(Self::End),
            kind @ (Kind::Hello
            | Kind::Heartbeat
            | Kind::Goodbye
            | Kind::Inbound
            | Kind::Welcome
            | Kind::Refuse
            | Kind::HeartbeatAck
            | Kind::GoodbyeAck
            | Kind::StandDown
            | Kind::Lacks
            | Kind::Ack) => Err(WireError::Lane { kind }),
        }
    }
}

impl Inbound {
    /// Appends the message as a frame, as [`ToBackup::encode`] does.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_frame(out, Kind::Inbound, self);
    }
}

/// The fixed messages of the bulk connection; each appends itself as a frame and returns the checksum, for
/// the [`Chain`](super::Chain). Pages and state are written from where they are: [`head`].
impl Attach {
    pub fn encode(&self, out: &mut Vec<u8>) -> u64 {
        put_frame(out, Kind::Attach, self)
    }
}

impl Begin {
    pub fn encode(&self, out: &mut Vec<u8>) -> u64 {
        put_frame(out, Kind::Begin, self)
    }
}

impl End {
    pub fn encode(&self, out: &mut Vec<u8>) -> u64 {
        put_frame(out, Kind::End, self)
    }
}

impl Ack {
    pub fn encode(&self, out: &mut Vec<u8>) -> u64 {
        put_frame(out, Kind::Ack, self)
    }

    /// # Errors
    /// As [`ToBackup::decode`].
    pub fn decode(frame: &Frame<'_>) -> Result<Self, WireError> {
        match frame.kind {
            Kind::Ack => whole(frame.body),
            kind @ (Kind::Hello
            | Kind::Heartbeat
            | Kind::Goodbye
            | Kind::Inbound
            | Kind::Welcome
            | Kind::Refuse
            | Kind::HeartbeatAck
            | Kind::GoodbyeAck
            | Kind::StandDown
            | Kind::Lacks
            | Kind::Attach
            | Kind::BootPages
            | Kind::BootState
            | Kind::SyncPages
            | Kind::Begin
            | Kind::Pages
            | Kind::State
            | Kind::End) => Err(WireError::Lane { kind }),
        }
    }
}

fn put_frame(out: &mut Vec<u8>, kind: Kind, message: &impl Field) -> u64 {
    let at = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    message.put(out);
    let (header, checksum) = head(kind, std::iter::once(&out[at + HEADER_LEN..]));
    out[at..at + HEADER_LEN].copy_from_slice(&header);
    checksum
}

/// Decodes a body that must be used up.
fn whole<T: Field>(body: &[u8]) -> Result<T, WireError> {
    let mut reader = Reader::new(body);
    let value = T::take(&mut reader)?;
    reader.end()?;
    Ok(value)
}
