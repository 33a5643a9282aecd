//! The end of a guest on purpose: what it said last is sealed, committed and released; then the backup is told, so that
//! it does not take over.

use std::time::Duration;

use anyhow::Result;
use tracing::warn;

use super::{Engine, Stopped};
use crate::{
    os::boot_now,
    primary::control::Order,
    replication::Standing,
    wire::{GoodbyeWhy, Moment},
};

/// How long the last checkpoint of a guest that ended may take, beside the goodbye.
const LAST_SEAL_WITHIN: Duration = Duration::from_secs(1);

/// The guest has ended; the backup is being told.
pub(super) struct Ending {
    why: GoodbyeWhy,
    /// Its last checkpoint is captured, if it was protected.
    is_sealed: bool,
    is_said: bool,
    give_up: Moment,
}

impl Engine {
    /// The guest ends on purpose.
    pub(super) fn end(&mut self, why: GoodbyeWhy) {
        let give_up = boot_now() + self.goodbye_within + LAST_SEAL_WITHIN;
        self.ending.get_or_insert(Ending { why, is_sealed: false, is_said: false, give_up });
    }

    /// The steps of an end, one after another as each becomes possible: what the guest said last is sealed,
    /// committed and released; then the backup is told.
    pub(super) fn go_on_ending(&mut self) -> Result<()> {
        let Some(ending) = &mut self.ending else { return Ok(()) };
        let why = ending.why;
        if !ending.is_sealed {
            let is_protected = self.brain.standing() == Standing::Protected;
            if is_protected && (self.brain.in_flight() >= self.depth || self.spare.is_empty()) {
                return Ok(());
            }
            ending.is_sealed = true;
            if is_protected {
                self.seal()?;
            }
            self.brain.handle_guest_ended(why);
        } else if !ending.is_said
            && self.brain.released() == self.brain.acked()
            && let Some(goodbye) = self.brain.poll_goodbye()
        {
            ending.is_said = true;
            self.order(Order::Goodbye { epoch: goodbye.epoch, why });
        }
        Ok(())
    }

    pub(super) fn poll_stopped(&self, now: Moment) -> Option<Stopped> {
        if let Some(newer) = self.stood_down {
            return Some(Stopped::StoodDown(newer));
        }
        let ending = self.ending.as_ref()?;
        if self.brain.standing() != Standing::Stopped && now < ending.give_up {
            return None;
        }
        if self.brain.end_counts() {
            return Some(Stopped::Ended(ending.why));
        }
        warn!("the backup has not acknowledged the end of the guest: it may take over");
        Some(Stopped::EndedUnheard(ending.why))
    }
}
