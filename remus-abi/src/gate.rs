//! Values in the gate's maps, as its programs read them and the controller writes them.
//!
//! What is held lies in two maps. `SLOTS` has a descriptor for each frame, which only the gate writes; `DATA`
//! has the frames' bytes, which are the guest's. Nothing in `DATA` is ever taken for anything but payload.
//! Both are rings, used in order and freed in order, so that capacity is a matter of bytes and a small frame
//! costs little.
//!
//! Layouts are `repr(C)` without padding. Zero always means nothing, or closed: a map that was never
//! written is a closed gate.

use crate::counters::counters;

/// Raised when a layout or the meaning of a word changes: a gate that another build has pinned is then
/// replaced, not adopted.
pub const LAYOUT: u64 = 4;
const _: () = assert!(Counter::WORDS == 32, "the map has another size: raise LAYOUT");

/// Longest frame that is held, without its outer VLAN tag: 9000 B of payload, header, a second tag, and slack.
pub const FRAME_MAX: usize = 9216;
/// Data is handed out in units of this many bytes: a cache line, so that frames do not share one.
pub const UNIT: u32 = 64;
/// Bytes of `DATA` in one value. A frame that begins in a chunk ends in it: each has room for one frame more.
pub const CHUNK: u32 = 256 << 10;
/// Bytes of a value of the map `DATA`.
pub const CHUNK_VALUE: usize = CHUNK as usize + FRAME_MAX;
pub const UNITS_PER_CHUNK: u32 = CHUNK / UNIT;

/// MiB of frames when nothing else is configured: 200 ms of 1500 B frames at 1 Gb/s are 25 MB.
pub const BUFFER_MIB_DEFAULT: u32 = 32;
/// At most this much: the number of a slot must leave room in the mark for a generation.
pub const BUFFER_MIB_MAX: u32 = 256;

/// Chunks of a buffer of so many MiB, a power of two.
pub const fn chunks(buffer_mib: u32) -> u32 {
    (buffer_mib << 20) / CHUNK
}

/// Slots of a buffer of so many MiB: one for each unit, so that slots never run out before bytes do.
pub const fn slots(buffer_mib: u32) -> u32 {
    (buffer_mib << 20) / UNIT
}

/// Units that a frame of `len` bytes takes.
#[inline(always)]
pub const fn units(len: u32) -> u32 {
    len.div_ceil(UNIT)
}

/// Frames sent by one run of `flush`: softirqs are off meanwhile, and a CPU's backlog takes 1000
/// (`net.core.netdev_max_backlog`, which is global and not ours).
pub const FLUSH_BATCH: u32 = 256;
/// Frames that may be under way between `flush` and `hold`.
pub const IN_FLIGHT_MAX: u64 = 2 * FLUSH_BATCH as u64;

/// Times in slots are CLOCK_BOOTTIME in ticks of 2^10 ns, 32 bits of them: they go round in 73 minutes, and only
/// differences count.
pub const TICK_SHIFT: u32 = 10;
/// One frame in so many is timed, and each that finds nothing held: to look at the clock takes longer than all the
/// rest of a stamp.
pub const TIMED_OF: u64 = 16;
/// A frame that has been under way for this long (1 s) is lost and sent again, even though none that was sent after it
/// has come in. It may only be slow, where softirqs wait for a CPU: two copies of it would come in, and out of order.
pub const RESEND_AFTER_TICKS: u32 = 1_000_000_000 >> TICK_SHIFT;

/// `skb->mark` of a frame that `flush` sent: this tag in the top 8 bits, then the low 24 bits of the frame's
/// number. The mark only says where to look: what counts is the slot.
pub const MARK_TAG: u32 = 0x5e << 24;
pub const MARK_TAG_MASK: u32 = 0xff << 24;
pub const MARK_NUMBER_MASK: u32 = !MARK_TAG_MASK;

/// What the gate does with a frame fresh from the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Mode {
    /// Dropped and counted, and nothing that is held leaves. The state of a gate that nobody has set.
    Closed = 0,
    /// Stamped and kept in a slot until its checkpoint is committed.
    Hold = 1,
    /// Passed: the guest runs unprotected. What this term still holds leaves first.
    Open = 2,
}

/// Words of the one value in the map `CONTROL`, each a `u64` of its own so that no reader sees half of a
/// write. Only the controller writes them; it maps the value into its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Control {
    /// A [`Mode`].
    Mode = 0,
    /// [`Stamp`](crate::Stamp) of the epoch that the guest executes now; frames get this one.
    Open = 1,
    /// [`Stamp`](crate::Stamp) of the newest checkpoint that the backup has committed.
    Committed = 2,
    /// `bpf_ktime_get_boot_ns` (CLOCK_BOOTTIME) after which nothing may be released.
    LeaseUntil = 3,
    /// Units of data in the ring, and slots: a power of two.
    Units = 4,
    /// ifindex of the tap, into whose ingress `flush` sends; also the gate's name towards `guard`.
    Tap = 5,
    /// Non-zero: the programs write debug lines to the aya-log ring.
    Debug = 6,
    /// ifindex of the interface that `flush` sends out of; 0: back into the tap.
    Uplink = 7,
    /// [`LAYOUT`] of the build that made the gate.
    Layout = 8,
    /// Units held from which on the controller is woken; see the map `EVENTS`. 0: never.
    Watermark = 9,
    /// Who keeps IP frames: 0 the buffer, 1 netfilter's queue.
    Engine = 10,
    /// Non-zero: `stamp` sends IP frames to the queue. Always while it holds; through an open gate as long as older
    /// ones wait there.
    Queueing = 11,
}
pub const CONTROL_WORDS: usize = 16;

/// Words of the one value in the map `RING`, a `u64` each. Only the programs write them. They count
/// frames, or units, since the gate was made, so that `tail <= next <= head` and nothing ever wraps.
/// `hold` and `flush`, on different CPUs, write to different cache lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Ring {
    /// The number of the next frame. Written by `hold`.
    Head = 0,
    /// The unit at which its data begins. Written by `hold`.
    HeadUnit = 1,
    /// The first frame that `flush` has not sent.
    Next = 8,
    /// Every slot below is free again.
    Tail = 9,
    /// Every unit below is free again.
    TailUnit = 10,
    /// The CPU whose backlog has the frames that are under way. Another CPU's would overtake them.
    Cpu = 11,
}
pub const RING_WORDS: usize = 16;

counters! {
    /// Words of the map `COUNTERS`, one `u64` per CPU each.
    pub enum Counter, values Counters {
        Held = "held", Frames, Normal, "stored in the gate";
        Released = "released", Frames, Normal, "let out after their commit";
        Passed = "passed", Frames, Normal, "let through an open gate";
        DroppedClosed = "dropped_closed", Frames, Normal, "dropped, since the gate was shut";
        DroppedFull = "dropped_full", Frames, Normal, "dropped, since the buffer was full: raise `gate.buffer_mib`, or the guest sends faster than checkpoints commit";
        DroppedUnfit = "dropped_unfit", Frames, Normal, "dropped, since they are longer than 9216 B, or unreadable";
        RefusedStale = "refused_stale", Frames, Normal, "dropped on their way out, since the host's stack had doubled them or changed their mark";
        RefusedByLock = "refused_by_lock", Frames, Alarm, "stopped on their way out by the second lock, since their checkpoint is not committed. Please report it";
        Sent = "sent", Frames, Normal, "given to the host's stack on their way out";
        Resent = "resent", Frames, Normal, "given to the host's stack again, since the first copy was lost there";
        SendFailed = "send_failed", Frames, Normal, "not taken by the host's stack, whose queue was full; they are sent again";
        LeaseOver = "lease_over", Attempts, Normal, "to release that came after the end of the lease: acks come too late";
        CommitNotBelowOpen = "commit_not_below_open", Attempts, Alarm, "to release that were refused, since the committed epoch was not below the open one. Please report it";
        Discarded = "discarded", Frames, Normal, "discarded with the term that held them";
        Unguarded = "unguarded", Frames, Alarm, "sent by an uplink from which somebody has taken the second lock; the gate counts as lost then";
    }
}

/// What `flush` returns through BPF_PROG_TEST_RUN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum FlushResult {
    /// Nothing more may leave now.
    Done = 0,
    /// The batch was used up: run again.
    More = 1,
    /// Sent frames have not come back yet, or the uplink takes no more: let softirqs run, then run again.
    InFlight = 2,
    /// Another flush holds the lock.
    Busy = 3,
    /// The gate is closed, the lease is over, or the committed epoch is not below the open one.
    Refused = 4,
    /// A map could not be read; the verifier wants the case, the kernel does not produce it.
    Broken = 5,
    /// A frame left by an uplink without a `guard`.
    Unguarded = 6,
}

/// Where a slot is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum SlotState {
    Free = 0,
    /// A frame of the guest waits for its commit.
    Held = 1,
    /// `flush` has sent a copy; the slot is freed when the copy comes back through `hold`.
    Sent = 2,
    /// `guard` has let the copy out; `flush` frees the slot when the uplink has taken it.
    Passed = 3,
}

/// A [`SlotState`] and the number of the frame that is in it, in one word: a slot in its next use is known by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Life(u32);

impl Life {
    /// `number`: the frame's; its low 30 bits are kept.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low bits tell uses of a slot apart")]
    pub const fn new(number: u64, state: SlotState) -> Self {
        Self((number as u32) << 2 | state as u32)
    }

    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether the slot is in `state`.
    #[inline(always)]
    pub const fn is(self, state: SlotState) -> bool {
        self.0 & 3 == state as u32
    }

    /// Whether the slot is in `state` with the frame that a mark names.
    #[inline(always)]
    pub const fn is_of(self, mark: u32, state: SlotState) -> bool {
        self.is(state) && self.0 >> 2 & MARK_NUMBER_MASK == mark & MARK_NUMBER_MASK
    }

    /// The same use of the slot in another state.
    #[inline(always)]
    pub const fn become_state(self, state: SlotState) -> Self {
        Self(self.0 & !3 | state as u32)
    }
}

/// The mark of frame `number` on its way out.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the mark takes the low bits")]
pub const fn mark(number: u64) -> u32 {
    MARK_TAG | number as u32 & MARK_NUMBER_MASK
}

/// The descriptor of one held frame.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Slot {
    /// [`Stamp`](crate::Stamp) of the epoch in which the guest sent the frame.
    pub stamp: u64,
    /// A [`Life`].
    pub life: u32,
    /// The unit at which its data begins, counted as [`Ring::HeadUnit`] is; the low 32 bits.
    pub at: u32,
    /// Bytes of data.
    pub len: u32,
    /// The VLAN tag that the stack had taken out of the bytes: TCI, and 0 or the protocol in network order.
    pub vlan_tci: u16,
    pub vlan_proto: u16,
    /// When it came, in ticks (see [`TICK_SHIFT`]); 0: it was not timed.
    pub held_ticks: u32,
    /// When a copy was last sent, in ticks.
    pub sent_ticks: u32,
}

const _: () = assert!(core::mem::size_of::<Slot>() == 32);
const _: () =
    assert!(slots(BUFFER_MIB_MAX) <= (MARK_NUMBER_MASK + 1) / 4, "two bits of generation");

/// Buckets of the map `RESIDENCE`: how long frames were held, in ticks, four buckets to each power of two. The
/// first four buckets are one tick each.
pub const RESIDENCE_BUCKETS: usize = 4 * 31;

/// The bucket of a residence of so many ticks.
#[inline(always)]
pub const fn residence_bucket(ticks: u32) -> u32 {
    if ticks < 4 {
        return ticks;
    }
    let mut power = 0;
    let mut rest = ticks;
    // Five steps instead of a count of leading zeros, which this target has no instruction for.
    if rest >= 1 << 16 {
        rest >>= 16;
        power += 16;
    }
    if rest >= 1 << 8 {
        rest >>= 8;
        power += 8;
    }
    if rest >= 1 << 4 {
        rest >>= 4;
        power += 4;
    }
    if rest >= 1 << 2 {
        rest >>= 2;
        power += 2;
    }
    if rest >= 2 {
        power += 1;
    }
    (power - 1) * 4 + ((ticks >> (power - 2)) & 3)
}

/// The longest residence, in ticks, that falls into `bucket`.
pub const fn residence_limit(bucket: u32) -> u64 {
    if bucket < 4 {
        return bucket as u64;
    }
    let power = bucket / 4 + 1;
    (((bucket as u64 & 3) + 5) << (power - 2)) - 1
}

/// Written to the ring buffer `EVENTS` when the buffer fills: the units that are held now. Sent when they reach
/// [`Control::Watermark`], and again at each further eighth of the buffer.
pub type Filling = u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_in_its_next_use_is_not_taken_for_the_last() {
        let slots = u64::from(slots(BUFFER_MIB_MAX));
        let life = Life::new(5 + slots, SlotState::Sent);
        assert!(life.is_of(mark(5 + slots), SlotState::Sent));
        assert!(!life.is_of(mark(5), SlotState::Sent));
        assert!(!life.is_of(mark(5 + slots), SlotState::Held));
        assert!(life.become_state(SlotState::Free).is(SlotState::Free));
    }

    #[test]
    fn every_residence_lies_within_the_limits_of_its_bucket() {
        let samples =
            (0..5000).chain((5..32).flat_map(|p| [1 << p, (1u64 << p) - 1, 3 << (p - 1)]));
        for ticks in samples {
            let bucket = residence_bucket(u32::try_from(ticks).unwrap());
            assert!((bucket as usize) < RESIDENCE_BUCKETS, "{ticks}");
            assert!(ticks <= residence_limit(bucket), "{ticks} in {bucket}");
            assert!(bucket == 0 || ticks > residence_limit(bucket - 1), "{ticks} in {bucket}");
        }
    }

    #[test]
    fn the_default_takes_200_ms_of_full_frames_at_1_gbit() {
        let frames = 1_000_000_000 / 8 / 5 / 1538;
        assert!(frames * units(1514) <= slots(BUFFER_MIB_DEFAULT));
    }

    #[test]
    fn zero_is_a_free_slot_and_a_closed_gate() {
        assert!(Life::from_bits(0).is(SlotState::Free));
        assert_eq!(Mode::Closed as u64, 0);
    }
}
