//! `hold`: stamps and keeps a fresh frame; proves and passes one that `flush` sent.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{bpf_ktime_get_boot_ns, bpf_skb_load_bytes},
    programs::TcContext,
};
use aya_log_ebpf::debug;
use remus_abi::{
    Stamp,
    gate::{
        Control, Counter, FRAME_MAX, Life, MARK_NUMBER_MASK, MARK_TAG, MARK_TAG_MASK, Ring, Slot,
        SlotState, TICK_SHIFT, TIMED_OF, units,
    },
    may_leave,
};

use crate::maps::{ControlWords, HOLD, OPEN, RingWords, count, data, slot, wake};

/// The shortest frame that has a whole Ethernet header.
const ETH_HLEN: u64 = 14;

#[inline(always)]
pub fn judge(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(control) = ControlWords::get() else { return TC_ACT_SHOT };
    // SAFETY: the context of this run; the verifier turns the read into one of skb->mark.
    let mark = unsafe { (*skb).mark };
    if mark & MARK_TAG_MASK == MARK_TAG {
        return match prove(control, mark, SlotState::Free) {
            Ok(()) => {
                ctx.set_mark(0);
                count(Counter::Released);
                TC_ACT_UNSPEC
            }
            Err(why) => refuse(ctx, control, why),
        };
    }
    let Some(ring) = RingWords::get() else { return TC_ACT_SHOT };
    match control.word(Control::Mode) {
        // What was held before the gate opened leaves first.
        OPEN if ring.word(Ring::Head) == ring.word(Ring::Tail) => {
            count(Counter::Passed);
            TC_ACT_UNSPEC
        }
        HOLD | OPEN => {
            count(store(ctx, control, ring));
            TC_ACT_SHOT
        }
        // CLOSED, and whatever else may stand there.
        _ => {
            count(Counter::DroppedClosed);
            TC_ACT_SHOT
        }
    }
}

/// The second lock: a frame whose mark says that it comes from `flush` is proven against its slot, which then
/// becomes `then`, so that the proof works once.
#[inline(always)]
pub fn prove(control: ControlWords, mark: u32, then: SlotState) -> Result<(), Counter> {
    let units = control.word(Control::Units);
    let slot = slot(u64::from(mark & MARK_NUMBER_MASK), units).ok_or(Counter::RefusedStale)?;
    // SAFETY: a live map value. Only the locks write to a Sent slot, on the one CPU whose backlog, or egress,
    // `flush` used; until then nobody writes to it.
    let (life, stamp) = unsafe {
        (
            Life::from_bits((&raw const (*slot).life).read_volatile()),
            Stamp::from_bits((*slot).stamp),
        )
    };
    if !life.is_of(mark, SlotState::Sent) {
        return Err(Counter::RefusedStale);
    }
    // What is kept is only read for a frame that is of an earlier term.
    let releasable = control.releasable();
    if !stamp.is_covered_by(releasable) && !may_leave(stamp, releasable, control.kept()) {
        return Err(Counter::RefusedByLock);
    }
    // SAFETY: as above. A freed slot may be used again from here on.
    unsafe { (&raw mut (*slot).life).write_volatile(life.become_state(then).bits()) };
    Ok(())
}

#[inline(always)]
pub fn refuse(ctx: &TcContext, control: ControlWords, why: Counter) -> i32 {
    count(why);
    if control.word(Control::Debug) != 0 {
        debug!(ctx, "refused a release: reason {}", why as u32);
    }
    TC_ACT_SHOT
}

/// Copies the frame into the buffer, tag and all. Says what became of it.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a slot keeps the low bits of where and when")]
fn store(ctx: &TcContext, control: ControlWords, ring: RingWords) -> Counter {
    let skb = ctx.skb.skb;
    let Some(len) = fitting(ctx.len()) else { return Counter::DroppedUnfit };
    let capacity = control.word(Control::Units);
    let head = ring.word(Ring::Head);
    let at = ring.word(Ring::HeadUnit);
    let need = u64::from(units(len));
    let held = at.wrapping_sub(ring.word(Ring::TailUnit));
    if held + need > capacity {
        return Counter::DroppedFull;
    }
    let (Some(slot), Some(data)) = (slot(head, capacity), data(at, capacity)) else {
        return Counter::DroppedFull;
    };
    // SAFETY: live map values. Slot and data lie between tail and head, going round: free, and this run is the
    // only producer. The verifier has seen that `len` fits.
    unsafe {
        if bpf_skb_load_bytes(skb.cast(), 0, data.cast(), len) != 0 {
            return Counter::DroppedUnfit;
        }
        (*slot).stamp = control.open().bits();
        (*slot).at = at as u32;
        (*slot).len = len;
        (*slot).held_ticks = if held == 0 || head.is_multiple_of(TIMED_OF) {
            (bpf_ktime_get_boot_ns() >> TICK_SHIFT) as u32 | 1
        } else {
            0
        };
        keep_vlan_tag(slot, skb);
        (&raw mut (*slot).life).write_volatile(Life::new(head, SlotState::Held).bits());
    }
    ring.set(Ring::HeadUnit, at + need);
    ring.set(Ring::Head, head + 1);
    report_filling(control, capacity, held, held + need);
    Counter::Held
}

/// Wakes the controller at the watermark, and at each further eighth of the buffer, in case it did not help.
#[inline(always)]
fn report_filling(control: ControlWords, capacity: u64, before: u64, now: u64) {
    let watermark = control.word(Control::Watermark);
    if now < watermark || watermark == 0 {
        return;
    }
    if before < watermark || before ^ now >= capacity / 8 {
        wake(now);
    }
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

/// `len` if the gate takes such a frame, in a form in which the verifier keeps the bounds: LLVM merges the two
/// checks into one on a difference, unless the upper one comes first and the value passes through a 64-bit word.
#[inline(always)]
pub fn fitting(len: u32) -> Option<u32> {
    if len as usize > FRAME_MAX {
        return None;
    }
    let len = core::hint::black_box(len as u64);
    if len < ETH_HLEN || len > FRAME_MAX as u64 {
        return None;
    }
    // Once more, so that a copy on the stack is made after the checks: the verifier of Linux 6.1 does not carry
    // what a check says of a register to a copy that was made before.
    let len = core::hint::black_box(len);
    #[expect(clippy::cast_possible_truncation, reason = "it came from 32 bits")]
    let len = len as u32;
    Some(len)
}
