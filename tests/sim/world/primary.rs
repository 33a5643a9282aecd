//! The primary's host: guest, dirty log, sender, gate, around the real pipeline and lease.

use remus::{
    gate::ControlWords,
    names::VmName,
    replication::{Pipeline, Policy, Relation, SealWhen, Standing, SyncNext, Tempo, judge},
    wire::{
        Ack, Ancestry, Begin, Digest, End, Features, Heartbeat, HeartbeatAck, Hello, Moment,
        Refusal, Refuse, Session, TermId, Timing, Welcome,
    },
};
use remus_abi::{
    Epoch, Stamp, Term,
    gate::{Control, Mode},
};
use rig::permits;

use super::{
    ByValue, Fault, Message, Seen, SeenSet, Start, Violation, World,
    gate::Gate,
    guest::{ALL_PAGES, Pages, PagesOnWire, Ram, Shadow},
    long_timing, nonce, session, term, the_vm, timing,
};

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct PrimaryHost {
    pipeline: Pipeline,
    /// The spans of this term are long.
    is_long: bool,
    pub(crate) gate: Gate,
    /// Until when the commit acks alone would let it release.
    ack_lease_until: Moment,
    ram: Ram,
    dirty: Pages,
    shadow: Shadow,
    /// The sender's end of the digest chain.
    chain: u64,
    synced: bool,
    sessions: u64,
    /// With their faults: bits still to be cleared, the epoch still to be opened.
    clear_late: Option<Pages>,
    open_late: Option<Stamp>,
}

/// What a primary says first that speaks as `id`, or wants to.
pub(crate) fn hello(session: Session, id: TermId, ancestry: Ancestry, timing: Timing) -> Hello {
    Hello {
        id: the_vm(),
        nonce: id.nonce.expect("every speaker here has a name"),
        ancestry,
        features: Features::OURS,
        vm: VmName::new("vm").expect("a plain name"),
        session,
        term: id.term,
        ram_pages: 2,
        timing,
        acks_to: None,
        shape: Vec::new(),
        cpu: Vec::new(),
    }
}

fn spans(is_long: bool) -> Timing {
    if is_long { long_timing() } else { timing() }
}

/// A stand-in for the real chain, whose input here is the pages sent.
pub(crate) fn absorb(chain: u64, pages: &PagesOnWire) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (chain, pages).hash(&mut hasher);
    hasher.finish()
}

fn policy(is_long: bool) -> Policy {
    Policy { tempo: Tempo::fixed(std::time::Duration::ZERO), ..Policy::new(&spans(is_long)) }
}

impl PrimaryHost {
    pub(crate) fn new(start: Start) -> Self {
        let is_long = start == Start::ShutWithLongLease;
        let policy = policy(is_long);
        let now = Moment(0);
        let fenced = match start {
            Start::Apart { ours, .. } if ours > 1 => permits::after(term(ours).prev()),
            Start::Apart { .. } | Start::Shut | Start::ShutWithLongLease | Start::Unprotected => {
                permits::first()
            }
        };
        let mut gate = Gate::in_term(&fenced);
        let pipeline = match start {
            // The real gate is closed until the first seal. Held from the first word on, more can go wrong.
            Start::Shut | Start::ShutWithLongLease => {
                gate.perform(gate.words().hold());
                Pipeline::start_shut(fenced, policy, now)
            }
            Start::Unprotected | Start::Apart { .. } => {
                gate.perform(gate.words().open(&fenced));
                Pipeline::start_unprotected(fenced, policy, now)
            }
        };
        let pipeline = pipeline.in_line(nonce(1), Ancestry::none());
        Self {
            is_long,
            gate,
            pipeline,
            ack_lease_until: Moment(0),
            ram: Ram::default(),
            dirty: ALL_PAGES,
            shadow: Shadow::default(),
            chain: 0,
            synced: false,
            sessions: 0,
            clear_late: None,
            open_late: None,
        }
    }

    pub(crate) fn runs(&self) -> bool {
        self.pipeline.standing() != Standing::Stopped
    }

    /// The engine does one thing at a time: nothing else while a term begins.
    pub(crate) fn is_free(&self) -> bool {
        self.runs() && !self.gate.is_turning()
    }

    pub(crate) fn has_session(&self) -> bool {
        self.pipeline.session().is_some()
    }

    fn term(&self) -> Term {
        self.pipeline.term()
    }

    /// 0 is none.
    pub(crate) fn session(&self) -> u64 {
        self.pipeline.session().map_or(0, |session| session.get())
    }

    pub(crate) fn may_connect(&self) -> bool {
        self.is_free() && !self.has_session()
    }

    pub(crate) fn may_sync(&self) -> bool {
        self.has_session() && !self.synced
    }

    pub(crate) fn may_seal(&self, now: u64) -> bool {
        // With the faults that leave something for later, one thing at a time.
        let idle = self.clear_late.is_none() && self.open_late.is_none();
        idle && self.pipeline.poll_seal(Moment(now)) == SealWhen::Now
    }

    pub(crate) fn clears_late(&self) -> bool {
        self.clear_late.is_some()
    }

    pub(crate) fn opens_late(&self) -> bool {
        self.open_late.is_some()
    }

    pub(crate) fn may_flush(&self) -> bool {
        self.runs() && self.open_late.is_none() && self.gate.may_flush()
    }

    pub(crate) fn clear_late(&mut self) {
        self.dirty &= !self.clear_late.take().unwrap_or(0);
    }

    pub(crate) fn open_late(&mut self) {
        if let Some(stamp) = self.open_late.take() {
            self.gate.write(Control::Open, stamp.bits());
        }
    }

    pub(crate) fn lose_session(&mut self) {
        self.pipeline.handle_session_lost();
        self.synced = false;
    }

    /// A heartbeat of the session `of` is answered: the lease is renewed, and the gate is told.
    pub(crate) fn take_heartbeat_ack(
        &mut self,
        now: u64,
        of: u64,
        ack: &HeartbeatAck,
        fault: Option<Fault>,
    ) {
        if ack.term != self.pipeline.term() {
            // It was on its way while the term changed.
            return;
        }
        let now = Moment(now);
        let sent = if fault == Some(Fault::LeaseFromArrival) { now } else { ack.sent };
        let until = self.pipeline.handle_answer(now, session(of), sent);
        if let Some(lease) = until.expect("the backup echoes what it was sent") {
            self.gate.perform(self.gate.words().renew_lease(&lease));
        }
    }

    pub(crate) fn summary(&self) -> String {
        let p = &self.pipeline;
        let (open, captured, acked, released) = (p.open(), p.captured(), p.acked(), p.released());
        let waiting = self.gate.held();
        format!(
            "{:?} in {} open {open} captured {captured} acked {acked} released {released}, {waiting} held",
            p.standing(),
            p.term()
        )
    }
}

impl World {
    pub(crate) fn guest_step(&mut self, seen: &mut SeenSet) -> Result<(), Violation> {
        let (said, page) = self.primary.ram.count();
        self.primary.dirty |= page;
        match self.primary.gate.hold(said) {
            None => Ok(()),
            Some(said) => {
                seen.add(Seen::PassedOpen);
                self.outside_sees(said)
            }
        }
    }

    /// Greeting and attaching, which take effect together or are as if a link was lost in between.
    pub(crate) fn connect(&mut self, seen: &mut SeenSet) -> Result<(), Violation> {
        self.primary.sessions += 1;
        let asked = session(self.primary.sessions);
        let pipeline = &self.primary.pipeline;
        let spans = spans(self.primary.is_long);
        let hello = match self.has(Fault::NewerTermKeepsImage) {
            // As if nothing had changed since its first term.
            true => hello(asked, TermId::new(Term::FIRST, nonce(1)), Ancestry::none(), spans),
            false => hello(asked, pipeline.id(), pipeline.ancestry().clone(), spans),
        };
        let keeps_shadow = self.has(Fault::ShadowSurvivesSession);
        let answer = match self.has(Fault::SplitJudgedByNumbers) {
            true => self.judged_by_numbers(&hello),
            false => self.backup.take_hello(&hello, keeps_shadow),
        };
        let primary = &mut self.primary;
        match answer {
            Ok(_) if self.apart => return Err(Violation::Merged),
            Ok(welcome) => {
                primary.pipeline.handle_welcome(asked, &welcome).expect("the backup is the same");
                primary.dirty = ALL_PAGES;
                primary.chain = asked.get();
                primary.synced = false;
                if !keeps_shadow {
                    primary.shadow = Shadow::default();
                }
            }
            Err(refuse) => self.refused(refuse, seen)?,
        }
        Ok(())
    }

    /// What the control task and the engine do by a refusal.
    fn refused(&mut self, refuse: Refuse, seen: &mut SeenSet) -> Result<(), Violation> {
        let Refuse { why, newest: _, text: _, ancestry } = refuse;
        let theirs = ancestry.expect("both ends are of this version");
        self.have_met = true;
        let primary = &mut self.primary;
        let by_speaker = why == Refusal::Promoted
            && judge(primary.pipeline.ancestry(), &theirs) == Relation::Descendant;
        let relation = match by_speaker {
            true => primary.pipeline.handle_newer_term(&theirs),
            false => primary.pipeline.handle_refused(&theirs),
        };
        if matches!(relation, Relation::Descendant | Relation::Split) {
            primary.gate.perform(ControlWords::close());
        }
        seen.add_if(relation == Relation::Split, Seen::Split);
        if primary.pipeline.standing() == Standing::Stopped {
            seen.add(Seen::StoodDown);
            if self.apart {
                return Err(Violation::StoodDownInSplit);
            }
        }
        // Turned away for good, or shut, while no other host has the guest.
        let is_lost = why == Refusal::OutdatedTerm || relation != Relation::Same;
        let another_has_it = self.backup.is_promoted() || self.apart;
        if is_lost && why != Refusal::OtherPrimary && !another_has_it {
            return Err(Violation::GuestLost);
        }
        Ok(())
    }

    /// With [`Fault::SplitJudgedByNumbers`]: the higher number wins, as if the one had come from the other.
    fn judged_by_numbers(&mut self, hello: &Hello) -> Result<Welcome, Refuse> {
        let theirs = self.backup.ancestry();
        let newest = theirs.newest().expect("it has spoken");
        if hello.term > newest.term {
            let ancestry = theirs.spoken_in(hello.of());
            return self.backup.take_hello(&Hello { ancestry, ..hello.clone() }, false);
        }
        let ancestry = match hello.term < newest.term {
            true => hello.ancestry.clone().spoken_in(newest),
            false => hello.ancestry.clone(),
        };
        Err(Refuse::new(Refusal::Promoted, newest.term, "").with(ancestry))
    }

    /// The VM is started on a third host, whose record says that the term before has ended.
    pub(crate) fn stranger(&mut self, seen: &mut SeenSet) {
        const ITS_SESSION: u64 = 100;
        let its_term = TermId::new(self.primary.pipeline.term().next(), nonce(3));
        let hello = hello(session(ITS_SESSION), its_term, Ancestry::none(), timing());
        let believes = self.has(Fault::StrangersWordCounts);
        let refused = self.backup.take_stranger(&hello, believes).is_err();
        seen.add_if(refused, Seen::RefusedStranger);
    }

    /// The backup is switched off, by somebody who then says so: the guest goes on in the next term, on the same gate,
    /// which keeps what it holds and opens. The gate's part takes several steps.
    pub(crate) fn fence(&mut self) {
        self.backup.switch_off();
        let primary = &mut self.primary;
        let fenced = permits::after(primary.pipeline.term());
        primary.gate.begin_term_and_open(&fenced, self.fault);
        primary.pipeline.run_unprotected(fenced, policy(false), Moment(self.now));
        primary.pipeline.speak_as(nonce(4));
        primary.is_long = false;
        primary.ack_lease_until = Moment(0);
    }

    /// A round of the live sync: the log is cleared, then its pages are copied.
    pub(crate) fn sync_round(&mut self) {
        let primary = &mut self.primary;
        let owed = std::mem::take(&mut primary.dirty);
        let pages = primary.ram.encode(owed, &mut primary.shadow);
        primary.chain = absorb(primary.chain, &pages);
        primary.synced = true;
        assert_eq!(primary.pipeline.handle_sync_round(0), SyncNext::Seal);
        let session = primary.session();
        self.send(session, Message::Sync(pages));
    }

    /// Pause, seal, capture, copy, clear, resume; then encode and send.
    pub(crate) fn seal(&mut self, seen: &mut SeenSet) {
        let (now, fault) = (Moment(self.now), self.fault);
        let primary = &mut self.primary;
        let sealed = primary.pipeline.seal(now);
        for (word, to) in primary.gate.words().seal(&sealed.next) {
            match (word, fault) {
                (Control::Open, Some(Fault::OpenAdvancesAfterResume)) => {
                    primary.open_late = Some(sealed.next.stamp());
                }
                (Control::Mode, Some(Fault::HoldsFromFirstAck)) => {}
                _ => primary.gate.write(word, to),
            }
        }
        let dirty = primary.dirty;
        if fault == Some(Fault::ClearAfterResume) {
            primary.clear_late = Some(dirty);
        } else {
            primary.dirty = 0;
        }
        let epoch = sealed.checkpoint.epoch();
        let predecessor_digest = Digest(primary.chain);
        let pages = primary.ram.encode(dirty, &mut primary.shadow);
        primary.chain = absorb(primary.chain, &pages);
        let begin = Begin {
            session: sealed.session,
            term: sealed.checkpoint.term(),
            epoch,
            predecessor: sealed.predecessor,
            predecessor_digest,
            sent: now,
            pages_max: dirty.count_ones(),
            state_len: 0,
            reset: false,
        };
        let end = End { epoch, pages: dirty.count_ones(), digest: Digest(primary.chain) };
        primary.pipeline.handle_sent(sealed.session, epoch, end.digest);
        if fault == Some(Fault::ReleaseAtCapture) {
            primary.gate.raise(Control::Committed, sealed.checkpoint.bits());
            primary.gate.raise(Control::LeaseUntil, (now + timing().lease).0);
        }
        seen.add_if(primary.pipeline.in_flight() == 2, Seen::TwoInFlight);
        let truth = primary.ram;
        let message =
            Message::Checkpoint { begin: ByValue(begin), end: ByValue(end), pages, truth };
        self.send(sealed.session.get(), message);
    }

    pub(crate) fn heartbeat(&mut self) {
        let term = self.primary.pipeline.term();
        let heartbeat = Heartbeat { term, seq: 0, sent: Moment(self.now), engine_age: None };
        self.send(self.primary.session(), Message::Heartbeat(ByValue(heartbeat)));
    }

    pub(crate) fn take_ack(&mut self, ack: &Ack, seen: &mut SeenSet) {
        let (now, fault) = (self.now, self.fault);
        let primary = &mut self.primary;
        let from_arrival = Ack { sent: Moment(now), ..*ack };
        let heard = if fault == Some(Fault::LeaseFromArrival) { &from_arrival } else { ack };
        match primary.pipeline.handle_ack(Moment(now), heard, |_, _| {}) {
            Ok(Some(acked)) => {
                let lease = acked.lease_until.expect("just answered");
                primary.gate.perform(primary.gate.words().renew_lease(&lease));
                let until = ack.sent + spans(primary.is_long).lease;
                primary.ack_lease_until = primary.ack_lease_until.max(until);
                if fault == Some(Fault::OpenAdvancesAfterResume) {
                    primary.gate.raise(Control::Committed, acked.committed.stamp().bits());
                } else {
                    primary.gate.perform(primary.gate.words().commit(&acked.committed));
                }
                if fault == Some(Fault::HoldsFromFirstAck) {
                    primary.gate.perform(primary.gate.words().hold());
                }
            }
            Err(_) if fault == Some(Fault::OldTermsCommitCounts) && ack.term < primary.term() => {
                let counts_as = Stamp::new(primary.term(), ack.epoch);
                primary.gate.raise(Control::Committed, counts_as.bits());
            }
            Ok(None) => seen.add(Seen::RepeatedAckIgnored),
            Err(_) if ack.session.get() != primary.session() => {
                seen.add(Seen::LateAckOfFirstSession)
            }
            Err(error) => panic!("the backup sent what the primary drops it for: {error}"),
        }
    }

    /// `flush`, which reads the clock and the lease itself.
    pub(crate) fn flush(&mut self, seen: &mut SeenSet) -> Result<(), Violation> {
        let is_open = self.primary.gate.words().mode == Mode::Open;
        let flushed = self.primary.gate.flush(Moment(self.now), self.has(Fault::FlushIgnoresLease));
        seen.add_if(flushed.lease_is_over, Seen::LeaseStoppedFlush);
        seen.add_if(
            flushed.lease_is_over && self.primary.gate.is_turning(),
            Seen::FlushStoppedWhileTermBegins,
        );
        if let Some(said) = flushed.thrown_away.first().copied() {
            return Err(Violation::HeldIsThrownAway { said });
        }
        if flushed.out.is_empty() {
            return Ok(());
        }
        for said in flushed.out {
            self.outside_sees(said)?;
        }
        if is_open {
            seen.add(Seen::KeptLeftThroughOpenGate);
            return Ok(());
        }
        seen.add(Seen::Released);
        seen.add_if(
            self.primary.ack_lease_until < Moment(self.now),
            Seen::ReleasedOnHeartbeatLease,
        );
        seen.add_if(
            self.primary.sessions == 2 && self.primary.has_session(),
            Seen::ReleasedInSecondSession,
        );
        seen.add_if(self.primary.term() > Term::FIRST, Seen::ReleasedInSecondTerm);
        let released = self.primary.gate.words().committed.epoch();
        if released <= self.primary.pipeline.acked() && released > Epoch::NONE {
            self.primary.pipeline.handle_flushed(Moment(self.now));
        }
        Ok(())
    }
}
