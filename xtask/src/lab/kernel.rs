//! A stock Debian kernel: its image, and its modules by name.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::packages::Offer;
use crate::{
    invoke::{self, output},
    tree::Tree,
};

pub(crate) struct Kernel {
    root: PathBuf,
    /// Such as `6.1.0-56-amd64`.
    release: String,
}

impl Kernel {
    /// Finds the kernel of a package: `linux-image-RELEASE`, or a metapackage that depends on one.
    pub(crate) fn fetch(tree: &Tree, package: &str) -> Result<Self> {
        let mut offer = Offer::find(package)?;
        if let Some(real) = offer.dependency("linux-image-") {
            offer = Offer::find(real)?;
        }
        let Some(release) = offer.name().strip_prefix("linux-image-") else {
            bail!(
                "{package} is no kernel: a package linux-image-... or one that depends on one is"
            );
        };
        // Debian's own kernel is signed in a package of its own; one without has it in its name.
        let release = release.trim_end_matches("-unsigned").to_owned();
        let unpacked = offer.unpack(tree, |root| index_modules(root, &release))?;
        let kernel = Self { root: unpacked.root().to_owned(), release };
        if !kernel.image().exists() {
            bail!("{package} has no {}", kernel.image().display());
        }
        Ok(kernel)
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// Returns what the kernel's own system would have as /lib/modules.
    pub(crate) fn modules(&self) -> PathBuf {
        self.root.join("lib/modules")
    }

    /// Returns the files of the named modules and of all that they need, in the order in which to insert them. Modules
    /// that are built in have none.
    pub(crate) fn files_of(&self, modules: &[&str]) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for module in modules {
            let mut modprobe = Command::new(invoke::which("modprobe").context("no modprobe")?);
            // Without this machine's own configuration: what it blocks or renames is not the lab's matter.
            modprobe.args(["--config=/dev/null", "--show-depends", "--set-version"]);
            modprobe.arg(&self.release).arg("--dirname").arg(&self.root).arg(module);
            let needed = output(&mut modprobe)
                .with_context(|| format!("Linux {} has no {module} to load", self.release))?;
            for file in inserted(&needed) {
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        Ok(files)
    }
}

/// Returns the content of a module's file, as insmod without a decompressor wants it.
pub(crate) fn module(file: &Path) -> Result<Vec<u8>> {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => fs::read(file).with_context(|| format!("read {}", file.display())),
        Some("xz") => {
            let mut xz = Command::new("xz");
            let decompressed = xz.args(["--decompress", "--stdout"]).arg(file).output()?;
            if !decompressed.status.success() {
                bail!("xz cannot read {}", file.display());
            }
            Ok(decompressed.stdout)
        }
        _ => bail!("{}: neither .ko nor .ko.xz", file.display()),
    }
}

/// Returns the name under which a module's file is in an initramfs.
pub(crate) fn module_name(file: &Path) -> Result<&str> {
    let name = file.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{} has no name", file.display()))?;
    Ok(name.trim_end_matches(".xz"))
}

/// Reads the files that modprobe would insert from what it prints with `--show-depends`.
fn inserted(needed: &str) -> Vec<PathBuf> {
    let file = |line: &str| Some(line.strip_prefix("insmod ")?.split_whitespace().next()?.into());
    needed.lines().filter_map(file).collect()
}

fn index_modules(root: &Path, release: &str) -> Result<()> {
    // Since Debian 13 modules are in /usr/lib; on an installed system /lib is a link to it.
    if !root.join("lib").exists() {
        symlink("usr/lib", root.join("lib")).context("link lib to usr/lib")?;
    }
    let depmod = invoke::which("depmod").context("no depmod")?;
    invoke::run(Command::new(depmod).arg("-b").arg(root).arg(release))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_modules_need_no_file_and_parameters_are_not_part_of_one() {
        let told = "builtin unix\ninsmod /r/lib/a.ko \ninsmod /r/lib/b.ko.xz debug=1\n";
        assert_eq!(inserted(told), [PathBuf::from("/r/lib/a.ko"), "/r/lib/b.ko.xz".into()]);
        assert_eq!(module_name(Path::new("/r/lib/b.ko.xz")).unwrap(), "b.ko");
    }
}
