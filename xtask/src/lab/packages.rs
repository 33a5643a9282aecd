//! Debian packages, unpacked and not installed: nothing of the machine changes, and no privilege is needed.
//!
//! One folder a version under `target/lab/packages`; a new version is another folder. A folder is there whole
//! or not at all.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    invoke::{self, output},
    tree::Tree,
};

/// Where packages come from: what apt is told of it.
#[derive(Clone, Default)]
pub(crate) struct Sources(Vec<String>);

/// What the package sources say of a package: its newest version here.
pub(crate) struct Offer {
    sources: Sources,
    name: String,
    version: String,
    depends: String,
}

/// An unpacked package.
pub(crate) struct Package {
    root: PathBuf,
}

/// The keys of Debian's archive, of the package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// How old the lists of the backports may be.
const LISTS_LIVE: Duration = Duration::from_hours(24);

impl Sources {
    /// Finds the backports of the machine's own release, by the mirror that it uses itself. Nothing of the machine's
    /// own lists changes.
    pub(crate) fn backports(tree: &Tree) -> Result<Self> {
        let folder = tree.lab().join("apt");
        let list = folder.join("sources.list");
        let shown = folder.display();
        let sources = Self(
            [
                format!("Dir::Etc::SourceList={}", list.display()),
                "Dir::Etc::SourceParts=/dev/null".to_owned(),
                format!("Dir::State::Lists={shown}/lists"),
                format!("Dir::Cache={shown}/cache"),
            ]
            .into(),
        );
        let age = fs::metadata(&list).and_then(|list| list.modified()).map(|at| at.elapsed());
        if matches!(age, Ok(Ok(age)) if age < LISTS_LIVE) {
            return Ok(sources);
        }
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part)).with_context(|| format!("create {shown}"))?;
        }
        let format = "$(REPO_URI) $(CODENAME)";
        let known = ["indextargets", "--format", format, "Created-By: Packages", "Label: Debian"];
        let known = output(Command::new("apt-get").args(known))?;
        let line = backports_of(&known).context("no source of a release of Debian here")?;
        let new = list.with_extension("new");
        fs::write(&new, line).with_context(|| format!("write {}", new.display()))?;
        let option = format!("Dir::Etc::SourceList={}", new.display());
        let mut update = sources.apt("apt-get");
        invoke::run(update.args(["-o", &option, "-qq", "update"]))?;
        // Only now: its age is that of the lists.
        fs::rename(&new, &list).with_context(|| format!("rename {}", new.display()))?;
        Ok(sources)
    }

    pub(crate) fn find(&self, name: &str) -> Result<Offer> {
        let record = output(self.apt("apt-cache").args(["show", "--no-all-versions", name]))
            .with_context(|| {
                format!("no package source here offers {name}: as root, apt-get update")
            })?;
        Offer::parse(self, name, &record)
            .with_context(|| format!("{name} has no version:\n{record}"))
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        // Its own user could not write to our folders, about which it complains.
        command.args(["-o", "APT::Sandbox::User=root"]);
        self.0.iter().for_each(|option| _ = command.args(["-o", option]));
        command
    }
}

/// Returns the line for apt, from `URI CODENAME` of what the machine has: the release itself has the plain name.
fn backports_of(known: &str) -> Option<String> {
    let pairs = known.lines().filter_map(|line| line.split_once(' '));
    let (uri, codename) = pairs.into_iter().find(|(_, codename)| !codename.contains('-'))?;
    Some(format!("deb [signed-by={KEYRING}] {uri} {codename}-backports main\n"))
}

impl Offer {
    /// In the machine's own sources.
    pub(crate) fn find(name: &str) -> Result<Self> {
        Sources::default().find(name)
    }

    fn parse(sources: &Sources, name: &str, record: &str) -> Option<Self> {
        let field = |field: &str| {
            record.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(": "))
        };
        Some(Self {
            sources: sources.clone(),
            name: name.to_owned(),
            version: field("Version")?.to_owned(),
            depends: field("Depends").unwrap_or_default().to_owned(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Returns the first package that this one depends on and whose name begins like this.
    pub(crate) fn dependency(&self, beginning: &str) -> Option<&str> {
        let names = self.depends.split([',', '|']).filter_map(|one| one.split_whitespace().next());
        names.into_iter().find(|name| name.starts_with(beginning))
    }

    /// Downloads and unpacks it, unless it is there. What `prepare` does to the unpacked folder is done once.
    pub(crate) fn unpack(
        &self,
        tree: &Tree,
        prepare: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Package> {
        let folder = tree.lab().join("packages");
        // A version may have a colon, which separates paths in many places.
        let name = format!("{}_{}", self.name, self.version.replace(':', "_"));
        let whole = folder.join(&name);
        if whole.exists() {
            return Ok(Package { root: whole });
        }
        eprintln!("lab: unpacking {} {}", self.name, self.version);
        let part = folder.join(format!("{name}.new-{}", std::process::id()));
        fs::create_dir_all(&part).with_context(|| format!("create {}", part.display()))?;
        let unpacked = self.unpack_in(&part).and_then(|root| {
            prepare(&root)?;
            // Another xtask may have been faster: then its folder is as good.
            fs::rename(&root, &whole)
                .or_else(|error| if whole.exists() { Ok(()) } else { Err(error) })
                .with_context(|| format!("rename {}", root.display()))
        });
        fs::remove_dir_all(&part).with_context(|| format!("remove {}", part.display()))?;
        unpacked.map(|()| Package { root: whole })
    }

    fn unpack_in(&self, folder: &Path) -> Result<PathBuf> {
        let mut apt = self.sources.apt("apt-get");
        apt.args(["-qq", "download"])
            .arg(format!("{}={}", self.name, self.version))
            .current_dir(folder);
        invoke::run(&mut apt).context("if the file is not found: as root, apt-get update")?;
        let mut archives = fs::read_dir(folder)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .collect::<Vec<_>>();
        let archive = match (archives.pop(), archives.is_empty()) {
            (Some(archive), true) => archive,
            _ => bail!("apt-get download left not one file in {}", folder.display()),
        };
        let root = folder.join("root");
        invoke::run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&root))?;
        Ok(root)
    }
}

impl Package {
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the content of the first of `paths` that the package has. Debian has moved files to /usr over its
    /// releases.
    pub(crate) fn read(&self, paths: &[&str]) -> Result<Vec<u8>> {
        let found = paths.iter().map(|path| self.root.join(path)).find(|path| path.exists());
        let file = found
            .with_context(|| format!("{} has no {}", self.root.display(), paths.join(" or ")))?;
        fs::read(&file).with_context(|| format!("read {}", file.display()))
    }
}

/// Returns the binary of a busybox that needs no library, for an initramfs.
pub(crate) fn busybox(tree: &Tree) -> Result<Vec<u8>> {
    let package = Offer::find("busybox-static")?.unpack(tree, |_| Ok(()))?;
    package.read(&["bin/busybox", "usr/bin/busybox"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metapackage_names_the_package_that_it_stands_for() {
        let record = "Package: linux-image-amd64\nVersion: 6.1.192-2\nDepends: base | x (>= 1), \
                      linux-image-6.1.0-56-amd64 (= 6.1.192-2)\nDescription: Linux\n";
        let offer = Offer::parse(&Sources::default(), "linux-image-amd64", record).unwrap();
        assert_eq!(offer.version, "6.1.192-2");
        assert_eq!(offer.dependency("linux-image-"), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(offer.dependency("linux-headers-"), None);
    }

    #[test]
    fn backports_are_of_the_release_and_of_the_same_mirror() {
        let known = "http://m/debian/ bookworm-updates\nhttp://m/debian/ bookworm\n";
        let line = backports_of(known).unwrap();
        assert!(line.ends_with("] http://m/debian/ bookworm-backports main\n"), "{line}");
        assert_eq!(backports_of("http://m/ x-updates\n"), None);
    }
}
