//! `guard`: the second lock at the egress of an uplink.
//!
//! The uplink carries other traffic too. A frame is ours when it has our tag in its mark and this gate's tap in
//! the control buffer, where `flush` has put it; guards of several gates share an uplink by that.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use remus_abi::gate::{Control, Counter, MARK_TAG, MARK_TAG_MASK, SlotState};

use crate::{
    hold::{prove, refuse},
    maps::{ControlWords, count},
};

/// The word of `skb->cb` that names the gate. The words live from `bpf_clone_redirect` to the egress hook, within
/// one `dev_queue_xmit`.
pub const GATE: usize = 0;

#[inline(always)]
pub fn judge(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context of this run; the verifier turns the reads into such of the skb.
    let (mark, gate) = unsafe { ((*skb).mark, (*skb).cb[GATE]) };
    if mark & MARK_TAG_MASK != MARK_TAG {
        return TC_ACT_UNSPEC;
    }
    let Some(control) = ControlWords::get() else { return TC_ACT_SHOT };
    if u64::from(gate) != control.word(Control::Tap) {
        return TC_ACT_UNSPEC;
    }
    match prove(control, mark, SlotState::Passed) {
        Ok(()) => {
            ctx.set_mark(0);
            // SAFETY: as above.
            unsafe { (*skb).cb[GATE] = 0 };
            count(Counter::Released);
            TC_ACT_UNSPEC
        }
        Err(why) => refuse(ctx, control, why),
    }
}
