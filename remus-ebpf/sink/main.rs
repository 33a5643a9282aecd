//! `sink`: where measured frames end. Beside it `empty`, by which a program's own time is told apart.
//!
//! It sits at the ingress of the far end of a veth, where a host's next neighbour would be, counts the frames
//! of a run, judges their order and how long they took, and drops everything.
//!
//! `inject` is the release gone wrong that the tests of the second lock need: it sends whatever frame, with
//! whatever mark, wherever it is told.
//!
//! Counters are plain words, not one per CPU: the frames of an order are handled on one CPU at a time, and
//! what would count on two at once is a fault of the gate that shows as a wrong count.
#![no_std]
#![no_main]
#![allow(
    unreachable_pub,
    reason = "the program's entry point is found by its section, not by path"
)]

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, TC_ACT_SHOT},
    helpers::{bpf_clone_redirect, bpf_ktime_get_ns, bpf_skb_load_bytes},
    macros::{classifier, map},
    maps::Array,
    programs::TcContext,
};
use remus_abi::sink::{BUCKETS, HISTOGRAM, PROBE_BYTES, Probe, SINK_WORDS, Sink, bucket};

#[map]
static SINK: Array<[u64; SINK_WORDS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[classifier]
pub fn sink(ctx: TcContext) -> i32 {
    if let Some(words) = SINK.get_ptr_mut(0) {
        count(&ctx, words.cast());
    }
    TC_ACT_SHOT
}

/// Run under BPF_PROG_TEST_RUN: sends the frame that it is given to the interface in `cb[1]`, with the flags in
/// `cb[2]`.
#[classifier]
pub fn inject(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context of this run; the helper checks interface and flags.
    let failed = unsafe { bpf_clone_redirect(skb, (*skb).cb[1], u64::from((*skb).cb[2])) };
    i32::from(failed != 0)
}

/// What any program costs.
#[classifier]
pub fn empty(_: TcContext) -> i32 {
    TC_ACT_SHOT
}

#[inline(always)]
fn count(ctx: &TcContext, words: *mut u64) {
    let mut probe = Probe { tag: 0, sequence: 0, sent_ns: 0 };
    #[expect(clippy::cast_possible_truncation, reason = "an offset in a frame, and 16")]
    // SAFETY: the helper checks offset and length against the frame, and writes within the probe, of which
    // any bytes are a value.
    let missing = unsafe {
        let offset = words.add(Sink::Offset as usize).read_volatile() as u32;
        let to = (&raw mut probe).cast();
        bpf_skb_load_bytes(ctx.skb.skb.cast(), offset, to, PROBE_BYTES as u32) != 0
    };
    // SAFETY: a live map value of SINK_WORDS words; every index below is one of them.
    let [tag, limit, next] = unsafe {
        [Sink::Tag, Sink::Limit, Sink::NextSequence]
            .map(|word| words.add(word as usize).read_volatile())
    };
    if missing || u64::from(probe.tag) != tag {
        return;
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let sequence = u64::from(probe.sequence);
    // SAFETY: as above.
    unsafe {
        *words.add(Sink::Frames as usize) += 1;
        *words.add(Sink::Bytes as usize) += u64::from(ctx.len());
        if sequence < next {
            *words.add(Sink::OutOfOrder as usize) += 1;
        } else {
            *words.add(Sink::NextSequence as usize) = sequence + 1;
        }
        if sequence >= limit {
            *words.add(Sink::Early as usize) += 1;
        }
        if *words.add(Sink::FirstNs as usize) == 0 {
            *words.add(Sink::FirstNs as usize) = now;
        }
        *words.add(Sink::LastNs as usize) = now;
        if probe.sent_ns != 0 {
            // Masked for the verifier, which does not follow the bucket's own bound.
            let bucket = bucket(now.wrapping_sub(probe.sent_ns)) & (BUCKETS - 1);
            *words.add(HISTOGRAM + bucket) += 1;
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Nothing here panics: the verifier would not load a program with a loop that never ends.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
