//! The files that the guest begins with: its kernel, its initial RAM disk, its disks.

use std::{io, path::Path};

use super::Check;
use crate::{
    config,
    machine::{DiskShape, Found, check_software, compressed_by},
};

pub(super) fn software(wanted: &config::Machine) -> Check {
    const NAME: &str = "guest";
    let kernel = wanted.kernel.display();
    match check_software(wanted.software(), wanted.memory_mib) {
        Err(e) => Check::refused(NAME, format!("{e:#}"), remedy(&e)),
        Ok(Found::Bare { knows_the_magic: false }) => Check::warning(
            NAME,
            format!(
                "{kernel} has no PVH entry point and does not look as if it was made for this machine"
            ),
            "a kernel that was not made for this machine crashes at once: name a bzImage in machine.kernel, or a vmlinux \
             with CONFIG_PVH",
        ),
        Ok(Found::BzImage | Found::Pvh | Found::Bare { knows_the_magic: true }) => {
            Check::ok(NAME, format!("{kernel}"))
        }
    }
}

/// Returns what to do about files that cannot be used, by what is wrong with them.
fn remedy(error: &anyhow::Error) -> &'static str {
    match error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::NotFound) => {
            "correct machine.kernel or machine.initrd; a relative path counts from the config's directory"
        }
        Some(io::ErrorKind::PermissionDenied) => {
            "allow this user to read the files that machine.kernel and machine.initrd name"
        }
        Some(_) | None => "change machine.kernel, machine.initrd or machine.memory_mib",
    }
}

/// Checks a disk that the guest reads.
pub(super) fn disk(path: &Path) -> Check {
    const NAME: &str = "disk";
    let remedy = "in [[disk]], path must name a raw image or a block device of whole sectors of 512 bytes that this user \
                  may read";
    match DiskShape::of(path, "", true) {
        Ok(shape) => match compressed_by(path) {
            Some(by) => Check::warning(
                NAME,
                format!("{} begins like a file compressed by {by}", shape.path),
                "the guest gets the file's bytes as they are: unpack the file first, unless the guest does that",
            ),
            None => Check::ok(NAME, format!("{}: {} bytes", shape.path, shape.bytes)),
        },
        Err(e) => Check::refused(NAME, format!("{e:#}"), remedy),
    }
}
