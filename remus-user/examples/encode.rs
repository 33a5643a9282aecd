//! What encoding costs, by how much of each page was written since it was last sent: ns a page, and bytes sent.
//!
//! `cargo run --release -p remus-user --example encode [PAGES]`. 1000 pages by default, an epoch of a busy guest:
//! staging and copies together are then larger than a core's own caches, as they are when a pause has filled staging
//! from another core. Medians over rounds; all shapes take turns in each round, so that a noisy machine is
//! noisy for all of them.
//!
//! Then what compressing costs both sides, and saves: the pages are this program itself, whole, and with 64 bytes of each
//! rewritten by other bytes of it.

#![expect(clippy::disallowed_methods, reason = "it times itself, beside any VM")]

use std::{env, fs, hint::black_box, time::Instant};

use remus::checkpoint::{
    Assembly, Compression, Encoder, EncoderSettings, PAGE_SIZE, Page, Staging,
};

const PAGES_DEFAULT: u32 = 1000;
const ROUNDS: usize = 201;
const WORD: usize = 8;

/// What the guest has written since the page was last sent.
#[derive(Clone, Copy)]
enum Written {
    Nothing,
    Word,
    Line,
    Half,
    All,
    /// All of it, with zeros; what follows it in a round has copies of zero pages only.
    Zero,
}

impl Written {
    const EACH: [(Self, &str); 6] = [
        (Self::Nothing, "unchanged"),
        (Self::Word, "1 word"),
        (Self::Line, "64 B"),
        (Self::Half, "every other word"),
        (Self::All, "every word"),
        (Self::Zero, "zeroed"),
    ];

    fn write(self, page: &mut [u8; PAGE_SIZE], seed: u64) {
        let (words, _) = page.as_chunks_mut::<WORD>();
        let write = |word: &mut [u8; WORD]| {
            // Odd, so that the word differs from what it was.
            *word = u64::from_le_bytes(*word).wrapping_add(seed | 1).to_le_bytes();
        };
        match self {
            Self::Nothing => {}
            Self::Word => write(&mut words[(seed % 512) as usize]),
            Self::Line => words[(seed % 64) as usize * 8..][..8].iter_mut().for_each(write),
            Self::Half => words.iter_mut().step_by(2).for_each(write),
            Self::All => words.iter_mut().for_each(write),
            Self::Zero => page.fill(0),
        }
    }
}

struct Bench {
    ram: Vec<[u8; PAGE_SIZE]>,
    staging: Staging,
    encoder: Encoder,
    seed: u64,
}

impl Bench {
    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    /// ns and bytes a page.
    fn round(&mut self, written: Written) -> (f64, f64) {
        for at in 0..self.ram.len() {
            let seed = self.random();
            written.write(&mut self.ram[at], seed);
        }
        self.stage();
        let pages = self.ram.len() as f64;
        let start = Instant::now();
        let bytes = drain(&mut self.encoder, &self.staging);
        (start.elapsed().as_nanos() as f64 / pages, bytes as f64 / pages)
    }

    fn stage(&mut self) {
        self.staging.clear();
        for (page, bytes) in (0..).zip(&self.ram) {
            *self.staging.push(Page(page)).expect("room for all of RAM") = *bytes;
        }
    }
}

fn drain(encoder: &mut Encoder, staging: &Staging) -> usize {
    let mut run = encoder.encode(staging);
    let mut bytes = 0;
    while let Some(batch) = run.next_batch() {
        bytes += batch.parts().map(<[u8]>::len).sum::<usize>();
        black_box(&batch);
    }
    bytes
}

/// ns a page to encode, ns a page to take in, bytes a page.
type Cost = (f64, f64, f64);

/// Of `first` in a session of its own, and of `then` after it.
fn compress(compression: Compression, first: &Staging, then: &Staging) -> [Cost; 2] {
    let pages = u32::try_from(first.len()).expect("as many as asked for");
    let settings = EncoderSettings { compression, ..EncoderSettings::default() };
    let (mut encoder, mut assembly) = (Encoder::new(pages, settings), Assembly::new(pages));
    let mut taken = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS / 10 {
        encoder.forget();
        assembly.new_session();
        for (staging, taken) in [first, then].into_iter().zip(&mut taken) {
            let (mut bodies, mut encoding) = (Vec::new(), 0);
            let mut run = encoder.encode(staging);
            loop {
                let start = Instant::now();
                let Some(batch) = run.next_batch() else { break };
                encoding += start.elapsed().as_nanos();
                bodies.push(batch.parts().flatten().copied().collect::<Vec<u8>>());
            }
            let start = Instant::now();
            for body in &bodies {
                black_box(assembly.sync_batch(body).expect("of our own making"));
            }
            let taking_in = start.elapsed().as_nanos() as f64;
            let each = |n: f64| n / f64::from(pages);
            let bytes = bodies.iter().map(Vec::len).sum::<usize>() as f64;
            taken.push((each(encoding as f64), each(taking_in), each(bytes)));
        }
    }
    taken.map(|mut taken: Vec<Cost>| {
        taken.sort_by(|a, b| a.0.total_cmp(&b.0));
        taken[taken.len() / 2]
    })
}

fn compressions(pages: u32) {
    let program = env::current_exe().and_then(fs::read).expect("this program's file");
    let (whole, _) = program.as_chunks::<PAGE_SIZE>();
    let mut content = whole.iter().cycle();
    let (mut first, mut then) = (Staging::new(pages as usize), Staging::new(pages as usize));
    for page in 0..pages {
        let bytes = content.next().expect("a program of a page");
        *first.push(Page(page)).expect("room") = *bytes;
        let written = then.push(Page(page)).expect("room");
        *written = *bytes;
        let at = 64 * (page as usize % 63);
        written.copy_within(at + 64..at + 128, at);
    }
    println!("\n{pages} pages of a program            ns encode     ns take in    bytes a page");
    for (compression, name) in
        [(Compression::None, "none"), (Compression::Lz4, "lz4"), (Compression::Zstd, "zstd")]
    {
        let costs = compress(compression, &first, &then);
        for ((encode, take_in, bytes), shape) in costs.into_iter().zip(["whole", "64 B"]) {
            println!("{name:<8}{shape:<22} {encode:>10.0} {take_in:>14.0} {bytes:>15.0}");
        }
    }
}

fn main() {
    let pages = env::args().nth(1).map_or(PAGES_DEFAULT, |n| n.parse().expect("PAGES"));
    let mut bench = Bench {
        ram: vec![[1; PAGE_SIZE]; pages as usize],
        staging: Staging::new(pages as usize),
        encoder: Encoder::new(pages, EncoderSettings::default()),
        seed: 0x9e37_79b9_7f4a_7c15,
    };
    let mut taken = Written::EACH.map(|_| Vec::new());
    let mut whole = Vec::new();
    for _ in 0..ROUNDS {
        for ((written, _), taken) in Written::EACH.into_iter().zip(&mut taken) {
            taken.push(bench.round(written));
        }
        // Zero pages again: as they were.
        for page in &mut bench.ram {
            page.fill(3);
        }
        bench.stage();
        drain(&mut bench.encoder, &bench.staging);
        bench.encoder.forget();
        whole.push(bench.round(Written::All));
    }
    println!("{pages} pages, median of {ROUNDS} rounds      ns a page    bytes a page");
    for ((_, name), taken) in Written::EACH.iter().zip(&mut taken) {
        line(name, taken);
    }
    line("no copy of it", &mut whole);
    compressions(pages);
}

fn line(name: &str, taken: &mut [(f64, f64)]) {
    taken.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (ns, bytes) = taken[taken.len() / 2];
    println!("{name:<38} {ns:>9.0} {bytes:>15.0}");
}
