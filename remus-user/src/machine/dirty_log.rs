//! KVM's dirty log, with manual protection.
//!
//! Reading the log changes nothing: a page that was written stays in it, and stays writable, until it is
//! taken out, which write-protects it. What a page costs is the guest's fault at its next first write, so
//! who takes pages out (the hot set) decides the price; here is only how.

use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, kvm_enable_cap,
};
use kvm_ioctls::VmFd;

use super::ioctl;
use super::layout::{Layout, Slot};
use crate::checkpoint::PageSet;

/// Zero words that one CLEAR call may carry along: a call costs about as much as looking at these.
const GAP_WORDS: usize = 16;

/// Makes the VM keep a manual log. Where KVM offers it, a log begins with every page set, so that turning
/// it on protects nothing at once.
pub(super) fn enable_manual(vm: &VmFd) -> Result<()> {
    let offered = vm.check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into());
    let wanted = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
    let mut cap = kvm_enable_cap { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, ..Default::default() };
    cap.args[0] = u64::from(wanted) & u64::try_from(offered).unwrap_or(0);
    vm.enable_cap(&cap).context("enable KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2")
}

/// Overwrites `pages` with the log.
pub(super) fn read(vm: &VmFd, layout: Layout, pages: &mut PageSet) -> Result<()> {
    assert_eq!(pages.ram_pages(), layout.pages(), "a set over another RAM");
    let mut words = pages.words_mut();
    for slot in layout.slots() {
        let (of_slot, rest) = words.split_at_mut(slot.pages.div_ceil(64) as usize);
        ioctl::get_dirty_log(vm, slot, of_slot)?;
        words = rest;
    }
    Ok(())
}

/// Takes `pages` out of the log and write-protects them.
pub(super) fn protect(vm: &VmFd, layout: Layout, pages: &PageSet) -> Result<()> {
    assert_eq!(pages.ram_pages(), layout.pages(), "a set over another RAM");
    let mut words = pages.words();
    for slot in layout.slots() {
        let (of_slot, rest) = words.split_at(slot.pages.div_ceil(64) as usize);
        protect_slot(vm, slot, of_slot)?;
        words = rest;
    }
    Ok(())
}

fn protect_slot(vm: &VmFd, slot: Slot, words: &[u64]) -> Result<()> {
    let mut at = 0;
    while let Some((start, end)) = next_run(words, at) {
        let first = u32::try_from(start * 64).expect("within a slot");
        ioctl::clear_dirty_log(vm.as_raw_fd(), slot, first, &words[start..end])?;
        at = end;
    }
    Ok(())
}

/// The next run of words, from `at`, that begins and ends with a set one and has no gap of more than
/// [`GAP_WORDS`].
fn next_run(words: &[u64], at: usize) -> Option<(usize, usize)> {
    let start = at + words.get(at..)?.iter().position(|word| *word != 0)?;
    let mut end = start + 1;
    for (n, word) in words.iter().enumerate().skip(end) {
        if *word != 0 {
            end = n + 1;
        } else if n - end >= GAP_WORDS {
            break;
        }
    }
    Some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_bridge_small_gaps_and_cover_every_set_word() {
        let mut words = [0; 100];
        for n in [3, 5, 21, 60, 99] {
            words[n] = 1;
        }
        assert_eq!(next_run(&words, 0), Some((3, 22)));
        assert_eq!(next_run(&words, 22), Some((60, 61)));
        assert_eq!(next_run(&words, 61), Some((99, 100)));
        assert_eq!(next_run(&words, 100), None);
        assert_eq!(next_run(&[0; 4], 0), None);
    }
}
