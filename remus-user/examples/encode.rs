//! What encoding costs, by how much of each page was written since it was last sent: ns a page, and bytes sent.
//!
//! `cargo run --release -p remus-user --example encode [PAGES]`. 1000 pages by default, an epoch of a busy guest:
//! staging and copies together are then larger than a core's own caches, as they are when a pause has filled staging
//! from another core. Medians over rounds; all shapes take turns in each round, so that a noisy machine is
//! noisy for all of them.

use std::{hint::black_box, time::Instant};

use remus::checkpoint::{Encoder, EncoderSettings, PAGE_SIZE, Page, Staging};

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

fn main() {
    let pages = std::env::args().nth(1).map_or(PAGES_DEFAULT, |n| n.parse().expect("PAGES"));
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
        bench.encoder.new_session();
        whole.push(bench.round(Written::All));
    }
    println!("{pages} pages, median of {ROUNDS} rounds      ns a page    bytes a page");
    for ((_, name), taken) in Written::EACH.iter().zip(&mut taken) {
        line(name, taken);
    }
    line("no copy of it", &mut whole);
}

fn line(name: &str, taken: &mut [(f64, f64)]) {
    taken.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (ns, bytes) = taken[taken.len() / 2];
    println!("{name:<38} {ns:>9.0} {bytes:>15.0}");
}
