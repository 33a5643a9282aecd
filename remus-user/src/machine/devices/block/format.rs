//! What an image is that is not raw: a guest would read the container's bytes instead of what is in it.
//!
//! A LUKS container is no such case: it is what a guest expects to find on an encrypted disk.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

/// A format: its name, as `qemu-img convert -f` knows it, what to look for, and where.
const FORMATS: [(&str, &str, u64, &[u8]); 10] = [
    ("qcow2", "qcow2", 0, b"QFI\xfb\0\0\0\x02"),
    ("qcow2", "qcow2", 0, b"QFI\xfb\0\0\0\x03"),
    ("qcow", "qcow", 0, b"QFI\xfb"),
    ("VMDK", "vmdk", 0, b"KDMV"),
    ("VMDK", "vmdk", 0, b"COWD"),
    ("VMDK", "vmdk", 0, b"# Disk DescriptorFile"),
    ("VDI", "vdi", 64, &[0x7f, 0x10, 0xda, 0xbe]),
    ("VHDX", "vhdx", 0, b"vhdxfile"),
    ("VHD", "vpc", 0, b"conectix"),
    ("QED", "qed", 0, b"QED\0"),
];

const COMPRESSED: [(&str, &[u8]); 4] = [
    ("gzip", &[0x1f, 0x8b]),
    ("xz", b"\xfd7zXZ"),
    ("zstd", &[0x28, 0xb5, 0x2f, 0xfd]),
    ("bzip2", b"BZh"),
];

/// Returns what the image in `file` is, for people, and its name for qemu-img; `None` when the image may be raw.
pub(super) fn container(file: &File) -> io::Result<Option<(&'static str, &'static str)>> {
    for (name, for_qemu, at, magic) in FORMATS {
        if begins(file, at, magic)? {
            return Ok(Some((name, for_qemu)));
        }
    }
    Ok(None)
}

/// By what the file at `path` seems to be compressed. Only for a warning: a file that cannot be read is not.
pub fn compressed_by(path: &Path) -> Option<&'static str> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    COMPRESSED
        .into_iter()
        .find(|(_, magic)| begins(&file, 0, magic).unwrap_or(false))
        .map(|(name, _)| name)
}

fn begins(file: &File, at: u64, magic: &[u8]) -> io::Result<bool> {
    let mut found = [0; 32];
    let found = &mut found[..magic.len()];
    match file.read_exact_at(found, at) {
        Ok(()) => Ok(found == magic),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(at: u64, bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[0; 1024]).unwrap();
        file.as_file().write_all_at(bytes, at).unwrap();
        file
    }

    #[test]
    fn containers_are_known_by_their_magic_and_nothing_else_is() {
        for (name, for_qemu, at, magic) in FORMATS {
            let found = container(file(at, magic).as_file()).unwrap();
            assert_eq!(found, Some((name, for_qemu)));
        }
        for raw in [&b"LUKS\xba\xbe"[..], b"\xeb\x63\x90", b"CD001", b"KDM", b""] {
            assert_eq!(container(file(0, raw).as_file()).unwrap(), None, "{raw:?}");
        }
        assert_eq!(
            container(tempfile::tempfile().as_ref().unwrap()).unwrap(),
            None,
            "an empty one"
        );
    }

    #[test]
    fn a_compressed_image_is_noticed() {
        assert_eq!(compressed_by(file(0, b"\xfd7zXZ\0").path()), Some("xz"));
        assert_eq!(compressed_by(file(8, b"\xfd7zXZ\0").path()), None);
        assert_eq!(compressed_by(Path::new("/nonexistent")), None);
    }
}
