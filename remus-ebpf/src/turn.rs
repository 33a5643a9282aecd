//! `turn`: ends a term.
//!
//! Run by the controller under BPF_PROG_TEST_RUN, between the words that stop releases in the old term and those of the
//! new one. The run takes the flush lock, so no release that read the old words is under way after it.
//!
//! `turn` zeroes what datagrams have acked, the lease that they gave included. Told to discard, it frees what is held, a
//! batch a run, because softirqs, and with them `hold`, wait until it returns.

use aya_ebpf::programs::TcContext;
use remus_abi::{
    ack::Acked,
    gate::{Control, Counter, FLUSH_BATCH, FlushResult, Ring, SlotState, Turn, units},
};

use crate::{
    flush::{life_of, set_life},
    maps::{AckedWords, ControlWords, RingWords, add, slot, try_lock, unlock},
};

const KEEP: u32 = Turn::Keep as u32;
const DISCARD_ALL: u32 = Turn::DiscardAll as u32;

#[inline(always)]
pub fn run(ctx: &TcContext) -> FlushResult {
    let (Some(control), Some(ring), Some(acked)) =
        (ControlWords::get(), RingWords::get(), AckedWords::get())
    else {
        return FlushResult::Broken;
    };
    if !try_lock() {
        return FlushResult::Busy;
    }
    for word in [Acked::LeaseUntil, Acked::Stamp, Acked::At] {
        acked.set(word, 0);
    }
    // SAFETY: the context of this run; the verifier turns the read into one of skb->mark.
    let how = unsafe { (*ctx.skb.skb).mark };
    let result = pass_over(control, ring, how);
    unlock();
    result
}

/// Moves the tail over freed slots, and over those that are to be freed here.
#[inline(always)]
fn pass_over(control: ControlWords, ring: RingWords, how: u32) -> FlushResult {
    let capacity = control.word(Control::Units);
    let next = ring.word(Ring::Next);
    // Which way to go is told by two numbers: the loop, of which the verifier walks every round, asks for nothing else.
    let stop = if how == KEEP { next } else { ring.word(Ring::Head) };
    let under_way = if how == DISCARD_ALL { 0 } else { next };
    let mut tail = ring.word(Ring::Tail);
    let mut tail_unit = ring.word(Ring::TailUnit);
    let mut freed = 0;
    let mut result = FlushResult::More;
    for _ in 0..FLUSH_BATCH {
        if tail >= stop {
            result = FlushResult::Done;
            break;
        }
        let Some(slot) = slot(tail, capacity) else {
            result = FlushResult::Broken;
            break;
        };
        // SAFETY: a live map value below the head: `hold` has filled it.
        let (life, len) = unsafe { (life_of(slot), (*slot).len) };
        if !life.is(SlotState::Free) {
            if tail < under_way {
                result = FlushResult::InFlight;
                break;
            }
            // SAFETY: as above. A second lock that proves the same frame now frees the slot as well.
            unsafe { set_life(slot, life.become_state(SlotState::Free)) };
            freed += 1;
        }
        tail += 1;
        tail_unit += u64::from(units(len));
    }
    ring.set(Ring::TailUnit, tail_unit);
    ring.set(Ring::Tail, tail);
    if next < tail {
        ring.set(Ring::Next, tail);
    }
    add(Counter::Discarded, freed);
    result
}
