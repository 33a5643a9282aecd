//! `flush`: sends what is committed.
//!
//! Run by the controller under BPF_PROG_TEST_RUN, whose packet is only a buffer to write frames into. A run
//! sends at most a batch, because softirqs, and with them `hold`, wait until it returns.

use aya_ebpf::{
    bindings::BPF_F_INGRESS,
    helpers::{
        bpf_clone_redirect, bpf_ktime_get_boot_ns, bpf_skb_change_tail, bpf_skb_store_bytes,
        bpf_skb_vlan_pop, bpf_skb_vlan_push,
    },
    programs::TcContext,
};
use remus_abi::{
    Stamp,
    gate::{
        Control, Counter, FLUSH_BATCH, FlushResult, IN_FLIGHT_MAX, MARK_GENERATION_MASK,
        MARK_GENERATION_SHIFT, MARK_SLOT_MASK, MARK_TAG, Mode, RESEND_AFTER_NS, Ring, Slot,
        SlotState,
    },
};

use crate::{
    hold::fitting,
    maps::{ControlWords, RingWords, count, number_at, slot_at, try_lock, unlock},
};

#[inline(always)]
pub fn run(ctx: &TcContext) -> FlushResult {
    let (Some(control), Some(ring)) = (ControlWords::get(), RingWords::get()) else {
        return FlushResult::Broken;
    };
    if !try_lock() {
        return FlushResult::Busy;
    }
    let result = locked(ctx, control, ring);
    unlock();
    result
}

#[inline(always)]
fn locked(ctx: &TcContext, control: ControlWords, ring: RingWords) -> FlushResult {
    if control.word(Control::Mode) == Mode::Closed as u64 {
        return FlushResult::Refused;
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if now > control.word(Control::LeaseUntil) {
        count(Counter::LeaseOver);
        return FlushResult::Refused;
    }
    let committed = control.stamp(Control::Committed);
    if committed >= control.stamp(Control::Open) {
        count(Counter::CommitNotBelowOpen);
        return FlushResult::Refused;
    }
    let slots = control.word(Control::Slots);
    reclaim(ring, slots, now);
    #[expect(clippy::cast_possible_truncation, reason = "an interface index has 32 bits")]
    let tap = control.word(Control::Tap) as u32;
    send(ctx, ring, slots, tap, committed, now)
}

/// Moves the tail over freed slots. Where the first that is left has been under way for too long it is lost,
/// and with it, most likely, what was sent after it: sending starts again from there.
#[inline(always)]
fn reclaim(ring: RingWords, slots: u64, now: u64) {
    let next = ring.word(Ring::Next);
    let mut tail = ring.word(Ring::Tail);
    for _ in 0..2 * FLUSH_BATCH {
        if tail >= next {
            break;
        }
        let Some(slot) = slot_at(tail, slots) else { break };
        // SAFETY: a live map value.
        let (state, sent_ns) =
            unsafe { ((&raw const (*slot).state).read_volatile(), (*slot).sent_ns) };
        if state != SlotState::Free as u32 {
            if now.wrapping_sub(sent_ns) > RESEND_AFTER_NS {
                ring.set(Ring::Next, tail);
            }
            break;
        }
        tail += 1;
    }
    ring.set(Ring::Tail, tail);
}

#[inline(always)]
fn send(
    ctx: &TcContext,
    ring: RingWords,
    slots: u64,
    tap: u32,
    committed: Stamp,
    now: u64,
) -> FlushResult {
    let head = ring.word(Ring::Head);
    let tail = ring.word(Ring::Tail);
    for _ in 0..FLUSH_BATCH {
        let next = ring.word(Ring::Next);
        if next >= head {
            return if tail < next { FlushResult::InFlight } else { FlushResult::Done };
        }
        if next - tail >= IN_FLIGHT_MAX {
            return FlushResult::InFlight;
        }
        let Some(slot) = slot_at(next, slots) else { return FlushResult::Broken };
        // SAFETY: a live map value in [next, head): nobody else writes to it.
        let (state, stamp) = unsafe {
            ((&raw const (*slot).state).read_volatile(), Stamp::from_bits((*slot).stamp))
        };
        if state != SlotState::Free as u32 {
            if stamp.term() != committed.term() {
                // What an abandoned term left behind never leaves.
                // SAFETY: as above.
                unsafe { (&raw mut (*slot).state).write_volatile(SlotState::Free as u32) };
                count(Counter::Discarded);
            } else if !stamp.is_covered_by(committed) {
                return if tail < next { FlushResult::InFlight } else { FlushResult::Done };
            } else {
                if state == SlotState::Sent as u32 {
                    count(Counter::Resent);
                }
                // SAFETY: a live slot that holds a frame.
                unsafe { send_one(ctx, slot, number_at(next, slots), tap, now) };
            }
        }
        ring.set(Ring::Next, next + 1);
    }
    FlushResult::More
}

/// Sends a copy of the frame in `slot` into the tap's ingress. A frame that cannot be sent is given up and
/// counted: keeping it would stop everything behind it.
///
/// # Safety
/// `slot` is a live map value whose state is Held or Sent.
#[inline(always)]
unsafe fn send_one(ctx: &TcContext, slot: *mut Slot, number: u32, tap: u32, now: u64) {
    let skb = ctx.skb.skb;
    // SAFETY: the slot is live by contract; the helpers check the skb; `len` is bounded for the verifier.
    let sent = unsafe {
        let Some(len) = fitting((*slot).len) else { return give_up(slot) };
        if (*skb).vlan_present != 0 && bpf_skb_vlan_pop(skb) != 0 {
            return give_up(slot);
        }
        if bpf_skb_change_tail(skb, len, 0) != 0
            || bpf_skb_store_bytes(skb, 0, (&raw const (*slot).data).cast(), len, 0) != 0
        {
            return give_up(slot);
        }
        if (*slot).vlan_proto != 0
            && bpf_skb_vlan_push(skb, (*slot).vlan_proto, (*slot).vlan_tci) != 0
        {
            return give_up(slot);
        }
        let generation = (*slot).generation & MARK_GENERATION_MASK;
        ctx.set_mark(MARK_TAG | generation << MARK_GENERATION_SHIFT | number & MARK_SLOT_MASK);
        (*slot).sent_ns = now;
        (&raw mut (*slot).state).write_volatile(SlotState::Sent as u32);
        bpf_clone_redirect(skb, tap, BPF_F_INGRESS as u64)
    };
    if sent == 0 {
        count(Counter::Sent);
    } else {
        // The backlog was full (NET_RX_DROP): the slot stays Sent and is sent again when its time has come.
        count(Counter::SendFailed);
    }
}

/// # Safety
/// `slot` is a live map value.
#[inline(always)]
unsafe fn give_up(slot: *mut Slot) {
    // SAFETY: by contract.
    unsafe { (&raw mut (*slot).state).write_volatile(SlotState::Free as u32) };
    count(Counter::SendFailed);
}
