//! One primary, one backup, what is between them, and what the outside has seen.
//!
//! The guest counts: each of its steps writes the next number into one of its words and says it. So what the
//! outside has seen is a number, and what a guest knows is its largest word.

mod backup;
mod gate;
mod guest;
mod primary;

use std::fmt;

use remus::wire::{Ack, Begin, End, Heartbeat, HeartbeatAck, Nonce, Session, Timing, VmId};
use remus_abi::Term;

use backup::BackupHost;
use guest::{PagesOnWire, Ram};
use primary::PrimaryHost;

/// How often things may happen: what makes the walk finite.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Limits {
    /// Of the guest.
    pub(crate) steps: u8,
    pub(crate) seals: u8,
    pub(crate) sessions: u8,
    pub(crate) ticks: u8,
    pub(crate) heartbeats: u8,
    /// Messages that vanish while their session goes on.
    pub(crate) lost: u8,
    /// Messages delivered once more.
    pub(crate) repeated: u8,
    /// An operator switches the backup off and lets the primary go on in the next term.
    pub(crate) fences: u8,
    /// Another host becomes the backup in the place of one that was switched off.
    pub(crate) newcomers: u8,
    /// Somebody starts the VM on a third host, which knows nothing and counts a newer term.
    pub(crate) strangers: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Start {
    Shut,
    /// In the first term the lease is twice as long as later.
    ShutWithLongLease,
    Unprotected,
    /// The guest was started on both hosts, which knew nothing of each other, and was heard from both: by the primary in
    /// the term `ours`, by the other in the term `theirs`, in which it had taken over and still `runs`, or ended.
    Apart {
        ours: u32,
        theirs: u32,
        runs: bool,
    },
}

/// One thing that the design asks for, taken out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Fault {
    /// Output is released when its checkpoint is captured.
    ReleaseAtCapture,
    /// A promoted backup goes on acknowledging.
    PromotedBackupAcks,
    /// Neither end forgets at a reconnect what was sent before.
    ShadowSurvivesSession,
    /// Dirty bits are cleared after the guest was resumed.
    ClearAfterResume,
    /// `flush` does not look at the lease.
    FlushIgnoresLease,
    /// The lease runs from the arrival of an answer, not from what it answers.
    LeaseFromArrival,
    /// The backup does not wait for the lease.
    PromotesDuringLease,
    /// Pages of a sync are applied to an image that is still called whole.
    SyncKeepsImage,
    /// The gate's open epoch is raised after the guest was resumed.
    OpenAdvancesAfterResume,
    /// A gate that was open begins to hold when the first checkpoint is acked, not when it is captured.
    HoldsFromFirstAck,
    /// The backup greets a primary of a newer term and keeps its old image.
    NewerTermKeepsImage,
    /// The backup takes a newer term for its word, whoever says it.
    StrangersWordCounts,
    /// The lease of a term is not zeroed when the next one begins.
    LeaseSurvivesTerm,
    /// A new term's epochs are written before the lease of the old one is zeroed, and before what is kept is said.
    TermWordFirst,
    /// A late ack of the old term raises the committed epoch of the new one.
    OldTermsCommitCounts,
    /// Of two that speak in terms of which neither comes from the other, the one with the higher number wins.
    SplitJudgedByNumbers,
}

/// What a walk should come across, or it proves little.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Seen {
    Released,
    ReleasedInSecondSession,
    /// After the lease of the last commit ack, on that of a heartbeat.
    ReleasedOnHeartbeatLease,
    PassedOpen,
    Promoted,
    PromotedWithOutputOutside,
    PromotedAfterSecondSession,
    RefusedHalfSynced,
    LeaseStoppedFlush,
    SessionDroppedByBackup,
    LateAckOfFirstSession,
    RepeatedAckIgnored,
    TwoInFlight,
    StoodDown,
    /// Into a session of the second term, which was committed and promoted.
    PromotedInSecondTerm,
    /// A stranger was refused by a backup that keeps the guest.
    RefusedStranger,
    /// What was held in the first term left when the gate opened in the second.
    KeptLeftThroughOpenGate,
    /// A flush came while a term began, and found no lease.
    FlushStoppedWhileTermBegins,
    ReleasedInSecondTerm,
    /// Two that have spoken met, and neither comes from the other.
    Split,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct SeenSet(u32);

/// How the outside was lied to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Violation {
    /// A commit of something that the guest never was.
    ImageDiffers { image: Ram, guest_was: Ram },
    /// The guest that was promoted does not know what the outside has seen.
    TakenBack { seen: u8, knows: u8 },
    /// The image that was promoted is no committed checkpoint.
    PromotedTornImage,
    /// The old primary was heard after the takeover.
    TwoSpeakers { said: u8 },
    /// The primary is turned away for good, and no other host has the guest.
    GuestLost,
    /// The gate threw away what it held, though the guest goes on.
    HeldIsThrownAway { said: u8 },
    /// The gate let something out after what the guest had said later.
    OutOfOrder { said: u8, after: u8 },
    /// A host that has been heard has taken the state of one that knows nothing of that.
    Merged,
    /// The primary has stood down for a host that does not go on from its term.
    StoodDownInSplit,
}

/// A message, and the session whose connection carries it. `truth` is for the checker alone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Packet {
    pub(crate) session: u64,
    pub(crate) message: Message,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Message {
    Sync(PagesOnWire),
    Checkpoint { begin: ByValue<Begin>, end: ByValue<End>, pages: PagesOnWire, truth: Ram },
    Ack(ByValue<Ack>),
    Heartbeat(ByValue<Heartbeat>),
    HeartbeatAck(ByValue<HeartbeatAck>),
}

/// Orders messages of the network by their bytes, so that two networks with the same messages are one state.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct ByValue<T>(pub(crate) T);

/// One thing that happens. Numbers are places in the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    Tick,
    GuestCounts,
    Connect,
    SyncRound,
    Seal,
    /// With [`Fault::ClearAfterResume`] alone.
    ClearLate,
    /// With [`Fault::OpenAdvancesAfterResume`] alone.
    OpenLate,
    Flush,
    Heartbeat,
    Deliver(u8),
    Repeat(u8),
    Lose(u8),
    PrimaryLosesLinks,
    BackupLosesLinks,
    Fence,
    /// The gate's controller does the next thing that a new term takes.
    TurnOn,
    Newcomer,
    Stranger,
    Promote,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    fault: Option<Fault>,
    /// What may still happen.
    left: Limits,
    now: u64,
    primary: PrimaryHost,
    backup: BackupHost,
    network: Vec<Packet>,
    /// The largest number seen outside.
    outside: u8,
    /// It began with [`Start::Apart`].
    apart: bool,
    /// The primary has asked the other host once.
    have_met: bool,
}

/// The clock goes in steps of two nanoseconds: one step within the lease, two beyond lease and margin.
const TICK_NS: u64 = 2;

pub(crate) fn timing() -> Timing {
    let ns = std::time::Duration::from_nanos;
    let timing =
        Timing { epoch_max: ns(1), heartbeat: ns(1), detect: ns(3), lease: ns(2), margin: ns(1) };
    timing.check().expect("lease and margin are within the detection time");
    timing
}

pub(crate) fn long_timing() -> Timing {
    let ns = std::time::Duration::from_nanos;
    let timing = Timing { lease: ns(4), detect: ns(5), ..timing() };
    timing.check().expect("lease and margin are within the detection time");
    timing
}

pub(crate) fn session(n: u64) -> Session {
    Session::new(n).expect("sessions count from 1")
}

pub(crate) fn nonce(n: u64) -> Nonce {
    Nonce::new(n).expect("speakers count from 1")
}

pub(crate) fn term(n: u32) -> Term {
    Term::new(n).expect("a small number")
}

/// All hosts here mean the same one.
pub(crate) fn the_vm() -> VmId {
    VmId::new(1).expect("not 0")
}

impl World {
    pub(crate) fn new(start: Start, limits: Limits, fault: Option<Fault>) -> Self {
        Self {
            fault,
            left: limits,
            // At 0 no lease at all would be one that is not over yet.
            now: 1,
            primary: PrimaryHost::new(start),
            backup: BackupHost::new(start),
            network: Vec::new(),
            outside: 0,
            apart: matches!(start, Start::Apart { .. }),
            have_met: false,
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Everything that may happen now.
    pub(crate) fn steps(&self, steps: &mut Vec<Step>) {
        let Self { left, primary, backup, .. } = self;
        let mut may = |condition: bool, step: Step| {
            if condition {
                steps.push(step);
            }
        };
        may(left.ticks > 0, Step::Tick);
        may(left.steps > 0 && primary.is_free(), Step::GuestCounts);
        may(left.sessions > 0 && primary.may_connect(), Step::Connect);
        may(primary.may_sync(), Step::SyncRound);
        may(left.seals > 0 && primary.may_seal(self.now), Step::Seal);
        may(primary.clears_late(), Step::ClearLate);
        may(primary.opens_late(), Step::OpenLate);
        may(primary.may_flush(), Step::Flush);
        may(left.heartbeats > 0 && primary.has_session(), Step::Heartbeat);
        may(primary.has_session(), Step::PrimaryLosesLinks);
        may(backup.has_session(), Step::BackupLosesLinks);
        may(left.fences > 0 && primary.may_connect() && !backup.is_promoted(), Step::Fence);
        may(primary.gate.is_turning(), Step::TurnOn);
        may(left.newcomers > 0 && backup.is_off(), Step::Newcomer);
        may(left.strangers > 0 && backup.keeps_the_guest(), Step::Stranger);
        may(backup.may_promote(self), Step::Promote);
        for (at, packet) in (0u8..).zip(&self.network) {
            let is_taken = packet.is_for_backup() || primary.is_free();
            may(is_taken, Step::Deliver(at));
            may(is_taken && left.repeated > 0, Step::Repeat(at));
            may(left.lost > 0, Step::Lose(at));
        }
    }

    /// Takes one step.
    pub(crate) fn take(&mut self, step: Step, seen: &mut SeenSet) -> Result<(), Violation> {
        match step {
            Step::Tick => {
                self.left.ticks -= 1;
                self.now += TICK_NS;
            }
            Step::GuestCounts => {
                self.left.steps -= 1;
                self.guest_step(seen)?;
            }
            Step::Connect => {
                self.left.sessions -= 1;
                self.connect(seen)?;
            }
            Step::SyncRound => self.sync_round(),
            Step::Seal => {
                self.left.seals -= 1;
                self.seal(seen);
            }
            Step::ClearLate => self.primary.clear_late(),
            Step::OpenLate => self.primary.open_late(),
            Step::Flush => self.flush(seen)?,
            Step::Heartbeat => {
                self.left.heartbeats -= 1;
                self.heartbeat();
            }
            Step::Deliver(at) => {
                let packet = self.network.remove(usize::from(at));
                self.deliver(packet, seen)?;
            }
            Step::Repeat(at) => {
                self.left.repeated -= 1;
                let packet = self.network[usize::from(at)].clone();
                self.deliver(packet, seen)?;
            }
            Step::Lose(at) => {
                self.left.lost -= 1;
                self.network.remove(usize::from(at));
            }
            Step::PrimaryLosesLinks => self.primary.lose_session(),
            Step::BackupLosesLinks => self.backup.lose_session(),
            Step::Fence => {
                self.left.fences -= 1;
                self.fence();
            }
            Step::TurnOn => self.primary.gate.turn_on(),
            Step::Newcomer => {
                self.left.newcomers -= 1;
                self.backup = BackupHost::newcomer();
            }
            Step::Stranger => {
                self.left.strangers -= 1;
                self.stranger(seen);
            }
            Step::Promote => self.promote(seen)?,
        }
        // What nobody will read makes no difference, so it shall make no other state.
        let mut network = std::mem::take(&mut self.network);
        network.retain(|packet| self.is_read(packet));
        self.network = network;
        Ok(())
    }

    fn send(&mut self, session: u64, message: Message) {
        self.network.push(Packet { session, message });
        self.network.sort();
    }

    /// Whether anybody will still read it. A closed connection is not read; yet what its reader had handed on
    /// before it was closed may reach the primary's engine at any later time.
    fn is_read(&self, packet: &Packet) -> bool {
        if packet.is_for_backup() {
            self.backup.session() == packet.session
        } else {
            self.primary.runs()
        }
    }

    fn deliver(&mut self, packet: Packet, seen: &mut SeenSet) -> Result<(), Violation> {
        match packet.message {
            Message::Sync(pages) => self.take_sync(pages, seen),
            Message::Checkpoint { begin, end, pages, truth } => {
                self.take_checkpoint(&begin.0, &end.0, pages, truth, seen)
            }
            Message::Heartbeat(heartbeat) => {
                self.take_heartbeat(&heartbeat.0);
                Ok(())
            }
            Message::Ack(ack) => {
                self.take_ack(&ack.0, seen);
                Ok(())
            }
            Message::HeartbeatAck(ack) => {
                self.primary.take_heartbeat_ack(self.now, packet.session, &ack.0, self.fault);
                Ok(())
            }
        }
    }

    /// The number `said` gets out.
    fn outside_sees(&mut self, said: u8) -> Result<(), Violation> {
        // Two that have never met cannot know better.
        let may_know = if self.apart { self.have_met } else { self.backup.is_promoted() };
        if may_know {
            return Err(Violation::TwoSpeakers { said });
        }
        if said <= self.outside {
            return Err(Violation::OutOfOrder { said, after: self.outside });
        }
        self.outside = said;
        Ok(())
    }

    pub(crate) fn describe(&self, step: Step) -> String {
        let packet = |at: u8| {
            let Packet { session, message } = &self.network[usize::from(at)];
            let what = match message {
                Message::Sync(_) => "sync".to_owned(),
                Message::Checkpoint { begin, .. } => format!("checkpoint {}", begin.0.epoch),
                Message::Ack(ack) => format!("ack {}", ack.0.epoch),
                Message::Heartbeat(_) => "heartbeat".to_owned(),
                Message::HeartbeatAck(_) => "heartbeat ack".to_owned(),
            };
            format!("{what} of session {session}")
        };
        match step {
            Step::Deliver(at) => format!("deliver {}", packet(at)),
            Step::Repeat(at) => format!("deliver, and keep, {}", packet(at)),
            Step::Lose(at) => format!("lose {}", packet(at)),
            Step::Tick
            | Step::GuestCounts
            | Step::Connect
            | Step::SyncRound
            | Step::Seal
            | Step::ClearLate
            | Step::OpenLate
            | Step::Flush
            | Step::Heartbeat
            | Step::PrimaryLosesLinks
            | Step::BackupLosesLinks
            | Step::Fence
            | Step::TurnOn
            | Step::Newcomer
            | Step::Stranger
            | Step::Promote => format!("{step:?}"),
        }
    }

    pub(crate) fn summary(&self) -> String {
        format!(
            "now {} | {} | {} | outside {} | {} on the way",
            self.now,
            self.primary.summary(),
            self.backup.summary(),
            self.outside,
            self.network.len()
        )
    }
}

impl Packet {
    fn is_for_backup(&self) -> bool {
        match &self.message {
            Message::Sync(_) | Message::Checkpoint { .. } | Message::Heartbeat(_) => true,
            Message::Ack(_) | Message::HeartbeatAck(_) => false,
        }
    }
}

impl SeenSet {
    pub(crate) fn add(&mut self, seen: Seen) {
        self.0 |= 1 << seen as u8;
    }

    pub(crate) fn add_if(&mut self, condition: bool, seen: Seen) {
        if condition {
            self.add(seen);
        }
    }

    pub(crate) fn has(self, seen: Seen) -> bool {
        self.0 & 1 << seen as u8 != 0
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ImageDiffers { image, guest_was } => {
                write!(f, "VIOLATION: committed {image:?}, the guest was {guest_was:?}")
            }
            Self::TakenBack { seen, knows } => {
                write!(f, "VIOLATION: {seen} was seen outside, the promoted guest knows {knows}")
            }
            Self::PromotedTornImage => {
                f.write_str("VIOLATION: promoted what is no committed checkpoint")
            }
            Self::GuestLost => {
                f.write_str("VIOLATION: the primary was turned away for nobody: the guest is lost")
            }
            Self::Merged => f.write_str("VIOLATION: one guest that was heard replaced another"),
            Self::StoodDownInSplit => {
                f.write_str("VIOLATION: stood down for a guest that knows nothing of this one")
            }
            Self::HeldIsThrownAway { said } => {
                write!(f, "VIOLATION: {said} was held for a guest that goes on, and is gone")
            }
            Self::OutOfOrder { said, after } => {
                write!(f, "VIOLATION: {said} came out after {after}")
            }
            Self::TwoSpeakers { said } => {
                write!(f, "VIOLATION: the primary said {said} beside another speaker")
            }
        }
    }
}

macro_rules! order_by {
    ($($name:ident: $key:expr;)*) => {$(
        impl PartialOrd for ByValue<$name> {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }
        impl Ord for ByValue<$name> {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                let key = $key;
                key(&self.0).cmp(&key(&other.0))
            }
        }
    )*};
}
order_by! {
    Begin: |m: &Begin| (m.session, m.term, m.epoch, m.predecessor, m.predecessor_digest, m.sent);
    End: |m: &End| (m.epoch, m.pages, m.digest);
    Ack: |m: &Ack| (m.session, m.term, m.epoch, m.digest, m.sent);
    Heartbeat: |m: &Heartbeat| (m.term, m.seq, m.sent, m.engine_age);
    HeartbeatAck: |m: &HeartbeatAck| (m.term, m.seq, m.sent);
}
