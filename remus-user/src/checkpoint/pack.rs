//! Batches made smaller for a slow link.
//!
//! ```text
//!  0        4           6          8            12
//! ┌────────┬───────────┬──────────┬────────────┬──────────────────────────┐
//! │ 0: u32 │ codec u16 │ 0: u16   │ n: u32     │ a batch of n bytes, packed│
//! └────────┴───────────┴──────────┴────────────┴──────────────────────────┘
//! ```
//!
//! A batch has at least one page, so its first word is never 0: the two are told apart by that, and a batch that packing
//! does not make shorter goes as it is. The word deltas have taken out most of what could be packed already; this is for
//! links on which 0.6 to 1.2 GB/s (lz4) or 0.35 GB/s (zstd) are no limit.

use lz4_flex::block::{CompressTable, compress_into_with_table};

use super::batch::{BATCH_MAX, BatchError};

const HEAD: usize = 12;
/// The fastest of zstd's levels that are not approximations of another.
const ZSTD_LEVEL: i32 = 1;

/// How batches are packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compression {
    #[default]
    None,
    Lz4,
    Zstd,
}

/// 0 is reserved.
const LZ4: u16 = 1;
const ZSTD: u16 = 2;

/// The sender's side.
pub(super) struct Packer {
    codec: Codec,
    plain: Vec<u8>,
    packed: Vec<u8>,
}

enum Codec {
    None,
    /// Its table is used again.
    Lz4(Box<CompressTable>),
    Zstd(Box<zstd::bulk::Compressor<'static>>),
}

impl Packer {
    pub(super) fn new(compression: Compression) -> Self {
        let codec = match compression {
            Compression::None => Codec::None,
            Compression::Lz4 => Codec::Lz4(Box::new(CompressTable::large())),
            Compression::Zstd => {
                let compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL);
                Codec::Zstd(Box::new(compressor.expect("memory, and a level that zstd has")))
            }
        };
        Self { codec, plain: Vec::new(), packed: Vec::new() }
    }

    /// Returns the body made of `parts`, packed, if that makes it shorter.
    pub(super) fn pack<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>) -> Option<&[u8]> {
        let Self { codec, plain, packed } = self;
        if matches!(codec, Codec::None) {
            return None;
        }
        plain.clear();
        parts.for_each(|part| plain.extend_from_slice(part));
        // Room for what does not shrink, too: without it lz4 does not begin. It is more than zstd's bound.
        packed.resize(HEAD + lz4_flex::block::get_maximum_output_size(plain.len()), 0);
        let (head, room) = packed.split_at_mut(HEAD);
        let (number, length) = match codec {
            Codec::None => return None,
            Codec::Lz4(table) => (LZ4, compress_into_with_table(plain, room, table).ok()?),
            Codec::Zstd(compressor) => (ZSTD, compressor.compress_to_buffer(plain, room).ok()?),
        };
        head[..4].fill(0);
        head[4..6].copy_from_slice(&number.to_le_bytes());
        head[6..8].fill(0);
        head[8..].copy_from_slice(&u32::try_from(plain.len()).ok()?.to_le_bytes());
        (HEAD + length < plain.len()).then(|| &packed[..HEAD + length])
    }
}

/// The backup's side.
#[derive(Default)]
pub(super) struct Unpacker {
    plain: Vec<u8>,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Unpacker {
    /// Returns the batch in `body`, which is `body` itself unless it is packed.
    pub(super) fn unpack<'b>(&'b mut self, body: &'b [u8]) -> Result<&'b [u8], BatchError> {
        let Some((head, packed)) = body.split_first_chunk::<HEAD>() else { return Ok(body) };
        let [0, 0, 0, 0, codec @ .., a, b, c, d] = head else { return Ok(body) };
        let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        if length > BATCH_MAX {
            return Err(BatchError::Packed);
        }
        self.plain.resize(length, 0);
        let unpacked = match *codec {
            [1, 0, 0, 0] => lz4_flex::block::decompress_into(packed, &mut self.plain).ok(),
            [2, 0, 0, 0] => {
                if self.zstd.is_none() {
                    self.zstd = zstd::bulk::Decompressor::new().ok();
                }
                let decompressor = self.zstd.as_mut().ok_or(BatchError::Packed)?;
                decompressor.decompress_to_buffer(packed, &mut self.plain[..]).ok()
            }
            _ => None,
        };
        if unpacked == Some(length) { Ok(&self.plain) } else { Err(BatchError::Packed) }
    }
}

const _: () = assert!(LZ4 == 1 && ZSTD == 2);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CODECS: [Compression; 2] = [Compression::Lz4, Compression::Zstd];

    proptest! {
        #[test]
        fn what_is_packed_comes_back(runs in proptest::collection::vec((any::<u8>(), 1usize..300), 1..40)) {
            let mut body = vec![1, 0, 0, 0];
            runs.iter().for_each(|(byte, n)| body.extend(std::iter::repeat_n(*byte, *n)));
            for codec in CODECS {
                let mut packer = Packer::new(codec);
                // Twice, since buffers and contexts are used again.
                for _ in 0..2 {
                    let halves = body.split_at(body.len() / 2);
                    let packed = packer.pack([halves.0, halves.1].into_iter());
                    let sent = packed.map_or(body.clone(), <[u8]>::to_vec);
                    prop_assert!(sent.len() <= body.len());
                    let mut unpacker = Unpacker::default();
                    prop_assert_eq!(unpacker.unpack(&sent), Ok(&body[..]));
                }
            }
        }

        #[test]
        fn no_bytes_panic(codec in 0u16..4, length in any::<u32>(), bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut body = vec![0; 4];
            body.extend(codec.to_le_bytes());
            body.extend([0, 0]);
            body.extend(length.to_le_bytes());
            body.extend(bytes);
            let mut unpacker = Unpacker::default();
            if let Ok(plain) = unpacker.unpack(&body) {
                prop_assert!(plain.len() <= BATCH_MAX);
            }
            prop_assert!(unpacker.plain.len() <= BATCH_MAX);
        }
    }

    #[test]
    fn what_does_not_shrink_goes_as_it_is() {
        let mut noise = vec![1u8, 0, 0, 0];
        let mut state = 1u64;
        for _ in 0..1000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            noise.extend((state >> 32).to_le_bytes());
        }
        for codec in CODECS {
            assert_eq!(Packer::new(codec).pack([&noise[..4 + 4]].into_iter()), None);
        }
        assert_eq!(Packer::new(Compression::None).pack([&[7; 4096][..]].into_iter()), None);
    }

    #[test]
    fn a_length_that_lies_is_refused() {
        let body = [1u8; 4096];
        for codec in CODECS {
            let mut packer = Packer::new(codec);
            let mut packed = packer.pack([&body[..]].into_iter()).unwrap().to_vec();
            for length in [4095u32, 4097, u32::MAX] {
                packed[8..12].copy_from_slice(&length.to_le_bytes());
                assert_eq!(Unpacker::default().unpack(&packed), Err(BatchError::Packed));
            }
        }
    }
}
