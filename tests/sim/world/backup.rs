//! The backup's host: image and receiver, around the real backup brain.

use remus::{
    checkpoint::Arrived,
    replication::{Backup, Detector, Known, NotPromotable, Promoted, Readiness, Suspicion},
    wire::{
        Ancestry, Attach, Begin, Digest, End, Heartbeat, Hello, Instance, Moment, Refuse, TermId,
        Welcome,
    },
};
use remus_abi::Term;
use rig::permits;

use super::{
    ByValue, Fault, Message, Seen, SeenSet, Start, Violation, World,
    guest::{ALL_PAGES, PageOnWire, Pages, PagesOnWire, Ram},
    nonce,
    primary::{absorb, hello},
    session, term, the_vm, timing,
};

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct BackupHost {
    brain: Brain,
    image: Ram,
    /// What the guest was in the last checkpoint that was committed: for the checker alone.
    truth: Option<Ram>,
    /// Pages that this session has carried whole.
    whole: Pages,
    chain: u64,
    sessions: u64,
    /// Until it is greeted again.
    is_off: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Brain {
    Following(Backup),
    Promoted {
        promoted: Promoted,
        /// With [`Fault::PromotedBackupAcks`]: the brain that should be gone.
        undead: Option<Backup>,
    },
}

impl BackupHost {
    pub(crate) fn new(start: Start) -> Self {
        let me = Instance::new(2).expect("not 0");
        Self::with(match start {
            Start::Shut | Start::ShutWithLongLease | Start::Unprotected => {
                Brain::Following(Backup::new(me, Known::default()))
            }
            Start::Apart { theirs, runs: false, .. } => {
                let id = TermId::new(term(theirs), nonce(2));
                let ancestry = Ancestry::none().spoken_in(id);
                let known =
                    Known { id: Some(the_vm()), newest: id.term, owner: id.nonce, ancestry };
                Brain::Following(Backup::new(me, known))
            }
            Start::Apart { theirs, runs: true, .. } => {
                Brain::Promoted { promoted: took_over(me, term(theirs)), undead: None }
            }
        })
    }

    /// Another host than the one that was switched off for good; it has promised nothing to anybody.
    pub(crate) fn newcomer() -> Self {
        let me = Instance::new(3).expect("not 0");
        Self::with(Brain::Following(Backup::new(me, Known::default())))
    }

    fn with(brain: Brain) -> Self {
        Self {
            brain,
            image: Ram::default(),
            truth: None,
            whole: 0,
            chain: 0,
            sessions: 0,
            is_off: false,
        }
    }

    fn backup(&mut self) -> Option<&mut Backup> {
        match &mut self.brain {
            Brain::Following(backup) => Some(backup),
            Brain::Promoted { undead, promoted: _ } => undead.as_mut(),
        }
    }

    pub(crate) fn is_promoted(&self) -> bool {
        matches!(self.brain, Brain::Promoted { .. })
    }

    pub(crate) fn has_session(&self) -> bool {
        self.session() != 0
    }

    /// 0 is none.
    pub(crate) fn session(&self) -> u64 {
        let backup = match &self.brain {
            Brain::Following(backup) => Some(backup),
            Brain::Promoted { undead, promoted: _ } => undead.as_ref(),
        };
        backup.and_then(Backup::session).map_or(0, |session| session.get())
    }

    pub(crate) fn take_hello(
        &mut self,
        hello: &Hello,
        keeps_bases: bool,
    ) -> Result<Welcome, Refuse> {
        match &mut self.brain {
            Brain::Promoted { promoted, undead: _ } => Err(promoted.refuse(hello)),
            Brain::Following(backup) => {
                let welcome = backup.handle_hello(hello)?;
                self.is_off = false;
                backup.handle_attach(&Attach { session: hello.session }).expect("just greeted");
                self.sessions += 1;
                self.chain = hello.session.get();
                if !keeps_bases {
                    self.whole = 0;
                }
                Ok(welcome)
            }
        }
    }

    pub(crate) fn is_off(&self) -> bool {
        self.is_off
    }

    /// The terms that it knows to have been spoken in.
    pub(crate) fn ancestry(&self) -> Ancestry {
        match &self.brain {
            Brain::Following(backup) => backup.known().ancestry.clone(),
            Brain::Promoted { promoted, undead: _ } => promoted.stand_down().ancestry,
        }
    }

    /// It follows the primary, or has its image.
    pub(crate) fn keeps_the_guest(&self) -> bool {
        match &self.brain {
            Brain::Promoted { .. } => false,
            Brain::Following(backup) => {
                !self.is_off && (backup.session().is_some() || backup.committed().is_some())
            }
        }
    }

    /// A stranger asks for a session; it lives no longer than its first word.
    pub(crate) fn take_stranger(
        &mut self,
        hello: &Hello,
        believes: bool,
    ) -> Result<Welcome, Refuse> {
        let Some(backup) = self.backup() else { unreachable!("it keeps the guest") };
        if believes {
            let me = Instance::new(2).expect("not 0");
            *backup = Backup::new(me, Known::default());
        }
        let welcome = backup.handle_hello(hello)?;
        backup.handle_session_lost();
        Ok(welcome)
    }

    pub(crate) fn lose_session(&mut self) {
        if let Some(backup) = self.backup() {
            backup.handle_session_lost();
        }
    }

    /// Its image is on disk, say, and comes back with it.
    pub(crate) fn switch_off(&mut self) {
        self.lose_session();
        self.is_off = true;
    }

    /// Suspicion may be wrong at any time; what it takes beside it is up to the brain.
    pub(crate) fn may_promote(&self, world: &World) -> bool {
        match &self.brain {
            Brain::Promoted { .. } => false,
            Brain::Following(backup) => {
                !self.is_off && backup.poll_readiness(world.promotion_clock()) == Readiness::Now
            }
        }
    }

    /// Whether every delta has a base, and which pages have one now.
    fn check_bases(&mut self, pages: &PagesOnWire) -> bool {
        for (at, page) in pages.iter().enumerate() {
            match page {
                PageOnWire::NotSent => {}
                PageOnWire::Whole(_) => self.whole |= 1 << at,
                PageOnWire::Delta(_) => {
                    if self.whole & 1 << at == 0 {
                        return false;
                    }
                }
            }
        }
        true
    }

    pub(crate) fn summary(&self) -> String {
        match &self.brain {
            Brain::Following(backup) => match backup.committed() {
                None => "no image".to_owned(),
                Some((term, epoch)) => format!("image {term}.{epoch} knows {}", self.image.knows()),
            },
            Brain::Promoted { promoted, .. } => format!("promoted in term {}", promoted.term()),
        }
    }
}

/// A host that took another guest over, in `term`, before anything here began.
fn took_over(me: Instance, term: Term) -> Promoted {
    const ITS_SESSION: u64 = 200;
    let its_primary = TermId::new(term.prev(), nonce(9));
    let hello = hello(session(ITS_SESSION), its_primary, Ancestry::none(), timing());
    permits::takeover(me, &hello, nonce(2)).promoted
}

fn suspicion(now: Moment) -> Suspicion {
    let mut detector = Detector::new(&timing(), 1, now);
    detector.handle_closed(0);
    detector.handle_tick(now).expect("its only link is closed")
}

impl World {
    fn promotion_clock(&self) -> Moment {
        if self.has(Fault::PromotesDuringLease) { Moment(u64::MAX) } else { Moment(self.now) }
    }

    pub(crate) fn take_sync(
        &mut self,
        pages: PagesOnWire,
        seen: &mut SeenSet,
    ) -> Result<(), Violation> {
        let keeps_image = self.has(Fault::SyncKeepsImage);
        let host = &mut self.backup;
        let Some(backup) = host.backup() else { return Ok(()) };
        let taken = keeps_image || backup.handle_sync_pages().is_ok();
        if !taken || !host.check_bases(&pages) {
            seen.add(Seen::SessionDroppedByBackup);
            host.lose_session();
            return Ok(());
        }
        let readiness = host.backup().map(|backup| backup.poll_readiness(Moment(u64::MAX)));
        seen.add_if(
            host.sessions == 2 && readiness == Some(Readiness::Not(NotPromotable::NoImage)),
            Seen::RefusedHalfSynced,
        );
        host.chain = absorb(host.chain, &pages);
        host.image.apply(&pages);
        Ok(())
    }

    pub(crate) fn take_checkpoint(
        &mut self,
        begin: &Begin,
        end: &End,
        pages: PagesOnWire,
        truth: Ram,
        seen: &mut SeenSet,
    ) -> Result<(), Violation> {
        let now = Moment(self.now);
        let host = &mut self.backup;
        let (before, after) = (host.chain, absorb(host.chain, &pages));
        host.chain = after;
        let has_bases = host.check_bases(&pages);
        let sent = pages.iter().filter(|page| **page != PageOnWire::NotSent).count();
        let arrived = Arrived {
            pages: u32::try_from(sent).expect("two at most"),
            state_len: 0,
            covers_ram: host.whole == ALL_PAGES,
        };
        let Some(backup) = host.backup() else { return Ok(()) };
        let begun =
            if has_bases { backup.handle_begin(begin, Digest(before)).is_ok() } else { false };
        let ack = match begun {
            false => None,
            true => backup.handle_end(now, end, Digest(after), arrived).ok(),
        };
        let Some(ack) = ack else {
            seen.add(Seen::SessionDroppedByBackup);
            host.lose_session();
            return Ok(());
        };
        let is_promoted = host.is_promoted();
        if !is_promoted {
            host.image.apply(&pages);
            host.truth = Some(truth);
            if host.image != truth {
                return Err(Violation::ImageDiffers { image: host.image, guest_was: truth });
            }
        }
        self.send(ack.session.get(), Message::Ack(ByValue(ack)));
        Ok(())
    }

    pub(crate) fn take_heartbeat(&mut self, heartbeat: &Heartbeat) {
        let now = Moment(self.now);
        let session = self.backup.session();
        let Some(backup) = self.backup.backup() else { return };
        match backup.handle_heartbeat(now, heartbeat) {
            Ok(Some(ack)) => self.send(session, Message::HeartbeatAck(ByValue(ack))),
            Ok(None) => {}
            Err(_) => self.backup.lose_session(),
        }
    }

    pub(crate) fn promote(&mut self, seen: &mut SeenSet) -> Result<(), Violation> {
        let (now, clock) = (Moment(self.now), self.promotion_clock());
        let Brain::Following(backup) = &self.backup.brain else {
            unreachable!("not promoted twice")
        };
        let undead = self.has(Fault::PromotedBackupAcks).then(|| backup.clone());
        let promotion =
            backup.clone().promote(clock, suspicion(now), nonce(2)).expect("it was ready");
        self.backup.brain = Brain::Promoted { promoted: promotion.promoted, undead };
        seen.add(Seen::Promoted);
        seen.add_if(self.outside > 0, Seen::PromotedWithOutputOutside);
        seen.add_if(self.backup.sessions == 2, Seen::PromotedAfterSecondSession);
        seen.add_if(promotion.of > Term::FIRST, Seen::PromotedInSecondTerm);
        if Some(self.backup.image) != self.backup.truth {
            return Err(Violation::PromotedTornImage);
        }
        let knows = self.backup.image.knows();
        if knows < self.outside {
            return Err(Violation::TakenBack { seen: self.outside, knows });
        }
        Ok(())
    }
}
