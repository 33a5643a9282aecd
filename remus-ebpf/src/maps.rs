//! The gate's maps, and reads and writes of their words.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_NOEXIST},
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use remus_abi::{
    Kept, Stamp, Turns,
    ack::{ACKED_WORDS, AckCounter, Acked, TRIGGER_WORDS, Trigger},
    gate::{
        BUFFER_MIB_DEFAULT, CHUNK_VALUE, CONTROL_WORDS, Control, Counter, Filling, Mode,
        RESIDENCE_BUCKETS, RING_WORDS, Ring, Slot, UNIT, UNITS_PER_CHUNK, chunks, slots,
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
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::WORDS, 0);
/// Written under the flush lock: one writer at a time.
#[map]
static RESIDENCE: Array<[u64; RESIDENCE_BUCKETS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
// The loader makes these two as large as the config says.
#[map]
static SLOTS: Array<Slot> = Array::with_max_entries(slots(BUFFER_MIB_DEFAULT), 0);
#[map]
static DATA: Array<[u8; CHUNK_VALUE]> = Array::with_max_entries(chunks(BUFFER_MIB_DEFAULT), 0);
/// Wakes the controller when the buffer fills.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Written by the controller of a release by datagram, read by `ack`: the session, its key, its port.
#[map]
static TRIGGER: Array<[u64; TRIGGER_WORDS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// Written by `ack` and `turn` while they hold the flush lock.
#[map]
static ACKED: Array<[u64; ACKED_WORDS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static ACKS: PerCpuArray<u64> = PerCpuArray::with_max_entries(AckCounter::WORDS, 0);

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

    /// The stamp up to which output of its term may be outside now. The one answer that both locks ask for.
    #[inline(always)]
    pub fn releasable(self) -> Stamp {
        remus_abi::releasable(self.word(Control::Mode), || self.open(), || self.committed())
    }

    /// Which frames of earlier terms leave in this one.
    #[inline(always)]
    pub fn kept(self) -> Kept {
        Kept::from_bits(self.word(Control::Kept))
    }

    /// How often a term has begun.
    #[inline(always)]
    pub fn turns(self) -> Turns {
        Turns::from_bits(self.word(Control::Turns))
    }

    #[inline(always)]
    pub fn open(self) -> Stamp {
        Stamp::from_bits(self.word(Control::Open))
    }

    /// The newest commit that either the controller or, in the same term, a datagram has told the gate of.
    #[inline(always)]
    pub fn committed(self) -> Stamp {
        let told = Stamp::from_bits(self.word(Control::Committed));
        let acked = AckedWords::get().map_or(Stamp::NONE, AckedWords::stamp);
        let same_term = acked.term().get() == told.term().get();
        if same_term && acked.bits() > told.bits() { acked } else { told }
    }

    /// CLOCK_BOOTTIME ns after which nothing may be released: the later of the controller's and a datagram's.
    #[inline(always)]
    pub fn lease_until(self) -> u64 {
        let told = self.word(Control::LeaseUntil);
        let acked = AckedWords::get().map_or(0, |words| words.word(Acked::LeaseUntil));
        if acked > told { acked } else { told }
    }
}

pub const HOLD: u64 = Mode::Hold as u64;
pub const OPEN: u64 = Mode::Open as u64;

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

/// What the controller told `ack`, read-only here.
#[derive(Clone, Copy)]
pub struct TriggerWords(*const [u64; TRIGGER_WORDS]);

impl TriggerWords {
    #[inline(always)]
    pub fn get() -> Option<Self> {
        TRIGGER.get_ptr(0).map(Self)
    }

    #[inline(always)]
    pub fn word(self, which: Trigger) -> u64 {
        // SAFETY: as for ControlWords::word, with TRIGGER_WORDS words.
        unsafe { (self.0 as *const u64).add(which as usize).read_volatile() }
    }
}

/// What datagrams have acked.
#[derive(Clone, Copy)]
pub struct AckedWords(*mut [u64; ACKED_WORDS]);

impl AckedWords {
    #[inline(always)]
    pub fn get() -> Option<Self> {
        ACKED.get_ptr_mut(0).map(Self)
    }

    #[inline(always)]
    pub fn word(self, which: Acked) -> u64 {
        // SAFETY: as for ControlWords::word, with ACKED_WORDS words.
        unsafe { (self.0 as *const u64).add(which as usize).read_volatile() }
    }

    #[inline(always)]
    pub fn stamp(self) -> Stamp {
        Stamp::from_bits(self.word(Acked::Stamp))
    }

    /// For the holder of the flush lock: the one writer.
    #[inline(always)]
    pub fn set(self, which: Acked, to: u64) {
        // SAFETY: as for `word`.
        unsafe { (self.0 as *mut u64).add(which as usize).write_volatile(to) }
    }
}

/// The slot of frame `number`, in a ring of `units` slots, a power of two; what lies beyond the map is `None`.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "units is a power of two of 32 bits: only the low bits of a number tell its slot"
)]
pub fn slot(number: u64, units: u64) -> Option<*mut Slot> {
    SLOTS.get_ptr_mut(number as u32 & (units as u32).wrapping_sub(1))
}

/// Where the data of a frame that begins at unit `at` lies: room for `FRAME_MAX` bytes.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "as for slot")]
pub fn data(at: u64, units: u64) -> Option<*mut u8> {
    let chunks = units as u32 / UNITS_PER_CHUNK;
    let chunk = (at as u32 / UNITS_PER_CHUNK) & chunks.wrapping_sub(1);
    let value = DATA.get_ptr_mut(chunk)?.cast::<u8>();
    let offset = (at as u32 & (UNITS_PER_CHUNK - 1)) * UNIT;
    // SAFETY: below CHUNK, in a live map value of CHUNK + FRAME_MAX bytes.
    Some(unsafe { value.add(offset as usize) })
}

/// Tells the controller how many units are held.
#[inline(always)]
pub fn wake(units_held: Filling) {
    // A full ring has events enough to be woken by.
    EVENTS.output::<Filling>(&units_held, 0).ok();
}

/// Notes that a frame was held for a time of this bucket. Called under the flush lock.
#[inline(always)]
pub fn note_residence(bucket: u32) {
    let Some(buckets) = RESIDENCE.get_ptr_mut(0) else { return };
    let bucket = core::hint::black_box(bucket as usize);
    if bucket < RESIDENCE_BUCKETS {
        // SAFETY: a live map value of so many words; nobody else writes to it now.
        unsafe {
            let word = buckets.cast::<u64>().add(bucket);
            word.write_volatile(word.read_volatile() + 1);
        }
    }
}

#[inline(always)]
pub fn count(which: Counter) {
    add(which, 1);
}

#[inline(always)]
pub fn add(which: Counter, frames: u64) {
    if let Some(counter) = COUNTERS.get_ptr_mut(which as u32) {
        // SAFETY: this CPU's own copy of a live map value.
        unsafe { *counter = (*counter).wrapping_add(frames) }
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

#[inline(always)]
pub fn count_ack(which: AckCounter) {
    if let Some(counter) = ACKS.get_ptr_mut(which as u32) {
        // SAFETY: this CPU's own copy of a live map value.
        unsafe { *counter = (*counter).wrapping_add(1) }
    }
}
