//! `guest`: guests of stock parts. `guest linux` is made here; [`debian`] is the other.
//!
//! `guest linux`: a guest of Debian's own unmodified parts, for our VMM to run: the cloud kernel, busybox,
//! redis-server, guest.sh as /init, and dirty.rs, which writes to memory when it is told to. The kernel is there twice, as
//! its package has it and unpacked.
//!
//! Equal packages and an equal script make equal bytes; files that would not change are not written.

use std::{
    collections::BTreeSet,
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::{
    PROGRAMS,
    cpio::Archive,
    debian,
    initramfs::add_modules,
    kernel::Kernel,
    packages::{self, Offer},
    vmlinux,
};
use crate::{
    build::refresh_with,
    invoke::{self, output},
    setup,
    tree::Tree,
};

const INIT: &str = include_str!("guest.sh");
const KERNEL: &str = "linux-image-cloud-amd64";
/// The drivers of our devices, and the bus of another VMM's. Debian builds none of them in.
const MODULES: [&str; 5] = ["virtio_mmio", "virtio_pci", "virtio_rng", "virtio_blk", "virtio_net"];
/// A program of one file, without dependencies. It is an example of this package too, so that it is linted.
const DIRTY: &str = "xtask/src/lab/dirty.rs";
/// The file behind the name redis-server, which is a link into redis-tools.
const REDIS: [&str; 1] = ["usr/bin/redis-check-rdb"];

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Kind {
    /// Debian's cloud kernel with redis-server
    Linux,
    /// A whole Debian with systemd, redis-server, nginx and PostgreSQL, on a disk
    Debian,
}

pub(crate) fn run(tree: &Tree, kind: Kind, fresh: bool) -> Result<()> {
    let files = match kind {
        Kind::Linux => linux(tree)?.to_vec(),
        Kind::Debian => debian::make(tree, fresh)?.to_vec(),
    };
    for file in files {
        println!("{}", file.display());
    }
    Ok(())
}

/// Makes the Linux guest: its kernel, its initramfs, and its kernel unpacked.
pub(crate) fn linux(tree: &Tree) -> Result<[PathBuf; 3]> {
    setup::programs(&PROGRAMS)?;
    let kernel = Kernel::fetch(tree, KERNEL)?;
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "tmp"] {
        archive.folder(folder)?;
    }
    archive.program("init", INIT.as_bytes())?;
    archive.file("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")?;
    archive.program("bin/busybox", &packages::busybox(tree)?)?;
    archive.program("bin/dirty", &dirty(tree)?)?;
    add_modules(&mut archive, &kernel, &MODULES)?;

    let redis = Offer::find("redis-tools")?.unpack(tree, |_| Ok(()))?;
    archive.program("bin/redis-server", &redis.read(&REDIS)?)?;
    for library in libraries(&redis.root().join(REDIS[0]))? {
        let content = fs::read(&library).with_context(|| format!("read {}", library.display()))?;
        let path = library.to_str().context("a library's path is not text")?;
        archive.program(path, &content)?;
    }

    let folder = tree.lab().join("guest");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let files = ["vmlinuz", "initramfs.cpio.gz", "vmlinux"].map(|file| folder.join(file));
    let path = kernel.image();
    let image = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let vmlinux = vmlinux::of(&image).with_context(|| format!("unpack {}", path.display()))?;
    refresh_with(image, &files[0])?;
    refresh_with(gzip(archive.finish()?)?, &files[1])?;
    refresh_with(vmlinux, &files[2])?;
    Ok(files)
}

/// Returns the program of [`DIRTY`], which needs no library: built when its source is newer.
fn dirty(tree: &Tree) -> Result<Vec<u8>> {
    let (source, program) = (tree.root().join(DIRTY), tree.lab().join("dirty"));
    let changed = |file: &Path| fs::metadata(file).and_then(|metadata| metadata.modified());
    let is_new = changed(&program).ok() > changed(&source).ok();
    if !is_new {
        fs::create_dir_all(tree.lab())
            .with_context(|| format!("create {}", tree.lab().display()))?;
        let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.args(["--edition=2024", "-Copt-level=3", "-Cpanic=abort", "-Cstrip=symbols"]);
        rustc.arg("-Ctarget-feature=+crt-static").arg("-o").arg(&program);
        // By its name alone, so that no path of this machine is in the program.
        invoke::run(rustc.arg(DIRTY).current_dir(tree.root()))?;
    }
    fs::read(&program).with_context(|| format!("read {}", program.display()))
}

/// Returns where the loader finds what `program` is linked with, and the loader itself. The libraries are this
/// machine's: setup has installed the package, and with it all that it depends on.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let told = output(Command::new("ldd").arg(program))?;
    if let Some(line) = told.lines().find(|line| line.contains("not found")) {
        bail!("{} lacks {}: as root, apt-get install redis-tools", program.display(), line.trim());
    }
    Ok(paths_of(&told))
}

/// Returns the absolute paths in what ldd prints.
fn paths_of(told: &str) -> BTreeSet<PathBuf> {
    told.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// Compressed, without a time or a name in it.
fn gzip(bytes: Vec<u8>) -> Result<Vec<u8>> {
    let mut gzip = Command::new("gzip")
        .args(["-n", "-1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start gzip")?;
    let mut input = gzip.stdin.take().context("gzip has no input")?;
    // From another thread: gzip writes before it has read all.
    let writer = thread::spawn(move || input.write_all(&bytes));
    let compressed = gzip.wait_with_output().context("wait for gzip")?;
    if writer.join().is_ok_and(|written| written.is_ok()) && compressed.status.success() {
        return Ok(compressed.stdout);
    }
    bail!("gzip failed ({})", compressed.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found_and_the_vdso_is_not() {
        let told = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let paths = paths_of(told);
        let expected = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(paths, expected.map(PathBuf::from).into());
    }
}
