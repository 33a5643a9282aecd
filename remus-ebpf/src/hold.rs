//! `hold`: stamps and keeps a fresh frame; proves and passes one that `flush` sent.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::bpf_skb_load_bytes,
    programs::TcContext,
};
use aya_log_ebpf::debug;
use remus_abi::{
    Stamp,
    gate::{
        Control, Counter, MARK_GENERATION_MASK, MARK_GENERATION_SHIFT, MARK_SLOT_MASK, MARK_TAG,
        MARK_TAG_MASK, Mode, Ring, SLOT_DATA, Slot, SlotState,
    },
};

use crate::maps::{ControlWords, RingWords, count, slot, slot_at};

/// The shortest frame that has a whole Ethernet header.
const ETH_HLEN: u64 = 14;
const CLOSED: u64 = Mode::Closed as u64;
const HOLD: u64 = Mode::Hold as u64;
const OPEN: u64 = Mode::Open as u64;

#[inline(always)]
pub fn judge(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(control) = ControlWords::get() else { return TC_ACT_SHOT };
    // SAFETY: the context of this run; the verifier turns the read into one of skb->mark.
    let mark = unsafe { (*skb).mark };
    if mark & MARK_TAG_MASK == MARK_TAG {
        return release(ctx, control, mark);
    }
    match control.word(Control::Mode) {
        OPEN => {
            count(Counter::Passed);
            TC_ACT_UNSPEC
        }
        HOLD => {
            count(store(ctx, control));
            TC_ACT_SHOT
        }
        // CLOSED, and whatever else may stand there.
        _ => {
            count(Counter::DroppedClosed);
            TC_ACT_SHOT
        }
    }
}

/// The second lock: a frame that says it comes from `flush` is proven against its slot.
#[inline(always)]
fn release(ctx: &TcContext, control: ControlWords, mark: u32) -> i32 {
    let Some(slot) = slot(mark & MARK_SLOT_MASK) else {
        return refuse(ctx, control, Counter::RefusedStale);
    };
    let generation = mark >> MARK_GENERATION_SHIFT & MARK_GENERATION_MASK;
    // SAFETY: a live map value. Only this program frees a Sent slot, on the one CPU whose backlog `flush`
    // filled; until then nobody writes to it.
    let (state, slot_generation, stamp) = unsafe {
        (
            (&raw const (*slot).state).read_volatile(),
            (*slot).generation,
            Stamp::from_bits((*slot).stamp),
        )
    };
    if state != SlotState::Sent as u32 || slot_generation & MARK_GENERATION_MASK != generation {
        return refuse(ctx, control, Counter::RefusedStale);
    }
    if control.word(Control::Mode) == CLOSED
        || !stamp.is_covered_by(control.stamp(Control::Committed))
    {
        return refuse(ctx, control, Counter::RefusedByLock);
    }
    // SAFETY: as above. The state is written last: from then on the slot may be used again.
    unsafe { (&raw mut (*slot).state).write_volatile(SlotState::Free as u32) };
    ctx.set_mark(0);
    count(Counter::Released);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn refuse(ctx: &TcContext, control: ControlWords, why: Counter) -> i32 {
    count(why);
    if control.word(Control::Debug) != 0 {
        debug!(ctx, "refused a release: reason {}", why as u32);
    }
    TC_ACT_SHOT
}

/// Copies the frame into the next slot, tag and all. Says what became of it.
#[inline(always)]
fn store(ctx: &TcContext, control: ControlWords) -> Counter {
    let skb = ctx.skb.skb;
    let Some(ring) = RingWords::get() else { return Counter::DroppedFull };
    let slots = control.word(Control::Slots);
    let head = ring.word(Ring::Head);
    if head.wrapping_sub(ring.word(Ring::Tail)) >= slots {
        return Counter::DroppedFull;
    }
    let Some(slot) = slot_at(head, slots) else { return Counter::DroppedFull };
    let Some(len) = fitting(ctx.len()) else { return Counter::DroppedUnfit };
    // SAFETY: a live map value between `tail + slots` and `head`: free, and this run is the only producer.
    // The verifier has seen `len` within the array.
    unsafe {
        if bpf_skb_load_bytes(skb.cast(), 0, (&raw mut (*slot).data).cast(), len) != 0 {
            return Counter::DroppedUnfit;
        }
        (*slot).stamp = control.word(Control::Open);
        (*slot).len = len;
        (*slot).generation = (*slot).generation.wrapping_add(1);
        keep_vlan_tag(slot, skb);
        (&raw mut (*slot).state).write_volatile(SlotState::Held as u32);
    }
    ring.set(Ring::Head, head + 1);
    Counter::Held
}

/// The stack has already taken the outer VLAN tag out of the bytes (`skb_vlan_untag` in net/core/dev.c, 6.18).
///
/// # Safety
/// `slot` and `skb` are live.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "16-bit fields, in words of 32 bits")]
unsafe fn keep_vlan_tag(slot: *mut Slot, skb: *mut __sk_buff) {
    // SAFETY: by contract.
    unsafe {
        let tagged = (*skb).vlan_present != 0;
        (*slot).vlan_tci = if tagged { (*skb).vlan_tci as u16 } else { 0 };
        (*slot).vlan_proto = if tagged { (*skb).vlan_proto as u16 } else { 0 };
    }
}

/// `len` if a slot takes it, in a form in which the verifier keeps the bounds: LLVM merges the two checks
/// into one on a difference, unless the upper one comes first and the value passes through a 64-bit word.
#[inline(always)]
pub fn fitting(len: u32) -> Option<u32> {
    if len as usize > SLOT_DATA {
        return None;
    }
    let len = core::hint::black_box(len as u64);
    if len < ETH_HLEN || len > SLOT_DATA as u64 {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "it came from 32 bits")]
    let len = len as u32;
    Some(len)
}
