//! A pseudoterminal: what a person sits at.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
    ptr,
};

use anyhow::{Context, Result};

/// The near end. The far end hangs up when this is dropped.
#[derive(Debug)]
pub struct Pty {
    near: File,
    name: PathBuf,
    /// Keeps the near end from reading the end of file before a process has opened the far one.
    _far: File,
}

impl Pty {
    pub fn open() -> Result<Self> {
        let (mut near, mut far) = (-1, -1);
        // SAFETY: two places for descriptors; no name, mode or size is asked for.
        let made = unsafe {
            libc::openpty(&raw mut near, &raw mut far, ptr::null_mut(), ptr::null(), ptr::null())
        };
        if made != 0 {
            return Err(io::Error::last_os_error()).context("open a pseudoterminal");
        }
        // SAFETY: two new descriptors that nobody else has.
        let [near, far] = [near, far].map(|fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
        for fd in [&near, &far] {
            // SAFETY: a descriptor that is open, and flags.
            if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
                return Err(io::Error::last_os_error())
                    .context("keep a pseudoterminal to ourselves");
            }
        }
        // SAFETY: as above.
        if unsafe { libc::fcntl(near.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } != 0 {
            return Err(io::Error::last_os_error()).context("do not wait for a pseudoterminal");
        }
        let name = fs::read_link(format!("/proc/self/fd/{}", far.as_raw_fd()))?;
        Ok(Self { near, name, _far: far })
    }

    /// Words behind which `remus run` has the far end as its controlling terminal and its guest's console.
    pub fn console(&self) -> [&str; 4] {
        let words = r#"exec setsid --ctty "$@" --console < "$0" > "$0" 2> "$0""#;
        ["sh", "-c", words, self.name.to_str().expect("/dev/pts/N")]
    }

    /// Returns what there is to read now.
    pub fn shown(&mut self) -> String {
        let mut bytes = vec![0; 1 << 16];
        let read = self.near.read(&mut bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }

    pub fn type_in(&mut self, bytes: &[u8]) -> Result<()> {
        self.near.write_all(bytes).context("type at a pseudoterminal")
    }
}
