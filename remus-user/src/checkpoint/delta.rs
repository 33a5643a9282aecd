//! A delta: the words of one page that changed, to be put over what the receiver has of it.
//!
//! ```text
//! u64 bitmap of the changed 64-byte lines │ a u8 per changed line: its changed words │ the new words
//! ```
//!
//! A delta holds new values, not differences, so to apply one twice does no harm. On the wrong base it would do harm, which
//! is why the receiver takes a delta only for a page that it got whole in the same session.
//!
//! [`walk`](super::walk) writes deltas. They are read here, whoever may have written them.

use super::PAGE_SIZE;

pub(super) const LINE: usize = 64;
pub(super) const LINES: usize = PAGE_SIZE / LINE;
pub(super) const WORD: usize = 8;
/// Bytes of the shortest delta: the bitmap, one line's mask, one word.
const DELTA_MIN: usize = 8 + 1 + WORD;

pub(super) type PageBytes = [u8; PAGE_SIZE];

/// The set bits, lowest first.
pub(super) struct Bits(pub(super) u64);

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

/// The bytes are not a delta: a length does not fit, or a line is said to have changed and none of its words is named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeltaError;

impl<'a> Delta<'a> {
    /// # Errors
    /// [`DeltaError`] unless `bytes` are exactly one delta as [`Comparer::walk`](super::Comparer::walk) writes it.
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

    /// Returns the runs of changed bytes: where each begins in the page, and its bytes. They ascend, and each lies
    /// within one line.
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

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
}
