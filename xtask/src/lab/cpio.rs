//! The archive that Linux unpacks as its first root ("newc": Documentation/driver-api/early-userspace/
//! buffer-format.rst). An entry is 13 numbers in hexadecimal, the path, and the content, each padded to 4 bytes:
//!
//! ```text
//! 070701 ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
//! ```
//!
//! Everything belongs to root and is as old as the epoch, so that equal content makes equal bytes. Folders are
//! written before what is in them, as the kernel wants; a path is written once, first come.

use std::collections::BTreeSet;

use anyhow::{Context, Result};

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
/// The path that ends an archive.
const TRAILER: &str = "TRAILER!!!";

#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    written: BTreeSet<String>,
}

impl Archive {
    pub(crate) fn folder(&mut self, path: &str) -> Result<()> {
        self.entry(path, FOLDER | 0o755, b"")
    }

    pub(crate) fn file(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.entry(path, FILE | 0o644, content)
    }

    pub(crate) fn program(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.entry(path, FILE | 0o755, content)
    }

    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        self.append(TRAILER, 0, b"")?;
        Ok(self.bytes)
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let path = path.trim_matches('/');
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder)?;
        }
        if self.written.insert(path.to_owned()) {
            self.append(path, mode, content)?;
        }
        Ok(())
    }

    fn append(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        // A number of its own for each entry: equal ones with a link count above 1 would be hard links.
        let ino = u32::try_from(self.written.len())?;
        let size = u32::try_from(content.len())
            .with_context(|| format!("{path} is too large for an initramfs"))?;
        let name_size = u32::try_from(path.len() + 1)?;
        self.bytes.extend(b"070701");
        for field in [ino, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_what_the_kernel_reads() {
        let mut archive = Archive::default();
        archive.program("init", b"#!/x").unwrap();
        let bytes = archive.finish().unwrap();
        let first = "07070100000001000081ed000000000000000000000001000000000000000400000000\
                     0000000000000000000000000000000500000000init\0\0#!/x";
        // 110 bytes of numbers, 5 of path, 1 of padding, 4 of content.
        let (entry, trailer) = bytes.split_at(120);
        assert_eq!(std::str::from_utf8(&entry[..110]).unwrap(), &first[..110]);
        assert_eq!(&entry[110..], b"init\0\0#!/x");
        assert_eq!(trailer.len(), 124, "a header, a name of 11 bytes, padding");
        assert!(trailer.windows(10).any(|name| name == TRAILER.as_bytes()));
    }

    #[test]
    fn folders_come_before_what_is_in_them_and_nothing_comes_twice() {
        let mut archive = Archive::default();
        archive.file("/a/b/one", b"1").unwrap();
        archive.file("/a/b/two", b"22").unwrap();
        archive.file("/a/b/one", b"other").unwrap();
        archive.file("/a/three", b"").unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let names: Vec<&str> = text
            .split("070701")
            .skip(1)
            .map(|entry| entry[104..].split('\0').next().unwrap())
            .collect();
        assert_eq!(names, ["a", "a/b", "a/b/one", "a/b/two", "a/three", TRAILER]);
        assert!(!text.contains("other"));
        assert_eq!(bytes.len() % 4, 0);
    }
}
