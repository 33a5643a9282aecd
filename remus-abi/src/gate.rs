//! Values in the gate's maps, as `hold` and `flush` read them and the controller writes them.
//!
//! Layouts are `repr(C)` without padding. Zero always means nothing, or closed: a map that was never
//! written is a closed gate.

/// Largest frame a slot takes, without its VLAN tag: 1500 B of payload, 14 B of header, and slack.
pub const SLOT_DATA: usize = 2016;
/// Slots when nothing else is configured: 200 ms of 1500 B frames at 1 Gb/s.
pub const SLOTS_DEFAULT: u32 = 1 << 14;
/// At most this many slots: the slot number must fit below [`MARK_TAG`] beside the generation.
pub const SLOTS_MAX: u32 = 1 << 18;
/// Frames sent by one run of `flush`: softirqs are off meanwhile, and a CPU's backlog takes 1000
/// (`net.core.netdev_max_backlog`, which is global and not ours).
pub const FLUSH_BATCH: u32 = 256;
/// Frames that may be under way between `flush` and `hold`.
pub const IN_FLIGHT_MAX: u64 = 2 * FLUSH_BATCH as u64;
/// A frame that has been under way for this long is lost and sent again.
pub const RESEND_AFTER_NS: u64 = 5_000_000;

/// `skb->mark` of a frame that `flush` sent: this tag in the top 8 bits, then 6 bits of the slot's
/// generation, then 18 bits of slot number. The mark only says where to look: what counts is the slot.
pub const MARK_TAG: u32 = 0x5e << 24;
pub const MARK_TAG_MASK: u32 = 0xff << 24;
pub const MARK_GENERATION_SHIFT: u32 = 18;
pub const MARK_GENERATION_MASK: u32 = 0x3f;
pub const MARK_SLOT_MASK: u32 = SLOTS_MAX - 1;

/// What the gate does with a frame fresh from the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Mode {
    /// Dropped and counted. The state of a gate that nobody has set.
    Closed = 0,
    /// Stamped and kept in a slot until its checkpoint is committed.
    Hold = 1,
    /// Passed: the guest runs unprotected.
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
    /// Slots in the ring, a power of two.
    Slots = 4,
    /// ifindex of the tap, into whose ingress `flush` sends.
    Tap = 5,
    /// Non-zero: the programs write debug lines to the aya-log ring.
    Debug = 6,
}
pub const CONTROL_WORDS: usize = 8;

/// Words of the one value in the map `RING`, a `u64` each. Only the programs write them. They count
/// frames since the gate was made, so that `tail <= next <= head` and nothing ever wraps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Ring {
    /// The next frame goes to slot `head % slots`.
    Head = 0,
    /// The first frame that `flush` has not sent.
    Next = 1,
    /// Every slot below is free again.
    Tail = 2,
}
pub const RING_WORDS: usize = 4;

/// Words of the map `COUNTERS`, one `u64` per CPU each. Frames, unless the name says otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Counter {
    /// Stored in a slot.
    Held = 0,
    /// Came back from `flush`, were proven committed, and left.
    Released = 1,
    /// Passed through an open gate.
    Passed = 2,
    /// Dropped: the gate was closed.
    DroppedClosed = 3,
    /// Dropped: no slot was free.
    DroppedFull = 4,
    /// Dropped: longer than a slot, or unreadable.
    DroppedUnfit = 5,
    /// Dropped on the way out: tagged, but its slot is not waiting to leave (a second arrival).
    RefusedStale = 6,
    /// Dropped on the way out by the second lock: its slot is not committed. 0 in a healthy run.
    RefusedByLock = 7,
    /// Given to the stack by `flush`.
    Sent = 8,
    /// Given to the stack again, because the first copy was lost on the way.
    Resent = 9,
    /// The stack refused a frame of `flush`.
    SendFailed = 10,
    /// Runs of `flush` that found the lease over. Runs, not frames.
    LeaseOver = 11,
    /// Runs of `flush` that found a committed epoch that is not below the open one. Runs, not frames.
    CommitNotBelowOpen = 12,
    /// Held, but never to be released: of another term than the committed one, thrown away.
    Discarded = 13,
}
pub const COUNTERS: u32 = 16;

impl Counter {
    pub const ALL: [Self; 14] = [
        Self::Held,
        Self::Released,
        Self::Passed,
        Self::DroppedClosed,
        Self::DroppedFull,
        Self::DroppedUnfit,
        Self::RefusedStale,
        Self::RefusedByLock,
        Self::Sent,
        Self::Resent,
        Self::SendFailed,
        Self::LeaseOver,
        Self::CommitNotBelowOpen,
        Self::Discarded,
    ];
}

/// What `flush` returns through BPF_PROG_TEST_RUN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum FlushResult {
    /// Nothing more may leave now.
    Done = 0,
    /// The batch was used up: run again.
    More = 1,
    /// Sent frames have not come back yet: let softirqs run, then run again.
    InFlight = 2,
    /// Another flush holds the lock.
    Busy = 3,
    /// The gate is closed, the lease is over, or the committed epoch is not below the open one.
    Refused = 4,
    /// A map could not be read; the verifier wants the case, the kernel does not produce it.
    Broken = 5,
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
}

/// One held frame: 2 KiB.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Slot {
    /// [`Stamp`](crate::Stamp) of the epoch in which the guest sent the frame.
    pub stamp: u64,
    /// CLOCK_BOOTTIME ns at which a copy was last sent.
    pub sent_ns: u64,
    /// A [`SlotState`].
    pub state: u32,
    /// One more at each use of the slot; part of the mark, so that a copy of an earlier use is known.
    pub generation: u32,
    /// Bytes in `data`.
    pub len: u32,
    /// The VLAN tag that the stack had taken out of the bytes: TCI, and 0 or the protocol in network order.
    pub vlan_tci: u16,
    pub vlan_proto: u16,
    pub data: [u8; SLOT_DATA],
}

const _: () = assert!(core::mem::size_of::<Slot>() == 2048);
