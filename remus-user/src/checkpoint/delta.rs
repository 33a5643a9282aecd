//! One page against the copy that was last sent: nothing, zero, the changed words, or all of it.
//!
//! ```text
//! delta:  u64 bitmap of the changed 64-byte lines │ a u8 per changed line: its changed words │ the new words
//! ```
//!
//! A delta holds new values, not differences, so applying one twice does no harm; on the wrong base it would,
//! which is why the receiver takes one only for a page that it got whole in the same session.
//!
//! The comparison is the hot loop of the sender: portable, and AVX2 where the CPU has it, chosen at run time
//! and equal by test. AVX-512 was measured within 5 % of AVX2 and is left out.

use super::PAGE_SIZE;

const LINE: usize = 64;
const LINES: usize = PAGE_SIZE / LINE;
const WORD: usize = 8;
/// Bytes of the shortest delta: the bitmap, one line's mask, one word.
const DELTA_MIN: usize = 8 + 1 + WORD;

type PageBytes = [u8; PAGE_SIZE];

/// What a page turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Difference {
    /// As it was last sent.
    Unchanged,
    /// All zero, and was not before.
    Zero,
    /// The delta was appended.
    Delta,
    /// A delta would be no shorter than the page.
    Raw,
}

/// Which comparison runs on this CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Comparer {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
}

/// Proof that the CPU has AVX2: only detection makes one.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Avx2(());

impl Comparer {
    /// The fastest that this CPU has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            return Self::Avx2(Avx2(()));
        }
        Self::Portable
    }

    /// Compares `new` with `sent`, appends a delta to `out` where that is the answer, and makes `sent` equal to
    /// `new`.
    pub fn encode(self, new: &PageBytes, sent: &mut PageBytes, out: &mut Vec<u8>) -> Difference {
        match self {
            Self::Portable => encode_masked(new, sent, out, changed_words),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Avx2` exists only where detection found the feature, all that the callee asks for.
            Self::Avx2(Avx2(())) => unsafe { encode_avx2(new, sent, out) },
        }
    }
}

#[inline(always)]
fn encode_masked(
    new: &PageBytes,
    sent: &mut PageBytes,
    out: &mut Vec<u8>,
    changed: impl Fn(&[u8; LINE], &[u8; LINE]) -> u8,
) -> Difference {
    let (new_lines, _) = new.as_chunks::<LINE>();
    let (sent_lines, _) = sent.as_chunks_mut::<LINE>();
    let mut masks = [0u8; LINES];
    let mut bitmap = 0u64;
    let mut words = 0;
    for (at, mask) in masks.iter_mut().enumerate() {
        *mask = changed(&new_lines[at], &sent_lines[at]);
        bitmap |= u64::from(*mask != 0) << at;
        words += mask.count_ones() as usize;
    }
    if bitmap == 0 {
        return Difference::Unchanged;
    }
    if is_zero(new) {
        sent.fill(0);
        return Difference::Zero;
    }
    let len = 8 + bitmap.count_ones() as usize + WORD * words;
    if len >= PAGE_SIZE {
        *sent = *new;
        return Difference::Raw;
    }
    out.reserve(len);
    out.extend_from_slice(&bitmap.to_le_bytes());
    out.extend(Bits(bitmap).map(|line| masks[line]));
    for line in Bits(bitmap) {
        for word in Bits(u64::from(masks[line])) {
            out.extend_from_slice(&new_lines[line][WORD * word..WORD * (word + 1)]);
        }
        sent_lines[line] = new_lines[line];
    }
    Difference::Delta
}

fn changed_words(new: &[u8; LINE], sent: &[u8; LINE]) -> u8 {
    let (new, _) = new.as_chunks::<WORD>();
    let (sent, _) = sent.as_chunks::<WORD>();
    let pairs = new.iter().zip(sent).enumerate();
    pairs.fold(0, |mask, (at, (a, b))| {
        mask | u8::from(u64::from_le_bytes(*a) != u64::from_le_bytes(*b)) << at
    })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn encode_avx2(new: &PageBytes, sent: &mut PageBytes, out: &mut Vec<u8>) -> Difference {
    encode_masked(new, sent, out, |a, b| changed_words_avx2(a, b))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn changed_words_avx2(new: &[u8; LINE], sent: &[u8; LINE]) -> u8 {
    use std::arch::x86_64::{
        __m256i, _mm256_castsi256_pd, _mm256_cmpeq_epi64, _mm256_loadu_si256, _mm256_movemask_pd,
    };
    let half = |at: usize| {
        let (a, b) = (&new[at..at + 32], &sent[at..at + 32]);
        // SAFETY: the slice is 32 bytes long, and the load needs no alignment.
        let a = unsafe { _mm256_loadu_si256(a.as_ptr().cast::<__m256i>()) };
        // SAFETY: as above.
        let b = unsafe { _mm256_loadu_si256(b.as_ptr().cast::<__m256i>()) };
        _mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(a, b))).to_le_bytes()[0]
    };
    !(half(0) | half(32) << 4)
}

/// Whether every byte is zero; one that is not tends to show early.
pub(super) fn is_zero(page: &PageBytes) -> bool {
    let (lines, _) = page.as_chunks::<LINE>();
    lines.iter().all(|line| {
        let (words, _) = line.as_chunks::<WORD>();
        words.iter().fold(0, |or, word| or | u64::from_le_bytes(*word)) == 0
    })
}

/// The set bits, lowest first.
struct Bits(u64);

impl Iterator for Bits {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let bit = self.0.trailing_zeros() as usize;
        self.0 &= self.0 - 1;
        Some(bit)
    }
}

/// A delta whose every length was checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delta<'a> {
    bitmap: u64,
    masks: &'a [u8],
    words: &'a [u8],
}

/// Bytes that are no delta: a length does not fit, or it says a line changed and names no word of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeltaError;

impl<'a> Delta<'a> {
    /// # Errors
    /// [`DeltaError`] unless `bytes` are exactly one delta as [`Comparer::encode`] writes it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DeltaError> {
        if !(DELTA_MIN..PAGE_SIZE).contains(&bytes.len()) {
            return Err(DeltaError);
        }
        let (bitmap, rest) = bytes.split_first_chunk::<8>().ok_or(DeltaError)?;
        let bitmap = u64::from_le_bytes(*bitmap);
        let (masks, words) =
            rest.split_at_checked(bitmap.count_ones() as usize).ok_or(DeltaError)?;
        let count: usize = masks.iter().map(|mask| mask.count_ones() as usize).sum();
        if masks.contains(&0) || words.len() != count * WORD || bitmap == 0 {
            return Err(DeltaError);
        }
        Ok(Self { bitmap, masks, words })
    }

    /// Runs of changed bytes: where in the page, and what. In ascending order, each within one line.
    pub fn runs(&self) -> impl Iterator<Item = (usize, &'a [u8])> {
        let mut words = self.words;
        Bits(self.bitmap)
            .zip(self.masks)
            .flat_map(|(line, mask)| Runs(*mask).map(move |run| (line, run)))
            .map(move |(line, (first, count))| {
                let (run, rest) = words.split_at(count * WORD);
                words = rest;
                (line * LINE + first * WORD, run)
            })
    }

    pub fn apply(&self, page: &mut PageBytes) {
        self.runs().for_each(|(at, run)| page[at..at + run.len()].copy_from_slice(run));
    }
}

/// Runs of set bits in a mask: the first bit, and how many.
struct Runs(u8);

impl Iterator for Runs {
    type Item = (usize, usize);

    fn next(&mut self) -> Option<(usize, usize)> {
        if self.0 == 0 {
            return None;
        }
        let first = self.0.trailing_zeros();
        let count = (self.0 >> first).trailing_ones();
        self.0 &= !((((1u16 << count) - 1) << first).to_le_bytes()[0]);
        Some((first as usize, count as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn comparers() -> Vec<Comparer> {
        let best = Comparer::detect();
        if best == Comparer::Portable { vec![best] } else { vec![Comparer::Portable, best] }
    }

    /// A page and a later state of it: some words set, few or many.
    fn pages() -> impl Strategy<Value = (Box<PageBytes>, Box<PageBytes>)> {
        let writes = proptest::collection::vec((0..PAGE_SIZE / WORD, any::<u64>()), 0..600);
        (any::<bool>(), writes).prop_map(|(blank, writes)| {
            let mut old = Box::new([0; PAGE_SIZE]);
            if !blank {
                old.iter_mut().zip((0..=250u8).cycle()).for_each(|(byte, n)| *byte = n);
            }
            let mut new = old.clone();
            for (word, value) in writes {
                new[word * WORD..][..WORD].copy_from_slice(&value.to_le_bytes());
            }
            (old, new)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn every_comparer_writes_the_same_and_it_applies((old, new) in pages()) {
            let mut expected = None;
            for comparer in comparers() {
                let (mut sent, mut out) = (old.clone(), Vec::new());
                let difference = comparer.encode(&new, &mut sent, &mut out);
                prop_assert_eq!(&sent, &new);
                let mut image = old.clone();
                match difference {
                    Difference::Unchanged => {}
                    Difference::Zero => image.fill(0),
                    Difference::Delta => Delta::parse(&out).unwrap().apply(&mut image),
                    Difference::Raw => *image = *new,
                }
                prop_assert_eq!(&image, &new);
                prop_assert_eq!(difference == Difference::Unchanged, old == new);
                let answer = (difference, out);
                prop_assert_eq!(expected.get_or_insert_with(|| answer.clone()), &answer);
            }
        }

        #[test]
        fn hostile_bytes_are_refused_or_stay_within_the_page(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(delta) = Delta::parse(&bytes) {
                delta.apply(&mut [0; PAGE_SIZE]);
            }
        }

        #[test]
        fn sparse_hostile_bitmaps_too(lines in 0u64..16, rest in proptest::collection::vec(0u8..4, 0..80)) {
            let bytes = [&lines.to_le_bytes()[..], &rest].concat();
            if let Ok(delta) = Delta::parse(&bytes) {
                delta.apply(&mut [0; PAGE_SIZE]);
            }
        }
    }

    #[test]
    fn one_changed_word_costs_seventeen_bytes() {
        for comparer in comparers() {
            let (mut new, mut sent, mut out) = ([0; PAGE_SIZE], [0; PAGE_SIZE], Vec::new());
            new[64 * 3 + 8 * 7] = 9;
            assert_eq!(comparer.encode(&new, &mut sent, &mut out), Difference::Delta);
            assert_eq!(out, [8, 0, 0, 0, 0, 0, 0, 0, 0x80, 9, 0, 0, 0, 0, 0, 0, 0]);
        }
    }

    #[test]
    fn a_page_that_becomes_zero_is_zero_and_not_a_delta() {
        for comparer in comparers() {
            let (mut sent, mut out) = ([0; PAGE_SIZE], Vec::new());
            sent[1] = 1;
            assert_eq!(comparer.encode(&[0; PAGE_SIZE], &mut sent, &mut out), Difference::Zero);
            assert!(out.is_empty() && is_zero(&sent));
        }
    }
}
