//! Pages of guest RAM, and sets of them.

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

/// A page of guest RAM by its place in RAM: 0 is the first page, and the device hole below 4 GiB counts
/// nothing. Both hosts number alike, since both build the same machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Page(pub u32);

/// A set of pages: one bit each, in words that KVM's dirty log shares.
///
/// An index says which words are in use, so that everything but [`overwrite`](Self::overwrite) costs what is in
/// the set, not what the RAM has: a pause walks over several sets, and the bits of 4 GiB are 128 KiB.
#[derive(Clone, Debug)]
pub struct PageSet {
    words: Box<[u64]>,
    /// A bit for each word. It is set where the word is not zero; it may be set where it is.
    index: Box<[u64]>,
    pages: u32,
}

/// Words that one word of the index stands for.
const GROUP: usize = 64;

impl PageSet {
    /// Makes the empty set over a RAM of `pages` pages.
    pub fn new(pages: u32) -> Self {
        let words = pages.div_ceil(64) as usize;
        let zeros = |n| vec![0; n].into_boxed_slice();
        Self { words: zeros(words), index: zeros(words.div_ceil(GROUP)), pages }
    }

    /// Returns the number of pages of the RAM.
    pub fn ram_pages(&self) -> u32 {
        self.pages
    }

    pub fn insert(&mut self, page: Page) {
        debug_assert!(page.0 < self.pages);
        self.add(page.0 as usize / 64, 1 << (page.0 % 64));
    }

    pub fn remove(&mut self, page: Page) {
        self.words[page.0 as usize / 64] &= !(1 << (page.0 % 64));
    }

    pub fn contains(&self, page: Page) -> bool {
        self.words[page.0 as usize / 64] & 1 << (page.0 % 64) != 0
    }

    pub fn clear(&mut self) {
        for (index, words) in self.index.iter_mut().zip(self.words.chunks_mut(GROUP)) {
            bits(std::mem::take(index)).for_each(|n| words[n as usize] = 0);
        }
    }

    pub fn insert_all(&mut self) {
        self.words.fill(u64::MAX);
        if !self.pages.is_multiple_of(64) {
            *self.words.last_mut().expect("a RAM of some pages") = (1 << (self.pages % 64)) - 1;
        }
        self.make_index();
    }

    pub fn union(&mut self, other: &Self) {
        assert_eq!(self.pages, other.pages, "sets over different RAM");
        other.words_from(0).for_each(|(n, word)| self.add(n, word));
    }

    pub fn len(&self) -> usize {
        self.words_from(0).map(|(_, word)| word.count_ones() as usize).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.words_from(0).next().is_none()
    }

    /// Returns the pages in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Page> + '_ {
        self.iter_from(Page(0))
    }

    /// Returns the pages from `first` on, in ascending order.
    pub fn iter_from(&self, first: Page) -> impl Iterator<Item = Page> + '_ {
        let start = first.0 as usize / 64;
        self.words_from(start).flat_map(move |(n, word)| {
            let word = if n == start { word & u64::MAX << (first.0 % 64) } else { word };
            let base = u32::try_from(n * 64).expect("a page has 32 bits");
            bits(word).map(move |bit| Page(base + bit))
        })
    }

    /// Returns the bits themselves for the dirty log's ioctls: page 0 is bit 0 of word 0.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Returns the words from number `start` on that have pages, with their numbers.
    pub fn words_from(&self, start: usize) -> impl Iterator<Item = (usize, u64)> + '_ {
        let first = start / GROUP;
        let index = self.index.get(first..).unwrap_or_default();
        let in_use = index.iter().zip(first..).flat_map(move |(&index, group)| {
            let index = if group == first { index & u64::MAX << (start % GROUP) } else { index };
            bits(index).map(move |bit| group * GROUP + bit as usize)
        });
        in_use.map(|n| (n, self.words[n])).filter(|(_, word)| *word != 0)
    }

    /// Adds the pages of `word`, which is word number `n`. No bit may be beyond the end of RAM.
    pub fn add(&mut self, n: usize, word: u64) {
        self.words[n] |= word;
        self.index[n / GROUP] |= 1 << (n % GROUP);
    }

    /// Lets `fill` write all words as it likes, but for bits beyond the end of RAM.
    ///
    /// # Errors
    /// Those of `fill`. The set is then what it has written until then.
    pub fn overwrite<E>(
        &mut self,
        fill: impl FnOnce(&mut [u64]) -> Result<(), E>,
    ) -> Result<(), E> {
        let filled = fill(&mut self.words);
        self.make_index();
        filled
    }

    fn make_index(&mut self) {
        for (index, words) in self.index.iter_mut().zip(self.words.chunks(GROUP)) {
            // Almost all groups are empty, and this is the quick way to see it.
            *index = match words.iter().fold(0, |all, word| all | word) {
                0 => 0,
                _ => words.iter().zip(0..).fold(0, |all, (w, n)| all | u64::from(*w != 0) << n),
            };
        }
    }
}

/// Equal when they have the same pages.
impl PartialEq for PageSet {
    fn eq(&self, other: &Self) -> bool {
        self.pages == other.pages && self.words == other.words
    }
}

impl Eq for PageSet {}

/// Returns the numbers of the bits that are set in `word`, in ascending order.
pub(crate) fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros())?;
        word &= word - 1;
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iterates_what_was_inserted_in_order() {
        let mut set = PageSet::new(200);
        for n in [199, 0, 63, 64, 130] {
            set.insert(Page(n));
        }
        set.remove(Page(130));
        assert_eq!(set.iter().map(|p| p.0).collect::<Vec<_>>(), [0, 63, 64, 199]);
        assert_eq!(set.len(), 4);
        assert_eq!(set.iter_from(Page(1)).map(|p| p.0).collect::<Vec<_>>(), [63, 64, 199]);
        assert_eq!(set.iter_from(Page(64)).map(|p| p.0).collect::<Vec<_>>(), [64, 199]);
        assert_eq!(set.iter_from(Page(200)).count(), 0);
    }

    #[test]
    fn all_is_every_page_and_no_bit_beyond() {
        let mut set = PageSet::new(70);
        set.insert_all();
        assert_eq!(set.len(), 70);
        assert_eq!(set.iter().last(), Some(Page(69)));
    }

    #[test]
    fn an_overwritten_set_is_what_was_written() {
        let mut set = PageSet::new(64 * 200);
        set.insert(Page(7));
        let filled = set.overwrite(|words| {
            words.fill(0);
            (words[3], words[199]) = (1 << 5, 3);
            Ok::<_, ()>(())
        });
        assert_eq!(filled, Ok(()));
        let pages = [3 * 64 + 5, 199 * 64, 199 * 64 + 1];
        assert_eq!(set.iter().map(|p| p.0).collect::<Vec<_>>(), pages);
        assert_eq!(set.words_from(4).collect::<Vec<_>>(), [(199, 3)]);
        let failed = set.overwrite(|words| {
            words[3] = 0;
            Err(())
        });
        assert_eq!((failed, set.len()), (Err(()), 2));
    }

    #[test]
    fn sets_are_equal_by_their_pages() {
        let (mut one, mut other) = (PageSet::new(10_000), PageSet::new(10_000));
        one.insert(Page(9_000));
        one.remove(Page(9_000));
        assert_eq!(one, other);
        assert!(one.is_empty());
        other.insert(Page(5));
        other.insert(Page(9_999));
        one.union(&other);
        assert_eq!(one, other);
        one.clear();
        assert!(one.is_empty() && one.words().iter().all(|word| *word == 0));
    }
}
