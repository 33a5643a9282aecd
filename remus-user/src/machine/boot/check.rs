//! Whether a machine can begin with given software, asked of the files before the machine is made.

use std::fs::File;

use anyhow::{Context, Result, ensure};
use remus_abi::boot::HIGH_RAM;

use super::elf::{self, Entered};
use super::file::open;
use super::kind::{self, KernelKind};
use super::{Software, bzimage, initrd};
use crate::machine::host::{self, Kind};
use crate::machine::layout::Layout;

const LINUX_ON_PVM: &str = "it is Linux, which KVM without VMX or SVM cannot run: use a host with hardware virtualization, or \
                            one whose VM passes it on";

/// What a kernel's file was found to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    BzImage,
    Pvh,
    /// For this machine itself. Where it does not know the boot block's magic, it may be made for something else.
    Bare {
        knows_the_magic: bool,
    },
}

/// Asks whether a machine with `memory_mib` of RAM can begin with the files of `software`, as far as they tell by
/// themselves.
///
/// # Errors
/// When one cannot be read, is of the wrong kind or cut short, or does not fit.
pub fn check_software(software: Software<'_>, memory_mib: u32) -> Result<Found> {
    let Software { kernel, initrd, cmdline } = software;
    let layout = Layout::of_mib(memory_mib);
    let (low, _) = layout.low_and_high_bytes();
    let mut file = open(kernel)?;
    let of_kernel = |file: &mut File| -> Result<(Found, u64, u64)> {
        match kind::of(file)? {
            KernelKind::BzImage => {
                ensure!(host::kind() != Kind::Pvm, "{LINUX_ON_PVM}");
                let header = bzimage::Header::read(file)?;
                header.check(cmdline, low)?;
                Ok((Found::BzImage, header.end(), header.initrd_limit()))
            }
            KernelKind::Elf => {
                let elf = elf::look(file)?;
                elf::check_fits(elf, layout)?;
                match elf.entered {
                    Entered::Pvh => {
                        ensure!(host::kind() != Kind::Pvm, "{LINUX_ON_PVM}");
                        Ok((Found::Pvh, elf.end, HIGH_RAM))
                    }
                    Entered::Bare { knows_the_magic } => {
                        ensure!(initrd.is_none(), "{}", super::NO_INITRD);
                        Ok((Found::Bare { knows_the_magic }, elf.end, 0))
                    }
                }
            }
        }
    };
    let found = of_kernel(&mut file).with_context(|| format!("kernel {}", kernel.display()));
    let (found, end, limit) = found?;
    if let Some(path) = initrd {
        initrd::check(path, end, low.min(limit), low)?;
    }
    Ok(found)
}
