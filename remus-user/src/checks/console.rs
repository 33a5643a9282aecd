//! The file that takes what the guest says on its console: `console.log`.

use std::{
    ffi::CString,
    fs::{self, File, FileType, OpenOptions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::Check;
use crate::config::Config;

/// An open must not wait for a FIFO's reader or a serial line's carrier, and must not give this process a terminal.
const FLAGS: i32 = libc::O_NONBLOCK | libc::O_NOCTTY;
/// A chain of more links than this counts as a circle.
const LINKS_MAX: usize = 16;

/// Checks that the guest's words can be appended to the file that the config names.
pub(super) fn log(config: &Config) -> Option<Check> {
    const NAME: &str = "console";
    const REMEDY: &str = "name a file that this user may write: log = \"/var/log/remus/demo.console\"; or leave the key \
                          out: what the guest says then goes to the log";
    let path = config.console.log.as_deref()?;
    Some(match look_at(path).and_then(|()| is_of_no_other_use(path, config)) {
        Ok(()) => Check::ok(NAME, path.display().to_string()),
        Err(e) => Check::refused(NAME, format!("{e:#}"), REMEDY),
    })
}

/// Opens the file, and makes it if it is missing. Never waits.
///
/// # Errors
/// When the file cannot be appended to, or the file system refuses.
pub(crate) fn open(path: &Path) -> Result<File> {
    let open = || -> Result<File> {
        if let Ok(found) = fs::metadata(path) {
            can_be_appended_to(found.file_type())?;
        }
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600).custom_flags(FLAGS).open(path)?;
        // Another file may have taken its place meanwhile.
        can_be_appended_to(file.metadata()?.file_type())?;
        Ok(file)
    };
    open().with_context(|| format!("the console's log {}", path.display()))
}

/// Asks the same questions as [`open`], and changes nothing.
fn look_at(path: &Path) -> Result<()> {
    let look = || match fs::metadata(path) {
        Ok(found) => {
            can_be_appended_to(found.file_type())?;
            // Opening a device may have an effect, so whether it can be opened is seen when the VM starts.
            if found.is_file() {
                OpenOptions::new().append(true).custom_flags(FLAGS).open(path)?;
            }
            Ok(())
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => can_be_made(&end_of_links(path)),
        Err(e) => Err(e.into()),
    };
    look().with_context(|| path.display().to_string())
}

/// # Errors
/// When it is neither a file nor a character device.
fn can_be_appended_to(kind: FileType) -> Result<()> {
    if kind.is_dir() {
        bail!("it is a directory");
    }
    if kind.is_fifo() {
        bail!(
            "it is a FIFO, which loses what the guest says while nobody reads (a file can be followed: tail -F)"
        );
    }
    if kind.is_socket() {
        bail!("it is a socket");
    }
    if kind.is_block_device() {
        bail!("it is a block device, whose content would be overwritten");
    }
    Ok(())
}

/// Follows links that lead to nothing, as the call that makes the file will.
fn end_of_links(path: &Path) -> PathBuf {
    let mut at = path.to_owned();
    for _ in 0..LINKS_MAX {
        let Ok(target) = fs::read_link(&at) else { break };
        at = at.parent().unwrap_or(Path::new("/")).join(target);
    }
    at
}

fn can_be_made(path: &Path) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let shown = directory.display();
    let found = fs::metadata(directory);
    let found = found.with_context(|| format!("its directory {shown} (mkdir -p {shown})"))?;
    if !found.is_dir() {
        bail!("{shown} is not a directory");
    }
    let terminated = CString::new(directory.as_os_str().as_bytes())?;
    let wanted = libc::W_OK | libc::X_OK;
    // SAFETY: a terminated path that lives during the call; AT_EACCESS asks for the effective user.
    let answer =
        unsafe { libc::faccessat(libc::AT_FDCWD, terminated.as_ptr(), wanted, libc::AT_EACCESS) };
    if answer != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("make it in {shown}"));
    }
    Ok(())
}

/// # Errors
/// When it is one of the files that the VM is made of.
fn is_of_no_other_use(path: &Path, config: &Config) -> Result<()> {
    let identity = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let Some(this) = identity(path) else { return Ok(()) };
    let software = config.machine.software();
    let files = [("machine.kernel", Some(software.kernel)), ("machine.initrd", software.initrd)];
    let files = files.into_iter().filter_map(|(key, file)| Some((key, file?)));
    let disks = config.disks.iter().map(|disk| ("a [[disk]]", disk.path.as_path()));
    for (key, file) in files.chain(disks) {
        if identity(file) == Some(this) {
            bail!("{} is also {key}: the console would overwrite that file", path.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    fn refused(path: &Path) -> String {
        let looked = look_at(path).unwrap_err();
        let opened = open(path).unwrap_err();
        let (looked, opened) = (format!("{looked:#}"), format!("{opened:#}"));
        assert!(looked.starts_with(&path.display().to_string()), "{looked}");
        assert!(opened.starts_with("the console's log /"), "{opened}");
        looked
    }

    #[test]
    fn what_cannot_be_appended_to_is_refused_before_and_at_the_start_and_nothing_waits() {
        let dir = tempfile::tempdir().unwrap();
        assert!(refused(dir.path()).contains("it is a directory"));
        let fifo = dir.path().join("fifo");
        let name = CString::new(fifo.as_os_str().as_bytes()).unwrap();
        // SAFETY: a terminated path that lives during the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        assert!(refused(&fifo).contains("it is a FIFO"));
        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        assert!(refused(&socket).contains("it is a socket"));
        let nowhere = dir.path().join("none/console");
        assert!(refused(&nowhere).contains("mkdir -p"));
        assert!(!nowhere.exists());
        let below_a_file = dir.path().join("file/console");
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(refused(&below_a_file).contains("Not a directory"));
        let circle = dir.path().join("circle");
        symlink(&circle, &circle).unwrap();
        refused(&circle);
    }

    #[test]
    fn files_there_and_to_be_links_and_devices_are_taken_and_looking_makes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("console"), dir.path().join("link"));
        symlink("console", &link).unwrap();
        for path in [&file, &link] {
            look_at(path).unwrap();
            assert!(!file.exists());
        }
        drop(open(&link).unwrap());
        assert!(file.exists());
        for path in [&file, Path::new("/dev/null"), Path::new("/dev/full")] {
            look_at(path).unwrap();
            drop(open(path).unwrap());
        }
    }
}
