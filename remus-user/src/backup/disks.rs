//! Which disks of this host a primary may give to its machine here.
//!
//! A primary names a disk by the path that it has on its own host. Whoever can speak to a backup could so have it
//! open any file of this host for a guest of theirs. Hence a directory that the operator has named, and no disks
//! without one. What the operator has put into it is theirs to answer for, links to elsewhere too.

use std::path::{Component, Path};

use anyhow::{Context, Result, ensure};

use crate::machine::DiskShape;

/// # Errors
/// When `disk`, which is a valid one, is none that a machine may have here, or this host has not the same one; names
/// it.
pub(super) fn check(disk: &DiskShape, directory: Option<&Path>) -> Result<()> {
    let DiskShape { path, readonly, .. } = disk;
    ensure!(
        readonly,
        "disk {path}: the guest may write to it, and what it writes is not replicated: set readonly = true"
    );
    let directory = directory.with_context(|| {
        format!("disk {path}: this backup gives guests no disks: name the directory that has them (--disks DIR)")
    })?;
    let path = Path::new(path);
    let is_within = path.starts_with(directory)
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    ensure!(
        is_within,
        "disk {}: it is not in {}, where this backup has its guests' disks",
        path.display(),
        directory.display()
    );
    disk.compare_with_this_host()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_taken_from_the_directory_that_the_operator_named_and_only_from_there() {
        let here = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let image = |directory: &tempfile::TempDir| {
            let path = directory.path().join("image");
            std::fs::write(&path, [7; 1024]).unwrap();
            DiskShape::of(&path, "", true).unwrap()
        };
        let (good, other) = (image(&here), image(&elsewhere));
        check(&good, Some(here.path())).unwrap();

        let says = |disk: &DiskShape, directory| check(disk, directory).unwrap_err().to_string();
        assert!(says(&good, None).contains("--disks DIR"));
        assert!(says(&other, Some(here.path())).contains("it is not in"));
        let name = elsewhere.path().file_name().unwrap().to_str().unwrap();
        let path = format!("{}/../{name}/image", here.path().display());
        let around = DiskShape { path, ..other };
        assert!(says(&around, Some(here.path())).contains("it is not in"));
        let written = DiskShape { readonly: false, ..good.clone() };
        assert!(says(&written, Some(here.path())).contains("not replicated"));
        let longer = DiskShape { bytes: 2048, ..good };
        assert!(says(&longer, Some(here.path())).contains("1024 bytes here and 2048"));
    }
}
