//! RUN_DIR/VM: the directory of one running instance of a VM, mode 0700, held by a lock for as long as the
//! process lives.
//!
//! The lock (flock on the file `lock`) and not the socket tells whether another instance lives: the kernel takes the lock
//! from a process that dies, in whatever way, and of two processes that start at once only one gets it.

use std::{
    fmt,
    fs::{self, DirBuilder, File, Metadata, OpenOptions},
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};

use crate::names::VmName;

const LOCK: &str = "lock";
/// The name of the status socket in the directory.
pub(super) const STATUS_SOCKET: &str = "status.sock";
/// Longer than another process takes to look who has a lock.
const LOOK_PAUSE: Duration = Duration::from_millis(3);

/// The claimed directory of this instance. Dropping this gives the directory up, and removes it if nothing else is in it.
/// A process that dies gives the directory up too, and leaves it.
#[derive(Debug)]
pub struct VmDir {
    path: PathBuf,
    /// Locked.
    _lock: File,
}

impl VmDir {
    /// Makes the directory where it is missing, and claims it.
    ///
    /// # Errors
    /// Another live process has this VM; or a directory on the way is not safe (not ours, or writable by
    /// others) or cannot be made.
    pub fn claim(run_dir: &Path, vm: &VmName) -> Result<Self> {
        // A process that gives a directory up removes it, perhaps between two of our steps: then we make it again.
        const ATTEMPTS: u32 = 10;
        let path = run_dir.join(vm.as_str());
        let file = path.join(LOCK);
        for attempt in 0..ATTEMPTS {
            make_safe(run_dir, 0o755)?;
            make_safe(&path, 0o700)?;
            let lock = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
                .open(&file);
            let mut lock = match lock {
                Ok(lock) => lock,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e).with_context(|| format!("open {}", file.display())),
            };
            match lock.try_lock() {
                Ok(()) => {}
                // Another process may only be looking ([`holder`]), which is over at once.
                Err(fs::TryLockError::WouldBlock) if attempt + 1 < ATTEMPTS => {
                    thread::sleep(LOOK_PAUSE);
                    continue;
                }
                Err(fs::TryLockError::WouldBlock) => return Err(taken(&lock, vm)),
                Err(fs::TryLockError::Error(e)) => {
                    return Err(e).with_context(|| format!("lock {}", file.display()));
                }
            }
            // A lock on a file that has been removed keeps nobody out.
            if !same_file(&lock, &file) {
                continue;
            }
            note_pid(&mut lock).with_context(|| format!("write {}", file.display()))?;
            return Ok(Self { path, _lock: lock });
        }
        bail!("{} keeps vanishing: does another program clean up there?", path.display())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for VmDir {
    fn drop(&mut self) {
        // The file is removed while it is locked, so that it cannot be another process's lock that goes.
        let removed =
            fs::remove_file(self.path.join(LOCK)).and_then(|()| fs::remove_dir(&self.path));
        match removed {
            Err(e) if e.kind() != io::ErrorKind::DirectoryNotEmpty => {
                tracing::debug!("remove {}: {e}", self.path.display());
            }
            Err(_) | Ok(()) => {}
        }
    }
}

/// Who holds a directory at the moment of the question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Holder {
    Nobody,
    /// A live process, by its own number; `None` when the process has not written that yet.
    Process(Option<u32>),
}

/// Returns who holds `run_dir/vm`. To know, it takes the lock, shared and for a moment.
///
/// # Errors
/// When the lock file is there and cannot be opened or locked.
pub fn holder(run_dir: &Path, vm: &VmName) -> Result<Holder> {
    let file = run_dir.join(vm.as_str()).join(LOCK);
    let lock = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&file) {
        Ok(lock) => lock,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Holder::Nobody),
        Err(e) => return Err(e).with_context(|| format!("open {}", file.display())),
    };
    match lock.try_lock_shared() {
        Ok(()) => Ok(Holder::Nobody),
        Err(fs::TryLockError::WouldBlock) => Ok(Holder::Process(noted_pid(&lock))),
        Err(fs::TryLockError::Error(e)) => {
            Err(e).with_context(|| format!("lock {}", file.display()))
        }
    }
}

/// Returns the process that [`note_pid`] wrote; only for messages.
fn noted_pid(lock: &File) -> Option<u32> {
    let mut pid = String::new();
    lock.take(16).read_to_string(&mut pid).ok()?;
    pid.trim().parse().ok()
}

fn taken(lock: &File, vm: &VmName) -> anyhow::Error {
    let pid = noted_pid(lock).map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
    anyhow!(
        "VM {vm} already runs here (process {pid}): stop that process first, or give this VM another name or run_dir"
    )
}

fn note_pid(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())
}

fn same_file(open: &File, path: &Path) -> bool {
    match (open.metadata(), fs::symlink_metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        (Err(_), _) | (_, Err(_)) => false,
    }
}

/// Returns the names of VMs under `run_dir` that have a status socket, sorted, alive or not. A VM's directory that this
/// user may not look into counts, lest a user who may not see VMs be told that none runs.
///
/// # Errors
/// When the directory is there and cannot be read.
pub fn running(run_dir: &Path) -> Result<Vec<VmName>> {
    let entries = match fs::read_dir(run_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("read {}", run_dir.display())),
    };
    let mut names: Vec<_> = entries
        .flatten()
        .filter(|entry| match fs::symlink_metadata(entry.path().join(STATUS_SOCKET)) {
            Ok(_) => true,
            Err(e) => e.kind() == io::ErrorKind::PermissionDenied,
        })
        .filter_map(|entry| VmName::new(entry.file_name().to_str()?).ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Opens a directory for paths below it. A socket's address has 108 bytes and a path may have more, but
/// `/proc/self/fd/N/NAME` always fits.
pub(super) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: open(2) with a terminated path; the result is checked.
    let fd = unsafe { libc::open(path.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned it; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn below(directory: &OwnedFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

/// Why a directory must not hold what belongs to this user alone: another user could put a socket or a symlink into it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unsafe {
    NotADirectory,
    OfAnother { uid: u32, ours: u32 },
    WritableByOthers,
}

impl Unsafe {
    /// Judges a directory: it must belong to this user or root, and nobody else may write to it.
    pub fn find(directory: &Metadata) -> Option<Self> {
        // SAFETY: geteuid(2) takes nothing and cannot fail.
        let ours = unsafe { libc::geteuid() };
        let uid = directory.uid();
        if !directory.is_dir() {
            Some(Self::NotADirectory)
        } else if uid != ours && uid != 0 {
            Some(Self::OfAnother { uid, ours })
        } else if directory.permissions().mode() & 0o022 != 0 {
            Some(Self::WritableByOthers)
        } else {
            None
        }
    }
}

impl fmt::Display for Unsafe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotADirectory => f.write_str("is not a directory"),
            Self::OfAnother { uid, ours } => {
                write!(f, "belongs to uid {uid}, not to this user (uid {ours})")
            }
            Self::WritableByOthers => f.write_str("is writable by others"),
        }
    }
}

/// Makes `path` if it is missing, and checks that it is safe.
fn make_safe(path: &Path, mode: u32) -> Result<()> {
    let shown = path.display();
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| format!("make the directory {shown}"))?;
    let metadata = fs::symlink_metadata(path).with_context(|| format!("look at {shown}"))?;
    match Unsafe::find(&metadata) {
        None => Ok(()),
        Some(why @ Unsafe::NotADirectory) => {
            bail!("{shown} {why}: remove it, or name another run_dir")
        }
        Some(why @ Unsafe::OfAnother { .. }) => bail!("{shown} {why}: name another run_dir"),
        Some(why @ Unsafe::WritableByOthers) => {
            bail!("{shown} {why}: chmod go-w {shown}, or name another run_dir")
        }
    }
}
