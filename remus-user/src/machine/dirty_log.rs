//! KVM's dirty log, with manual protection.
//!
//! Reading the log changes nothing: a page that was written stays in it, and stays writable, until it is
//! taken out, which write-protects it. What a page costs is the guest's fault at its next first write, so
//! who takes pages out (the hot set) decides the price; here is only how.

use std::ops::Range;
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
    pages.overwrite(|mut words| {
        for slot in layout.slots() {
            let (of_slot, rest) = words.split_at_mut(words_of(slot));
            ioctl::get_dirty_log(vm, slot, of_slot)?;
            words = rest;
        }
        Ok(())
    })
}

/// Takes `pages` out of the log and write-protects them.
pub(super) fn protect(vm: &VmFd, layout: Layout, pages: &PageSet) -> Result<()> {
    assert_eq!(pages.ram_pages(), layout.pages(), "a set over another RAM");
    let mut base = 0;
    for slot in layout.slots() {
        let end = base + words_of(slot);
        let in_use = pages.words_from(base).map(|(n, _)| n).take_while(|n| *n < end);
        for run in runs(in_use) {
            let first = u32::try_from((run.start - base) * 64).expect("within a slot");
            ioctl::clear_dirty_log(vm.as_raw_fd(), slot, first, &pages.words()[run])?;
        }
        base = end;
    }
    Ok(())
}

fn words_of(slot: Slot) -> usize {
    slot.pages.div_ceil(64) as usize
}

/// Returns runs of words that begin and end with a word of `in_use` and have no gap of more than [`GAP_WORDS`].
fn runs(in_use: impl Iterator<Item = usize>) -> impl Iterator<Item = Range<usize>> {
    let mut in_use = in_use.peekable();
    std::iter::from_fn(move || {
        let start = in_use.next()?;
        let mut end = start + 1;
        while let Some(n) = in_use.next_if(|n| n - end <= GAP_WORDS) {
            end = n + 1;
        }
        Some(start..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_bridge_small_gaps_and_cover_every_word_in_use() {
        let found: Vec<_> = runs([3, 5, 21, 60, 99].into_iter()).collect();
        assert_eq!(found, [3..22, 60..61, 99..100]);
        assert_eq!(runs([22, 39].into_iter()).count(), 1);
        assert_eq!(runs([22, 40].into_iter()).count(), 2);
        assert_eq!(runs(std::iter::empty()).count(), 0);
    }
}
