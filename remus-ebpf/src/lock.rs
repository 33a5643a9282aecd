//! `lock`: the second lock of the engine `nfqueue`. Asked by a netfilter rule behind the queue whether a frame of the tap
//! must be dropped; it does not know, and does not care, who let the frame go on.
//!
//! It repeats what the controller has checked before its verdict: term and epoch against what may be outside, and
//! the lease against the clock. A verdict that was wrong, or came late, is a loss here, not a leak.

use aya_ebpf::{helpers::bpf_ktime_get_boot_ns, programs::SkBuffContext};
use remus_abi::{
    Stamp,
    gate::{Control, Counter},
    queue::{self, QUEUE_TAG, QUEUE_TAG_MASK},
};

use crate::maps::{ControlWords, HOLD, OPEN, count};

/// The rule matches, and drops, where the answer is not 0.
const PASS: u32 = 0;
const DROP: u32 = 1;

/// Only IP frames come here: those that `stamp` has marked, and, through an open gate, those that it has not.
#[inline(always)]
pub fn judge(ctx: &SkBuffContext) -> u32 {
    let Some(control) = ControlWords::get() else { return DROP };
    // SAFETY: the context of this run; the verifier turns the read into one of skb->mark.
    let mark = unsafe { (*ctx.skb.skb).mark };
    let mode = control.word(Control::Mode);
    if mark & QUEUE_TAG_MASK != QUEUE_TAG && mode == OPEN {
        return PASS;
    }
    // In any other mode a frame without our mark has lost it on its way: somebody writes marks before the queue.
    let Some(stamp) = queue::stamp(mark, control.open(), control.turns(), control.kept()) else {
        return refuse(Counter::RefusedStale);
    };
    match prove(control, mode, stamp) {
        Ok(()) => {
            count(Counter::Released);
            PASS
        }
        Err(why) => refuse(why),
    }
}

#[inline(always)]
fn prove(control: ControlWords, mode: u64, stamp: Stamp) -> Result<(), Counter> {
    let releasable = control.releasable();
    if !stamp.is_covered_by(releasable) {
        return Err(Counter::RefusedByLock);
    }
    if mode == HOLD {
        if releasable >= control.open() {
            return Err(Counter::CommitNotBelowOpen);
        }
        // SAFETY: a helper without arguments.
        if unsafe { bpf_ktime_get_boot_ns() } > control.lease_until() {
            return Err(Counter::LeaseOver);
        }
    }
    Ok(())
}

#[inline(always)]
fn refuse(why: Counter) -> u32 {
    count(why);
    DROP
}
