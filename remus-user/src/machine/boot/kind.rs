//! What a kernel's file is, by its first bytes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result, bail};

use super::bzimage;

/// Ways in which a kernel comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KernelKind {
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
        Err(what) => bail!(
            "it is {what}: name a bzImage (/boot/vmlinuz-*), an ELF with a PVH entry point (vmlinux), or an ELF64 made \
             for this machine"
        ),
    }
}

/// The kind, or what else it is.
fn of_head(head: &[u8]) -> Result<KernelKind, &'static str> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|h| h.starts_with(magic));
    match head {
        [] => Err("empty"),
        // Class 2, little-endian; machine 62.
        [0x7f, b'E', b'L', b'F', 2, 1, ..] if at(18, &[62, 0]) => Ok(KernelKind::Elf),
        [0x7f, b'E', b'L', b'F', 2, 1, ..] => Err("an ELF file, but not for x86-64"),
        [0x7f, b'E', b'L', b'F', ..] => Err("an ELF file, but not of 64 bits, little-endian"),
        _ if at(bzimage::MAGIC_OFFSET, &bzimage::MAGIC) => Ok(KernelKind::BzImage),
        [0x1f, 0x8b, ..] | [0xfd, b'7', b'z', ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Err("a compressed file")
        }
        [b'Q', b'F', b'I', 0xfb, ..] => Err("a disk image"),
        _ if at(510, &[0x55, 0xaa]) => Err("a disk image"),
        _ => Err("no kernel"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_known_by_its_file() {
        let mut bzimage = vec![0; 1024];
        // It begins like a boot sector, too.
        bzimage[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(of_head(&bzimage), Err("a disk image"));
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(of_head(&bzimage), Ok(KernelKind::BzImage));
        let mut elf = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0";
        assert_eq!(of_head(&elf), Ok(KernelKind::Elf));
        elf[18] = 183;
        assert_eq!(of_head(&elf), Err("an ELF file, but not for x86-64"));
        elf[4] = 1;
        assert_eq!(of_head(&elf), Err("an ELF file, but not of 64 bits, little-endian"));
        assert_eq!(of_head(b""), Err("empty"));
        assert_eq!(of_head(&[0x1f, 0x8b, 8]), Err("a compressed file"));
        assert_eq!(of_head(b"#!/bin/sh"), Err("no kernel"));
    }
}
