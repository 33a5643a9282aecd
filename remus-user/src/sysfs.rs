//! A sysfs for the calling thread's network namespace, attached nowhere.
//!
//! A mounted sysfs shows the network namespace of whoever mounted it, which need not be ours; and
//! `ip netns exec` mounts another one over /sys. So one of our own is opened, which is gone with its descriptor
//! and with the files that were opened through it.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use libc::c_int;

pub(crate) struct Sysfs(OwnedFd);

impl Sysfs {
    /// # Errors
    /// When the kernel refuses, as it does without CAP_SYS_ADMIN over the network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        // SAFETY: fsopen(2) with a static name; the result is checked.
        let context =
            unsafe { libc::syscall(libc::SYS_fsopen, c"sysfs".as_ptr(), libc::FSOPEN_CLOEXEC) };
        let context = owned_long(context)?;
        // SAFETY: fsconfig(2) on the context just made; FSCONFIG_CMD_CREATE takes no key and no value.
        let made = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                libc::FSCONFIG_CMD_CREATE,
                std::ptr::null::<u8>(),
                std::ptr::null::<u8>(),
                0,
            )
        };
        if made != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fsmount(2) on the configured context; the result is checked.
        let mount = unsafe {
            libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), libc::FSMOUNT_CLOEXEC, 0)
        };
        Ok(Self(owned_long(mount)?))
    }

    /// Opens the file `path`, which is relative to /sys, for reading.
    ///
    /// # Errors
    /// Those of `openat`: `NotFound` where the kernel has no such property.
    pub(crate) fn file(&self, path: &str) -> io::Result<File> {
        let path = CString::new(path)?;
        // SAFETY: openat(2) with a live directory and a terminated path; the result is checked.
        let fd = unsafe {
            libc::openat(self.0.as_raw_fd(), path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC)
        };
        owned(fd).map(File::from)
    }
}

fn owned_long(fd: libc::c_long) -> io::Result<OwnedFd> {
    owned(c_int::try_from(fd).map_err(io::Error::other)?)
}

/// The descriptor that a call just returned, or the error that it left.
pub(crate) fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the caller passes what the kernel just returned; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
