//! What the engine does when its gate guards no more.
//!
//! Frames may have passed unseen since the last look, at most a tick ago: output of the open epoch and of those that
//! ended since, all of which the next checkpoint covers. So the guest is paused at once, and nothing is sealed or
//! released. Then:
//! - Where a new gate can take its place, it does, in the same term, closed and empty. Then it holds from the
//!   open epoch on, the guest goes on, and the epoch is sealed as soon as there is room: its checkpoint covers
//!   whatever has leaked. The pause need not last until then, since all that the guest says from here on is held.
//!   What the old gate held is lost, as on a wire.
//! - Where whoever did the harm undoes it in time, the gate goes on as it was.
//! - Else the process ends, and the backup takes over. What leaked is then what no gate could have kept.
//!
//! A guest that runs unprotected has nothing to hold: it runs on, and no session begins until the gate is well.

use std::{os::fd::AsRawFd, thread::sleep, time::Duration};

use anyhow::{Result, bail};
use remus_abi::gate::Mode;
use tracing::{info, warn};

use super::{Engine, TICK, wait::Source};
use crate::{
    gate::{Gate, Lost, Remedy},
    os::boot_now,
    wire::Moment,
};

/// How long the guest may stand still for a gate to be put back. Heartbeats and the engine's pulse go on meanwhile: the
/// backup does not suspect.
const BACK_WITHIN: Duration = Duration::from_secs(2);

/// The gate, and how it fares.
pub(super) struct Guard {
    pub(super) gate: Gate,
    /// Frames are still on their way out.
    pub(super) flush_again: bool,
    /// Why the gate, which is open, could not hold.
    doubted: Option<Lost>,
    /// When the gate was last put back.
    back_at: Option<Moment>,
}

impl Guard {
    pub(super) fn new(gate: Gate) -> Self {
        Self { gate, flush_again: false, doubted: None, back_at: None }
    }
}

impl Engine {
    /// Looks after the gate.
    ///
    /// # Errors
    /// When it is lost and cannot be put back: the guest is paused, and must not run on.
    pub(super) fn look_after_gate(&mut self, now: Moment) -> Result<()> {
        match self.guard.gate.verify() {
            Ok(()) => {
                if self.guard.doubted.take().is_some() {
                    info!("the gate is well again");
                    self.report.reason("");
                }
                Ok(())
            }
            Err(lost) if self.brain.gate_is_open() => {
                self.doubt_gate(lost);
                Ok(())
            }
            Err(lost) => self.put_gate_back(lost, now),
        }
    }

    /// An error of the machine, which may come from the loss of the tap: then that is what is said.
    pub(super) fn explain(&mut self, error: anyhow::Error, now: Moment) -> Result<()> {
        match self.guard.gate.verify() {
            Err(lost) if !self.brain.gate_is_open() => self.put_gate_back(lost, now),
            Ok(()) | Err(_) => Err(error),
        }
    }

    /// Whether a session may begin: its first checkpoint will make the gate hold.
    pub(super) fn gate_is_well(&mut self) -> bool {
        match self.guard.gate.verify() {
            Ok(()) => true,
            Err(lost) => {
                self.doubt_gate(lost);
                false
            }
        }
    }

    /// The gate is lost while it holds nothing back.
    fn doubt_gate(&mut self, lost: Lost) {
        if self.guard.doubted.as_ref() == Some(&lost) {
            return;
        }
        let why = format!("no backup is taken, since the gate is lost: {lost}");
        warn!("{why}");
        if let Some(session) = self.current() {
            self.lose(session, &why);
        }
        self.report.reason(&why);
        self.guard.doubted = Some(lost);
    }

    fn put_gate_back(&mut self, lost: Lost, now: Moment) -> Result<()> {
        let paused = self.machine.pause()?;
        let (mode, events) = (self.guard.gate.mode(), self.guard.gate.as_raw_fd());
        self.guard.gate.close();
        warn!("the gate is lost, the guest is paused: {lost}");
        self.report.gate(&self.guard.gate)?;
        self.report.gate_lost(&lost.to_string());
        // Lost again as soon as it was put back: somebody insists.
        let again = self.guard.back_at.is_some_and(|at| now.since(at) < BACK_WITHIN);
        let give_up = if again { now } else { now + BACK_WITHIN };
        // This host looks after the guest all the while.
        self.pulse.excuse_until(give_up);
        if let Err(e) = well_again(&mut self.guard.gate, lost, give_up) {
            // Nothing of the guest runs any more.
            paused.keep();
            return Err(e);
        }
        if self.guard.gate.as_raw_fd() != events {
            // The old one left the epoll instance when it was closed.
            self.waiter.add(Source::Gate, self.guard.gate.as_raw_fd())?;
        }
        self.guard.gate.set_debug(tracing::enabled!(tracing::Level::DEBUG));
        match mode {
            Mode::Closed | Mode::Open => {}
            Mode::Hold => self.guard.gate.hold(),
        }
        if let Some(lease) = self.brain.lease_until() {
            self.guard.gate.renew_lease(&lease);
        }
        paused.resume();
        let back = boot_now();
        warn!("the gate is back, {} ms later", back.since(now).as_millis());
        self.guard.back_at = Some(back);
        self.brain.handle_gate_filling(back);
        self.report_standing();
        Ok(())
    }
}

/// Makes `gate` well, if that can be done before `give_up`. The guest is paused.
fn well_again(gate: &mut Gate, mut lost: Lost, give_up: Moment) -> Result<()> {
    loop {
        let refused = match lost.remedy() {
            Remedy::NewGate => match gate.again() {
                Ok(new) => {
                    *gate = new;
                    return Ok(());
                }
                Err(e) => Some(format!(" (a new gate: {e:#})")),
            },
            Remedy::Wait => None,
            Remedy::None => bail!("the gate is lost, and there can be none: {lost}"),
        };
        if boot_now() >= give_up {
            let why = refused.unwrap_or_default();
            bail!("the gate is lost, and the guest must not run on: {lost}{why}");
        }
        sleep(TICK);
        match gate.verify() {
            Ok(()) => return Ok(()),
            Err(next) => lost = next,
        }
    }
}
