//! A command on its way into the lab, and its exit status on the way out: files in a folder that the lab mounts.
//!
//! ```text
//! host.sh   settings   command      ours, written before the lab starts
//! started   status                  the lab's: the command runs; it has ended so
//! out/                              the command's: files that are to stay
//! initramfs console                 QEMU's: what it boots; what the kernel said
//! ```

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::tree::Tree;

const HOST: &str = include_str!("host.sh");
/// Where the command finds its folder for what is to stay; the variable that tells it so.
const OUT: &str = "/run/lab/out";
const OUT_VARIABLE: &str = "REMUS_LAB_OUT";

/// Variables that the command inherits, beside those whose name begins as below. All others belong to the
/// session of the machine: sockets, displays and terminals that the lab does not have.
const INHERITED: [&str; 10] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "TZ",
    "LD_LIBRARY_PATH",
    "NO_COLOR",
];
const INHERITED_BEGINNINGS: [&str; 5] = ["CARGO", "RUST", "REMUS_", "LC_", "PROPTEST_"];
/// Where programs are that need root, which the command is; a user's path may lack them.
const ROOTS_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// The files of one start of the lab. They go with it.
pub(crate) struct Job {
    folder: PathBuf,
}

impl Job {
    pub(crate) fn create(
        tree: &Tree,
        modules: &Path,
        initramfs: &[u8],
        command: &[OsString],
    ) -> Result<Self> {
        let jobs = tree.lab().join("jobs");
        sweep(&jobs);
        let job = Self { folder: jobs.join(std::process::id().to_string()) };
        fs::create_dir_all(job.out())
            .with_context(|| format!("create {}", job.folder.display()))?;
        let directory = env::current_dir().context("no working directory")?;
        let settings =
            [(b"directory=" as &[u8], directory.as_os_str()), (b"\nmodules=", modules.as_os_str())];
        let settings: Vec<u8> = settings
            .iter()
            .flat_map(|(name, value)| [name.to_vec(), quoted(value)].concat())
            .collect();
        job.write("settings", &settings)?;
        job.write("command", &script(&directory, &environment(), command))?;
        job.write("host.sh", HOST.as_bytes())?;
        job.write("initramfs", initramfs)?;
        Ok(job)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn initramfs(&self) -> PathBuf {
        self.folder.join("initramfs")
    }

    pub(crate) fn console(&self) -> PathBuf {
        self.folder.join("console")
    }

    /// Returns the directory for what the command wants to keep.
    fn out(&self) -> PathBuf {
        self.folder.join("out")
    }

    /// Moves what the command wants to stay to the same place below `target`. Says how many files that were.
    pub(crate) fn bring_out(&self, target: &Path) -> Result<usize> {
        bring(&self.out(), target)
    }

    /// Returns whether the lab has come as far as the command.
    pub(crate) fn started(&self) -> bool {
        self.folder.join("started").exists()
    }

    /// Returns the command's exit status, once it has ended.
    pub(crate) fn status(&self) -> Option<u8> {
        parse_status(&fs::read_to_string(self.folder.join("status")).ok()?)
    }

    /// Returns what the lab's console says of its death, or its last lines.
    pub(crate) fn last_words(&self) -> String {
        last_words(&String::from_utf8_lossy(&fs::read(self.console()).unwrap_or_default()))
    }

    /// Makes the job as it was before the lab was started.
    pub(crate) fn rewind(&self) -> Result<()> {
        for name in ["started", "status.new", "status", "console"] {
            let file = self.folder.join(name);
            if file.exists() {
                fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
            }
        }
        Ok(())
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let file = self.folder.join(name);
        fs::write(&file, content).with_context(|| format!("write {}", file.display()))
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("lab: {} stays: {error}", self.folder.display());
        }
    }
}

/// Moves every file below `from` to the same place below `to`, in the place of what is there. Both are on one file
/// system. Whatever is neither file nor folder stays behind.
fn bring(from: &Path, to: &Path) -> Result<usize> {
    let mut moved = 0;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            fs::create_dir_all(&to).with_context(|| format!("create {}", to.display()))?;
            moved += bring(&from, &to)?;
        } else if kind.is_file() {
            fs::rename(&from, &to).with_context(|| format!("write {}", to.display()))?;
            moved += 1;
        }
    }
    Ok(moved)
}

/// Removes what killed processes left. A folder is named by its process.
fn sweep(jobs: &Path) {
    let folders = fs::read_dir(jobs).into_iter().flatten().filter_map(Result::ok);
    let left = folders.filter(|folder| !Path::new("/proc").join(folder.file_name()).exists());
    for folder in left {
        if let Err(error) = fs::remove_dir_all(folder.path()) {
            eprintln!("lab: {} stays: {error}", folder.path().display());
        }
    }
}

/// Returns what the command finds in its environment.
fn environment() -> Vec<(OsString, OsString)> {
    let mut variables: Vec<_> = env::vars_os().filter(|(name, _)| is_inherited(name)).collect();
    for (name, value) in &mut variables {
        if name == "PATH" {
            value.push(":");
            value.push(ROOTS_PATH);
        }
    }
    variables.retain(|(name, _)| name != OUT_VARIABLE);
    variables.push(("REMUS_LAB".into(), "1".into()));
    variables.push((OUT_VARIABLE.into(), OUT.into()));
    variables
}

fn is_inherited(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    INHERITED.contains(&name)
        || INHERITED_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

/// Returns the command as a script for bash.
fn script(directory: &Path, environment: &[(OsString, OsString)], command: &[OsString]) -> Vec<u8> {
    let mut script = [b"cd -- ", &quoted(directory.as_os_str())[..], b" || exit 126\n"].concat();
    script.extend(b"exec env -i");
    let assignments =
        environment.iter().map(|(name, value)| [name.as_os_str(), value].join(OsStr::new("=")));
    for word in assignments.chain(command.iter().cloned()) {
        script.push(b' ');
        script.extend(quoted(&word));
    }
    script.push(b'\n');
    script
}

/// Quotes a word so that a shell takes it as it is, whatever its bytes.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend(br"'\''"),
            byte => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

/// Returns the part of a console from which to learn why the lab died.
fn last_words(console: &str) -> String {
    const LINES: usize = 30;
    const CAUSES: [&str; 4] = ["lab: ", "BUG: ", "Oops: ", "Kernel panic"];
    let lines: Vec<&str> = console.lines().collect();
    let is_cause = |line: &&str| CAUSES.iter().any(|cause| line.contains(cause));
    let first = lines.iter().position(is_cause).unwrap_or(lines.len().saturating_sub(LINES));
    let shown = lines[first..].iter().take(LINES);
    shown.map(|line| format!("    {}\n", line.trim_end())).collect()
}

/// Returns the number that host.sh writes. A file that is not whole has none.
fn parse_status(text: &str) -> Option<u8> {
    text.strip_suffix('\n')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::{ffi::OsStringExt, fs::symlink},
        process::Command,
    };

    use super::*;

    #[test]
    fn a_shell_gives_the_command_its_words_as_they_were() {
        let words: Vec<OsString> =
            ["two words", "it's", "$HOME `x` \\ \"", "", "a\nb", "-n"].map(Into::into).into();
        let words = [words, vec![OsString::from_vec(vec![0xff, b'\'', 0x80])]].concat();
        let printf = ["printf".into(), "%s|".into()];
        let variables =
            [("REMUS_X".into(), "a b'c".into()), ("PATH".into(), "/usr/bin:/bin".into())];
        let script = script(Path::new("/"), &variables, &[&printf[..], &words].concat());
        let output =
            Command::new("bash").arg("-c").arg(OsString::from_vec(script)).output().unwrap();
        let expected = words.iter().flat_map(|word| [word.as_bytes(), b"|"].concat());
        assert_eq!(output.stdout, expected.collect::<Vec<u8>>());
    }

    #[test]
    fn the_command_starts_in_the_folder_and_environment_of_its_caller() {
        let variables =
            [("REMUS_X".into(), "a b'c".into()), ("PATH".into(), "/usr/bin:/bin".into())];
        let command = ["sh", "-c", "pwd; echo \"$REMUS_X\"; exit 7"].map(OsString::from);
        let script = script(Path::new("/usr"), &variables, &command);
        let output =
            Command::new("bash").arg("-c").arg(OsString::from_vec(script)).output().unwrap();
        assert_eq!(output.status.code(), Some(7));
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "/usr\na b'c\n");
    }

    #[test]
    fn a_session_stays_outside() {
        for inside in ["PATH", "HOME", "CARGO_HOME", "RUST_BACKTRACE", "REMUS_LOG", "LC_ALL"] {
            assert!(is_inherited(inside.as_ref()), "{inside}");
        }
        for outside in ["SSH_AUTH_SOCK", "DISPLAY", "TMPDIR", "XDG_RUNTIME_DIR", "BASH_ENV"] {
            assert!(!is_inherited(outside.as_ref()), "{outside}");
        }
    }

    #[test]
    fn what_is_to_stay_comes_to_its_place_and_replaces_what_was_there() {
        let folder = env::temp_dir().join(format!("remus-job-{}", std::process::id()));
        let (out, target) = (folder.join("out"), folder.join("target"));
        let write = |file: PathBuf, text: &str| {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        write(out.join("bench/lab.json"), "new");
        write(out.join("run/1/report.json"), "report");
        symlink("/etc/passwd", out.join("run/1/link")).unwrap();
        write(target.join("bench/lab.json"), "old");
        write(target.join("bench/gate.json"), "other");
        let moved = bring(&out, &target);
        let read = |file: &str| fs::read_to_string(target.join(file)).ok();
        let read =
            ["bench/lab.json", "bench/gate.json", "run/1/report.json", "run/1/link"].map(read);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(moved.unwrap(), 2);
        assert_eq!(read.map(Option::unwrap_or_default), ["new", "other", "report", ""]);
    }

    #[test]
    fn last_words_begin_with_the_cause() {
        let trace = "  call\n".repeat(100);
        let words = last_words(&format!("boot\n[1.0] Kernel panic - not syncing: x\r\n{trace}"));
        assert!(
            words.starts_with("    [1.0] Kernel panic - not syncing: x\n      call\n"),
            "{words}"
        );
        assert_eq!(words.lines().count(), 30);
        assert_eq!(last_words("a\nb\n"), "    a\n    b\n");
        assert_eq!(last_words(""), "");
    }

    #[test]
    fn only_a_whole_status_counts() {
        assert_eq!(parse_status("0\n"), Some(0));
        assert_eq!(parse_status("255\n"), Some(255));
        for torn in ["", "1", "256\n", "-1\n", "x\n"] {
            assert_eq!(parse_status(torn), None, "{torn:?}");
        }
    }
}
