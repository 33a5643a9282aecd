//! Pages of guest RAM, and sets of them.

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

/// A page of guest RAM by its place in RAM: 0 is the first page, and the device hole below 4 GiB counts
/// nothing. Both hosts number alike, since both build the same machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Page(pub u32);

/// A set of pages: one bit each, in words that KVM's dirty log shares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageSet {
    words: Box<[u64]>,
    pages: u32,
}

impl PageSet {
    /// The empty set over a RAM of `pages` pages.
    pub fn new(pages: u32) -> Self {
        Self { words: vec![0; pages.div_ceil(64) as usize].into_boxed_slice(), pages }
    }

    /// How many pages the RAM has.
    pub fn ram_pages(&self) -> u32 {
        self.pages
    }

    pub fn insert(&mut self, page: Page) {
        debug_assert!(page.0 < self.pages);
        self.words[page.0 as usize / 64] |= 1 << (page.0 % 64);
    }

    pub fn remove(&mut self, page: Page) {
        self.words[page.0 as usize / 64] &= !(1 << (page.0 % 64));
    }

    pub fn contains(&self, page: Page) -> bool {
        self.words[page.0 as usize / 64] & 1 << (page.0 % 64) != 0
    }

    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    pub fn insert_all(&mut self) {
        self.words.fill(u64::MAX);
        if !self.pages.is_multiple_of(64) {
            *self.words.last_mut().expect("a RAM of some pages") = (1 << (self.pages % 64)) - 1;
        }
    }

    pub fn union(&mut self, other: &Self) {
        assert_eq!(self.pages, other.pages, "sets over different RAM");
        for (a, b) in self.words.iter_mut().zip(&other.words) {
            *a |= b;
        }
    }

    pub fn len(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    /// The pages in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Page> + '_ {
        self.iter_from(Page(0))
    }

    /// The pages from `first` on, in ascending order.
    pub fn iter_from(&self, first: Page) -> impl Iterator<Item = Page> + '_ {
        let start = first.0 / 64;
        let words = self.words.get(start as usize..).unwrap_or_default();
        words.iter().zip(start..).flat_map(move |(&word, at)| {
            let mut rest = if at == start { word & u64::MAX << (first.0 % 64) } else { word };
            std::iter::from_fn(move || {
                if rest == 0 {
                    return None;
                }
                let bit = rest.trailing_zeros();
                rest &= rest - 1;
                Some(Page(at * 64 + bit))
            })
        })
    }

    /// The bits themselves, page 0 in bit 0 of word 0, for the dirty log's ioctls.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    pub fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }
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
}
