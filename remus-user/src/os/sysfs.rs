//! A sysfs for the calling thread's network namespace, and a view of its cgroups, attached nowhere.
//!
//! A mounted sysfs shows the network namespace of whoever mounted it, which need not be ours; and `ip netns exec` mounts
//! another one over /sys, which hides the cgroups too. So one of our own is opened, which is gone with its descriptor and
//! with the files that were opened through it.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io::{self, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use libc::c_int;

pub(crate) struct Sysfs(OwnedFd);

impl Sysfs {
    /// # Errors
    /// When the kernel refuses, as it does without CAP_SYS_ADMIN over the network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        mount(c"sysfs", &[]).map(Self)
    }

    /// Opens the file `path`, which is relative to /sys, for reading.
    ///
    /// # Errors
    /// Those of `openat`: `NotFound` where the kernel has no such property.
    pub(crate) fn file(&self, path: &str) -> io::Result<File> {
        open_below(&self.0, path, libc::O_RDONLY)
    }

    /// Writes `text` to the file `path`, which is relative to /sys.
    ///
    /// # Errors
    /// Those of `openat` and `write`.
    pub(crate) fn write(&self, path: &str, text: &str) -> io::Result<()> {
        open_below(&self.0, path, libc::O_WRONLY)?.write_all(text.as_bytes())
    }
}

/// A hierarchy of cgroups, from the root of the caller's cgroup namespace.
pub(crate) struct Cgroups(OwnedFd);

impl Cgroups {
    /// The hierarchy of version 1 that has exactly these controllers; version 2 for none.
    ///
    /// # Errors
    /// When the kernel refuses, as it does without CAP_SYS_ADMIN, or has no such hierarchy.
    pub(crate) fn open(controllers: &[&str]) -> io::Result<Self> {
        let kind = if controllers.is_empty() { c"cgroup2" } else { c"cgroup" };
        mount(kind, controllers).map(Self)
    }

    /// The text of the file `path`, which is relative to the root.
    ///
    /// # Errors
    /// Those of `openat` and `read`.
    pub(crate) fn read(&self, path: &str) -> io::Result<String> {
        open_below(&self.0, path, libc::O_RDONLY).and_then(io::read_to_string)
    }
}

/// Makes a mount of the kernel's file system `kind` with these flags, which nobody else sees.
fn mount(kind: &CStr, flags: &[&str]) -> io::Result<OwnedFd> {
    // SAFETY: fsopen(2) with a terminated name; the result is checked.
    let context = unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC) };
    let context = owned_long(context)?;
    for flag in flags {
        let flag = CString::new(*flag)?;
        // SAFETY: fsconfig(2) on the context just made; FSCONFIG_SET_FLAG takes a terminated key and no value.
        let set = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                libc::FSCONFIG_SET_FLAG,
                flag.as_ptr(),
                std::ptr::null::<u8>(),
                0,
            )
        };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
    }
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
    let mount =
        unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), libc::FSMOUNT_CLOEXEC, 0) };
    owned_long(mount)
}

fn open_below(directory: &OwnedFd, path: &str, flags: c_int) -> io::Result<File> {
    let path = CString::new(path)?;
    // SAFETY: openat(2) with a live directory and a terminated path; the result is checked.
    let fd = unsafe { libc::openat(directory.as_raw_fd(), path.as_ptr(), flags | libc::O_CLOEXEC) };
    owned(fd).map(File::from)
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
