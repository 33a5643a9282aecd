//! The sink's program in the kernel, and the reader of its counts.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf,
    maps::Map,
    programs::{SchedClassifier, TcAttachType, tc},
};
use remus::gate::HookKind;
use remus_abi::sink::{BUCKETS, HISTOGRAM, SINK_WORDS, Sink, bucket_ns};

use super::frames::Size;

const MAPPED: usize = (SINK_WORDS * 8).next_multiple_of(4096);

#[derive(Debug)]
pub(super) struct SinkProgram {
    words: NonNull<AtomicU64>,
    /// Its programs and links go with it.
    _loaded: Ebpf,
}

/// What has arrived of a run so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Arrived {
    pub(super) frames: u64,
    pub(super) bytes: u64,
    pub(super) out_of_order: u64,
    pub(super) early: u64,
    /// CLOCK_MONOTONIC of the last one; 0: none.
    pub(super) last_ns: u64,
}

impl SinkProgram {
    /// Attaches the program in `object` to the ingress of `link`, in the calling thread's network namespace.
    pub(super) fn attach(object: &Path, link: &str) -> Result<Self> {
        let mut loaded =
            Ebpf::load_file(object).with_context(|| format!("load {}", object.display()))?;
        let program = loaded.program_mut("sink").context("the object has no program sink")?;
        let program: &mut SchedClassifier = program.try_into()?;
        program.load().context("the kernel refused the program sink")?;
        if HookKind::of_this_kernel().context("ask whether this kernel has TCX")?
            == HookKind::Clsact
        {
            tc::qdisc_add_clsact(link).with_context(|| format!("add clsact to {link}"))?;
        }
        program
            .attach(link, TcAttachType::Ingress)
            .with_context(|| format!("attach sink to {link}"))?;
        let words = map_words(&loaded)?;
        Ok(Self { words, _loaded: loaded })
    }

    /// Begins a run: nothing has arrived, and only frames of `tag` count. No frame may arrive before
    /// [`SinkProgram::allow`] says so.
    pub(super) fn begin(&self, size: Size, tag: u32) {
        // What is still on its way must not count while the counts are set to 0.
        self.set(Sink::Tag as usize, u64::MAX);
        for word in Sink::Limit as usize..SINK_WORDS {
            self.set(word, 0);
        }
        self.set(Sink::Offset as usize, size.probe_offset() as u64);
        self.set(Sink::Tag as usize, tag.into());
    }

    /// From now on frames below the sequence number `limit` may arrive.
    pub(super) fn allow(&self, limit: u64) {
        self.set(Sink::Limit as usize, limit);
    }

    pub(super) fn arrived(&self) -> Arrived {
        let word = |which: Sink| self.get(which as usize);
        Arrived {
            frames: word(Sink::Frames),
            bytes: word(Sink::Bytes),
            out_of_order: word(Sink::OutOfOrder),
            early: word(Sink::Early),
            last_ns: word(Sink::LastNs),
        }
    }

    /// Waits until `frames` have arrived, or nothing more does.
    pub(super) fn settle(&self, frames: u64) -> Arrived {
        const QUIET: Duration = Duration::from_millis(30);
        let mut seen = self.arrived();
        let mut since = Instant::now();
        while seen.frames < frames && since.elapsed() < QUIET {
            std::thread::sleep(Duration::from_micros(200));
            let now = self.arrived();
            if now.frames != seen.frames {
                since = Instant::now();
            }
            seen = now;
        }
        seen
    }

    /// The latency that `share` of the frames stayed below, in nanoseconds; 0 when none told its own.
    pub(super) fn latency_ns(&self, share: f64) -> u64 {
        let counts: Vec<u64> = (0..BUCKETS).map(|at| self.get(HISTOGRAM + at)).collect();
        let wanted = counts.iter().sum::<u64>() as f64 * share;
        let mut below = 0;
        let reached = counts.iter().position(|count| {
            below += count;
            *count > 0 && below as f64 >= wanted
        });
        reached.map_or(0, bucket_ns)
    }

    fn get(&self, word: usize) -> u64 {
        self.word(word).load(Ordering::Acquire)
    }

    fn set(&self, word: usize, to: u64) {
        self.word(word).store(to, Ordering::SeqCst);
    }

    fn word(&self, word: usize) -> &AtomicU64 {
        assert!(word < SINK_WORDS, "word {word} of {SINK_WORDS}");
        // SAFETY: within the mapping, which lives as long as `self`; aligned, since the mapping is.
        unsafe { self.words.add(word).as_ref() }
    }
}

impl Drop for SinkProgram {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map_words` made, and nobody has a reference beyond `self`'s life.
        unsafe { libc::munmap(self.words.as_ptr().cast(), MAPPED) };
    }
}

fn map_words(loaded: &Ebpf) -> Result<NonNull<AtomicU64>> {
    let Some(Map::Array(map)) = loaded.map("SINK") else {
        bail!("the object has no array map SINK")
    };
    let bytes = map.info().context("read about the map SINK")?.value_size() as usize;
    assert_eq!(bytes, SINK_WORDS * 8, "the object is of this build");
    // SAFETY: a new mapping at an address of the kernel's choice; the result is checked.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            MAPPED,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            map.fd().as_fd().as_raw_fd(),
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error()).context("map the sink's counts into memory");
    }
    NonNull::new(address.cast()).context("mmap at address 0")
}
