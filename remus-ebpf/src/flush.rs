//! `flush`: sends what is committed.
//!
//! Run by the controller under BPF_PROG_TEST_RUN, whose packet is only a buffer to write frames into. A run
//! sends at most a batch, because softirqs, and with them `hold`, wait until it returns.
//!
//! A frame that goes back into the tap waits in a CPU's backlog, which may lose it: its slot stays Sent until
//! `hold` has seen it. A backlog keeps its order, so a frame is lost when one that was sent after it has been seen; time
//! alone says so only when there is none, and late: a backlog waits for its softirq, which waits for a CPU. Backlogs of
//! two CPUs have no order between them: a run on another CPU than the last waits until nothing is under way. A frame
//! that goes out of an uplink has passed `guard`, and is in the interface's queue or refused by it, before
//! `bpf_clone_redirect` returns.

use aya_ebpf::{
    bindings::BPF_F_INGRESS,
    helpers::{
        bpf_clone_redirect, bpf_get_smp_processor_id, bpf_ktime_get_boot_ns, bpf_skb_change_tail,
        bpf_skb_store_bytes, bpf_skb_vlan_pop, bpf_skb_vlan_push,
    },
    programs::TcContext,
};
use remus_abi::{
    Release, Stamp,
    gate::{
        Control, Counter, FLUSH_BATCH, FlushResult, IN_FLIGHT_MAX, Life, RESEND_AFTER_TICKS, Ring,
        Slot, SlotState, TICK_SHIFT, mark, residence_bucket, units,
    },
};

use crate::{
    guard,
    hold::fitting,
    maps::{ControlWords, HOLD, RingWords, count, data, note_residence, slot, try_lock, unlock},
};

/// -ENOMEM: the one failure of a helper that passes.
const NO_MEMORY: i64 = -12;

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

/// Sends what may leave. For the holder of the flush lock; what `ctx` carries is overwritten.
#[inline(always)]
pub fn locked(ctx: &TcContext, control: ControlWords, ring: RingWords) -> FlushResult {
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_boot_ns() };
    let releasable = control.releasable();
    if releasable == Stamp::NONE {
        return FlushResult::Refused;
    }
    if control.word(Control::Mode) == HOLD {
        if now_ns > control.lease_until() {
            count(Counter::LeaseOver);
            return FlushResult::Refused;
        }
        if releasable >= control.open() {
            count(Counter::CommitNotBelowOpen);
            return FlushResult::Refused;
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "ticks go round; an ifindex has 32 bits")]
    let run = Run {
        ring,
        capacity: control.word(Control::Units),
        release: Release::new(releasable, control.kept()),
        now: (now_ns >> TICK_SHIFT) as u32,
        // SAFETY: a helper without arguments.
        cpu: u64::from(unsafe { bpf_get_smp_processor_id() }),
        tap: control.word(Control::Tap) as u32,
        uplink: control.word(Control::Uplink) as u32,
    };
    run.reclaim();
    run.send(ctx)
}

/// What one run goes by.
#[derive(Clone, Copy)]
struct Run {
    ring: RingWords,
    capacity: u64,
    release: Release,
    now: u32,
    /// Where it runs, and so in whose backlog its frames wait.
    cpu: u64,
    tap: u32,
    /// 0: back into the tap.
    uplink: u32,
}

/// What became of one frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// On its way, or out, or given up: go on with the next.
    GoOn,
    /// It cannot leave now and has to be tried again.
    Stay,
    /// It left, and nobody judged it.
    Unguarded,
}

impl Run {
    /// Moves the tail over freed slots. Where the first that is left is lost, sending starts again from there; what was
    /// sent after it and has come is free, and passed over.
    #[inline(always)]
    fn reclaim(self) {
        let next = self.ring.word(Ring::Next);
        let mut tail = self.ring.word(Ring::Tail);
        let mut tail_unit = self.ring.word(Ring::TailUnit);
        for _ in 0..2 * FLUSH_BATCH {
            if tail >= next {
                break;
            }
            let Some(slot) = slot(tail, self.capacity) else { break };
            // SAFETY: a live map value.
            let (life, sent, len) = unsafe { (life_of(slot), (*slot).sent_ticks, (*slot).len) };
            if !life.is(SlotState::Free) {
                // On another CPU they may all be coming in just now: this one is looked at once more.
                // SAFETY: as above.
                let overtaken =
                    self.is_overtaken(next, sent) && !unsafe { life_of(slot) }.is(SlotState::Free);
                if overtaken || self.now.wrapping_sub(sent) > RESEND_AFTER_TICKS {
                    self.ring.set(Ring::Next, tail);
                }
                break;
            }
            tail += 1;
            tail_unit += u64::from(units(len));
        }
        self.ring.set(Ring::TailUnit, tail_unit);
        self.ring.set(Ring::Tail, tail);
    }

    /// Whether the newest frame is under way no more: then none is that was `sent` before it. One that was sent again since
    /// has not been overtaken by it.
    #[inline(always)]
    fn is_overtaken(self, next: u64, sent: u32) -> bool {
        let Some(newest) = slot(next.wrapping_sub(1), self.capacity) else { return false };
        // SAFETY: a live map value.
        let (life, newest_sent) = unsafe { (life_of(newest), (*newest).sent_ticks) };
        // Ticks go round.
        life.is(SlotState::Free) && newest_sent.wrapping_sub(sent).cast_signed() >= 0
    }

    #[inline(always)]
    fn send(self, ctx: &TcContext) -> FlushResult {
        let head = self.ring.word(Ring::Head);
        let tail = self.ring.word(Ring::Tail);
        let mut next = self.ring.word(Ring::Next);
        if tail < next && self.ring.word(Ring::Cpu) != self.cpu {
            return FlushResult::InFlight;
        }
        self.ring.set(Ring::Cpu, self.cpu);
        let mut result = FlushResult::More;
        for _ in 0..FLUSH_BATCH {
            let waits = if tail < next { FlushResult::InFlight } else { FlushResult::Done };
            if next >= head {
                result = waits;
                break;
            }
            if self.uplink == 0 && next - tail >= IN_FLIGHT_MAX {
                result = FlushResult::InFlight;
                break;
            }
            let Some(slot) = slot(next, self.capacity) else {
                result = FlushResult::Broken;
                break;
            };
            // SAFETY: a live map value in [next, head): nobody else writes to it.
            let (life, stamp) = unsafe { (life_of(slot), Stamp::from_bits((*slot).stamp)) };
            if !life.is(SlotState::Free) {
                if !self.release.lets_out(stamp) {
                    if self.release.knows(stamp) {
                        result = waits;
                        break;
                    }
                    // It is of a term that was not kept.
                    // SAFETY: as above.
                    unsafe { set_life(slot, life.become_state(SlotState::Free)) };
                    count(Counter::Discarded);
                } else {
                    // SAFETY: a live slot that holds a frame.
                    match unsafe { self.send_one(ctx, slot, life, next) } {
                        Fate::GoOn => {}
                        Fate::Stay => {
                            result = FlushResult::InFlight;
                            break;
                        }
                        Fate::Unguarded => {
                            result = FlushResult::Unguarded;
                            break;
                        }
                    }
                }
            }
            next += 1;
        }
        self.ring.set(Ring::Next, next);
        result
    }

    /// Sends a copy of frame `number`, which is in `slot`.
    ///
    /// # Safety
    /// `slot` is a live map value in state Held or Sent.
    #[inline(always)]
    unsafe fn send_one(self, ctx: &TcContext, slot: *mut Slot, life: Life, number: u64) -> Fate {
        // SAFETY: by contract.
        let failed = unsafe { self.write_frame(ctx, slot) };
        if failed == NO_MEMORY {
            count(Counter::SendFailed);
            return Fate::Stay;
        }
        if failed != 0 {
            // A frame that cannot be written would stop everything behind it.
            // SAFETY: by contract.
            unsafe { set_life(slot, life.become_state(SlotState::Free)) };
            count(Counter::DroppedUnfit);
            return Fate::GoOn;
        }
        if !life.is(SlotState::Held) {
            count(Counter::Resent);
        }
        // SAFETY: by contract.
        unsafe {
            (*slot).sent_ticks = self.now;
            set_life(slot, life.become_state(SlotState::Sent));
        }
        ctx.set_mark(mark(number));
        let fate = if self.uplink == 0 {
            self.re_enter(ctx, slot, life)
        } else {
            self.leave(ctx, slot, life)
        };
        // SAFETY: by contract; nobody uses the slot anew before this run, or a later one, has moved the tail.
        let held = unsafe { (*slot).held_ticks };
        if fate == Fate::GoOn && life.is(SlotState::Held) && held != 0 {
            note_residence(residence_bucket(self.now.wrapping_sub(held)));
        }
        fate
    }

    #[inline(always)]
    fn re_enter(self, ctx: &TcContext, slot: *mut Slot, life: Life) -> Fate {
        // SAFETY: the context of this run.
        let failed = unsafe { bpf_clone_redirect(ctx.skb.skb, self.tap, u64::from(BPF_F_INGRESS)) };
        if failed != 0 {
            // The backlog is full (NET_RX_DROP). What came after this frame would overtake it: the run ends here.
            // SAFETY: the slot is live by contract of the caller.
            unsafe { set_life(slot, life.become_state(SlotState::Held)) };
            count(Counter::SendFailed);
            return Fate::Stay;
        }
        count(Counter::Sent);
        Fate::GoOn
    }

    #[inline(always)]
    fn leave(self, ctx: &TcContext, slot: *mut Slot, life: Life) -> Fate {
        let skb = ctx.skb.skb;
        // SAFETY: the context of this run, and a slot that is live by contract of the caller.
        let (failed, after) = unsafe {
            (*skb).cb[guard::GATE] = self.tap;
            (bpf_clone_redirect(skb, self.uplink, 0), life_of(slot))
        };
        let judged = after.is(SlotState::Passed);
        let taken = failed == 0 || failed == NET_XMIT_CN;
        if judged && !taken {
            // Let out, but the interface's queue is full: it is tried again when there is room.
            // SAFETY: as above.
            unsafe { set_life(slot, life.become_state(SlotState::Held)) };
            count(Counter::SendFailed);
            return Fate::Stay;
        }
        // SAFETY: as above. Taken, or refused by `guard`, or gone unjudged: it is not sent again.
        unsafe { set_life(slot, life.become_state(SlotState::Free)) };
        if taken && !judged {
            count(Counter::Unguarded);
            return Fate::Unguarded;
        }
        count(Counter::Sent);
        Fate::GoOn
    }

    /// Makes the run's packet the frame in `slot`. The answer is 0 or the error of a helper.
    ///
    /// # Safety
    /// `slot` is a live map value that holds a frame.
    #[inline(always)]
    unsafe fn write_frame(self, ctx: &TcContext, slot: *const Slot) -> i64 {
        let skb = ctx.skb.skb;
        // SAFETY: the slot is live by contract; the helpers check the skb; `len` is bounded for the verifier.
        unsafe {
            let (Some(len), Some(data)) =
                (fitting((*slot).len), data(u64::from((*slot).at), self.capacity))
            else {
                return -1;
            };
            if (*skb).vlan_present != 0 {
                let failed = bpf_skb_vlan_pop(skb);
                if failed != 0 {
                    return failed;
                }
            }
            let failed = bpf_skb_change_tail(skb, len, 0);
            if failed != 0 {
                return failed;
            }
            let failed = bpf_skb_store_bytes(skb, 0, data.cast_const().cast(), len, 0);
            if failed != 0 || (*slot).vlan_proto == 0 {
                return failed;
            }
            bpf_skb_vlan_push(skb, (*slot).vlan_proto, (*slot).vlan_tci)
        }
    }
}

/// The queue has taken the frame, and dropped another (`include/linux/netdevice.h`, 6.18).
const NET_XMIT_CN: i64 = 2;

/// # Safety
/// `slot` is a live map value.
#[inline(always)]
pub unsafe fn life_of(slot: *const Slot) -> Life {
    // SAFETY: by contract. `hold` may write it at the same time: one read.
    Life::from_bits(unsafe { (&raw const (*slot).life).read_volatile() })
}

/// # Safety
/// `slot` is a live map value.
#[inline(always)]
pub unsafe fn set_life(slot: *mut Slot, to: Life) {
    // SAFETY: by contract.
    unsafe { (&raw mut (*slot).life).write_volatile(to.bits()) };
}
