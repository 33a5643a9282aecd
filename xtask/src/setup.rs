//! `setup`: brings what the builds and the rig need and this machine lacks.
//!
//! The usual case is that nothing is missing; then it only looks at files and asks rustc two questions. What
//! is missing it installs without asking, saying each command first: rustup components and targets as the
//! caller, Debian packages as root (or through sudo where that needs no password), and bpf-linker, which no
//! package brings, from source into `target/tools`. A built bpf-linker is kept in the user's cache as well,
//! so that another checkout does not build it again. Where it may not install, it says what to install.
//!
//! Deliberately absent: adding package sources, and changing anything outside the package manager.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    invoke::{self, is_root, output, succeeds, which},
    tree::Tree,
};

const BPF_LINKER: &str = "0.13.0";
const GUEST_TARGET: &str = "x86_64-unknown-none";

/// Programs that must be on the path whatever the verb, and the Debian package of each.
const PROGRAMS: [(&str, &str); 6] = [
    ("redis-benchmark", "redis-tools"),
    ("redis-cli", "redis-tools"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables-legacy", "iptables"),
    ("cc", "build-essential"),
];

/// The rustc that builds everything, as far as the other verbs care.
pub(crate) struct Toolchain {
    /// Such as `1.95.0`.
    release: String,
    /// Such as `22.1.2`.
    llvm: String,
    /// Such as `x86_64-unknown-linux-gnu`.
    host: String,
    sysroot: PathBuf,
}

impl Toolchain {
    fn find() -> Result<Self> {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let version = output(Command::new(&rustc).arg("-vV"))?;
        let field = |name: &str| {
            let found =
                version.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            found.map(str::to_owned).with_context(|| format!("rustc -vV does not tell `{name}`"))
        };
        let sysroot = output(Command::new(&rustc).args(["--print", "sysroot"]))?;
        Ok(Self {
            release: field("release")?,
            llvm: field("LLVM version")?,
            host: field("host")?,
            sysroot: sysroot.trim().into(),
        })
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    fn llvm_major(&self) -> &str {
        self.llvm.split('.').next().unwrap_or(&self.llvm)
    }

    /// bpf-linker must read the bitcode that this rustc writes: a build of it belongs to one rustc.
    fn linker_build(&self) -> String {
        format!("bpf-linker-{BPF_LINKER}-rustc-{}-llvm-{}", self.release, self.llvm)
    }

    fn rustlib(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib")
    }
}

/// Makes sure that everything is there.
pub(crate) fn run(tree: &Tree) -> Result<Toolchain> {
    let toolchain = Toolchain::find()?;
    rust_parts(&toolchain)?;
    programs(&PROGRAMS)?;
    linker(tree, &toolchain)?;
    Ok(toolchain)
}

/// Makes sure that programs are on the path; each stands with the Debian package that has it. For those that
/// only one verb needs.
pub(crate) fn programs(wanted: &[(&str, &str)]) -> Result<()> {
    let missing: BTreeSet<&str> = wanted
        .iter()
        .filter(|(program, _)| which(program).is_none())
        .map(|&(_, package)| package)
        .collect();
    if missing.is_empty() { Ok(()) } else { install_packages(missing) }
}

/// Makes sure of the standard library's source (`core` is built for BPF) and its build for the bare-metal guest.
fn rust_parts(toolchain: &Toolchain) -> Result<()> {
    let source = toolchain.rustlib().join("src/rust/library/core/Cargo.toml");
    let target = toolchain.rustlib().join(GUEST_TARGET);
    let wanted =
        [(source, ["component", "add", "rust-src"]), (target, ["target", "add", GUEST_TARGET])];
    for (file, arguments) in wanted {
        if file.exists() {
            continue;
        }
        let name = toolchain.sysroot.file_name().unwrap_or_default();
        let mut command = Command::new("rustup");
        say(&format!("rustup {} --toolchain {}", arguments.join(" "), name.to_string_lossy()));
        command.args(arguments).arg("--toolchain").arg(name);
        invoke::run(&mut command).with_context(|| {
            format!(
                "{} is missing.\nInstall it with rustup as shown, or build with a rustc that brings \
                 it (Debian: rustc-web, cargo-web, rust-web-src)",
                file.display()
            )
        })?;
    }
    Ok(())
}

fn linker(tree: &Tree, toolchain: &Toolchain) -> Result<()> {
    let installed = tree.tools().join("bin/bpf-linker");
    let stamp = tree.tools().join("bpf-linker.build");
    let build = toolchain.linker_build();
    if installed.exists() && fs::read_to_string(&stamp).is_ok_and(|found| found == build) {
        return Ok(());
    }
    let cached = cache().map(|cache| cache.join(&build));
    // It links LLVM dynamically: a copy that cannot start lacks that library and is built anew.
    let starts = |file: &Path| succeeds(Command::new(file).arg("--version"));
    if let Some(cached) = cached.as_deref().filter(|file| starts(file)) {
        say(&format!("bpf-linker {BPF_LINKER} from {}", cached.display()));
        place(cached, &installed)?;
    } else {
        build_linker(tree, toolchain)?;
        if let Some(cached) = cached
            && let Err(error) = place(&installed, &cached)
        {
            say(&format!("bpf-linker is not kept for other checkouts: {error:#}"));
        }
    }
    fs::write(&stamp, build).with_context(|| format!("write {}", stamp.display()))
}

fn build_linker(tree: &Tree, toolchain: &Toolchain) -> Result<()> {
    let major = toolchain.llvm_major();
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{major}"));
    if !prefix.join("bin/llvm-config").exists() {
        install_packages(BTreeSet::from([format!("llvm-{major}-dev").as_str()]))?;
    }
    say(&format!("building bpf-linker {BPF_LINKER} with LLVM {major}: a minute or two, once"));
    let mut command = invoke::cargo(tree);
    command
        .env("LLVM_PREFIX", &prefix)
        .args(["install", "--locked", "--quiet", "--force", "--no-default-features"])
        .arg(format!("bpf-linker@{BPF_LINKER}"))
        .arg(format!("--features=llvm-{major}"))
        .arg("--root")
        .arg(tree.tools())
        .arg("--target-dir")
        .arg(tree.tools().join("build"));
    invoke::run(&mut command)?;
    let build = tree.tools().join("build");
    fs::remove_dir_all(&build).with_context(|| format!("remove {}", build.display()))
}

/// Installs Debian packages, or says which commands would.
fn install_packages(packages: BTreeSet<&str>) -> Result<()> {
    let names = packages.into_iter().collect::<Vec<_>>();
    let prefix: &[&str] = match () {
        () if which("apt-get").is_none() => {
            bail!("install what Debian calls {}, then try again", names.join(" "))
        }
        () if is_root()? => &[],
        () if succeeds(Command::new("sudo").args(["-n", "true"])) => &["sudo", "-n"],
        () => bail!("as root: apt-get update && apt-get install {}", names.join(" ")),
    };
    let apt = |arguments: &[&str]| {
        let words = [prefix, &["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y"]];
        let words = [&words.concat(), arguments].concat();
        say(&words.join(" "));
        invoke::run(Command::new(words[0]).args(&words[1..]))
    };
    let known = |name: &&str| {
        let mut policy = Command::new("apt-cache");
        output(policy.args(["policy", name]))
            .is_ok_and(|told| told.contains("Candidate: ") && !told.contains("Candidate: (none)"))
    };
    if !names.iter().all(known) {
        apt(&["update"])?;
    }
    if let Some(name) = names.iter().find(|name| !known(name)) {
        bail!(
            "no package source here offers {name}. Debian 12 has recent LLVMs in its security archive \
             (deb http://deb.debian.org/debian-security bookworm-security main), newer releases in \
             the main one: add the source, then try again"
        );
    }
    apt(&[&["install", "--no-install-recommends"], &names[..]].concat())
}

/// Returns the user's cache, `None` where there is no home.
fn cache() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("remus/tools"))
}

/// Copies a program so that nobody sees half of it.
fn place(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().with_context(|| format!("{} has no folder", to.display()))?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let whole = to.with_extension(format!("new-{}", std::process::id()));
    fs::copy(from, &whole).with_context(|| format!("write {}", whole.display()))?;
    fs::rename(&whole, to).with_context(|| format!("write {}", to.display()))
}

fn say(what: &str) {
    eprintln!("setup: {what}");
}
