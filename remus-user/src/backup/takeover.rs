//! A takeover: from a term that is on record to a guest that runs and is heard.
//!
//! Everything slow was done when the primary connected ([`Standby`]). What is left, in this order:
//! 1. The new term goes to disk: a host that crashes after it was heard must know, when it comes back, that it
//!    spoke. The follower does so before it gives up being a backup: until that is done, nothing is lost by waiting.
//! 2. The state beside RAM is put into the machine.
//! 3. The tap joins the bridge and goes up, behind its gate, which is still closed. A bridge that is not there is
//!    joined when it comes ([`Watch`](crate::watch::Watch)): a guest that few reach is better than none.
//! 4. The gate begins the new term and opens; the network is told where the guest is now. The guest's own first frame
//!    might come late.
//! 5. The guest is to be given what the dead primary had given it in vain, then what came while nobody ran it. Not before:
//!    until now frames may have come past the tap.
//! 6. The guest runs: its engine's part.
//!
//! A guest that ends on purpose is not taken over; that end is here too.

use std::{sync::Arc, thread, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use tracing::{debug, info, warn};

use super::{
    follower::{Delayed, FollowedSession, Follower},
    receiver::BesideRam,
};
use crate::{
    checkpoint::{EncoderSettings, MachineState, QUIET_EPOCHS_DEFAULT},
    engine::{Engine, Pulse, Report, Setup},
    gate::Held,
    link::Patience,
    observe::status::{Failover, Protection},
    os::{boot_now, inbox},
    replication::{Fenced, Pipeline, Policy, Promotion, Stopped, Suspicion},
    standby::Standby,
    store::{Record, Standing},
    wire::Moment,
};

/// Between two tries to put a takeover on record.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Between two tries of a step that nothing can go on without.
const RETRY_EVERY: Duration = Duration::from_millis(200);

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
        let Err(e) = self.store.take_reserved(&self.vm, record) else { return true };
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
            vm, store, shared, brain, standby, session, beside, calls, watch, takeover, ..
        } = self;
        let record = takeover.context("a takeover that is not on record")?;
        let nonce = record.nonce.context("a takeover by nobody")?;
        let FollowedSession { timing, control, .. } =
            session.context("a detector suspected nobody")?;
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
        calls.take_over(promoted.clone());
        let mut standby = standby.context("a session without a machine")?;
        let BesideRam { state, boot, kept } = beside;
        let boot = boot.context("a committed checkpoint without what the guest begins with")?;
        let given_again = kept.after(of, epoch);
        let overheard = put_together(&mut standby, &state, given_again.clone(), &fenced);
        let open = boot_now();

        let term = fenced.term();
        let (inbox, post) = inbox()?;
        calls.run_guest(promoted.clone(), post.clone());
        let policy = Policy::new(&timing);
        let Standby { machine, gate, wiring, announcer, .. } = standby;
        if let Some(watch) = &watch {
            watch.speak();
        }
        let engine = Engine::start(Setup {
            vm: vm.clone(),
            machine,
            boot,
            gate,
            announcer,
            watch,
            brain: Pipeline::start_unprotected(fenced, policy, decided).in_line(nonce, ancestry),
            goodbye_within: Patience::of(&timing).goodbye(),
            // It has no backup to pause for.
            pause_max: timing.epoch_max,
            cool_after: QUIET_EPOCHS_DEFAULT,
            encoding: EncoderSettings::default(),
            store: store.clone(),
            record: record.clone(),
            report: Report::new(Arc::clone(&shared)),
            inbox,
            post,
            pulse: Pulse::new(),
            peer: None,
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
                store.write(&vm, &record.ended())?;
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
        if let Err(e) = store.write(&vm, &record) {
            warn!("VM {vm} has ended, and the record does not say so: {e:#}");
        }
        store.forget_reserved(&vm);
        standby.map_or(Ok(()), Standby::remove)
    }
}

/// Puts the guest together and connects it, up to the point where it runs. Returns the number of frames that came while
/// nobody ran the guest. Tries for as long as it takes: the guest is nowhere else.
fn put_together<'a>(
    standby: &mut Standby,
    state: &MachineState,
    given_again: impl Iterator<Item = &'a [u8]>,
    fenced: &Fenced,
) -> usize {
    let mut said = String::new();
    while let Err(e) = standby.machine.restore(state) {
        let why = format!("{e:#}");
        if why != said {
            warn!("the guest's state is not taken by this host's KVM, which is asked again: {why}");
            said = why;
        }
        thread::sleep(RETRY_EVERY);
    }
    debug!("the machine has its state");
    match standby.wiring.connect() {
        Ok(()) => debug!("the tap is connected"),
        Err(e) => warn!("the guest runs on, and clients may not reach it: {e:#}"),
    }
    while let Err(e) = standby.gate.begin_term(fenced, Held::Discard) {
        warn!("the gate does not take the new term, and is asked again: {e:#}");
        thread::sleep(RETRY_EVERY);
    }
    standby.gate.open(fenced);
    debug!("the gate is open");
    standby.announcer.poll(boot_now());
    debug!("the guest is announced");
    let overheard = standby.wiring.take_overheard();
    let came = overheard.len();
    standby.machine.give(given_again.map(Box::from));
    standby.machine.give(overheard.into_iter());
    came
}
