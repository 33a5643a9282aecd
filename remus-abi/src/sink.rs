//! Values in the map of `sink`, the eBPF program with which the gate is measured: it stands where the outside
//! world would be, counts the frames of a run, judges their order, and drops them.
//!
//! Every frame of a run carries a [`Probe`] at an offset that the rig sets. All of the map is one value, which
//! the rig maps into its memory: reading a count takes no system call.

/// What a frame of a run carries, 16 bytes without padding, in the machine's own byte order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Probe {
    /// Of this run, and no other: a late frame of the run before counts nowhere.
    pub tag: u32,
    /// Counted from 0 within the run.
    pub sequence: u32,
    /// CLOCK_MONOTONIC ns at which it was written to the tap; 0: its latency is of no interest.
    pub sent_ns: u64,
}
pub const PROBE_BYTES: usize = size_of::<Probe>();
const _: () = assert!(PROBE_BYTES == 16);

/// Words of the one value in the map `SINK`, a `u64` each. The first three are the rig's to write; the
/// program writes the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Sink {
    /// Where a frame carries its [`Probe`], in bytes after the Ethernet header's start.
    Offset = 0,
    /// [`Probe::tag`] of the frames that count.
    Tag = 1,
    /// Frames of this sequence number and beyond may not be here yet.
    Limit = 2,
    Frames = 3,
    Bytes = 4,
    /// Frames whose sequence number is below that of one that came before: reordered, or repeated.
    OutOfOrder = 5,
    /// One more than the greatest sequence number so far.
    NextSequence = 6,
    /// Frames at or beyond the limit: released too early.
    Early = 7,
    /// CLOCK_MONOTONIC ns of the first and of the last frame.
    FirstNs = 8,
    LastNs = 9,
}
/// From this word on: how many frames had a latency in which bucket.
pub const HISTOGRAM: usize = 16;
pub const BUCKETS: usize = 512;
pub const SINK_WORDS: usize = HISTOGRAM + BUCKETS;

/// Of each power of two of nanoseconds, so many buckets: a bucket's width is at most 1/16 of its value.
const STEPS_BITS: u32 = 4;

/// The bucket of a latency of `ns`; the last one takes whatever is greater.
#[inline(always)]
pub const fn bucket(ns: u64) -> usize {
    // Below 16 ns buckets are of 1 ns: none has a fraction.
    let ns = if ns < 16 { 16 } else { ns };
    let power = power_of_two_below(ns);
    let step = (ns >> (power - STEPS_BITS)) & 15;
    let bucket = ((power - STEPS_BITS) as usize) << STEPS_BITS | step as usize;
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

/// The middle of a bucket, in nanoseconds.
pub const fn bucket_ns(bucket: usize) -> u64 {
    let (power, step) = (bucket >> STEPS_BITS, (bucket & 15) as u64);
    (2 * (16 + step) + 1) << power >> 1
}

/// By halves: the BPF target has no instruction that counts leading zeroes.
#[inline(always)]
const fn power_of_two_below(mut n: u64) -> u32 {
    let mut power = 0;
    let mut half = 32;
    while half > 0 {
        if n >> half != 0 {
            n >>= half;
            power += half;
        }
        half /= 2;
    }
    power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_no_wider_than_a_sixteenth_of_what_falls_into_it() {
        for ns in (16..100_000).chain([1 << 20, (1 << 30) + 12_345, 30 << 30]) {
            let middle = bucket_ns(bucket(ns));
            assert!(middle.abs_diff(ns) * 16 <= ns, "{ns} ns read as {middle} ns");
        }
    }

    #[test]
    fn buckets_follow_one_another_and_the_last_takes_the_rest() {
        let buckets: [usize; 64] = core::array::from_fn(|power| bucket(1 << power));
        assert!(buckets.is_sorted());
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BUCKETS - 1));
    }
}
