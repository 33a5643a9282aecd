//! `guest debian`: a whole Debian for our VMM to run, as `scripts/debian-guest.sh` makes it for anybody.
//!
//! It takes a minute or two, so one that was made before is kept as long as the script and the versions of what is
//! tested in it are the same. Its other packages may be older than the newest then: `--fresh` makes it anew.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use super::packages::Offer;
use crate::{invoke, setup, tree::Tree};

/// What the script needs, and the client of what is in the guest that tests use.
const PROGRAMS: [(&str, &str); 3] = [
    ("mmdebstrap", "mmdebstrap"),
    ("tar2sqfs", "squashfs-tools-ng"),
    ("psql", "postgresql-client"),
];
const SCRIPT: &str = "scripts/debian-guest.sh";
const PACKAGES: [&str; 5] =
    ["linux-image-cloud-amd64", "nginx", "postgresql", "redis-server", "systemd"];
/// In the guest's folder, written when all else is there: what it was made of.
const MADE_OF: &str = "made-of";

/// Makes the Debian guest, unless it is there: its kernel, its initial RAM disk and its disk.
pub(super) fn make(tree: &Tree, fresh: bool) -> Result<[PathBuf; 3]> {
    setup::programs(&PROGRAMS)?;
    let folder = tree.lab().join("debian");
    let files = ["vmlinuz", "initrd.img", "root.img"].map(|file| folder.join(file));
    let stamp = folder.join(MADE_OF);
    let made_of = made_of(tree)?;
    if !fresh && is_made_of(&stamp, &made_of) && files.iter().all(|file| file.exists()) {
        return Ok(files);
    }
    eprintln!(
        "lab: making {}: a minute or two, until one of its packages changes",
        folder.display()
    );
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    // What a script that fails leaves is not taken for what was made before.
    if stamp.exists() {
        fs::remove_file(&stamp).with_context(|| format!("remove {}", stamp.display()))?;
    }
    let mut script = Command::new(tree.root().join(SCRIPT));
    // The config that it prints is for others: the rig has its own.
    invoke::run(script.arg(&folder).stdin(Stdio::null()).stdout(Stdio::null()))?;
    fs::write(&stamp, made_of).with_context(|| format!("write {}", stamp.display()))?;
    Ok(files)
}

/// Returns the versions of the packages that a guest made now would have, and the script.
fn made_of(tree: &Tree) -> Result<String> {
    let script = tree.root().join(SCRIPT);
    let mut text = String::new();
    for package in PACKAGES {
        let offer = Offer::find(package)?;
        // A package that only depends on that of a release.
        let real = offer.dependency("postgresql-").map(Offer::find).transpose()?;
        let offer = real.unwrap_or(offer);
        text += &format!("{} {}\n", offer.name(), offer.version());
    }
    text += &fs::read_to_string(&script).with_context(|| format!("read {}", script.display()))?;
    Ok(text)
}

fn is_made_of(stamp: &Path, made_of: &str) -> bool {
    fs::read_to_string(stamp).is_ok_and(|found| found == made_of)
}
