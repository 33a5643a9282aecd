//! Out of the lab: what is written there is gone with it, but for the folder that `REMUS_LAB_OUT` names. What comes to
//! lie in it is at the same place below `target/` afterwards (docs/lab.md).

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result};

const VARIABLE: &str = "REMUS_LAB_OUT";
/// The folders in `target/` that the rig writes.
const FOLDERS: [&str; 2] = ["run", "bench"];

/// What was written from a moment on, on its way out. Nothing, where this is not the lab.
#[derive(Debug)]
pub struct Outlet {
    out: Option<PathBuf>,
    target: PathBuf,
    since: SystemTime,
}

impl Outlet {
    /// For the rig that is at `rig`, in `target/release`, from now on.
    pub fn open(rig: &Path) -> Result<Self> {
        let target =
            rig.parent().and_then(Path::parent).context("the rig is not in target/release")?;
        let out = env::var_os(VARIABLE).map(PathBuf::from);
        Ok(Self { out, target: target.to_owned(), since: SystemTime::now() })
    }

    /// Copies every file that has been written since.
    pub fn pour(&self) -> Result<()> {
        let Some(out) = &self.out else { return Ok(()) };
        for folder in FOLDERS {
            let from = self.target.join(folder);
            if from.is_dir() {
                copy(&from, &out.join(folder), self.since)
                    .with_context(|| format!("bring {} out of the lab", from.display()))?;
            }
        }
        Ok(())
    }
}

/// Copies the files below `from` that are no older than `since`. Sockets and links stay.
fn copy(from: &Path, to: &Path, since: SystemTime) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            copy(&from, &to, since)?;
        } else if metadata.is_file() && metadata.modified()? >= since {
            fs::create_dir_all(to.parent().expect("is within a folder"))?;
            fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, time::Duration};

    use super::*;

    #[test]
    fn what_was_written_since_comes_out_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (target, out) = (folder.path().join("target"), folder.path().join("out"));
        fs::create_dir_all(target.join("run/1")).unwrap();
        let old = target.join("run/old.json");
        fs::write(&old, "old").unwrap();
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        fs::File::options().write(true).open(&old).unwrap().set_modified(hour_ago).unwrap();
        let since = SystemTime::now() - Duration::from_secs(60);
        fs::write(target.join("run/1/report.json"), "new").unwrap();
        let _socket = UnixListener::bind(target.join("run/1/status.sock")).unwrap();
        let outlet = |out| Outlet { out, target: target.clone(), since };
        outlet(None).pour().unwrap();
        assert!(!out.exists());
        outlet(Some(out.clone())).pour().unwrap();
        assert_eq!(fs::read_to_string(out.join("run/1/report.json")).unwrap(), "new");
        assert!(!out.join("run/old.json").exists() && !out.join("run/1/status.sock").exists());
    }
}
