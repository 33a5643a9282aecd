//! What becomes of a follower: the guest's engine, or nothing, when the guest has ended.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use tracing::{info, warn};

use super::{
    follower::{Follower, Following},
    image::Beside,
};
use crate::{
    checkpoint::{EncoderSettings, QUIET_EPOCHS_DEFAULT},
    failover,
    link::Patience,
    observe::status::{Failover, Protection},
    os::boot_now,
    primary::{Engine, Parts, Report, Stopped, inbox},
    replication::{Pipeline, Policy, Promotion, Suspicion},
    standby::Standby,
    store::{Record, Standing},
    wire::Moment,
};

/// Between two tries to put a takeover on record.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A takeover that cannot be put on record.
pub(super) struct Delayed {
    until: Moment,
    why: String,
}

impl Follower {
    /// Puts the takeover on record, before this host gives up being a backup; whether that is done. Until it is, the
    /// guest waits: a primary that comes back meanwhile goes on with it, and nothing was promised to anybody.
    pub(super) fn put_on_record(&mut self, now: Moment) -> bool {
        if self.delayed.as_ref().is_some_and(|delayed| now < delayed.until) {
            return false;
        }
        let Some(record) = &self.takeover else { return false };
        // It may be on disk even if an error is returned.
        self.recorded = None;
        let Err(e) = self.store.take_reserved(self.vm.as_str(), record) else { return true };
        let why = format!("the primary is silent, and a takeover cannot be put on record: {e:#}");
        if self.delayed.as_ref().is_none_or(|delayed| delayed.why != why) {
            warn!("VM {}: {why}; this host tries again until it can", self.vm);
            self.shared.stand(Protection::Stalled, &why);
        }
        self.delayed = Some(Delayed { until: boot_now() + AGAIN_AFTER, why });
        false
    }

    /// From here on this thread is the guest's engine. The takeover was decided at that moment, and is on record.
    pub(super) fn take_over(self, suspicion: Suspicion, decided: Moment) -> Result<()> {
        let Self {
            vm,
            store,
            shared,
            brain,
            standby,
            session,
            beside,
            letters,
            watch,
            takeover,
            ..
        } = self;
        let record = takeover.context("a takeover that is not on record")?;
        let nonce = record.nonce.context("a takeover by nobody")?;
        let Following { timing, control, .. } = session.context("a detector suspected nobody")?;
        let promotion =
            brain.promote(decided, suspicion, nonce).map_err(|not| anyhow!("{}", not.why))?;
        let Promotion { epoch, of, suspicion, fenced, ancestry, promoted } = promotion;
        // With the epoch that it goes on from, for whatever is written next.
        let record = Record { ancestry: ancestry.clone(), ..record };
        warn!(
            "VM {vm}: {}: this host takes over from epoch {epoch} of term {of}, in term {}",
            suspicion.why(),
            fenced.term()
        );
        letters.set_promoted(promoted.clone());
        let mut standby = standby.context("a session without a machine")?;
        let Beside { state, boot, kept } = beside;
        let boot = boot.context("a committed checkpoint without what the guest begins with")?;
        let given_again = kept.after(of, epoch);
        let overheard = failover::take_over(&mut standby, &state, given_again.clone(), &fenced);
        let open = boot_now();

        let term = fenced.term();
        let (inbox, post) = inbox()?;
        letters.set_engine(post.clone());
        let policy = Policy::new(&timing);
        let Standby { machine, gate, wiring, announcer, .. } = standby;
        if let Some(watch) = &watch {
            watch.speak();
        }
        let engine = Engine::start(Parts {
            vm: vm.as_str().to_owned(),
            machine,
            boot,
            gate,
            announcer,
            watch,
            brain: Pipeline::start_unprotected(fenced, policy, decided).in_line(nonce, ancestry),
            lease: timing.lease,
            goodbye_within: Patience::of(&timing).goodbye(),
            depth: policy.depth,
            // It has no backup to pause for.
            pause_max: timing.epoch_max,
            cool_after: QUIET_EPOCHS_DEFAULT,
            encoding: EncoderSettings::default(),
            store: store.clone(),
            record: record.clone(),
            report: Report::new(Arc::clone(&shared)),
            inbox,
            post,
            orders: None,
            relay: None,
        })?;
        let running = boot_now();
        // An old primary that only stood still reads this when it wakes.
        if let Some(mut control) = control {
            control.send(|out| _ = promoted.stand_down().encode(out)).ok();
        }
        shared.begin_term(term);
        shared.took_over(Failover {
            last_heard_ns: suspicion.last_heard().0,
            decided_ns: decided.0,
            running_ns: running.0,
            open_ns: open.0,
            epoch: epoch.get(),
            given_again: given_again.count() as u64,
            overheard: overheard as u64,
        });
        info!(
            "VM {vm}: the guest runs here, {} us after the decision",
            running.since(decided).as_micros()
        );
        match engine.run()? {
            (Stopped::Ended(why) | Stopped::EndedUnheard(why), gate) => {
                store.write(vm.as_str(), &record.ended())?;
                info!("VM {vm} has ended: {why:?}");
                wiring.remove(gate)
            }
            (Stopped::StoodDown(newer), _) => {
                bail!("another host speaks for it now, in term {newer}")
            }
        }
    }

    /// The guest ended on purpose.
    pub(super) fn end(self) -> Result<()> {
        let record = self.record_of(&self.brain, Standing::Ended);
        let Self { vm, store, standby, .. } = self;
        // The record that is there says that this host was a backup: it promotes nothing by that either.
        if let Err(e) = store.write(vm.as_str(), &record) {
            warn!("VM {vm} has ended, and the record does not say so: {e:#}");
        }
        store.forget_reserved(vm.as_str());
        standby.map_or(Ok(()), Standby::remove)
    }
}
