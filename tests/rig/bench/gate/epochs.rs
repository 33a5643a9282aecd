//! Epochs of a guest that is not there: a real pipeline gives the permissions, because nothing else can.

use remus::{
    replication::{Committed, Fenced, Pipeline, Policy},
    wire::{Ack, Ancestry, Digest, Features, Instance, Moment, Session, Timing, Welcome},
};
use remus_abi::Epoch;

pub(super) struct Epochs {
    pipeline: Pipeline,
    session: Session,
    /// One more at every step; nothing here depends on how long a step takes.
    now: Moment,
}

impl Epochs {
    /// The first epoch is open, and a backup is there.
    pub(super) fn begin() -> Self {
        let (fenced, now) = (Fenced::first_start(), Moment(1));
        let mut pipeline = Pipeline::start_shut(fenced, Policy::new(&Timing::default()), now);
        let session = Session::new(1).expect("not 0");
        let backup = Instance::new(1).expect("not 0");
        let welcomed = pipeline.handle_welcome(
            session,
            &Welcome { session, features: Features::OURS, backup, ancestry: Ancestry::none() },
        );
        welcomed.expect("the session that was asked for");
        pipeline.handle_sync_round(0);
        Self { pipeline, session, now }
    }

    pub(super) fn open(&self) -> Epoch {
        self.pipeline.open()
    }

    /// Seals the open epoch and says which is open now.
    pub(super) fn seal(&mut self) -> Epoch {
        self.now.0 += 1;
        let sealed = self.pipeline.seal(self.now);
        let epoch = sealed.checkpoint.epoch();
        self.pipeline.handle_sent(self.session, epoch, Digest(epoch.get()));
        sealed.open.epoch()
    }

    /// The backup acknowledges everything sealed so far.
    ///
    /// # Panics
    /// When nothing was sealed since the last time.
    pub(super) fn commit(&mut self) -> Committed {
        self.now.0 += 1;
        let epoch = self.pipeline.captured();
        let ack = Ack {
            session: self.session,
            term: self.pipeline.term(),
            epoch,
            digest: Digest(epoch.get()),
            sent: self.now,
        };
        let committed = self.pipeline.handle_ack(self.now, &ack).expect("an ack of what was sent");
        committed.expect("a new commit")
    }
}
