//! The QEMU that the lab runs in.
//!
//! Debian 12's QEMU 7.2 hangs guests with several CPUs, and the lab itself (docs/lab.md), and is slower. So one older than
//! [`WANTED`] is left alone, and a newer one taken from the backports of the machine's own release, unpacked beside the
//! lab's other packages: it wants the same libraries.

use std::{ffi::OsStr, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use super::packages::Sources;
use crate::{invoke::output, tree::Tree};

/// The first major version that will do.
const WANTED: u32 = 10;
const PROGRAM: &str = "qemu-system-x86_64";
/// Where the firmware is that the machine's own package of QEMU brings with it.
const FIRMWARE: &str = "/usr/share/seabios";

pub(crate) struct Emulator {
    program: PathBuf,
    /// Of an unpacked one, which does not know where it is.
    data: Option<PathBuf>,
}

impl Emulator {
    /// Finds the machine's own emulator, if that will do; or one from the backports; or else takes the machine's own
    /// all the same.
    pub(crate) fn find(tree: &Tree) -> Result<Self> {
        let own = Self { program: PROGRAM.into(), data: None };
        let version = own.major()?;
        if version >= WANTED {
            return Ok(own);
        }
        Self::of_backports(tree).or_else(|why| {
            eprintln!("lab: QEMU {version}, which may not live long (docs/lab.md): {why:#}");
            Ok(own)
        })
    }

    fn of_backports(tree: &Tree) -> Result<Self> {
        let sources = Sources::backports(tree)?;
        let root = |name| sources.find(name)?.unpack(tree, |_| Ok(()));
        let program = root("qemu-system-x86")?.root().join("usr/bin").join(PROGRAM);
        let data = root("qemu-system-data")?.root().join("usr/share/qemu");
        let found = Self { program, data: Some(data) };
        match found.major()? {
            WANTED.. => Ok(found),
            older => bail!("the backports have QEMU {older}"),
        }
    }

    /// With what it needs to find its files.
    pub(crate) fn words(&self) -> Vec<&OsStr> {
        let mut words = vec![self.program.as_os_str()];
        for folder in self.data.iter().flat_map(|data| [data.as_os_str(), FIRMWARE.as_ref()]) {
            words.extend([OsStr::new("-L"), folder]);
        }
        words
    }

    fn major(&self) -> Result<u32> {
        let said = output(Command::new(&self.program).arg("--version"))?;
        major(&said).with_context(|| format!("no version of QEMU: {said}"))
    }
}

fn major(said: &str) -> Option<u32> {
    let version = said.split_once("version ")?.1;
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_found_in_what_qemu_says() {
        let said = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright\n";
        assert_eq!(major(said), Some(7));
        assert_eq!(major("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n"), Some(10));
        assert_eq!(major("no such program"), None);
    }

    #[test]
    fn an_unpacked_one_is_told_where_its_files_are() {
        let words = |data: Option<&str>| {
            let emulator = Emulator { program: "q".into(), data: data.map(PathBuf::from) };
            emulator.words().iter().map(|word| word.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(words(None), ["q"]);
        assert_eq!(words(Some("d")), ["q", "-L", "d", "-L", FIRMWARE]);
    }
}
