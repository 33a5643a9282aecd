//! What a kernel's file is, by its first bytes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result, bail};

use super::bzimage;

/// Ways in which a kernel comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum KernelKind {
    /// 64 bits, for x86-64.
    Elf,
    BzImage,
}

/// Enough of a file to know.
const HEAD: u64 = 1024;

/// Looks at `file` from its beginning, and goes back there.
pub(super) fn of(file: &mut File) -> Result<KernelKind> {
    let mut head = Vec::new();
    file.by_ref().take(HEAD).read_to_end(&mut head).context("read it")?;
    file.seek(SeekFrom::Start(0)).context("read it")?;
    match of_head(&head) {
        Ok(kind) => Ok(kind),
        Err(Other::Compressed { by, unpack }) => {
            bail!("it is compressed by {by}: unpack it ({unpack}), and name what comes out")
        }
        Err(Other::Is(what)) => bail!(
            "it is {what}: name a bzImage (/boot/vmlinuz-*), an ELF with a PVH entry point (vmlinux), or an ELF64 made \
             for this machine"
        ),
    }
}

/// What a file is that is no kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Other {
    Is(&'static str),
    /// Maybe a kernel, once it is unpacked.
    Compressed {
        by: &'static str,
        unpack: &'static str,
    },
}

/// Returns the kind of a kernel; or, for any other file, what it is.
fn of_head(head: &[u8]) -> Result<KernelKind, Other> {
    let is = |what| Err(Other::Is(what));
    let compressed = |by, unpack| Err(Other::Compressed { by, unpack });
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|h| h.starts_with(magic));
    match head {
        [] => is("empty"),
        // Class 2, little-endian; machine 62.
        [0x7f, b'E', b'L', b'F', 2, 1, ..] if at(18, &[62, 0]) => Ok(KernelKind::Elf),
        [0x7f, b'E', b'L', b'F', 2, 1, ..] => is("an ELF file, but not for x86-64"),
        [0x7f, b'E', b'L', b'F', ..] => is("an ELF file, but not of 64 bits, little-endian"),
        _ if at(bzimage::MAGIC_OFFSET, &bzimage::MAGIC) => Ok(KernelKind::BzImage),
        [0x1f, 0x8b, ..] => compressed("gzip", "zcat"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => compressed("xz", "xzcat"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => compressed("zstd", "zstdcat"),
        [b'B', b'Z', b'h', ..] => compressed("bzip2", "bzcat"),
        [0x02, 0x21, 0x4c, 0x18, ..] | [0x04, 0x22, 0x4d, 0x18, ..] => compressed("lz4", "lz4cat"),
        [b'Q', b'F', b'I', 0xfb, ..] => is("a disk image"),
        [b'M', b'Z', ..] => is("a program for EFI or Windows"),
        _ if at(510, &[0x55, 0xaa]) => is("a disk image"),
        _ => is("no kernel"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_known_by_its_file() {
        let is = |what| Err(Other::Is(what));
        let mut bzimage = vec![0; 1024];
        // It begins like a boot sector, too.
        bzimage[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(of_head(&bzimage), is("a disk image"));
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(of_head(&bzimage), Ok(KernelKind::BzImage));
        let mut elf = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0";
        assert_eq!(of_head(&elf), Ok(KernelKind::Elf));
        elf[18] = 183;
        assert_eq!(of_head(&elf), is("an ELF file, but not for x86-64"));
        elf[4] = 1;
        assert_eq!(of_head(&elf), is("an ELF file, but not of 64 bits, little-endian"));
        assert_eq!(of_head(b""), is("empty"));
        let gzip = Err(Other::Compressed { by: "gzip", unpack: "zcat" });
        assert_eq!(of_head(&[0x1f, 0x8b, 8]), gzip);
        assert_eq!(of_head(b"#!/bin/sh"), is("no kernel"));
    }
}
