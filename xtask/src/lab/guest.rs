//! `guest linux`: a guest of Debian's own unmodified parts, for our VMM to run: the cloud kernel, busybox,
//! redis-server, and guest.sh as /init.
//!
//! Equal packages and an equal script make equal bytes; files that would not change are not written.

use std::{
    collections::BTreeSet,
    fs,
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
    initramfs::add_modules,
    kernel::Kernel,
    packages::{self, Offer},
};
use crate::{build::refresh_with, invoke::output, setup, tree::Tree};

const INIT: &str = include_str!("guest.sh");
const KERNEL: &str = "linux-image-cloud-amd64";
/// The drivers of our devices. Debian builds none of them in.
const MODULES: [&str; 4] = ["virtio_mmio", "virtio_rng", "virtio_blk", "virtio_net"];
/// The file behind the name redis-server, which is a link into redis-tools.
const REDIS: [&str; 1] = ["usr/bin/redis-check-rdb"];

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Kind {
    /// Debian's cloud kernel with redis-server
    Linux,
}

pub(crate) fn run(tree: &Tree, kind: Kind) -> Result<()> {
    match kind {
        Kind::Linux => {
            for file in linux(tree)? {
                println!("{}", file.display());
            }
            Ok(())
        }
    }
}

/// Makes the Linux guest: its kernel and its initramfs.
pub(crate) fn linux(tree: &Tree) -> Result<[PathBuf; 2]> {
    setup::programs(&PROGRAMS)?;
    let kernel = Kernel::fetch(tree, KERNEL)?;
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "tmp"] {
        archive.folder(folder)?;
    }
    archive.program("init", INIT.as_bytes())?;
    archive.file("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")?;
    archive.program("bin/busybox", &packages::busybox(tree)?)?;
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
    let files = [folder.join("vmlinuz"), folder.join("initramfs.cpio.gz")];
    let image = kernel.image();
    let image = fs::read(&image).with_context(|| format!("read {}", image.display()))?;
    refresh_with(image, &files[0])?;
    refresh_with(gzip(archive.finish()?)?, &files[1])?;
    Ok(files)
}

/// Where the loader finds what `program` is linked with, and the loader itself. The libraries are this machine's:
/// setup has installed the package, and with it all that it depends on.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let told = output(Command::new("ldd").arg(program))?;
    if let Some(line) = told.lines().find(|line| line.contains("not found")) {
        bail!("{} lacks {}: as root, apt-get install redis-tools", program.display(), line.trim());
    }
    Ok(paths_of(&told))
}

/// The absolute paths in what ldd prints.
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
