//! The newest term that this host has heard of for a VM, and how the VM stood here, across restarts.
//!
//! Starting a VM is a change of role. A host that crashed as a primary and comes back must not start its guest as if
//! nothing had happened: a backup may have taken over. This record tells the host so. It is written before anything that
//! depends on it becomes visible outside:
//! - `Starting` before a backup is asked: until one of the next two is written the start has left no trace, and the next
//!   start is the same start again,
//! - `Unprotected` before a gate first opens without a backup,
//! - `Protected` before the first frame is held, so that a restart knows of the backup,
//! - the new term before a promoted gate first opens in it.
//!
//! The last three also note, in the same write, that this host has spoken in the term: a gate lets no frame out before that
//! is on disk.
//!
//! The record is one small JSON file for each VM and is replaced whole: written aside, synced, renamed, directory synced.

use std::{
    ffi::CString,
    fs::{self, File, TryLockError},
    io::{self, Write},
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::entry::{Record, decode, encode};
use crate::names::{Instance, VmName};

/// The directory of records: `STATE_DIR`.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// While this is held, this process alone acts on the record of a VM.
#[derive(Debug)]
#[must_use = "the record is given up when this is dropped"]
pub struct Claim {
    /// Locked.
    _lock: File,
}

impl Store {
    /// # Errors
    /// When the directory cannot be made.
    pub fn at(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)
            .with_context(|| format!("make the state directory {}", dir.display()))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Claims the record of `vm`. Without a claim, two processes that read the same record would both act on it as this
    /// host.
    ///
    /// # Errors
    /// When another process has the record, or the lock's file cannot be made.
    pub fn claim(&self, vm: &VmName) -> Result<Claim> {
        let path = self.dir.join(format!("{vm}.lock"));
        // Opened only for reading: a file that is open for writing keeps its file system from being remounted read-only.
        let lock = File::options()
            .read(true)
            .mode(0o600)
            .custom_flags(libc::O_CREAT | libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Claim { _lock: lock }),
            Err(TryLockError::WouldBlock) => bail!(
                "another process of this host has VM {vm}, below another run directory: it holds {}. Stop that process first, or \
                give this VM another name or state_dir",
                path.display()
            ),
            Err(TryLockError::Error(e)) => {
                Err(e).with_context(|| format!("lock {}", path.display()))
            }
        }
    }

    /// Returns the record of `vm`; `None` when this host has never heard of it.
    ///
    /// # Errors
    /// When there is a record that cannot be read. Guessing would risk two hosts speaking for one guest.
    pub fn read(&self, vm: &VmName) -> Result<Option<Record>> {
        let path = self.path(vm);
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("read {}", path.display()))?,
        };
        decode(&text).with_context(|| damaged(&path)).map(Some)
    }

    /// Writes the record of `vm`, which is on disk when this returns.
    ///
    /// # Errors
    /// When the record may not be on disk; the old record is then still whole.
    pub fn write(&self, vm: &VmName, record: &Record) -> Result<()> {
        self.replace(&self.path(vm), &encode(record)?)
    }

    /// Keeps `record` on disk beside the record of `vm`, so that [`Store::take_reserved`] needs no room and little time to
    /// put it in force. Writes it, and its directory, if it is missing. The call is cheap when it is there, and is made
    /// each second.
    ///
    /// # Errors
    /// When the record may not be on disk, or could not be put in force; the error says what is in the way.
    pub fn keep_reserved(&self, vm: &VmName, record: &Record) -> Result<()> {
        let (path, text) = (self.reserved(vm), encode(record)?);
        let shown = self.dir.display();
        if fs::read(&path).is_ok_and(|found| found == text) {
            let directory = CString::new(self.dir.as_os_str().as_bytes()).context("an odd path")?;
            // SAFETY: a terminated path that lives during the call. Tells a file system that is mounted read-only, too.
            if unsafe { libc::access(directory.as_ptr(), libc::W_OK) } != 0 {
                return Err(io::Error::last_os_error())
                    .with_context(|| format!("the state directory {shown} cannot be written"));
            }
            return Ok(());
        }
        let made = fs::create_dir_all(&self.dir).map_err(anyhow::Error::from);
        made.and_then(|()| self.put(&path, &text))
            .and_then(|()| Ok(self.sync_names()?))
            .with_context(|| format!("the state directory {shown} cannot be written"))
    }

    /// Puts `record`, which was reserved, in force; the record is on disk when this returns. Writes it anew, with its
    /// directory, if the reserved one is gone.
    ///
    /// # Errors
    /// When the record may not be on disk; the caller tries again.
    pub fn take_reserved(&self, vm: &VmName, record: &Record) -> Result<()> {
        let (reserved, path) = (self.reserved(vm), self.path(vm));
        if fs::read(&reserved).is_ok_and(|found| encode(record).is_ok_and(|text| found == text)) {
            let put = || -> io::Result<()> {
                // The thread that keeps it reserved may have written all of it just now, and not synced it yet.
                File::open(&reserved)?.sync_all()?;
                fs::rename(&reserved, &path)?;
                self.sync_names()
            };
            return put().with_context(|| format!("write {}", path.display()));
        }
        fs::create_dir_all(&self.dir)
            .with_context(|| format!("make {} again", self.dir.display()))?;
        self.write(vm, record)
    }

    /// Gives up what was reserved, if anything was.
    pub fn forget_reserved(&self, vm: &VmName) {
        // What stays is overwritten by the next reservation, and nobody reads it.
        fs::remove_file(self.reserved(vm)).ok();
    }

    /// Returns the number by which primaries know this host: the same for as long as the records are there. A primary
    /// takes no other backup beside one that may hold a checkpoint of its term, and must know that one again.
    ///
    /// # Errors
    /// When the number cannot be read, or cannot be written the first time.
    pub fn instance(&self, fresh: impl FnOnce() -> Instance) -> Result<Instance> {
        let path = self.dir.join("instance");
        match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let instance = fresh();
                self.replace(&path, format!("{:016x}\n", instance.get()).as_bytes())?;
                Ok(instance)
            }
            text => {
                let text = text.with_context(|| format!("read {}", path.display()))?;
                let number = u64::from_str_radix(text.trim(), 16).ok().and_then(Instance::new);
                number.with_context(|| damaged_instance(&path))
            }
        }
    }

    fn replace(&self, path: &Path, text: &[u8]) -> Result<()> {
        let aside = path.with_extension("new");
        self.put(&aside, text)?;
        let replace = || -> io::Result<()> {
            fs::rename(&aside, path)?;
            self.sync_names()
        };
        replace().with_context(|| format!("write {}", path.display()))
    }

    /// Writes a file whole; its content is on disk when this returns, its name once the directory is synced.
    fn put(&self, path: &Path, text: &[u8]) -> Result<()> {
        let write = || -> io::Result<()> {
            let mut file = File::create(path)?;
            file.write_all(text)?;
            file.sync_all()
        };
        write().with_context(|| format!("write {}", path.display()))
    }

    /// Puts on disk which files the directory has.
    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn reserved(&self, vm: &VmName) -> PathBuf {
        self.dir.join(format!("{vm}.takeover"))
    }

    fn path(&self, vm: &VmName) -> PathBuf {
        self.dir.join(format!("{vm}.json"))
    }
}

fn damaged_instance(path: &Path) -> String {
    format!(
        "{} is damaged: primaries know this host by the number in that file. Remove the file, and this host gets a new \
         number; a primary that was protected by this host then takes it for another backup, and must be restarted",
        path.display()
    )
}

fn damaged(path: &Path) -> String {
    format!(
        "{} is damaged: the file tells which host speaks for the VM. Make sure that no other host runs the VM, then remove \
         the file",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use remus_abi::Term;

    use super::{super::Standing, *};
    use crate::wire::{Ancestry, Nonce};

    fn record(term: Term, standing: Standing) -> Record {
        let nonce = Nonce::new(7);
        Record { id: None, term, standing, nonce, ancestry: Ancestry::none(), spoke: None }
    }

    fn vm(name: &str) -> VmName {
        VmName::new(name).unwrap()
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path()).unwrap();
        assert_eq!(store.read(&vm("a")).unwrap(), None);
        for record in [
            record(Term::FIRST, Standing::Backup),
            record(Term::MAX, Standing::Promoted).speaking(Standing::Promoted),
        ] {
            store.write(&vm("a"), &record).unwrap();
            assert_eq!(store.read(&vm("a")).unwrap(), Some(record));
        }
        assert_eq!(store.read(&vm("b")).unwrap(), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left aside");
    }

    #[test]
    fn a_record_has_one_process_that_acts_on_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path()).unwrap();
        let first = store.claim(&vm("a")).unwrap();
        let error = store.claim(&vm("a")).unwrap_err().to_string();
        assert!(error.contains("another process of this host has VM a"), "{error}");
        drop(store.claim(&vm("b")).unwrap());
        drop(first);
        drop(store.claim(&vm("a")).unwrap());
    }

    #[test]
    fn a_reserved_record_is_put_in_force_whole_and_again_where_somebody_tidied_up() {
        let dir = tempfile::tempdir().unwrap();
        let (state, kept) = (dir.path().join("state"), dir.path().join("kept"));
        let store = Store::at(&state).unwrap();
        let promoted = &record(Term::MAX, Standing::Promoted);
        store.keep_reserved(&vm("a"), promoted).unwrap();
        store.keep_reserved(&vm("a"), promoted).unwrap();
        assert_eq!(store.read(&vm("a")).unwrap(), None, "not in force yet");
        store.take_reserved(&vm("a"), promoted).unwrap();
        assert_eq!(store.read(&vm("a")).unwrap(), Some(promoted.clone()));
        store.keep_reserved(&vm("a"), promoted).unwrap();
        fs::rename(&state, kept).unwrap();
        store.take_reserved(&vm("a"), promoted).unwrap();
        assert_eq!(store.read(&vm("a")).unwrap(), Some(promoted.clone()));
        // Another term's is not put in force.
        store.keep_reserved(&vm("a"), &record(Term::FIRST, Standing::Promoted)).unwrap();
        store.take_reserved(&vm("a"), promoted).unwrap();
        assert_eq!(store.read(&vm("a")).unwrap(), Some(promoted.clone()));
    }

    #[test]
    fn a_host_is_the_same_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::at(dir.path()).unwrap().instance(|| Instance::new(42).unwrap()).unwrap();
        let again = Store::at(dir.path()).unwrap().instance(|| Instance::new(43).unwrap()).unwrap();
        assert_eq!((first, again), (Instance::new(42).unwrap(), first));
    }

    #[test]
    fn a_damaged_record_is_an_error_that_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path()).unwrap();
        for text in ["", "{\"term\":99999999,\"standing\":\"ended\"}", "{\"term\":1}"] {
            fs::write(dir.path().join("a.json"), text).unwrap();
            let error = format!("{:#}", store.read(&vm("a")).unwrap_err());
            assert!(error.contains("is damaged"), "{error}");
        }
    }
}
