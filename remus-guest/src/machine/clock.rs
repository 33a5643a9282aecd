//! Time, from the paravirtual clock and nothing else.
//!
//! The host writes a small record into guest memory: what the time was when the TSC read so and so, and how
//! fast the TSC runs. The host rewrites it when the guest has been restored elsewhere, which the guest sees
//! as a jump forward; it never sees time go back, because the last reading is kept.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{Ordering, compiler_fence};

use super::boot::write_msr;

/// MSR_KVM_SYSTEM_TIME_NEW: the record's address, with bit 0 to switch it on.
const SYSTEM_TIME: u32 = 0x4b56_4d01;

/// `struct pvclock_vcpu_time_info`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Record {
    /// Odd while the host writes.
    version: u32,
    _pad: u32,
    tsc: u64,
    system_ns: u64,
    multiplier: u32,
    shift: i8,
    flags: u8,
    _pad2: [u8; 2],
}

/// Where the host writes a CPU's record: each has its own, for its own TSC.
pub(super) struct Shared(UnsafeCell<Record>);

// SAFETY: this program only reads it; the host's writes are met by volatile reads and `version`.
unsafe impl Sync for Shared {}

impl Shared {
    pub(super) const fn new() -> Self {
        Self(UnsafeCell::new(Record {
            version: 0,
            _pad: 0,
            tsc: 0,
            system_ns: 0,
            multiplier: 0,
            shift: 0,
            flags: 0,
            _pad2: [0; 2],
        }))
    }
}

/// A CPU's clock.
pub(super) struct Clock {
    record: &'static Shared,
    last_ns: u64,
}

impl Clock {
    /// Asks the host for this CPU's record.
    pub(super) fn start(record: &'static Shared) -> Self {
        // SAFETY: the host will write one record, for ever, to memory that is used for nothing else, for ever.
        unsafe { write_msr(SYSTEM_TIME, record.0.get() as u64 | 1) };
        Self { record, last_ns: 0 }
    }

    /// Nanoseconds since some moment before boot. Never less than the time before.
    pub(super) fn now_ns(&mut self) -> u64 {
        self.last_ns = self.last_ns.max(read(self.record));
        self.last_ns
    }
}

fn read(record: &Shared) -> u64 {
    let record = record.0.get();
    loop {
        // SAFETY: the record is always readable; what the host may write meanwhile is found by `version`.
        let before = unsafe { ptr::read_volatile(record) };
        compiler_fence(Ordering::SeqCst);
        let tsc = read_tsc();
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as above; only the version is read.
        let version = unsafe { ptr::read_volatile(&raw const (*record).version) };
        // The copy may be torn, its version too, but not without a different one afterwards: the host
        // makes `version` odd before it writes and even after.
        if before.version == version && version.is_multiple_of(2) {
            return before.at(tsc);
        }
    }
}

impl Record {
    fn at(&self, tsc: u64) -> u64 {
        let cycles = tsc.saturating_sub(self.tsc);
        let cycles = match self.shift {
            shift @ 0.. => cycles << shift,
            shift => cycles >> -shift,
        };
        let ns = (u128::from(cycles) * u128::from(self.multiplier)) >> 32;
        self.system_ns + ns as u64
    }
}

fn read_tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter. `lfence` keeps it from being read before the record was.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nostack, nomem)) };
    u64::from(high) << 32 | u64::from(low)
}
