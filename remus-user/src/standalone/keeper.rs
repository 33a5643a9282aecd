//! The keeper owns the gate: it follows requests, one at a time, and looks after the gate in between.
//!
//! Order, and why: before a request is followed, the kernel is asked whether the gate is still in front of the tap. A gate
//! that is not lets frames pass. So no request that a checkpointer could take for protection is answered with `ok` any
//! more; the checkpointer learns of the loss at its next seal, and pauses the guest.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    thread,
    time::Duration,
};

use anyhow::Result;
use remus_abi::{
    Epoch,
    counters::Counted,
    gate::{Counter, Mode},
};
use tracing::{debug, error, info, warn};

use super::{
    answer::{Answer, Code, mode_name},
    request::Request,
};
use crate::{
    gate::{self, Fill, Flushed, Gate},
    observe::Tally,
    os::boot_now,
    replication::Standalone,
    wire::Moment,
};

/// How long `open` waits until what is held is out, so that nothing overtakes that.
const OPEN_PATIENCE: Duration = Duration::from_millis(500);
/// The time between two readings of the counters for alarms.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// The time between two flushes of frames that are on their way.
pub(super) const FLUSH_PAUSE: Duration = Duration::from_millis(1);

/// Whether releases need a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lease {
    /// They need none: the checkpointer has a fence of its own.
    None,
    /// They need one, which is renewed by up to `max` at a time. `until_ns` is in CLOCK_BOOTTIME.
    Renewed { max: Duration, until_ns: u64 },
}

enum Standing {
    InFront,
    /// Frames may be passing by the gate; the text says why.
    Lost(String),
}

/// See the module.
pub(super) struct Keeper {
    gate: Gate,
    brain: Standalone,
    lease: Lease,
    standing: Standing,
    /// Whether something that is committed has not left yet.
    flushing: bool,
    /// What the gate has counted, for its alarms, and when that was last read.
    tally: Tally<Counter, { Counter::COUNT }>,
    counted_at: Moment,
}

impl Keeper {
    /// Takes a gate, and a `brain` that agrees with what the gate does now.
    pub(super) fn new(mut gate: Gate, brain: Standalone, lease: Lease) -> Self {
        if lease == Lease::None {
            gate.renew_lease(&brain.without_lease());
        }
        gate.set_debug(tracing::enabled!(tracing::Level::DEBUG));
        Self {
            gate,
            brain,
            lease,
            standing: Standing::InFront,
            // An earlier controller may have been told to release frames that it could not release.
            flushing: true,
            tally: Tally::new("stats"),
            counted_at: Moment(0),
        }
    }

    /// Follows one request.
    pub(super) fn handle(&mut self, request: Request) -> Answer {
        self.look();
        let followed = match request {
            Request::Status => Ok(self.status()),
            Request::Stats => self.stats(),
            Request::Close => Ok(self.close()),
            Request::Hold => self.in_front().and_then(|()| self.hold()),
            Request::Seal => self.in_front().and_then(|()| self.seal()),
            Request::Commit(epoch) => self.in_front().and_then(|()| self.commit(epoch)),
            Request::Open => self.in_front().and_then(|()| self.open()),
            Request::Discard => self.in_front().and_then(|()| self.discard()),
            Request::Lease(length) => self.renew_lease(length),
            Request::Wait => self.in_front().map(|()| self.filled()),
        };
        followed.unwrap_or_else(|refusal| refusal)
    }

    /// Returns whether a request to wait is answered at once: the gate is filling, or is lost.
    pub(super) fn is_filling(&self) -> bool {
        let Fill { bytes, capacity_bytes, .. } = self.gate.fill();
        2 * bytes >= capacity_bytes || self.in_front().is_err()
    }

    /// Returns a descriptor that is readable when the gate has said that it fills.
    ///
    /// # Errors
    /// When no descriptor is free.
    pub(super) fn bell(&self) -> io::Result<OwnedFd> {
        // SAFETY: the gate has it open, and lives during the call.
        unsafe { BorrowedFd::borrow_raw(self.gate.as_raw_fd()) }.try_clone_to_owned()
    }

    /// Returns whether the gate has said that it fills since this was last asked.
    pub(super) fn take_filling(&mut self) -> bool {
        self.gate.take_filling()
    }

    /// Looks after the gate; call it every few milliseconds.
    pub(super) fn tick(&mut self) {
        self.look();
        self.gate.drain_log();
        let now = boot_now();
        if now.since(self.counted_at) >= COUNT_EVERY {
            self.counted_at = now;
            self.look_for_alarms();
        }
    }

    /// Logs each alarm once. Counters that cannot be read are told to whoever asks for them.
    fn look_for_alarms(&self) {
        match self.gate.counters() {
            Ok(counters) => self.tally.store(&counters),
            Err(e) => debug!("{e:#}"),
        }
    }

    /// Returns whether [`flush`](Self::flush) is wanted again.
    pub(super) fn is_flushing(&self) -> bool {
        self.flushing
    }

    /// Releases what is committed, as far as it goes.
    pub(super) fn flush(&mut self) {
        match self.gate.flush() {
            // While an open gate holds frames, new ones queue up behind them.
            Ok(Flushed::All) => {
                self.flushing = self.gate.mode() == Mode::Open && self.gate.held() > 0;
            }
            Ok(Flushed::Refused) => self.flushing = false,
            Ok(Flushed::Pending) => self.flushing = true,
            Err(e) => self.lose(format!("{e:#}")),
        }
    }

    /// Ends; the gate is shut and stays where it is.
    pub(super) fn end_closed(mut self) {
        self.gate.close();
        info!(
            "the gate on {} is closed and stays, with {} frames; `remus gate run` takes it over, `remus gate remove` \
             removes it",
            self.gate.tap().name,
            self.gate.held()
        );
    }

    /// Ends; the gate stays as it is.
    pub(super) fn end_kept(self) {
        info!(
            "the gate on {} stays as it is ({}), with {} frames: nothing is released until `remus gate run` takes it \
             over",
            self.gate.tap().name,
            mode_name(self.gate.mode()),
            self.gate.held()
        );
    }

    /// Ends; the gate is taken off the tap.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub(super) fn end_removed(self) -> Result<()> {
        let held = self.gate.held();
        if held > 0 {
            warn!("{held} held frames are discarded with the gate");
        }
        let tap = self.gate.tap().name.clone();
        self.gate.remove()?;
        info!("the gate is off {tap}: its frames pass from now on");
        Ok(())
    }

    fn hold(&mut self) -> Result<Answer, Answer> {
        let before = self.brain.mode();
        let epoch = self.brain.handle_hold();
        match before {
            Mode::Hold => {}
            Mode::Closed | Mode::Open => self.gate.hold(),
        }
        self.flush();
        Ok(Answer::one("open", epoch))
    }

    fn seal(&mut self) -> Result<Answer, Answer> {
        let (sealed, next) = self.brain.handle_seal()?;
        self.gate.seal(&next);
        Ok(Answer::one("epoch", sealed))
    }

    fn commit(&mut self, epoch: Epoch) -> Result<Answer, Answer> {
        if let Some(committed) = self.brain.handle_commit(epoch)? {
            self.gate.commit(&committed);
        }
        self.flush();
        self.in_front()?;
        Ok(Answer::one("held", self.gate.held()))
    }

    fn open(&mut self) -> Result<Answer, Answer> {
        if self.brain.mode() == Mode::Open {
            return Ok(Answer::one("held", self.gate.held()));
        }
        if let Lease::Renewed { until_ns, .. } = self.lease
            && boot_now().0 >= until_ns
        {
            return Err(Answer::error(Code::Lease, "the lease is over: renew it first"));
        }
        let fenced = self.brain.handle_open();
        self.gate.open(&fenced);
        info!("the gate on {} is open: its guest runs unprotected", self.gate.tap().name);
        self.flush_patiently();
        self.in_front()?;
        Ok(Answer::one("held", self.gate.held()))
    }

    fn flush_patiently(&mut self) {
        let mut pauses = OPEN_PATIENCE.as_millis() / FLUSH_PAUSE.as_millis();
        self.flush();
        while self.flushing && pauses > 0 {
            thread::sleep(FLUSH_PAUSE);
            self.flush();
            pauses -= 1;
        }
    }

    fn close(&mut self) -> Answer {
        self.gate.close();
        self.brain.handle_close();
        Answer::one("held", self.gate.held())
    }

    fn discard(&mut self) -> Result<Answer, Answer> {
        match self.brain.mode() {
            // What passes an open gate is not held.
            Mode::Open => return Ok(Answer::one("discarded", 0)),
            Mode::Closed => {}
            Mode::Hold => {
                self.flush_patiently();
                if self.flushing {
                    let text = "committed frames are still on their way out: ask again";
                    return Err(Answer::error(Code::Pending, text));
                }
            }
        }
        let discarded = self.gate.held();
        let fenced = self.brain.handle_discard()?;
        if let Err(e) = self.gate.begin_term(&fenced, gate::Held::Discard) {
            self.lose(format!("its term could not be ended: {e:#}"));
            self.in_front()?;
        }
        // What the checkpointer was promised does not depend on the term.
        self.gate.renew_lease(&match self.lease {
            Lease::None => self.brain.without_lease(),
            Lease::Renewed { until_ns, .. } => self.brain.lease_until(Moment(until_ns)),
        });
        let open = self.brain.open();
        info!("{discarded} frames were discarded: term {} begins", open.term());
        Ok(Answer::Ok(vec![
            ("discarded", discarded.to_string()),
            ("open", open.epoch().to_string()),
        ]))
    }

    fn renew_lease(&mut self, length: Duration) -> Result<Answer, Answer> {
        let Lease::Renewed { max, until_ns } = &mut self.lease else {
            let text = "there is no lease: this gate was started without --lease-ms";
            return Err(Answer::error(Code::Lease, text));
        };
        if length > *max {
            let text = format!("a lease is at most {} ms here (--lease-ms)", max.as_millis());
            return Err(Answer::error(Code::Lease, text));
        }
        let until = boot_now() + length;
        *until_ns = (*until_ns).max(until.0);
        self.gate.renew_lease(&self.brain.lease_until(until));
        self.flush();
        Ok(Answer::one("lease_ms", length.as_millis()))
    }

    fn filled(&self) -> Answer {
        let Fill { frames, bytes, capacity_bytes } = self.gate.fill();
        Answer::Ok(vec![
            ("held", frames.to_string()),
            ("bytes", bytes.to_string()),
            ("capacity", capacity_bytes.to_string()),
        ])
    }

    fn status(&self) -> Answer {
        let lease = match self.lease {
            Lease::None => "none".to_owned(),
            Lease::Renewed { until_ns, .. } => {
                (until_ns.saturating_sub(boot_now().0) / 1_000_000).to_string()
            }
        };
        let attached = match self.standing {
            Standing::InFront => "first",
            Standing::Lost(_) => "lost",
        };
        Answer::Ok(vec![
            ("mode", mode_name(self.gate.mode()).to_owned()),
            ("term", self.brain.open().term().to_string()),
            ("open", self.brain.open().epoch().to_string()),
            ("committed", self.brain.committed().epoch().to_string()),
            ("held", self.gate.held().to_string()),
            ("bytes", self.gate.fill().bytes.to_string()),
            ("capacity", self.gate.fill().capacity_bytes.to_string()),
            ("attached", attached.to_owned()),
            ("lease_ms", lease),
            ("tap", self.gate.tap().name.clone()),
        ])
    }

    fn stats(&self) -> Result<Answer, Answer> {
        let counters =
            self.gate.counters().map_err(|e| Answer::error(Code::Failed, format!("{e:#}")))?;
        Ok(Answer::Ok(counters.iter().map(|(c, n)| (c.name(), n.to_string())).collect()))
    }

    /// Checks that the gate is where it was, and as it was left.
    fn look(&mut self) {
        match self.standing {
            Standing::InFront => {
                if let Err(e) = self.gate.verify() {
                    self.lose(format!("{e:#}"));
                } else if self.gate.mode() == Mode::Closed && self.brain.mode() != Mode::Closed {
                    warn!("another process has closed the gate on {}", self.gate.tap().name);
                    self.brain.handle_close();
                }
            }
            Standing::Lost(_) => {}
        }
    }

    fn in_front(&self) -> Result<(), Answer> {
        match &self.standing {
            Standing::InFront => Ok(()),
            Standing::Lost(why) => Err(Answer::error(Code::GateLost, why)),
        }
    }

    /// Gives the gate up for good: nobody knows what is on the tap now, and what has passed.
    fn lose(&mut self, why: String) {
        error!("the gate on {} is lost, frames may pass: {why}", self.gate.tap().name);
        self.gate.close();
        self.brain.handle_close();
        self.flushing = false;
        self.standing = Standing::Lost(why);
    }
}
