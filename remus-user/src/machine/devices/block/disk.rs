//! What a disk is made of: a file of the host's, and what both hosts say of it.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::{SECTOR, format};

/// Bytes of a disk's name that its guest sees.
pub const DISK_ID_MAX: usize = 20;
/// Bytes of a disk's path: four of them fit what a primary may say of its machine.
pub const DISK_PATH_MAX: usize = 255;
/// How many blocks of a disk are looked at, and how long each is.
const SAMPLES: u64 = 64;
const SAMPLE: usize = 4096;

/// A disk as both hosts must have it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskShape {
    /// An absolute path, the same on both hosts.
    pub path: String,
    /// What the guest reads as the disk's serial number: printable ASCII, [`DISK_ID_MAX`] bytes.
    pub id: String,
    pub readonly: bool,
    /// A multiple of 512.
    pub bytes: u64,
    /// A digest of [`SAMPLES`] blocks spread over a disk that nobody writes; 0 for one that is written. It finds
    /// another image of the same size, not one byte that differs: a whole digest would take as long as to read the
    /// disk.
    pub sample: u64,
}

impl DiskShape {
    /// Looks at the disk at `path`.
    ///
    /// # Errors
    /// When there is none, or it cannot be one; names it.
    pub fn of(path: &Path, id: &str, readonly: bool) -> Result<Self> {
        let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
        let (file, bytes) = open(path, readonly)?;
        let sample = if readonly { sample(&file, bytes) } else { Ok(0) };
        let sample = sample.with_context(|| format!("read {}", path.display()))?;
        let shape = Self { path: text.to_owned(), id: id.to_owned(), readonly, bytes, sample };
        shape.validate()?;
        Ok(shape)
    }

    /// # Errors
    /// When this host has no such disk; names it, and what differs.
    pub fn compare_with_this_host(&self) -> Result<()> {
        Disk::open(self).map(drop)
    }

    /// # Errors
    /// When no disk can be like that; names it.
    pub fn validate(&self) -> Result<()> {
        let Self { path, id, readonly: _, bytes, sample: _ } = self;
        ensure!(
            path.starts_with('/')
                && path.len() <= DISK_PATH_MAX
                && !path.chars().any(char::is_control),
            "disk {path:?}: the path must be absolute, of at most {DISK_PATH_MAX} bytes, without control characters"
        );
        ensure!(
            id.len() <= DISK_ID_MAX && id.bytes().all(|byte| matches!(byte, b' '..=b'~')),
            "disk {path}: the id must be printable ASCII of at most {DISK_ID_MAX} bytes"
        );
        ensure!(
            *bytes > 0 && bytes.is_multiple_of(SECTOR),
            "disk {path}: {bytes} bytes are not whole sectors of {SECTOR}"
        );
        Ok(())
    }
}

/// A disk, opened.
pub(in crate::machine) struct Disk {
    pub(super) file: File,
    pub(super) shape: DiskShape,
}

impl Disk {
    /// Opens the disk that `shape` describes.
    ///
    /// # Errors
    /// When it is not there, or is not that disk; names it.
    pub(in crate::machine) fn open(shape: &DiskShape) -> Result<Self> {
        let path = Path::new(&shape.path);
        let (file, bytes) = open(path, shape.readonly)?;
        ensure!(
            bytes == shape.bytes,
            "disk {}: it has {bytes} bytes here and {} at the primary",
            shape.path,
            shape.bytes
        );
        if shape.readonly {
            let sample = sample(&file, bytes).with_context(|| format!("read {}", shape.path))?;
            ensure!(
                sample == shape.sample,
                "disk {}: its content is not that of the primary's: copy it anew",
                shape.path
            );
        }
        Ok(Self { file, shape: shape.clone() })
    }
}

/// Opens a file or block device; how many bytes it has.
fn open(path: &Path, readonly: bool) -> Result<(File, u64)> {
    let opened = || -> Result<(File, u64)> {
        // What is no disk (a FIFO, a terminal) must not be waited for.
        let mut file = OpenOptions::new()
            .read(true)
            .write(!readonly)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)?;
        let kind = file.metadata()?.file_type();
        ensure!(
            kind.is_file() || kind.is_block_device(),
            "this is neither a file nor a block device"
        );
        if let Some((name, for_qemu)) = format::container(&file)? {
            let path = path.display();
            bail!(
                "it is a {name} image, and the guest would read that instead of what is in it: convert it (qemu-img \
                 convert -f {for_qemu} -O raw {path} {path}.raw)"
            );
        }
        // Of a block device, too.
        let bytes = file.seek(SeekFrom::End(0))?;
        Ok((file, bytes))
    };
    opened().with_context(|| format!("disk {}", path.display()))
}

/// See [`DiskShape::sample`].
fn sample(file: &File, bytes: u64) -> io::Result<u64> {
    let mut digest = Xxh3::new();
    digest.update(&bytes.to_le_bytes());
    let mut block = [0; SAMPLE];
    let last = bytes.saturating_sub(SAMPLE as u64);
    for n in 0..SAMPLES {
        // From the first block to the last, both included. No overflow: by u128.
        let at = u128::from(last) * u128::from(n) / u128::from(SAMPLES - 1);
        let at = u64::try_from(at).expect("at most the last block");
        let length = usize::try_from(bytes - at).unwrap_or(SAMPLE).min(SAMPLE);
        file.read_exact_at(&mut block[..length], at)?;
        digest.update(&block[..length]);
    }
    Ok(digest.digest())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn a_disk_is_known_by_its_size_and_a_sample_of_its_content() {
        let image = file(&[7; 300 * 512]);
        let shape = DiskShape::of(image.path(), "web", true).unwrap();
        assert_eq!((shape.bytes, shape.readonly, shape.id.as_str()), (300 * 512, true, "web"));
        Disk::open(&shape).unwrap();

        let says = |shape: &DiskShape| Disk::open(shape).err().unwrap().to_string();
        let longer = DiskShape { bytes: 301 * 512, ..shape.clone() };
        assert!(says(&longer).contains("153600 bytes here and 154112 at the primary"));
        image.as_file().write_all_at(&[8], 0).unwrap();
        assert!(says(&shape).contains("its content is not that of the primary's"));
        let gone = DiskShape { path: "/nonexistent/disk".to_owned(), ..shape };
        assert!(says(&gone).contains("/nonexistent/disk"));
    }

    #[test]
    fn an_image_that_is_not_raw_is_refused_with_how_to_convert_it_at_both_hosts() {
        let mut raw = file(&[0; 1024]);
        let shape = DiskShape::of(raw.path(), "", true).unwrap();
        raw.rewind().unwrap();
        raw.write_all(b"QFI\xfb\0\0\0\x03").unwrap();
        let path = raw.path().display();
        let convert = format!("(qemu-img convert -f qcow2 -O raw {path} {path}.raw)");
        for refused in [DiskShape::of(raw.path(), "", true).err(), Disk::open(&shape).err()] {
            let said = format!("{:#}", refused.unwrap());
            assert!(said.contains("it is a qcow2 image") && said.contains(&convert), "{said}");
        }
    }

    #[test]
    fn what_cannot_be_a_disk_is_refused_by_name() {
        let says = |path: &Path| format!("{:#}", DiskShape::of(path, "", true).unwrap_err());
        assert!(says(Path::new("/dev/null")).contains("/dev/null: this is neither"));
        assert!(says(Path::new("/")).contains("neither a file nor"));
        let odd = file(&[0; 513]);
        assert!(says(odd.path()).contains("513 bytes are not whole sectors"));
        assert!(says(file(&[]).path()).contains("0 bytes are not"));
        let image = file(&[0; 512]);
        assert!(DiskShape::of(image.path(), &"x".repeat(21), true).is_err());
        assert!(DiskShape::of(image.path(), "tab\t", true).is_err());
        let good = DiskShape::of(image.path(), "", true).unwrap();
        for path in ["relative", "/a\nb", &format!("/{}", "x".repeat(255))] {
            DiskShape { path: path.to_owned(), ..good.clone() }.validate().unwrap_err();
        }
    }
}
