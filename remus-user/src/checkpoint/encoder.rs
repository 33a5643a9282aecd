//! From staging to batches: the work of the sender thread.

use super::{
    PAGE_SIZE, Page, Staging,
    batch::{BATCH_HEAD, BATCH_MAX, Encoding, RECORD, put_record},
    pack::{Compression, Packer},
    shadow::{Known, Shadow},
    walk::{Comparer, DELTA_ROOM, Difference, is_zero},
};

/// Compares staged pages with what was last sent, and encodes what differs.
///
/// Call order, per session: [`forget`](Self::forget), then for each staging [`encode`](Self::encode) and
/// [`next_batch`](Encoded::next_batch) until there is none, then [`verdicts`](Self::verdicts). What `next_batch`
/// yields must be sent in that order, or the session dropped: the encoder takes it as sent.
///
/// Buffers are reused; a batch refers to staging for its raw pages.
pub struct Encoder {
    shadow: Shadow,
    comparer: Comparer,
    /// The head and the records of the batch that is being made.
    records: Vec<u8>,
    /// The batch's deltas, as far as `deltas_len`, and room behind any batch to walk one more page.
    deltas: Box<[u8]>,
    deltas_len: usize,
    /// The positions in staging of the batch's raw pages.
    raws: Vec<usize>,
    verdicts: Vec<Verdict>,
    packer: Packer,
    totals: Totals,
}

/// How pages are made small.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EncoderSettings {
    /// The most copies of pages as they were last sent. A page without a copy is sent whole.
    pub copies: u32,
    /// Compression of whole batches, for a slow link.
    pub compression: Compression,
}

/// 256 MiB. That is more than an epoch of 25 ms can carry, since to copy as much takes a pause as long; so pages that are
/// written in every epoch always have their copy. And it is no more than a small part of what such a VM has.
pub const COPIES_DEFAULT: u32 = 1 << 16;

impl Default for EncoderSettings {
    fn default() -> Self {
        Self { copies: COPIES_DEFAULT, compression: Compression::None }
    }
}

/// What the comparer found about a page of the last staging: for the hot set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    pub page: Page,
    /// Whether the page was seen to differ from what was last sent. A page without a copy is sent, but may be quiet.
    pub changed: bool,
}

/// Pages by what became of them, and bytes, over the life of the encoder.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    pub unchanged: u64,
    pub zero: u64,
    pub delta: u64,
    pub raw: u64,
    /// Bytes of batch bodies.
    pub bytes: u64,
}

/// A staging being encoded.
pub struct Encoded<'a> {
    encoder: &'a mut Encoder,
    staging: &'a Staging,
    at: usize,
}

/// One batch, ready to be written: a frame body in parts.
pub struct OutBatch<'a> {
    records: &'a [u8],
    deltas: &'a [u8],
    raws: &'a [usize],
    staging: &'a Staging,
    /// The whole batch in fewer bytes, where that is wanted and possible.
    packed: Option<&'a [u8]>,
}

impl Encoder {
    pub fn new(ram_pages: u32, settings: EncoderSettings) -> Self {
        Self {
            shadow: Shadow::new(ram_pages, settings.copies),
            comparer: Comparer::detect(),
            records: Vec::new(),
            deltas: vec![0; BATCH_MAX + DELTA_ROOM].into_boxed_slice(),
            deltas_len: 0,
            raws: Vec::new(),
            verdicts: Vec::new(),
            packer: Packer::new(settings.compression),
            totals: Totals::default(),
        }
    }

    /// Forgets what was sent: the backup of a new session has nothing, and that of a guest that was reset has something
    /// else.
    pub fn forget(&mut self) {
        self.shadow.clear();
    }

    pub fn encode<'a>(&'a mut self, staging: &'a Staging) -> Encoded<'a> {
        self.verdicts.clear();
        self.shadow.begin_run();
        Encoded { encoder: self, staging, at: 0 }
    }

    /// Returns one verdict per page of the last staging, once all its batches were taken.
    pub fn verdicts(&self) -> &[Verdict] {
        &self.verdicts
    }

    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Compares a page with what the backup has of it. Returns whether the page is known to have changed, and how to send it.
    fn compare(&mut self, page: Page, bytes: &[u8; PAGE_SIZE]) -> (bool, Difference) {
        let room = self.deltas[self.deltas_len..].first_chunk_mut().expect("room behind any batch");
        match self.shadow.known(page) {
            Known::Copy(copy) => {
                let difference = self.comparer.walk(bytes, copy, room);
                (difference != Difference::Unchanged, difference)
            }
            Known::Zero if is_zero(bytes) => (false, Difference::Unchanged),
            Known::Unknown if is_zero(bytes) => (false, Difference::Zero),
            Known::Zero => {
                let difference = self.shadow.keep(page).map(|copy| {
                    copy.fill(0);
                    self.comparer.walk(bytes, copy, room)
                });
                (true, difference.unwrap_or(Difference::Raw))
            }
            Known::Unknown => {
                if let Some(copy) = self.shadow.keep(page) {
                    *copy = *bytes;
                }
                (false, Difference::Raw)
            }
        }
    }

    /// Adds a page to the batch that is being made, unless the page is unchanged.
    fn add(&mut self, at: usize, page: Page, bytes: &[u8; PAGE_SIZE]) {
        let (changed, difference) = self.compare(page, bytes);
        self.verdicts.push(Verdict { page, changed });
        match difference {
            Difference::Unchanged => self.totals.unchanged += 1,
            Difference::Zero => {
                self.totals.zero += 1;
                self.shadow.keep_zero(page);
                put_record(&mut self.records, page, Encoding::Zero, 0);
            }
            Difference::Delta { len } => {
                self.totals.delta += 1;
                self.deltas_len += len;
                let len = u16::try_from(len).expect("shorter than a page");
                put_record(&mut self.records, page, Encoding::Delta, len);
            }
            Difference::Raw => {
                self.totals.raw += 1;
                put_record(&mut self.records, page, Encoding::Raw, 0);
                self.raws.push(at);
            }
        }
    }

    fn batch_len(&self) -> usize {
        self.records.len() + self.deltas_len + self.raws.len() * PAGE_SIZE
    }
}

impl Encoded<'_> {
    /// Returns the next batch of at most [`BATCH_MAX`] bytes; `None` when every page is dealt with.
    pub fn next_batch(&mut self) -> Option<OutBatch<'_>> {
        let encoder = &mut *self.encoder;
        encoder.records.clear();
        encoder.deltas_len = 0;
        encoder.raws.clear();
        encoder.records.extend_from_slice(&[0; BATCH_HEAD]);
        for (page, bytes) in self.staging.iter().skip(self.at) {
            if encoder.batch_len() + RECORD + PAGE_SIZE > BATCH_MAX {
                break;
            }
            encoder.add(self.at, page, bytes);
            self.at += 1;
        }
        let count = (encoder.records.len() - BATCH_HEAD) / RECORD;
        if count == 0 {
            return None;
        }
        let to_bytes = |n: usize| u32::try_from(n).expect("below BATCH_MAX").to_le_bytes();
        encoder.records[..4].copy_from_slice(&to_bytes(count));
        encoder.records[4..8].copy_from_slice(&to_bytes(encoder.deltas_len));
        let Encoder { records, deltas, deltas_len, raws, packer, totals, .. } = encoder;
        let (deltas, staging) = (&deltas[..*deltas_len], self.staging);
        let mut batch = OutBatch { records, deltas, raws, staging, packed: None };
        batch.packed = packer.pack(batch.parts());
        totals.bytes += batch.parts().map(|part| part.len() as u64).sum::<u64>();
        Some(batch)
    }
}

impl OutBatch<'_> {
    /// Records, deltas, and as many whole pages as a body takes.
    pub const PARTS_MAX: usize = 2 + BATCH_MAX / PAGE_SIZE;

    pub fn pages(&self) -> u32 {
        u32::try_from((self.records.len() - BATCH_HEAD) / RECORD).expect("below BATCH_MAX")
    }

    /// Returns the body, part by part; at most [`PARTS_MAX`](Self::PARTS_MAX) of them. None is empty.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> + Clone {
        let raws = self.raws.iter().map(|at| &self.staging.copy(*at)[..]);
        let parts = [self.records, self.deltas].into_iter().filter(|part| !part.is_empty());
        let plain = if self.packed.is_some() { 0 } else { usize::MAX };
        self.packed.into_iter().chain(parts.chain(raws).take(plain))
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::{Batch, Content};
    use super::*;
    use proptest::prelude::*;

    fn staged(pages: &[(u32, u8)]) -> Staging {
        let mut staging = Staging::new(pages.len().max(1));
        for (page, fill) in pages {
            staging.push(Page(*page)).unwrap().fill(*fill);
        }
        staging
    }

    /// Encodes, applies to `image`, and says how each page came.
    fn carry(
        encoder: &mut Encoder,
        staging: &Staging,
        image: &mut [[u8; PAGE_SIZE]],
    ) -> Vec<(u32, &'static str)> {
        let mut seen = Vec::new();
        let mut run = encoder.encode(staging);
        while let Some(out) = run.next_batch() {
            let body = out.parts().flatten().copied().collect::<Vec<_>>();
            assert!(body.len() <= BATCH_MAX);
            let batch = Batch::parse(&body, u32::try_from(image.len()).unwrap()).unwrap();
            assert_eq!(batch.pages(), out.pages());
            for (page, content) in batch.iter() {
                let target = &mut image[page.0 as usize];
                seen.push(match content {
                    Content::Zero => {
                        target.fill(0);
                        (page.0, "zero")
                    }
                    Content::Delta(delta) => {
                        delta.apply(target);
                        (page.0, "delta")
                    }
                    Content::Raw(raw) => {
                        *target = *raw;
                        (page.0, "raw")
                    }
                });
            }
        }
        seen
    }

    #[test]
    fn unchanged_pages_are_judged_but_not_sent() {
        let (mut encoder, mut image) =
            (Encoder::new(4, EncoderSettings::default()), vec![[9; PAGE_SIZE]; 4]);
        assert_eq!(
            carry(&mut encoder, &staged(&[(2, 1), (0, 0)]), &mut image),
            [(2, "raw"), (0, "zero")]
        );
        let mut next = staged(&[(0, 0), (2, 1), (3, 0)]);
        assert_eq!(carry(&mut encoder, &next, &mut image), [(3, "zero")]);
        let changed: Vec<_> = encoder.verdicts().iter().map(|v| (v.page.0, v.changed)).collect();
        assert_eq!(changed, [(0, false), (2, false), (3, false)], "nothing is known of 3");
        next.clear();
        next.push(Page(2))
            .unwrap()
            .copy_from_slice(&std::array::from_fn::<_, PAGE_SIZE, _>(|n| u8::from(n != 9)));
        assert_eq!(carry(&mut encoder, &next, &mut image), [(2, "delta")]);
        assert_eq!((image[2][9], image[2][8]), (0, 1));
        assert_eq!(encoder.verdicts(), [Verdict { page: Page(2), changed: true }]);
    }

    #[test]
    fn a_new_session_sends_whole_pages_again() {
        let (mut encoder, mut image) =
            (Encoder::new(2, EncoderSettings::default()), vec![[9; PAGE_SIZE]; 2]);
        carry(&mut encoder, &staged(&[(0, 1), (1, 0)]), &mut image);
        encoder.forget();
        assert_eq!(
            carry(&mut encoder, &staged(&[(0, 1), (1, 0)]), &mut image),
            [(0, "raw"), (1, "zero")]
        );
    }

    #[test]
    fn a_large_staging_is_cut_into_bodies_that_fit() {
        let pages: Vec<_> = (0..600).map(|n| (n, 1)).collect();
        let (mut encoder, mut image) =
            (Encoder::new(600, EncoderSettings::default()), vec![[0; PAGE_SIZE]; 600]);
        assert_eq!(carry(&mut encoder, &staged(&pages), &mut image).len(), 600);
        assert!(image.iter().all(|page| page[0] == 1));
    }

    #[test]
    fn a_page_whose_copy_is_gone_is_sent_whole_even_if_it_has_not_changed() {
        let settings = EncoderSettings { copies: 1, ..EncoderSettings::default() };
        let (mut encoder, mut image) = (Encoder::new(4, settings), vec![[9; PAGE_SIZE]; 4]);
        assert_eq!(carry(&mut encoder, &staged(&[(0, 1)]), &mut image), [(0, "raw")]);
        assert_eq!(carry(&mut encoder, &staged(&[(1, 1), (0, 1)]), &mut image), [(1, "raw")]);
        for _ in 0..4 {
            carry(&mut encoder, &staged(&[(1, 1)]), &mut image);
        }
        assert_eq!(carry(&mut encoder, &staged(&[(0, 1)]), &mut image), [(0, "raw")]);
        assert_eq!(encoder.verdicts(), [Verdict { page: Page(0), changed: false }]);
    }

    #[test]
    fn sparse_writes_cost_a_tenth_of_whole_pages_at_most() {
        let settings = EncoderSettings::default();
        let (mut encoder, mut image) = (Encoder::new(1000, settings), vec![[0; PAGE_SIZE]; 1000]);
        let pages: Vec<_> = (0..1000).map(|page| (page, 7)).collect();
        let mut staging = staged(&pages);
        carry(&mut encoder, &staging, &mut image);
        let before = encoder.totals().bytes;
        staging.clear();
        for (page, _) in pages {
            let bytes = staging.push(Page(page)).unwrap();
            bytes.fill(7);
            // 64 bytes that are not aligned to anything: nine words in two lines.
            bytes[page as usize * 3..][..64].fill(8);
        }
        assert!(carry(&mut encoder, &staging, &mut image).iter().all(|(_, how)| *how == "delta"));
        let sent = encoder.totals().bytes - before;
        assert!(sent * 10 <= 1000 * PAGE_SIZE as u64, "{sent} bytes");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_image_follows_whatever_is_staged(
            copies in 0u32..9,
            epochs in proptest::collection::vec(proptest::collection::vec((0u32..8, 0usize..PAGE_SIZE, 0u8..3), 0..12), 1..8)
        ) {
            let (mut encoder, mut image) = (Encoder::new(8, EncoderSettings { copies, ..EncoderSettings::default() }), vec![[0xee; PAGE_SIZE]; 8]);
            let mut ram = vec![[0u8; PAGE_SIZE]; 8];
            let mut touched = std::collections::BTreeSet::new();
            for writes in epochs {
                let mut staging = Staging::new(8);
                for (page, at, value) in writes {
                    ram[page as usize][at] = value;
                    touched.insert(page);
                }
                for page in &touched {
                    *staging.push(Page(*page)).unwrap() = ram[*page as usize];
                }
                carry(&mut encoder, &staging, &mut image);
                for page in &touched {
                    prop_assert_eq!(&image[*page as usize], &ram[*page as usize]);
                }
            }
        }
    }
}
