//! Permissions for gates and pipelines, earned from real brains, because nothing else can make them.

use std::time::Duration;

use remus::{
    checkpoint::Arrived,
    names::VmName,
    replication::{
        Backup, Committed, Detector, Fenced, Known, LeaseUntil, NextEpoch, Pipeline, Policy,
        PrimaryLease, Promotion, Standalone,
    },
    wire::{
        Ack, Ancestry, Attach, Begin, Digest, End, Features, Hello, Instance, Moment, Nonce,
        Session, Timing, VmId, Welcome,
    },
};
use remus_abi::{Epoch, Term};

/// Permission to begin the first term.
pub fn first() -> Fenced {
    Standalone::begin().1
}

/// Permission to begin the term after `term`: a backup has taken over from whoever spoke in that one.
///
/// # Panics
/// When the backup's brain does not do what a backup must.
pub fn after(term: Term) -> Fenced {
    let hello = Hello {
        features: Features::NONE,
        vm: VmName::new("vm").expect("a plain name"),
        session: Session::new(1).expect("not 0"),
        id: VmId::new(1).expect("not 0"),
        nonce: Nonce::new(1).expect("not 0"),
        ancestry: Ancestry::none(),
        term,
        ram_pages: 1,
        timing: Timing::default(),
        acks_to: None,
        shape: Vec::new(),
        cpu: Vec::new(),
    };
    takeover(Instance::new(2).expect("not 0"), &hello, Nonce::new(2).expect("not 0")).fenced
}

/// The host `me`, which knew of nobody, followed the primary of `hello` to its first checkpoint, and then took over from
/// it as `nonce`.
///
/// # Panics
/// When the backup's brain does not do what a backup must.
pub fn takeover(me: Instance, hello: &Hello, nonce: Nonce) -> Promotion {
    let Hello { session, term, ram_pages: pages, timing, .. } = *hello;
    let mut backup = Backup::new(me, Known::default());
    backup.handle_hello(hello).expect("a first primary is welcome");
    backup.handle_attach(&Attach { session }).expect("just greeted");
    let begin = Begin {
        session,
        term,
        epoch: Epoch::FIRST,
        predecessor: Epoch::NONE,
        predecessor_digest: Digest(0),
        sent: Moment(0),
        pages_max: pages,
        state_len: 0,
        reset: false,
    };
    backup.handle_begin(&begin, Digest(0)).expect("the first checkpoint");
    let end = End { epoch: Epoch::FIRST, pages, digest: Digest(1) };
    let arrived = Arrived { pages, state_len: 0, covers_ram: true };
    backup.handle_end(Moment(0), &end, Digest(1), arrived).expect("a whole checkpoint");
    backup.handle_session_lost();
    // The lease is over.
    let late = Moment(0) + timing.detect + timing.lease + timing.margin;
    let mut detector = Detector::new(&timing, 1, late);
    detector.handle_closed(0);
    let suspicion = detector.handle_tick(late).expect("the only link is closed");
    backup.promote(late, suspicion, nonce).expect("whole, and past the lease")
}

/// Permission to release in `term` for longer than any test lasts.
///
/// # Panics
/// Never: an answer to what was said at once is one.
pub fn long_lease(term: Term) -> LeaseUntil {
    lease(term, Duration::from_secs(1 << 30))
}

/// Permission to release in `term` for `span` from the start of this host on.
///
/// # Panics
/// Never: an answer to what was said at once is one.
pub fn lease(term: Term, span: Duration) -> LeaseUntil {
    let mut lease = PrimaryLease::new(term, span);
    lease.handle_answer(Moment(0), term, Moment(0)).expect("an answer");
    lease.until().expect("just answered")
}

/// Epochs of a guest that is not there, and a backup that acknowledges them: a real pipeline gives the permissions.
pub struct Epochs {
    pipeline: Pipeline,
    session: Session,
    /// One more at every step; nothing here depends on how long a step takes.
    now: Moment,
}

impl Epochs {
    /// The first epoch of a term is open, and a backup is there.
    ///
    /// # Panics
    /// When the pipeline does not do what a pipeline must; so do the others here.
    pub fn begin(fenced: Fenced) -> Self {
        let now = Moment(1);
        let policy = Policy { depth: usize::MAX, ..Policy::new(&Timing::default()) };
        let mut pipeline = Pipeline::start_shut(fenced, policy, now);
        let session = Session::new(1).expect("not 0");
        let backup = Instance::new(1).expect("not 0");
        let welcomed = pipeline.handle_welcome(
            session,
            &Welcome { session, features: Features::NONE, backup, ancestry: Ancestry::none() },
        );
        welcomed.expect("the session that was asked for");
        pipeline.handle_sync_round(0);
        Self { pipeline, session, now }
    }

    /// Seals the open epoch.
    pub fn seal(&mut self) -> NextEpoch {
        self.now.0 += 1;
        let sealed = self.pipeline.seal(self.now);
        let epoch = sealed.checkpoint.epoch();
        self.pipeline.handle_sent(self.session, epoch, Digest(epoch.get()));
        sealed.next
    }

    /// The backup acknowledges everything sealed so far.
    ///
    /// # Panics
    /// When nothing was sealed since the last time.
    pub fn commit(&mut self) -> Committed {
        self.now.0 += 1;
        let epoch = self.pipeline.captured();
        let ack = Ack {
            session: self.session,
            term: self.pipeline.term(),
            epoch,
            digest: Digest(epoch.get()),
            sent: self.now,
        };
        let acked = self.pipeline.handle_ack(self.now, &ack, |_, _| {});
        acked.expect("an ack of what was sent").expect("a new commit").committed
    }
}
