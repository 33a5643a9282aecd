//! The ELF file inside a bzImage: what an entry by PVH wants, and what no Debian package has by itself.
//!
//! Documentation/arch/x86/boot.rst, `payload_offset` and `payload_length`. The payload is LZ4's legacy frames (lz4's
//! doc/lz4_Frame_format.md), and behind them the unpacked size, which the kernel's build appends to every format:
//!
//! ```text
//! 02 21 4c 18 | length, block | length, block | ... | unpacked size        numbers of 32 bits, little-endian
//! ```
//!
//! Behind the ELF file in what comes out are the kernel's relocations, which nobody who loads it reads.
//!
//! Absent: the other formats that a kernel may be built with. Debian's cloud kernels are all LZ4.

use anyhow::{Context, Result, bail, ensure};
use lz4_flex::block::decompress_into;

const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: (usize, &[u8]) = (0x202, b"HdrS");
const VERSION: usize = 0x206;
/// The first version of the protocol that says where the payload is.
const VERSION_MIN: u16 = 0x0208;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;
/// What a file says that has no sectors for set-up.
const SETUP_SECTORS_OF_OLD: u8 = 4;

const LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const ELF: &[u8] = b"\x7fELF";
/// More than any kernel has; a damaged file does not cost more memory than this.
const UNPACKED_MAX: usize = 1 << 30;
/// How the other formats begin.
const OTHERS: [(&[u8], &str); 6] = [
    (&[0x1f, 0x8b], "gzip"),
    (b"\xfd7zXZ", "xz"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    (b"BZh", "bzip2"),
    (&[0x5d, 0, 0], "lzma"),
    (b"\x89LZO", "lzo"),
];

/// Unpacks the kernel in `image`.
pub(crate) fn of(image: &[u8]) -> Result<Vec<u8>> {
    let payload = payload(image).context("it is no bzImage with a payload")?;
    let vmlinux = unpack(payload)?;
    ensure!(vmlinux.starts_with(ELF), "what is packed in it is no ELF file");
    Ok(vmlinux)
}

/// Returns the payload, as it is packed.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let (at, magic) = MAGIC;
    let is_one = image.get(at..)?.starts_with(magic)
        && u16::from_le_bytes(*image.get(VERSION..)?.first_chunk()?) >= VERSION_MIN;
    let sectors = match image[SETUP_SECTORS] {
        0 => SETUP_SECTORS_OF_OLD,
        sectors => sectors,
    };
    let kernel = image.get((usize::from(sectors) + 1) * SECTOR..)?;
    let (offset, length) = (number(image, PAYLOAD_OFFSET)?, number(image, PAYLOAD_LENGTH)?);
    kernel.get(offset..)?.get(..length).filter(|_| is_one)
}

fn unpack(payload: &[u8]) -> Result<Vec<u8>> {
    let Some(blocks) = payload.strip_prefix(&LEGACY) else {
        let other = OTHERS.iter().find(|(magic, _)| payload.starts_with(magic));
        let is = other.map_or("in a format that is not known here", |(_, format)| format);
        bail!("its payload is packed otherwise than by LZ4 ({is})");
    };
    let (mut blocks, size) = blocks.split_last_chunk().context("its payload is cut off")?;
    let size = usize::try_from(u32::from_le_bytes(*size))?;
    ensure!(size <= UNPACKED_MAX, "its payload unpacks to {size} bytes");
    let mut unpacked = vec![0; size];
    let mut done = 0;
    while let Some(length) = number(blocks, 0) {
        let block = blocks[4..].get(..length).context("a block of its payload is cut off")?;
        done += decompress_into(block, &mut unpacked[done..])
            .with_context(|| format!("unpack it behind {done} bytes"))?;
        blocks = &blocks[4 + length..];
    }
    ensure!(done == size, "its payload unpacked to {done} bytes, not {size}");
    Ok(unpacked)
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a payload of so many blocks.
    fn packed(content: &[u8], block: usize) -> Vec<u8> {
        let mut payload = LEGACY.to_vec();
        for block in content.chunks(block) {
            let block = lz4_flex::block::compress(block);
            payload.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
            payload.extend(block);
        }
        payload.extend(u32::try_from(content.len()).unwrap().to_le_bytes());
        payload
    }

    /// Returns an image whose kernel has its payload 64 bytes behind its start.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * SECTOR + 64];
        image[SETUP_SECTORS] = 2;
        image[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
        image[PAYLOAD_OFFSET] = 64;
        let length = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend(payload);
        image.extend([0xcc; 100]);
        image
    }

    fn kernel() -> Vec<u8> {
        let numbers = (0..5000u32).flat_map(|n| (n / 7).to_le_bytes());
        ELF.iter().copied().chain(numbers).collect()
    }

    #[test]
    fn what_was_packed_in_several_blocks_comes_out_whole() {
        assert_eq!(of(&image(&packed(&kernel(), 3000))).unwrap(), kernel());
    }

    #[test]
    fn an_old_image_has_four_sectors_of_set_up() {
        let mut old = image(&packed(&kernel(), 30_000));
        old.splice(3 * SECTOR..3 * SECTOR, [0; 2 * SECTOR]);
        old[SETUP_SECTORS] = 0;
        assert_eq!(of(&old).unwrap(), kernel());
    }

    #[test]
    fn damage_is_told_apart() {
        let payload = packed(&kernel(), 30_000);
        let why = |payload: &[u8]| format!("{:#}", of(&image(payload)).unwrap_err());
        assert_eq!(why(&[0x1f, 0x8b, 8, 0]), "its payload is packed otherwise than by LZ4 (gzip)");
        assert_eq!(why(b"\xfd7zXZ\0"), "its payload is packed otherwise than by LZ4 (xz)");
        assert!(why(b"what").contains("not known here"));
        assert_eq!(why(&payload[..payload.len() - 8]), "a block of its payload is cut off");
        let mut longer = payload.clone();
        let size = longer.len() - 4;
        longer[size] += 1;
        assert!(why(&longer).starts_with("its payload unpacked to 20004 bytes, not 20005"));
        longer[size] -= 2;
        assert!(why(&longer).starts_with("unpack it behind 0 bytes"));
        assert_eq!(why(&packed(b"MZ", 10)), "what is packed in it is no ELF file");
        assert!(of(&image(&payload)[..2000]).is_err());
        assert_eq!(format!("{}", of(b"\x7fELF").unwrap_err()), "it is no bzImage with a payload");
    }
}
