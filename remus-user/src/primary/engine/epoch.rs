//! The engine and an epoch: what the guest does in it, and the pause that ends it.

use std::{mem, time::Duration};

use anyhow::Result;

use super::Engine;
use crate::{
    machine::Machine, os::boot_now, primary::sender::Cargo, replication::Seen, wire::Moment,
};

impl Engine {
    /// Tells the brain when the guest has said something that the gate now holds.
    pub(super) fn hear_the_guest(&mut self) {
        let sent = self.machine.net_counters().sent;
        if sent != self.said {
            self.said = sent;
            self.brain.handle_output_waiting(boot_now());
        }
    }

    /// Sees what the guest does in the open epoch, without a pause.
    pub(super) fn look(&mut self, now: Moment) -> Result<()> {
        self.machine.look_at_dirty(&mut self.harvest)?;
        let pages = self.harvest.len();
        let works = self.worked.is_since(&self.machine, now);
        self.brain.handle_look(now, pages, works);
        self.make_room(pages);
        Ok(())
    }

    /// Room for so many pages in the buffer that the next pause fills, so that no pause pays a first touch.
    fn make_room(&mut self, pages: usize) {
        if let Some(next) = self.spare.last_mut() {
            next.staging.reserve(pages);
        }
    }

    /// Ends the open epoch with a checkpoint; see the module for the order.
    pub(super) fn seal(&mut self) -> Result<()> {
        // What is dirty now, and will be in the pause: room for it, and the log's way is in the caches when the guest
        // stands still.
        self.machine.look_at_dirty(&mut self.harvest)?;
        let dirty = self.harvest.len();
        self.make_room(dirty + dirty / 8);
        let Self {
            machine,
            gate,
            brain,
            report,
            book,
            hot,
            budget,
            harvest,
            cool,
            spare,
            link,
            sealed_at,
            worked,
            sent_before,
            reset,
            ..
        } = self;
        let mut shipment = spare.pop().expect("the caller looked");
        shipment.staging.clear();

        let begun = boot_now();
        let mut paused = machine.pause()?;
        let stopped = boot_now();
        let sealed = brain.seal(begun);
        gate.seal(&sealed.next);
        paused.capture(&mut shipment.state)?;
        let captured = boot_now();
        paused.harvest(harvest)?;
        book.owe(harvest);
        let pages = book.capture(sealed.checkpoint.epoch());
        let count = pages.len();
        shipment.staging.reserve(count);
        let logged = boot_now();
        paused.copy(pages.iter(), &mut shipment.staging)?;
        let copied = boot_now();
        let staying = hot.poll_cool(pages, cool, budget.pages_max());
        paused.reprotect(cool)?;
        let cooled = boot_now();
        drop(paused);
        let resumed = boot_now();

        let copy = copied.since(logged);
        budget.handle_pause(count, copy, resumed.since(begun).saturating_sub(copy));
        let sent = machine.net_counters().sent;
        brain.handle_seen(Seen {
            standing: staying,
            pages_max: budget.pages_max(),
            worked: worked.seal(machine, resumed),
            frames: sent - *sent_before,
            pause: resumed.since(begun),
        });
        *sent_before = sent;
        sealed_at.push_back((sealed.checkpoint, begun));
        let marks = [begun, stopped, captured, logged, copied, cooled, resumed];
        report.sealed(sealed.checkpoint, &marks, count);
        shipment.cargo = Cargo::Checkpoint {
            term: sealed.checkpoint.term(),
            epoch: sealed.checkpoint.epoch(),
            predecessor: sealed.predecessor,
            reset: mem::take(reset),
        };
        link.as_ref().expect("the brain seals for a session").sender.ship(shipment);
        Ok(())
    }
}

/// Whether the guest is at work, by the CPU time of its vCPUs.
pub(super) struct Worked {
    /// When the open epoch began.
    at: Moment,
    vcpu_time: Duration,
}

impl Worked {
    pub(super) fn new(now: Moment) -> Self {
        Self { at: now, vcpu_time: Duration::ZERO }
    }

    /// A vCPU that uses less than one part in so many of an epoch is idle: pauses and timer ticks take some.
    const SHARE: u32 = 10;

    /// Since the last seal.
    fn is_since(&self, machine: &Machine, now: Moment) -> bool {
        let used = machine.vcpu_time().saturating_sub(self.vcpu_time);
        used * Self::SHARE > now.since(self.at)
    }

    /// As `is_since`, and begins anew.
    fn seal(&mut self, machine: &Machine, now: Moment) -> bool {
        let worked = self.is_since(machine, now);
        *self = Self { at: now, vcpu_time: machine.vcpu_time() };
        worked
    }
}
