//! Where the gate's links, maps and programs outlive their controller: a bpffs of our own.

use std::{
    ffi::CString,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// A directory on a bpffs.
pub(super) struct Pins {
    dir: PathBuf,
}

impl Pins {
    /// The directory `dir`, with a bpffs mounted on it if it is not on one yet. The mount belongs to the
    /// caller's mount namespace and lasts as long as that does.
    pub(super) fn at(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        if !is_bpffs(dir)? {
            mount_bpffs(dir).with_context(|| {
                format!("mount a bpffs on {} (needs CAP_SYS_ADMIN)", dir.display())
            })?;
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("restrict {}", dir.display()))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// The directory `dir`, if it is there and on a bpffs.
    pub(super) fn existing(dir: &Path) -> Result<Option<Self>> {
        Ok((dir.is_dir() && is_bpffs(dir)?).then(|| Self { dir: dir.to_owned() }))
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of the pin `name`.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Removes the pin `name` if it is there. What it held lives on while something else refers to it.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("remove the pin {}", self.path(name).display()))
            }
            _ => Ok(()),
        }
    }
}

impl Pins {
    /// Removes all pins, and the bpffs and the directory with them if the directory is ours alone.
    pub(super) fn clear(&self, names: &[&str]) -> Result<()> {
        for name in names {
            self.remove(name)?;
        }
        let path = c_path(&self.dir)?;
        // SAFETY: a terminated path that lives during the call.
        if unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) } != 0 {
            // A directory within somebody else's bpffs: the pins were all that was ours.
            return Ok(());
        }
        fs::remove_dir(&self.dir).with_context(|| format!("remove {}", self.dir.display()))
    }
}

/// Takes away what is left of a place for pins, whatever is pinned there: programs, maps and links go with the last of
/// their pins. Says whether there was one.
///
/// # Errors
/// When it is not on a bpffs and something is in it, or the kernel refuses.
pub fn sweep(dir: &Path) -> Result<bool> {
    if fs::symlink_metadata(dir).is_err() {
        return Ok(false);
    }
    let path = c_path(dir)?;
    while is_bpffs(dir)? {
        // SAFETY: a terminated path that lives during the call.
        let unmounted =
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) };
        if unmounted != 0 {
            let error = io::Error::last_os_error();
            return Err(error).with_context(|| {
                format!("unmount {} (is it mounted in another mount namespace?)", dir.display())
            });
        }
    }
    fs::remove_dir(dir).with_context(|| format!("remove {}", dir.display()))?;
    Ok(true)
}

pub(super) fn is_bpffs(dir: &Path) -> Result<bool> {
    let path = c_path(dir)?;
    // SAFETY: statfs is plain data; zero is a valid value.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a terminated path and a place for the answer, both alive during the call.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut about) } != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("look at {}", dir.display()));
    }
    Ok(about.f_type == libc::BPF_FS_MAGIC)
}

fn mount_bpffs(dir: &Path) -> Result<()> {
    let path = c_path(dir)?;
    // SAFETY: terminated strings that live during the call; bpffs takes no data.
    let result = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            path.as_ptr(),
            c"bpf".as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV,
            std::ptr::null(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(())
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).context("a path without NUL")
}
