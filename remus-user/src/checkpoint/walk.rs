//! One page against the copy that was last sent: nothing, zero, the changed words, or all of it.
//!
//! The hot loop of the sender. Memory is walked once: every line of both is read, compared and tested for zero, and
//! nothing is written, so that the loop stays short and many lines are on their way from memory at a time. Only then
//! is it known how the page is best sent, and what is left, to gather the changed words and make the copy equal, touches
//! changed lines alone, which by now are in the nearest cache. (To write each line while it is at hand was measured: a
//! third slower for a page that is all new.) A quiet page costs no line a write-back.
//!
//! Portable, AVX2 and AVX-512, chosen at run time and equal by test. They differ in how eight words are compared and
//! how the changed ones of them are closed up, and in nothing else.

use super::{
    PAGE_SIZE,
    delta::{Bits, LINE, LINES, PageBytes, WORD},
};

/// What a walk may write to: a delta, which is shorter than a page, and a line to spare, since words are closed up
/// by writing a whole line and advancing by less.
pub const DELTA_ROOM: usize = PAGE_SIZE + LINE;

/// What a page turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Difference {
    /// As it was last sent.
    Unchanged,
    /// All zero, and was not before.
    Zero,
    /// The first `len` bytes of the room are its delta.
    Delta { len: usize },
    /// A delta would be no shorter than the page.
    Raw,
}

/// Which way of comparing runs on this CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Comparer {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

/// Proof that the CPU has AVX2 and POPCNT: only detection makes one.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Avx2(());

/// Proof that the CPU has AVX-512 F and POPCNT: only detection makes one.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Avx512(());

impl Comparer {
    /// Returns the fastest walk that this CPU has.
    pub fn detect() -> Self {
        Self::all().last().expect("the portable one")
    }

    /// Returns all walks that this CPU has, the fastest last.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let mut all = [Some(Self::Portable), None, None];
        #[cfg(target_arch = "x86_64")]
        {
            let popcnt = is_x86_feature_detected!("popcnt");
            let avx2 = popcnt && is_x86_feature_detected!("avx2");
            let avx512 = popcnt && is_x86_feature_detected!("avx512f");
            all[1] = avx2.then_some(Self::Avx2(Avx2(())));
            all[2] = avx512.then_some(Self::Avx512(Avx512(())));
        }
        all.into_iter().flatten()
    }

    /// Compares `new` with `sent` and makes `sent` equal to it; writes a delta to the front of `room` where that
    /// is the answer, and anything at all to the rest of it.
    pub fn walk(
        self,
        new: &PageBytes,
        sent: &mut PageBytes,
        room: &mut [u8; DELTA_ROOM],
    ) -> Difference {
        match self {
            Self::Portable => walk(new, sent, room, compare, gather),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Avx2` exists only where detection found both features that the callee asks for.
            Self::Avx2(Avx2(())) => unsafe { x86::walk_avx2(new, sent, room) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above, with `Avx512`.
            Self::Avx512(Avx512(())) => unsafe { x86::walk_avx512(new, sent, room) },
        }
    }
}

/// `compare` says which words of a line differ, and whether its new content has any that is not zero; `gather`
/// writes the words of a mask, closed up, to the front of a line's room.
#[inline(always)]
fn walk(
    new: &PageBytes,
    sent: &mut PageBytes,
    room: &mut [u8; DELTA_ROOM],
    compare: impl Fn(&[u8; LINE], &[u8; LINE]) -> (u8, bool),
    gather: impl Fn(&[u8; LINE], u8, &mut [u8; LINE]),
) -> Difference {
    let (new_lines, _) = new.as_chunks::<LINE>();
    let (sent_lines, _) = sent.as_chunks_mut::<LINE>();
    let mut masks = [0; LINES];
    let (mut bitmap, mut words, mut content) = (0u64, 0, false);
    for (at, mask) in masks.iter_mut().enumerate() {
        let (changed, not_zero) = compare(&new_lines[at], &sent_lines[at]);
        *mask = changed;
        bitmap |= u64::from(changed != 0) << at;
        words += changed.count_ones() as usize;
        content |= not_zero;
    }
    if bitmap == 0 {
        return Difference::Unchanged;
    }
    if !content {
        sent.fill(0);
        return Difference::Zero;
    }
    let mut end = 8 + bitmap.count_ones() as usize;
    let len = end + WORD * words;
    if len >= PAGE_SIZE {
        *sent = *new;
        return Difference::Raw;
    }
    room[..8].copy_from_slice(&bitmap.to_le_bytes());
    for (line, place) in Bits(bitmap).zip(8..) {
        let mask = masks[line];
        room[place] = mask;
        let words = room[end..].first_chunk_mut().expect("a line to spare");
        gather(&new_lines[line], mask, words);
        end += WORD * mask.count_ones() as usize;
        sent_lines[line] = new_lines[line];
    }
    Difference::Delta { len }
}

fn compare(new: &[u8; LINE], sent: &[u8; LINE]) -> (u8, bool) {
    let (new, _) = new.as_chunks::<WORD>();
    let (sent, _) = sent.as_chunks::<WORD>();
    let pairs = new.iter().zip(sent).enumerate();
    let (mask, or) = pairs.fold((0, 0), |(mask, or), (at, (a, b))| {
        let (a, b) = (u64::from_le_bytes(*a), u64::from_le_bytes(*b));
        (mask | u8::from(a != b) << at, or | a)
    });
    (mask, or != 0)
}

fn gather(new: &[u8; LINE], mask: u8, room: &mut [u8; LINE]) {
    let (words, _) = new.as_chunks::<WORD>();
    let (room, _) = room.as_chunks_mut::<WORD>();
    let mut end = 0;
    for (at, word) in words.iter().enumerate() {
        // The next that belongs overwrites one that does not.
        room[end] = *word;
        end += usize::from(mask >> at & 1);
    }
}

/// Returns whether every byte is zero. A page that is not all zeros tends to show that early.
pub(super) fn is_zero(page: &PageBytes) -> bool {
    let (lines, _) = page.as_chunks::<LINE>();
    lines.iter().all(|line| {
        let (words, _) = line.as_chunks::<WORD>();
        words.iter().fold(0, |or, word| or | u64::from_le_bytes(*word)) == 0
    })
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256i, __m512i, _mm256_castsi256_pd, _mm256_cmpeq_epi64, _mm256_loadu_si256,
        _mm256_movemask_pd, _mm256_or_si256, _mm256_permutevar8x32_epi32, _mm256_storeu_si256,
        _mm256_testz_si256, _mm512_cmpneq_epi64_mask, _mm512_loadu_si512,
        _mm512_maskz_compress_epi64, _mm512_storeu_si512, _mm512_test_epi64_mask,
    };

    use super::{DELTA_ROOM, Difference, LINE, PageBytes, WORD, walk};

    const HALF: usize = LINE / 2;

    #[target_feature(enable = "avx512f,popcnt")]
    pub(super) fn walk_avx512(
        new: &PageBytes,
        sent: &mut PageBytes,
        room: &mut [u8; DELTA_ROOM],
    ) -> Difference {
        let compare = |new: &[u8; LINE], sent: &[u8; LINE]| {
            let (new, sent) = (load_512(new), load_512(sent));
            (_mm512_cmpneq_epi64_mask(new, sent), _mm512_test_epi64_mask(new, new) != 0)
        };
        let gather = |new: &[u8; LINE], mask, room: &mut [u8; LINE]| {
            // Closed up in a register: the form that stores only what is left is microcode on some CPUs.
            let words = _mm512_maskz_compress_epi64(mask, load_512(new));
            // SAFETY: the room is 64 bytes, and the store needs no alignment.
            unsafe { _mm512_storeu_si512(room.as_mut_ptr().cast::<__m512i>(), words) };
        };
        walk(new, sent, room, compare, gather)
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn load_512(line: &[u8; LINE]) -> __m512i {
        // SAFETY: the line is 64 bytes, and the load needs no alignment.
        unsafe { _mm512_loadu_si512(line.as_ptr().cast::<__m512i>()) }
    }

    #[target_feature(enable = "avx2,popcnt")]
    pub(super) fn walk_avx2(
        new: &PageBytes,
        sent: &mut PageBytes,
        room: &mut [u8; DELTA_ROOM],
    ) -> Difference {
        let compare = |new: &[u8; LINE], sent: &[u8; LINE]| {
            let (low, high) = load_halves(new);
            let (sent_low, sent_high) = load_halves(sent);
            let equal = |a, b| {
                _mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(a, b))).to_le_bytes()[0]
            };
            let or = _mm256_or_si256(low, high);
            (!(equal(low, sent_low) | equal(high, sent_high) << 4), _mm256_testz_si256(or, or) == 0)
        };
        let gather = |new: &[u8; LINE], mask: u8, room: &mut [u8; LINE]| {
            let (low, high) = load_halves(new);
            let behind = WORD * (mask & 15).count_ones() as usize;
            store_half(room, 0, close_up(low, mask & 15));
            store_half(room, behind, close_up(high, mask >> 4));
        };
        walk(new, sent, room, compare, gather)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn load_halves(line: &[u8; LINE]) -> (__m256i, __m256i) {
        let (halves, _) = line.as_chunks::<HALF>();
        // SAFETY: a half is 32 bytes, and the load needs no alignment.
        let low = unsafe { _mm256_loadu_si256(halves[0].as_ptr().cast::<__m256i>()) };
        // SAFETY: as above; a line has two.
        let high = unsafe { _mm256_loadu_si256(halves[1].as_ptr().cast::<__m256i>()) };
        (low, high)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn store_half(room: &mut [u8; LINE], at: usize, words: __m256i) {
        let room = &mut room[at..at + HALF];
        // SAFETY: the slice is 32 bytes, and the store needs no alignment.
        unsafe { _mm256_storeu_si256(room.as_mut_ptr().cast::<__m256i>(), words) };
    }

    /// Returns the lanes in which the words that `mask` selects come first.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn close_up(words: __m256i, mask: u8) -> __m256i {
        let order = &ORDERS[usize::from(mask)];
        // SAFETY: an order is 32 bytes, and the load needs no alignment.
        let order = unsafe { _mm256_loadu_si256(order.as_ptr().cast::<__m256i>()) };
        _mm256_permutevar8x32_epi32(words, order)
    }

    /// For each mask of four words, where each half word of the result comes from.
    const ORDERS: [[u32; 8]; 16] = orders();

    const fn orders() -> [[u32; 8]; 16] {
        let mut orders = [[0; 8]; 16];
        let mut mask = 0;
        while mask < 16 {
            let (mut word, mut end) = (0, 0);
            while word < 4 {
                if mask >> word & 1 == 1 {
                    orders[mask][end] = 2 * word;
                    orders[mask][end + 1] = 2 * word + 1;
                    end += 2;
                }
                word += 1;
            }
            mask += 1;
        }
        orders
    }
}

#[cfg(test)]
mod tests {
    use super::super::Delta;
    use super::*;
    use proptest::prelude::*;

    /// Returns a page and a later state of it: some words set, few or many, anywhere or within a few lines.
    fn pages() -> impl Strategy<Value = (Box<PageBytes>, Box<PageBytes>)> {
        let word = prop_oneof![0..PAGE_SIZE / WORD, 100usize..130];
        let value = prop_oneof![Just(0), any::<u64>()];
        let writes = proptest::collection::vec((word, value), 0..900);
        (any::<bool>(), any::<bool>(), writes).prop_map(|(blank, zeroed, writes)| {
            let mut old = Box::new([0; PAGE_SIZE]);
            if !blank {
                old.iter_mut().zip((0..=250u8).cycle()).for_each(|(byte, n)| *byte = n);
            }
            let mut new = old.clone();
            if zeroed {
                new.fill(0);
            }
            for (word, value) in writes {
                new[word * WORD..][..WORD].copy_from_slice(&value.to_le_bytes());
            }
            (old, new)
        })
    }

    fn walked(comparer: Comparer, new: &PageBytes, sent: &mut PageBytes) -> (Difference, Vec<u8>) {
        let mut room = [0xee; DELTA_ROOM];
        let difference = comparer.walk(new, sent, &mut room);
        let Difference::Delta { len } = difference else { return (difference, Vec::new()) };
        (difference, room[..len].to_vec())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn every_comparer_writes_the_same_and_it_applies((old, new) in pages()) {
            let mut expected = None;
            for comparer in Comparer::all() {
                let mut sent = old.clone();
                let (difference, delta) = walked(comparer, &new, &mut sent);
                prop_assert_eq!(&sent, &new);
                let mut image = old.clone();
                match difference {
                    Difference::Unchanged => {}
                    Difference::Zero => image.fill(0),
                    Difference::Delta { .. } => Delta::parse(&delta).unwrap().apply(&mut image),
                    Difference::Raw => *image = *new,
                }
                prop_assert_eq!(&image, &new);
                prop_assert_eq!(difference == Difference::Unchanged, old == new);
                prop_assert_eq!(difference == Difference::Zero, old != new && is_zero(&new));
                let answer = (difference, delta);
                prop_assert_eq!(expected.get_or_insert_with(|| answer.clone()), &answer);
            }
        }
    }

    #[test]
    fn every_mask_of_a_line_is_closed_up_alike() {
        let old = [0xaa; PAGE_SIZE];
        for mask in 1..=u8::MAX {
            let mut new = old;
            for word in (0..8u8).filter(|word| mask >> word & 1 == 1) {
                new[64 * 63 + 8 * usize::from(word)] = word;
            }
            let expected = walked(Comparer::Portable, &new, &mut old.clone());
            for comparer in Comparer::all() {
                assert_eq!(walked(comparer, &new, &mut old.clone()), expected, "{comparer:?}");
            }
        }
    }

    #[test]
    fn one_changed_word_costs_seventeen_bytes() {
        for comparer in Comparer::all() {
            let (mut new, mut sent) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
            new[64 * 3 + 8 * 7] = 9;
            let (_, delta) = walked(comparer, &new, &mut sent);
            assert_eq!(delta, [8, 0, 0, 0, 0, 0, 0, 0, 0x80, 9, 0, 0, 0, 0, 0, 0, 0]);
        }
    }

    #[test]
    fn a_page_that_becomes_zero_is_zero_and_not_a_delta() {
        for comparer in Comparer::all() {
            let mut sent = [0; PAGE_SIZE];
            sent[1] = 1;
            assert_eq!(walked(comparer, &[0; PAGE_SIZE], &mut sent).0, Difference::Zero);
            assert!(is_zero(&sent));
        }
    }

    #[test]
    fn a_delta_is_shorter_than_the_page_or_not_one() {
        for comparer in Comparer::all() {
            for words in 490..=PAGE_SIZE / WORD {
                let (mut new, mut sent) = ([1; PAGE_SIZE], [0; PAGE_SIZE]);
                new[words * WORD..].fill(0);
                let len = 8 + words.div_ceil(8) + words * WORD;
                let expected =
                    if len < PAGE_SIZE { Difference::Delta { len } } else { Difference::Raw };
                assert_eq!(walked(comparer, &new, &mut sent).0, expected, "{words} words");
            }
        }
    }
}
