//! The directories of a VM, what is found there of the VM, and the directory of disks.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
};

use anyhow::Result;
use remus_abi::Term;

use super::Check;
use crate::{
    config::Config,
    observe::{Holder, Unsafe, holder},
    os::fresh_instance,
    store::{self, Names, Store},
};

/// The space that the records of VMs need, with room for an old record beside the new one.
const STATE_BYTES_MIN: u64 = 64 << 10;

/// Checks the run directory, which has sockets and pins.
pub(super) fn run_dir(path: &Path) -> Check {
    // A process that claims a VM's directory in it does not follow a link in its place.
    let check = place("run directory", "run_dir", path, |path| fs::symlink_metadata(path));
    check.unwrap_or_else(|refused| refused)
}

/// Checks the state directory, which has the records of who spoke last.
pub(super) fn state_dir(path: &Path) -> Check {
    const NAME: &str = "state directory";
    let check = match place(NAME, "state_dir", path, |path| fs::metadata(path)) {
        Ok(check) => check,
        Err(refused) => return refused,
    };
    let existing = existing(path);
    match free(existing) {
        Ok(free) if free < STATE_BYTES_MIN => Check::refused(
            NAME,
            format!("the file system of {} has {free} bytes left", existing.display()),
            "free some space: without it, the record of which host spoke last for a VM cannot be written",
        ),
        Ok(_) => check,
        Err(e) => Check::warning(
            NAME,
            format!("the free space of {} is unknown: {e}", existing.display()),
            "make sure that there is some",
        ),
    }
}

/// Checks that the directory at `path`, or the nearest directory above it that exists, is ours to write, and nobody
/// else's.
fn place(
    name: &'static str,
    key: &str,
    path: &Path,
    look: impl Fn(&Path) -> io::Result<Metadata>,
) -> Result<Check, Check> {
    let existing = existing(path);
    let shown = existing.display();
    let other = format!("name another directory: {key}");
    let is_it = existing == path;
    let metadata = if is_it { look(existing) } else { fs::metadata(existing) };
    let metadata = metadata
        .map_err(|e| Check::refused(name, format!("cannot look at {shown}: {e}"), other.clone()))?;
    if is_it {
        if let Some(why) = Unsafe::find(&metadata) {
            let remedy = match why {
                Unsafe::WritableByOthers => format!("chmod go-w {shown}, or {other}"),
                Unsafe::NotADirectory | Unsafe::OfAnother { .. } => other,
            };
            return Err(Check::refused(name, format!("{shown} {why}"), remedy));
        }
    } else if !metadata.is_dir() {
        return Err(Check::refused(name, format!("{shown} is not a directory"), other));
    }
    if let Err(e) = may_write(existing) {
        return Err(Check::refused(
            name,
            format!("{shown} cannot be written to: {e}"),
            format!("run as root, mount it read-write, or {other}"),
        ));
    }
    Ok(Check::ok(
        name,
        if is_it { format!("{shown}") } else { format!("{} will be made", path.display()) },
    ))
}

/// Returns `path`, or the nearest directory above it that exists; a link that leads nowhere exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|p| fs::symlink_metadata(p).is_ok()).unwrap_or(Path::new("/"))
}

/// Checks that what this host knows of the VM allows the VM to start here, and that it does not run yet.
pub(super) fn vm(config: &Config) -> Vec<Check> {
    vec![instance_of_vm(config), record(config)]
}

/// The term in which the record lets the VM start here. `None` when there is no record of it.
fn permitted_term(config: &Config) -> Result<Option<Term>> {
    if !config.state_dir.is_dir() {
        return Ok(None);
    }
    let record = Store::at(&config.state_dir)?.read(&config.name)?;
    let is_known = record.is_some();
    let permission = store::permission(&config.name, record, Names::FRESH)?;
    Ok(is_known.then_some(permission.fenced.term()))
}

fn instance_of_vm(config: &Config) -> Check {
    const NAME: &str = "vm";
    let (run_dir, name) = (&config.run_dir, &config.name);
    match holder(run_dir, name) {
        Ok(Holder::Nobody) => Check::ok(NAME, format!("{name} does not run here")),
        Ok(Holder::Process(pid)) => {
            let by = pid.map_or_else(String::new, |pid| format!(" (process {pid})"));
            let remedy = "stop that process first, or give this VM another name or run_dir";
            Check::refused(NAME, format!("{name} already runs here{by}"), remedy)
        }
        Err(e) => {
            Check::refused(NAME, format!("{e:#}"), "look at what is there, or name another run_dir")
        }
    }
}

fn record(config: &Config) -> Check {
    const NAME: &str = "record";
    match permitted_term(config) {
        Ok(Some(term)) => Check::ok(NAME, format!("the VM starts in term {term}")),
        Ok(None) => Check::ok(NAME, "none: this host has not heard of the VM"),
        Err(e) => {
            let path = config.state_dir.join(format!("{}.json", config.name));
            Check::refused(NAME, format!("{e:#}"), format!("the record is {}", path.display()))
        }
    }
}

/// Checks the file that says who this host is to primaries.
pub(super) fn instance(state_dir: &Path) -> Check {
    const NAME: &str = "instance";
    let file = state_dir.join("instance");
    if !file.exists() {
        return Check::ok(NAME, format!("{} will be made", file.display()));
    }
    match Store::at(state_dir).and_then(|store| store.instance(fresh_instance)) {
        Ok(instance) => Check::ok(NAME, format!("{instance}")),
        Err(_) => Check::refused(
            NAME,
            format!(
                "{} is damaged: primaries know this host by the number in that file",
                file.display()
            ),
            "remove the file: this host gets a new number. A primary that was protected by this host then takes it for \
             another backup, and must be restarted",
        ),
    }
}

/// Checks the directory from which primaries may name disks.
pub(super) fn disks(directory: &Path) -> Check {
    const NAME: &str = "disks";
    let shown = directory.display();
    if !directory.is_absolute() {
        let remedy =
            "name the directory by a path that begins with a slash, as primaries name their disks";
        return Check::refused(NAME, format!("{shown} is not an absolute path"), remedy);
    }
    match fs::read_dir(directory) {
        Ok(_) => Check::ok(NAME, format!("{shown}")),
        Err(e) => Check::refused(
            NAME,
            format!("{shown}: {e}"),
            "name a directory that exists: --disks DIR",
        ),
    }
}

/// Asks whether this process may make files in `directory`.
fn may_write(directory: &Path) -> io::Result<()> {
    let path = std::ffi::CString::new(directory.as_os_str().as_bytes())?;
    // SAFETY: faccessat(2) with a terminated path; AT_EACCESS asks for the effective user.
    let result = unsafe {
        libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::W_OK | libc::X_OK, libc::AT_EACCESS)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns the number of bytes that an ordinary user may still write to the file system of `directory`; 0 when no file
/// can be made there.
fn free(directory: &Path) -> io::Result<u64> {
    let path = std::ffi::CString::new(directory.as_os_str().as_bytes())?;
    // SAFETY: statvfs is plain data; zero is a valid value.
    let mut about: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a terminated path and a place for the answer, both alive during the call.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut about) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // A file system without a table of files reports 0 of 0.
    let no_files = about.f_files > 0 && about.f_favail == 0;
    Ok(if no_files { 0 } else { about.f_bavail.saturating_mul(about.f_frsize) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::checks::Outcome;

    fn refusal(check: &Check) -> &str {
        assert_eq!(check.outcome, Outcome::Refused, "{check:?}");
        &check.found
    }

    #[test]
    fn a_directory_that_is_not_ours_alone_is_refused_for_either_purpose() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d");
        for check in [run_dir, state_dir] {
            let made = check(&path.join("e/f"));
            assert_eq!(
                (made.outcome, made.found.ends_with("d/e/f will be made")),
                (Outcome::Ok, true)
            );
            fs::write(&path, "").unwrap();
            assert!(refusal(&check(&path)).ends_with("d is not a directory"));
            assert!(refusal(&check(&path.join("e"))).ends_with("d is not a directory"));
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
            assert_eq!(check(&path).outcome, Outcome::Ok);
            for mode in [0o777, 0o770, 0o707, 0o1777] {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                let shared = check(&path);
                assert!(refusal(&shared).ends_with("d is writable by others"), "{mode:o}");
                assert!(shared.remedy.starts_with("chmod go-w "));
            }
            fs::remove_dir(&path).unwrap();
            symlink("/nonexistent", &path).unwrap();
            assert_eq!(check(&path).outcome, Outcome::Refused, "a link that leads nowhere");
            fs::remove_file(&path).unwrap();
        }
        // Records may lie behind a link, sockets may not.
        symlink(folder.path(), &path).unwrap();
        assert_eq!(state_dir(&path).outcome, Outcome::Ok);
        assert_eq!(run_dir(&path).outcome, Outcome::Refused);
    }

    #[test]
    fn a_damaged_instance_is_refused_in_its_own_words() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(instance(folder.path()).outcome, Outcome::Ok);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was changed");
        let file = folder.path().join("instance");
        fs::write(&file, "00000000000000ff\n").unwrap();
        assert_eq!(instance(folder.path()).outcome, Outcome::Ok);
        for damaged in ["", "0", "xyz"] {
            fs::write(&file, damaged).unwrap();
            assert!(refusal(&instance(folder.path())).contains("is damaged: primaries know"));
        }
    }

    #[test]
    fn disks_are_in_a_directory_by_an_absolute_path() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(disks(folder.path()).outcome, Outcome::Ok);
        assert!(refusal(&disks(&folder.path().join("x"))).contains("No such file"));
        assert!(refusal(&disks(Path::new("srv"))).contains("is not an absolute path"));
        assert!(refusal(&disks(Path::new("/dev/null"))).contains("Not a directory"));
    }
}
