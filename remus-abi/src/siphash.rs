//! SipHash-2-4 with a 64-bit tag (Aumasson, Bernstein: "SipHash: a fast short-input PRF", 2012), word by word.
//!
//! A message is taken in as 64-bit words, and straight-line: a program in the kernel authenticates a datagram
//! of fixed length with it, and there is no loop for the verifier to follow. The key is the caller's secret.
//!
//! Deliberately absent: streaming of bytes, and other numbers of rounds.

/// The state after some whole words of the message.
#[derive(Clone, Copy)]
pub struct SipHash24([u64; 4]);

impl SipHash24 {
    /// `key` is the 128-bit key as two little-endian words.
    #[inline(always)]
    pub const fn new(key: [u64; 2]) -> Self {
        Self([
            key[0] ^ 0x736f_6d65_7073_6575,
            key[1] ^ 0x646f_7261_6e64_6f6d,
            key[0] ^ 0x6c79_6765_6e65_7261,
            key[1] ^ 0x7465_6462_7974_6573,
        ])
    }

    /// Takes in eight bytes of the message, read as a little-endian word.
    #[inline(always)]
    pub const fn word(mut self, word: u64) -> Self {
        self.0[3] ^= word;
        let mut state = self.round().round();
        state.0[0] ^= word;
        state
    }

    /// The tag of a message of `len` bytes. `rest` is what is left of it beyond the words, fewer than eight
    /// bytes, as a little-endian word with zeros above.
    #[inline(always)]
    pub const fn finish(self, len: u64, rest: u64) -> u64 {
        let mut state = self.word(len << 56 | rest);
        state.0[2] ^= 0xff;
        let [a, b, c, d] = state.round().round().round().round().0;
        a ^ b ^ c ^ d
    }

    #[inline(always)]
    const fn round(self) -> Self {
        let [mut a, mut b, mut c, mut d] = self.0;
        a = a.wrapping_add(b);
        b = b.rotate_left(13) ^ a;
        a = a.rotate_left(32);
        c = c.wrapping_add(d);
        d = d.rotate_left(16) ^ c;
        a = a.wrapping_add(d);
        d = d.rotate_left(21) ^ a;
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        c = c.rotate_left(32);
        Self([a, b, c, d])
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{hash::Hasher, vec::Vec};

    use super::*;

    /// Bytes 0, 1, 2, ..., as the paper and its reference implementation use them for key and messages.
    fn counting(len: u8) -> Vec<u8> {
        (0..len).collect()
    }

    fn key() -> [u64; 2] {
        [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]
    }

    fn tag(key: [u64; 2], message: &[u8]) -> u64 {
        let (words, rest) = message.as_chunks::<8>();
        let state = words
            .iter()
            .fold(SipHash24::new(key), |state, word| state.word(u64::from_le_bytes(*word)));
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        state.finish(message.len() as u64, u64::from_le_bytes(last))
    }

    #[test]
    fn the_papers_example_holds() {
        assert_eq!(tag(key(), &counting(15)), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn the_first_vectors_of_the_reference_implementation_hold() {
        let expected: [[u8; 8]; 9] = [
            [0x31, 0x0e, 0x0e, 0xdd, 0x47, 0xdb, 0x6f, 0x72],
            [0xfd, 0x67, 0xdc, 0x93, 0xc5, 0x39, 0xf8, 0x74],
            [0x5a, 0x4f, 0xa9, 0xd9, 0x09, 0x80, 0x6c, 0x0d],
            [0x2d, 0x7e, 0xfb, 0xd7, 0x96, 0x66, 0x67, 0x85],
            [0xb7, 0x87, 0x71, 0x27, 0xe0, 0x94, 0x27, 0xcf],
            [0x8d, 0xa6, 0x99, 0xcd, 0x64, 0x55, 0x76, 0x18],
            [0xce, 0xe3, 0xfe, 0x58, 0x6e, 0x46, 0xc9, 0xcb],
            [0x37, 0xd1, 0x01, 0x8b, 0xf5, 0x00, 0x02, 0xab],
            [0x62, 0x24, 0x93, 0x9a, 0x79, 0xf5, 0xf5, 0x93],
        ];
        for (len, expected) in (0u8..).zip(expected) {
            assert_eq!(tag(key(), &counting(len)).to_le_bytes(), expected, "{len} bytes");
        }
    }

    #[test]
    fn it_agrees_with_an_implementation_of_somebody_else() {
        let mut seed = 1u64;
        for len in 0..=255 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let key = [seed, seed.rotate_left(29)];
            #[expect(deprecated, reason = "deprecated as a hasher of maps; it is SipHash-2-4")]
            let mut other = core::hash::SipHasher::new_with_keys(key[0], key[1]);
            other.write(&counting(len));
            assert_eq!(tag(key, &counting(len)), other.finish(), "{len} bytes");
        }
    }
}
