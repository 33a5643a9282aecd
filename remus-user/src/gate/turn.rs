//! How a term ends on a gate, and the next one begins on it.
//!
//! What is written, and in which order, is for [`ControlWords::begin_term`](super::words::ControlWords::begin_term) to say.
//! This file does what lies between: the trigger is disarmed, and `turn` runs under the flush lock, as often as it takes.
//!
//! Frames that were released in the old term may still be on their way through a CPU's backlog. They are waited for, for a
//! moment: the second lock judges them by the words as they are when they arrive. A frame that is not seen in that time is
//! sent again in the new term, if it is kept; if not, it is lost, as on a wire.

use std::{sync::Weak, thread, time::Duration};

use anyhow::{Result, bail};
use remus_abi::gate::{FlushResult, Mode, Turn};

use super::{
    Gate,
    words::{Held, NewTerm},
};
use crate::{os::boot_now, replication::Fenced};

/// How long frames that are under way are waited for. A backlog is emptied within microseconds, unless its CPU is taken
/// away.
const PATIENCE: Duration = Duration::from_millis(10);

impl Gate {
    /// Ends the term of this gate and begins that of `fenced`; `held` says what becomes of the frames that wait. On
    /// return the gate holds, from the first epoch of the new term on, without a lease; a closed gate is still closed.
    /// Nothing that belongs to the old term counts any more: its commits, its lease, its trigger.
    ///
    /// On a gate that is closed and empty, as a backup's is at a takeover, this takes a few stores. Call it in a pause,
    /// or from the thread that writes into the tap: a frame that arrives meanwhile may be counted for either term.
    ///
    /// # Errors
    /// When the kernel refuses to run the program any more, or a netfilter queue answers no more. The gate then lets
    /// nothing out, and is of no use.
    ///
    /// # Panics
    /// When the term is not newer than the gate's.
    pub fn begin_term(&mut self, fenced: &Fenced, held: Held) -> Result<()> {
        let NewTerm { shut, held, begin } = self.words().begin_term(fenced, held);
        self.write(shut);
        if let Some(trigger) = self.trigger.borrow().upgrade() {
            trigger.disarm();
        }
        self.turn(held)?;
        self.write(begin);
        Ok(())
    }

    /// Waits for releases that have read the words of the old term, forgets what datagrams have acked in it, and
    /// discards what is to be discarded.
    fn turn(&mut self, held: Held) -> Result<()> {
        let words = self.words();
        if let Some(queue) = &mut self.queue {
            queue.turn(held, &words)?;
        }
        // Such a gate releases nothing, nobody else has moved it, and nobody can.
        let has_trigger = !Weak::ptr_eq(&self.trigger.borrow(), &Weak::new());
        let is_untouched = !has_trigger && self.acks.are_none();
        if words.mode == Mode::Closed && self.in_buffer() == 0 && is_untouched {
            return Ok(());
        }
        let give_up = boot_now() + PATIENCE;
        let mut how = match held {
            Held::Keep => Turn::Keep,
            Held::Discard => Turn::Discard,
        };
        loop {
            match self.programs.run_turn(how)? {
                FlushResult::Done => return Ok(()),
                FlushResult::More => {}
                FlushResult::Busy => thread::yield_now(),
                FlushResult::InFlight if boot_now() < give_up => thread::yield_now(),
                FlushResult::InFlight => match held {
                    Held::Keep => return Ok(()),
                    Held::Discard => how = Turn::DiscardAll,
                },
                other @ (FlushResult::Refused | FlushResult::Broken | FlushResult::Unguarded) => {
                    bail!("the gate's term cannot be ended: turn answered {other:?}")
                }
            }
        }
    }
}
