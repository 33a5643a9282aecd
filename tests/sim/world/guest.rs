//! A guest of two pages of two words, and how its pages travel.

pub(crate) const PAGES: usize = 2;
const WORDS: usize = 2;

/// All of its memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Ram(pub(crate) [[u8; WORDS]; PAGES]);

/// Which pages, bit by bit.
pub(crate) type Pages = u8;
pub(crate) const ALL_PAGES: Pages = (1 << PAGES) - 1;

/// A page as the encoder sends it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum PageOnWire {
    NotSent,
    Whole([u8; WORDS]),
    /// The words that differ from what was last sent.
    Delta([Option<u8>; WORDS]),
}

pub(crate) type PagesOnWire = [PageOnWire; PAGES];

/// What was last sent of each page, where anything was.
pub(crate) type Shadow = [Option<[u8; WORDS]>; PAGES];

impl Ram {
    /// Counts on: writes the number after the largest into the next word; says it, and which page it is in.
    pub(crate) fn count(&mut self) -> (u8, Pages) {
        let next = self.knows() + 1;
        let at = usize::from(next);
        self.0[at % PAGES][at / PAGES % WORDS] = next;
        (next, 1 << (at % PAGES))
    }

    pub(crate) fn knows(&self) -> u8 {
        self.0.iter().flatten().copied().max().unwrap_or(0)
    }

    pub(crate) fn encode(&self, pages: Pages, shadow: &mut Shadow) -> PagesOnWire {
        std::array::from_fn(|at| {
            if pages & 1 << at == 0 {
                return PageOnWire::NotSent;
            }
            let now = self.0[at];
            match shadow[at].replace(now) {
                None => PageOnWire::Whole(now),
                Some(sent) => PageOnWire::Delta(std::array::from_fn(|word| {
                    (now[word] != sent[word]).then_some(now[word])
                })),
            }
        })
    }

    pub(crate) fn apply(&mut self, pages: &PagesOnWire) {
        for (target, page) in self.0.iter_mut().zip(pages) {
            match page {
                PageOnWire::NotSent => {}
                PageOnWire::Whole(words) => *target = *words,
                PageOnWire::Delta(words) => {
                    for (word, new) in target.iter_mut().zip(words) {
                        *word = new.unwrap_or(*word);
                    }
                }
            }
        }
    }
}
