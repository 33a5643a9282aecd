//! A guest that stands still.

use anyhow::Result;

use super::clock;
use super::devices::board::Board;
use super::memory::Memory;
use super::vcpu::Vcpus;
use super::vm::Vm;
use crate::checkpoint::{MachineState, Page, PageSet, Staging};

/// The pause: while it lives no vCPU runs the guest, no frame is moved and no device thread has a
/// turn. From the harvest on
/// nothing at all writes guest RAM.
///
/// The order within: [`capture`](Self::capture), [`harvest`](Self::harvest), [`copy`](Self::copy),
/// [`reprotect`](Self::reprotect), all before it ends. A page may only be reprotected in the pause that
/// copied it: taking it out of the record later would lose what was written in between.
///
/// Dropping it resumes the guest.
#[must_use = "the guest resumes when this is dropped"]
pub struct Paused<'a> {
    vcpus: &'a Vcpus,
    vm: &'a Vm,
    board: &'a Board,
}

impl<'a> Paused<'a> {
    /// Makes the permission of a guest that has been stopped already, with device threads parked.
    pub(super) fn new(vcpus: &'a Vcpus, vm: &'a Vm, board: &'a Board) -> Self {
        Self { vcpus, vm, board }
    }

    /// Writes all state beside RAM to `state`, whose buffers are used again. Once in a pause.
    ///
    /// # Errors
    /// When KVM did not give a part of it; `state` is of no use then, and the guest unharmed.
    pub fn capture(&mut self, state: &mut MachineState) -> Result<()> {
        // What is not the vCPUs' while they are at theirs. An interrupt on its way between the two is in
        // neither, which is why a restore raises them all.
        self.vm.save_chips(&mut state.chips)?;
        state.clock = clock::save(self.vm.fd())?;
        self.board.save(&mut state.devices, &mut state.serial);
        self.vcpus.take_states(&mut state.vcpus)
    }

    /// Makes `pages` all pages that may have been written since they were last reprotected: the guest's,
    /// which stay reported until then, and the VMM's, which are reported once.
    ///
    /// So each of them is in this checkpoint, or the caller keeps it for the next.
    ///
    /// # Errors
    /// When KVM refuses, as it does while pages are not tracked.
    pub fn harvest(&mut self, pages: &mut PageSet) -> Result<()> {
        // A vCPU that is put aside by the kernel may still write to the guest (its steal time), so not
        // before it has captured itself.
        self.vcpus.wait_captured()?;
        self.vm.dirty_pages(pages)?;
        self.vm.memory().harvest_touched(pages);
        Ok(())
    }

    /// Appends copies of `pages` to `staging`.
    ///
    /// # Errors
    /// When the staging is full, or a page is beyond the end of RAM; what was copied until then stays.
    pub fn copy(
        &mut self,
        pages: impl IntoIterator<Item = Page>,
        staging: &mut Staging,
    ) -> Result<()> {
        self.vm.memory().copy_with(Some(self.vcpus.help()), pages, staging)
    }

    /// Guest RAM, which stands still.
    pub fn memory(&self) -> &Memory {
        self.vm.memory()
    }

    /// Takes `pages` out of the record and write-protects them: each is reported again at its next write.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn reprotect(&mut self, pages: &PageSet) -> Result<()> {
        self.vm.protect(pages)
    }

    /// Ends the pause without resuming the guest, which never runs again: the machine is of use to nobody.
    pub fn keep(self) {
        std::mem::forget(self);
    }

    /// Resumes the guest, as dropping does.
    pub fn resume(self) {}
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        // A pause without capture may end before the vCPUs are done. One that never is has been waited for
        // long enough, and keeps the guest from running on its own.
        if let Err(e) = self.vcpus.wait_captured() {
            tracing::error!("the guest is not resumed: {e:#}");
            return;
        }
        self.board.parking().resume();
        self.vcpus.resume();
    }
}
