//! The primary's host: guest, dirty log, sender, gate, around the real pipeline and lease.

use remus::{
    replication::{
        Fenced, LeaseError, Pipeline, Policy, PrimaryLease, Relation, SealWhen, Standing, SyncNext,
        Tempo, judge,
    },
    wire::{
        Ack, Ancestry, Begin, Digest, End, Features, Heartbeat, HeartbeatAck, Hello, Moment,
        Refusal, Refuse, Session, TermId, VmName, Welcome,
    },
};
use remus_abi::{Epoch, Stamp, Term};

use super::{
    ByValue, Fault, Message, Seen, SeenSet, Start, Violation, World,
    gate::{Gate, Mode},
    guest::{ALL_PAGES, Pages, PagesOnWire, Ram, Shadow},
    nonce, session, term, the_vm, timing,
};

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct PrimaryHost {
    pipeline: Pipeline,
    lease: PrimaryLease,
    gate: Gate,
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
pub(crate) fn hello(session: Session, id: TermId, ancestry: Ancestry) -> Hello {
    Hello {
        id: the_vm(),
        nonce: id.nonce.expect("every speaker here has a name"),
        ancestry,
        features: Features::OURS,
        vm: VmName::new("vm").expect("a plain name"),
        session,
        term: id.term,
        ram_pages: 2,
        timing: timing(),
        acks_to: None,
        shape: Vec::new(),
        cpu: Vec::new(),
    }
}

/// A stand-in for the real chain, whose input here is the pages sent.
pub(crate) fn absorb(chain: u64, pages: &PagesOnWire) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (chain, pages).hash(&mut hasher);
    hasher.finish()
}

impl PrimaryHost {
    pub(crate) fn new(start: Start) -> Self {
        let policy =
            Policy { tempo: Tempo::fixed(std::time::Duration::ZERO), ..Policy::new(&timing()) };
        let (first, now) = (Fenced::first_start(), Moment(0));
        let (pipeline, mode) = match start {
            Start::Shut => (Pipeline::start_shut(first, policy, now), Mode::Hold),
            Start::Unprotected => (Pipeline::start_unprotected(first, policy, now), Mode::Open),
            Start::Apart { ours, .. } => {
                let fenced = Fenced::start_again(term(ours));
                (Pipeline::start_unprotected(fenced, policy, now), Mode::Open)
            }
        };
        let pipeline = pipeline.in_line(nonce(1), Ancestry::none());
        Self {
            lease: PrimaryLease::new(pipeline.term(), timing().lease),
            gate: Gate::new(mode, Stamp::new(pipeline.term(), pipeline.open())),
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

    pub(crate) fn has_session(&self) -> bool {
        self.pipeline.session().is_some()
    }

    /// 0 is none.
    pub(crate) fn session(&self) -> u64 {
        self.pipeline.session().map_or(0, |session| session.get())
    }

    pub(crate) fn may_connect(&self) -> bool {
        self.runs() && !self.has_session()
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
        self.runs() && self.open_late.is_none() && self.gate.has_committed()
    }

    pub(crate) fn clear_late(&mut self) {
        self.dirty &= !self.clear_late.take().unwrap_or(0);
    }

    pub(crate) fn open_late(&mut self) {
        self.gate.open = self.open_late.take().unwrap_or(self.gate.open);
    }

    pub(crate) fn lose_session(&mut self) {
        self.pipeline.handle_session_lost();
        self.synced = false;
    }

    /// An answer renews the lease, and the gate is told.
    fn renew(&mut self, now: u64, term: Term, sent: Moment, fault: Option<Fault>) {
        let now = Moment(now);
        let sent = if fault == Some(Fault::LeaseFromArrival) { now } else { sent };
        match self.lease.handle_answer(now, term, sent) {
            Ok(()) => self.gate.lease_until = self.lease.until(),
            // It was on its way while the term changed.
            Err(LeaseError::OtherTerm(_)) => {}
            Err(LeaseError::FromTheFuture) => panic!("the backup echoes what it was sent"),
        }
    }

    pub(crate) fn take_heartbeat_ack(
        &mut self,
        now: u64,
        ack: &HeartbeatAck,
        fault: Option<Fault>,
    ) {
        self.renew(now, ack.term, ack.sent, fault);
    }

    pub(crate) fn summary(&self) -> String {
        let p = &self.pipeline;
        let (open, captured, acked, released) = (p.open(), p.captured(), p.acked(), p.released());
        let waiting = self.gate.slots.len();
        format!(
            "{:?} open {open} captured {captured} acked {acked} released {released}, {waiting} held",
            p.standing()
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
        let hello = match self.has(Fault::NewerTermKeepsImage) {
            // As if nothing had changed since its first term.
            true => hello(asked, TermId::new(Term::FIRST, nonce(1)), Ancestry::none()),
            false => hello(asked, pipeline.id(), pipeline.ancestry().clone()),
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
            primary.gate.mode = Mode::Closed;
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
        let hello = hello(session(ITS_SESSION), its_term, Ancestry::none());
        let believes = self.has(Fault::StrangersWordCounts);
        let refused = self.backup.take_stranger(&hello, believes).is_err();
        seen.add_if(refused, Seen::RefusedStranger);
    }

    /// The backup is switched off, by somebody who then says so: the guest goes on in the next term with its gate
    /// open. What waited goes first, so that nothing overtakes.
    pub(crate) fn fence(&mut self) -> Result<(), Violation> {
        self.backup.switch_off();
        let primary = &mut self.primary;
        let fenced = Fenced::by_operator(primary.pipeline.term(), "backup");
        primary.pipeline.run_unprotected(fenced, Moment(self.now));
        primary.pipeline.speak_as(nonce(4));
        primary.lease = PrimaryLease::new(primary.pipeline.term(), timing().lease);
        primary.ack_lease_until = Moment(0);
        let open = Stamp::new(primary.pipeline.term(), primary.pipeline.open());
        let before = std::mem::replace(&mut primary.gate, Gate::new(Mode::Open, open));
        for (_, said) in before.slots {
            self.outside_sees(said)?;
        }
        Ok(())
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
        if fault == Some(Fault::OpenAdvancesAfterResume) {
            primary.open_late = Some(sealed.open);
        } else {
            primary.gate.open = sealed.open;
        }
        if sealed.is_first && fault != Some(Fault::HoldsFromFirstAck) {
            primary.gate.mode = Mode::Hold;
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
            primary.gate.committed = sealed.checkpoint;
            primary.gate.lease_until = primary.gate.lease_until.max(Some(now + timing().lease));
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
        match primary.pipeline.handle_ack(Moment(now), ack) {
            Ok(Some(committed)) => {
                primary.renew(now, ack.term, ack.sent, fault);
                primary.ack_lease_until = primary.ack_lease_until.max(ack.sent + timing().lease);
                primary.gate.committed = primary.gate.committed.max(committed.stamp());
                if fault == Some(Fault::HoldsFromFirstAck) {
                    primary.gate.mode = Mode::Hold;
                }
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
        let ignores_lease = self.has(Fault::FlushIgnoresLease);
        if !ignores_lease && !self.primary.gate.lease_holds(Moment(self.now)) {
            seen.add(Seen::LeaseStoppedFlush);
            return Ok(());
        }
        for said in self.primary.gate.flush() {
            self.outside_sees(said)?;
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
        let released = self.primary.gate.committed.epoch();
        if released <= self.primary.pipeline.acked() && released > Epoch::NONE {
            self.primary.pipeline.handle_released(released);
        }
        Ok(())
    }
}
