//! The engine and an epoch: what the guest does in it, and the pause that ends it.

use std::mem;

use anyhow::Result;

use super::{Engine, capture::Capture, shipment::Payload};
use crate::{os::boot_now, replication::Seen, wire::Moment};

impl Engine {
    /// Tells the brain when the guest has said something that the gate now holds.
    pub(super) fn hear_the_guest(&mut self) {
        if self.capture.activity.has_said_more(&self.machine) {
            self.brain.handle_output_waiting(boot_now());
        }
    }

    /// Sees what the guest does in the open epoch, without a pause.
    pub(super) fn look(&mut self, now: Moment) -> Result<()> {
        self.machine.look_at_dirty(&mut self.capture.harvest)?;
        let pages = self.capture.harvest.len();
        let works = self.capture.activity.works(&self.machine, now);
        self.brain.handle_look(now, pages, works);
        self.spare.make_room(pages);
        Ok(())
    }

    /// Ends the open epoch with a checkpoint; see the module for the order.
    pub(super) fn seal(&mut self) -> Result<()> {
        // What is dirty now, and will be in the pause: room for it, and the log's way is in the caches when the guest
        // stands still.
        self.machine.look_at_dirty(&mut self.capture.harvest)?;
        let dirty = self.capture.harvest.len();
        self.spare.make_room(dirty + dirty / 8);
        let Self { machine, guard, brain, report, capture, spare, session, .. } = self;
        let Capture { book, hot, budget, harvest, cool, reset, activity, stride: _ } = capture;
        let gate = &mut guard.gate;
        let mut shipment = spare.take();

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
        let (worked, frames) = activity.seal(machine, resumed);
        brain.handle_seen(Seen {
            standing: staying,
            pages_max: budget.pages_max(),
            worked,
            frames,
            pause: resumed.since(begun),
        });
        let marks = [begun, stopped, captured, logged, copied, cooled, resumed];
        report.sealed(sealed.checkpoint, &marks, count);
        shipment.payload = Payload::Checkpoint {
            term: sealed.checkpoint.term(),
            epoch: sealed.checkpoint.epoch(),
            predecessor: sealed.predecessor,
            reset: mem::take(reset),
        };
        session.as_ref().expect("the brain seals for a session").sender.ship(shipment);
        Ok(())
    }
}
