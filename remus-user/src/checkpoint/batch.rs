//! The body of a `Pages` or `SyncPages` frame: some pages, each encoded.
//!
//! ```text
//!  0        4            8                     8+8c           8+8c+d
//! ┌────────┬────────────┬─────────────────────┬──────────────┬───────────────────┐
//! │ c: u32 │ d: u32     │ c records of 8 bytes│ d bytes of   │ raw pages,        │
//! │        │            │ page u32, encoding  │ deltas, one  │ 4096 bytes each   │
//! │        │            │ u16, delta len u16  │ after another│                   │
//! └────────┴────────────┴─────────────────────┴──────────────┴───────────────────┘
//! ```
//!
//! Contents come in the order of the records. Raw pages are last, so that the sender writes them from staging
//! where they are, in the same vectored write as the rest; unchanged pages are not in a batch at all.

use std::fmt;

use super::{
    PAGE_SIZE, Page,
    delta::{Delta, DeltaError},
};

/// The longest batch: what one frame of a bulk connection takes.
pub const BATCH_MAX: usize = 1 << 20;
/// Bytes before the records.
pub(super) const BATCH_HEAD: usize = 8;
/// Bytes of a record.
pub(super) const RECORD: usize = 8;

/// How a page is encoded. 0 is reserved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Encoding {
    Zero = 1,
    Delta = 2,
    Raw = 3,
}

/// What a page becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content<'a> {
    Zero,
    /// These words, and the rest as it was.
    Delta(Delta<'a>),
    Raw(&'a [u8; PAGE_SIZE]),
}

/// Why a body is not a batch of pages of this machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BatchError {
    /// The lengths within do not add up to the body's, or there is no page in it.
    Length,
    /// A page beyond the end of RAM.
    Page(Page),
    /// An encoding that does not exist, or a delta length where there is no delta.
    Record(Page),
    Delta(Page),
    /// A delta for a page that this session has not carried whole.
    NoBase(Page),
    /// Packed in no known way, or in one that does not come out as it says.
    Packed,
    /// More pages or state than the checkpoint announced, or it announced more than the machine can have.
    TooMuch,
}

/// A batch whose every record was checked.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    records: &'a [[u8; RECORD]],
    deltas: &'a [u8],
    raws: &'a [[u8; PAGE_SIZE]],
}

pub(super) fn put_record(out: &mut Vec<u8>, page: Page, encoding: Encoding, delta_len: u16) {
    out.extend_from_slice(&page.0.to_le_bytes());
    out.extend_from_slice(&(encoding as u16).to_le_bytes());
    out.extend_from_slice(&delta_len.to_le_bytes());
}

fn record(bytes: [u8; RECORD]) -> (Page, u16, usize) {
    let [a, b, c, d, e, f, g, h] = bytes;
    (
        Page(u32::from_le_bytes([a, b, c, d])),
        u16::from_le_bytes([e, f]),
        usize::from(u16::from_le_bytes([g, h])),
    )
}

impl<'a> Batch<'a> {
    /// Checks all of `body`, so that nothing in it can fail later.
    ///
    /// # Errors
    /// [`BatchError`]; nothing was taken from it.
    pub fn parse(body: &'a [u8], ram_pages: u32) -> Result<Self, BatchError> {
        let (count, rest) = body.split_first_chunk::<4>().ok_or(BatchError::Length)?;
        let (deltas_len, rest) = rest.split_first_chunk::<4>().ok_or(BatchError::Length)?;
        let to_usize = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes) as usize;
        let (count, deltas_len) = (to_usize(count), to_usize(deltas_len));
        if count == 0 {
            return Err(BatchError::Length);
        }
        let (records, rest) = count
            .checked_mul(RECORD)
            .and_then(|len| rest.split_at_checked(len))
            .ok_or(BatchError::Length)?;
        let (deltas, raws) = rest.split_at_checked(deltas_len).ok_or(BatchError::Length)?;
        let (records, _) = records.as_chunks::<RECORD>();
        let (raws, torn) = raws.as_chunks::<PAGE_SIZE>();
        if !torn.is_empty() {
            return Err(BatchError::Length);
        }
        let batch = Self { records, deltas, raws };
        batch.check(ram_pages)?;
        Ok(batch)
    }

    fn check(&self, ram_pages: u32) -> Result<(), BatchError> {
        let (mut deltas, mut raws) = (self.deltas, self.raws.len());
        for (page, encoding, len) in self.records.iter().copied().map(record) {
            if page.0 >= ram_pages {
                return Err(BatchError::Page(page));
            }
            match (Encoding::from_number(encoding), len) {
                (Some(Encoding::Zero), 0) => {}
                (Some(Encoding::Raw), 0) => raws = raws.checked_sub(1).ok_or(BatchError::Length)?,
                (Some(Encoding::Delta), len) => {
                    let (delta, rest) = deltas.split_at_checked(len).ok_or(BatchError::Length)?;
                    Delta::parse(delta).map_err(|DeltaError| BatchError::Delta(page))?;
                    deltas = rest;
                }
                (Some(Encoding::Zero | Encoding::Raw) | None, _) => {
                    return Err(BatchError::Record(page));
                }
            }
        }
        if raws == 0 && deltas.is_empty() { Ok(()) } else { Err(BatchError::Length) }
    }

    /// Returns the number of pages in the batch: at least one.
    pub fn pages(&self) -> u32 {
        u32::try_from(self.records.len()).expect("the count was a u32")
    }

    pub fn iter(&self) -> impl Iterator<Item = (Page, Content<'a>)> + use<'a> {
        let (mut deltas, mut raws) = (self.deltas, self.raws.iter());
        self.records.iter().copied().map(record).map(move |(page, encoding, len)| {
            let content = match Encoding::from_number(encoding).expect("checked by parse") {
                Encoding::Zero => Content::Zero,
                Encoding::Raw => Content::Raw(raws.next().expect("counted by parse")),
                Encoding::Delta => {
                    let (delta, rest) = deltas.split_at(len);
                    deltas = rest;
                    Content::Delta(Delta::parse(delta).expect("checked by parse"))
                }
            };
            (page, content)
        })
    }
}

impl Encoding {
    fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Zero,
            2 => Self::Delta,
            3 => Self::Raw,
            _ => return None,
        })
    }
}

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length => f.write_str("a batch of pages whose lengths do not add up"),
            Self::Page(page) => write!(f, "page {} is beyond the end of RAM", page.0),
            Self::Record(page) => write!(f, "page {} is encoded in no known way", page.0),
            Self::Delta(page) => write!(f, "the delta of page {} is malformed", page.0),
            Self::NoBase(page) => {
                write!(f, "a delta for page {}, which was never sent whole", page.0)
            }
            Self::Packed => f.write_str("a batch of pages that cannot be unpacked"),
            Self::TooMuch => {
                f.write_str("a checkpoint with more in it than it announced or may have")
            }
        }
    }
}

impl std::error::Error for BatchError {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(records: &[(u32, u16, u16)], deltas: &[u8], raws: usize) -> Vec<u8> {
        let mut out = u32::try_from(records.len()).unwrap().to_le_bytes().to_vec();
        out.extend(u32::try_from(deltas.len()).unwrap().to_le_bytes());
        for (page, encoding, len) in records {
            out.extend(page.to_le_bytes());
            out.extend(encoding.to_le_bytes());
            out.extend(len.to_le_bytes());
        }
        out.extend(deltas);
        out.extend(vec![7; raws * PAGE_SIZE]);
        out
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let error = |body: &[u8]| Batch::parse(body, 10).err();
        assert_eq!(error(&[]), Some(BatchError::Length));
        assert_eq!(error(&body(&[], &[], 0)), Some(BatchError::Length));
        assert_eq!(error(&body(&[(3, 3, 0)], &[], 0)), Some(BatchError::Length));
        assert_eq!(error(&body(&[(3, 1, 0)], &[], 1)), Some(BatchError::Length));
        assert_eq!(error(&body(&[(10, 1, 0)], &[], 0)), Some(BatchError::Page(Page(10))));
        assert_eq!(error(&body(&[(3, 0, 0)], &[], 0)), Some(BatchError::Record(Page(3))));
        assert_eq!(error(&body(&[(3, 1, 9)], &[], 0)), Some(BatchError::Record(Page(3))));
        assert_eq!(error(&body(&[(3, 2, 3)], &[0; 3], 0)), Some(BatchError::Delta(Page(3))));
        let mut huge = body(&[(3, 1, 0)], &[], 0);
        huge[..4].fill(0xff);
        assert_eq!(error(&huge), Some(BatchError::Length));
        assert!(error(&body(&[(3, 1, 0), (4, 3, 0)], &[], 1)).is_none());
    }

    proptest! {
        #[test]
        fn no_body_panics(
            records in proptest::collection::vec((0u32..12, 0u16..5, 0u16..40), 0..5),
            deltas in proptest::collection::vec(any::<u8>(), 0..60),
            raws in 0usize..3,
            cut in 0usize..64,
        ) {
            let mut body = body(&records, &deltas, raws);
            body.truncate(body.len().saturating_sub(cut));
            if let Ok(batch) = Batch::parse(&body, 10) {
                prop_assert_eq!(batch.iter().count(), batch.pages() as usize);
            }
        }
    }
}
