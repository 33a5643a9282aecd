//! The gate's maps, and reads and writes of their words.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_NOEXIST},
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use remus_abi::{
    Stamp,
    gate::{
        CONTROL_WORDS, COUNTERS as COUNTER_WORDS, Control, Counter, RING_WORDS, Ring,
        SLOTS_DEFAULT, Slot,
    },
};

#[map]
static CONTROL: Array<[u64; CONTROL_WORDS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static RING: Array<[u64; RING_WORDS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// Holds one key while a flush runs. A map, because inserting a key that must not exist is the one
/// compare-and-swap that this target and every kernel have in common.
#[map]
static FLUSHING: HashMap<u32, u64> = HashMap::with_max_entries(1, 0);
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_WORDS, 0);
#[map]
static SLOTS: Array<Slot> = Array::with_max_entries(SLOTS_DEFAULT, 0);

/// The controller's words, read-only here.
#[derive(Clone, Copy)]
pub struct ControlWords(*const [u64; CONTROL_WORDS]);

impl ControlWords {
    #[inline(always)]
    pub fn get() -> Option<Self> {
        CONTROL.get_ptr(0).map(Self)
    }

    #[inline(always)]
    pub fn word(self, which: Control) -> u64 {
        // SAFETY: a live map value of CONTROL_WORDS words, and `which` is one of them. The controller writes
        // it at the same time, a word at once; volatile, so that each read is one read.
        unsafe { (self.0 as *const u64).add(which as usize).read_volatile() }
    }

    #[inline(always)]
    pub fn stamp(self, which: Control) -> Stamp {
        Stamp::from_bits(self.word(which))
    }
}

/// The programs' own words.
#[derive(Clone, Copy)]
pub struct RingWords(*mut [u64; RING_WORDS]);

impl RingWords {
    #[inline(always)]
    pub fn get() -> Option<Self> {
        RING.get_ptr_mut(0).map(Self)
    }

    #[inline(always)]
    pub fn word(self, which: Ring) -> u64 {
        // SAFETY: as for ControlWords::word.
        unsafe { (self.0 as *const u64).add(which as usize).read_volatile() }
    }

    #[inline(always)]
    pub fn set(self, which: Ring, to: u64) {
        // SAFETY: as for ControlWords::word; each word has one writer at a time (module doc of the crate).
        unsafe { (self.0 as *mut u64).add(which as usize).write_volatile(to) }
    }
}

/// The slot of ring position `at`. `slots` is a power of two; what lies beyond the map is `None`.
#[inline(always)]
pub fn slot_at(at: u64, slots: u64) -> Option<*mut Slot> {
    slot(number_at(at, slots))
}

/// The number of the slot of ring position `at`.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "slots is a power of two of 32 bits: only the low bits of a position tell its slot"
)]
pub fn number_at(at: u64, slots: u64) -> u32 {
    at as u32 & (slots as u32).wrapping_sub(1)
}

#[inline(always)]
pub fn slot(number: u32) -> Option<*mut Slot> {
    SLOTS.get_ptr_mut(number)
}

#[inline(always)]
pub fn count(which: Counter) {
    if let Some(counter) = COUNTERS.get_ptr_mut(which as u32) {
        // SAFETY: this CPU's own copy of a live map value.
        unsafe { *counter = (*counter).wrapping_add(1) }
    }
}

/// Takes the flush lock, unless another flush has it. A program runs to its end: the lock is never orphaned.
#[inline(always)]
pub fn try_lock() -> bool {
    FLUSHING.insert(0, 1, BPF_NOEXIST as u64).is_ok()
}

#[inline(always)]
pub fn unlock() {
    #[expect(
        clippy::let_underscore_must_use,
        reason = "only the holder comes here, so the key is there"
    )]
    let _ = FLUSHING.remove(0);
}
