//! The image: what arrives on the bulk connection, put into the memory of the machine that waits to run it.
//!
//! A checkpoint is collected whole, committed by the brain, acked, and only then applied; the next is not looked
//! at before. So the memory is that of the newest committed checkpoint, except between an ack and the end of its
//! application, and nothing else happens on this thread in between.
//!
//! What the guest begins with comes before all else, and is kept beside the image: a checkpoint in which the guest was
//! reset builds on that, and so does a reset after a takeover.

use anyhow::{Context, Result, ensure};

use super::kept::KeptFrames;
use crate::{
    checkpoint::{Assembly, Batch, BootAssembly, BootImage, Content, MachineState, PAGE_SIZE},
    machine::Memory,
    os::boot_now,
    replication::Backup,
    wire::{Ack, BulkToBackup, Chain, Frame, Session},
};

/// What is beside RAM of the newest committed checkpoint.
#[derive(Default)]
pub(super) struct BesideRam {
    pub(super) state: MachineState,
    /// `None` only before the first.
    pub(super) boot: Option<BootImage>,
    /// Frames that the guest was given after it.
    pub(super) kept: KeptFrames,
}

/// The receiving side of a session.
pub(super) struct Receiver {
    /// `None` once the first checkpoint has it.
    boot: Option<BootAssembly>,
    assembly: Assembly,
    chain: Chain,
    vcpus: usize,
    /// The guest was reset in the checkpoint that arrives.
    reset: bool,
}

impl Receiver {
    pub(super) fn new(ram_pages: u32, vcpus: usize, session: Session) -> Self {
        Self {
            boot: Some(BootAssembly::new(ram_pages)),
            assembly: Assembly::new(ram_pages),
            chain: Chain::new(session),
            vcpus,
            reset: false,
        }
    }

    /// Takes a frame in. An ack is to be sent at once; what it commits is then applied by
    /// [`apply`](Self::apply), before anything else.
    ///
    /// # Errors
    /// When no honest primary sends this here and now: the session must be dropped.
    pub(super) fn take(
        &mut self,
        frame: &Frame<'_>,
        brain: &mut Backup,
        memory: &Memory,
        beside: &mut BesideRam,
    ) -> Result<Option<Ack>> {
        match BulkToBackup::decode(frame)? {
            // It came before this image was made.
            BulkToBackup::Attach(_) => anyhow::bail!("a second Attach"),
            BulkToBackup::BootPages(body) => {
                brain.handle_boot_part()?;
                self.boot.as_mut().context("a second boot image")?.add_pages(body)?;
                self.chain.absorb_frame(frame);
            }
            BulkToBackup::BootState(body) => {
                brain.handle_boot_part()?;
                self.boot.as_mut().context("a second boot image")?.add_state(body)?;
                self.chain.absorb_frame(frame);
            }
            BulkToBackup::SyncPages(body) => {
                brain.handle_sync_pages()?;
                let batch = self.assembly.sync_batch(body)?;
                put(&batch, memory)?;
                self.chain.absorb_frame(frame);
            }
            BulkToBackup::Begin(begin) => {
                brain.handle_begin(&begin, self.chain.digest())?;
                self.assembly.begin(begin.pages_max, begin.state_len)?;
                self.reset = begin.reset;
                self.chain.absorb_frame(frame);
            }
            BulkToBackup::Pages(body) => {
                brain.handle_part()?;
                self.assembly.add_pages(body)?;
                self.chain.absorb_frame(frame);
            }
            BulkToBackup::State(body) => {
                brain.handle_part()?;
                self.assembly.add_state(body)?;
                self.chain.absorb_frame(frame);
            }
            BulkToBackup::End(end) => {
                // A state that cannot be read must not be committed.
                let arrived =
                    MachineState::decode(self.assembly.state()).context("the machine's state")?;
                let boot = self.boot.as_mut().map(BootAssembly::take).transpose();
                let boot = boot.context("what the guest begins with")?;
                let is_ours = |boot: &BootImage| boot.state().vcpus.len() == self.vcpus;
                ensure!(boot.as_ref().is_none_or(is_ours), "a boot image of another machine");
                let ack = brain.handle_end(
                    boot_now(),
                    &end,
                    self.chain.digest(),
                    self.assembly.arrived(),
                )?;
                beside.state = arrived;
                beside.kept.commit(ack.epoch);
                if let Some(boot) = boot {
                    beside.boot = Some(boot);
                    self.boot = None;
                }
                return Ok(Some(ack));
            }
        }
        Ok(None)
    }

    /// Puts the checkpoint that was just committed into memory.
    ///
    /// # Errors
    /// Never for what was taken in: its pages were checked to be of this RAM.
    pub(super) fn apply(&self, memory: &Memory, beside: &BesideRam) -> Result<()> {
        if self.reset {
            memory.reset(beside.boot.as_ref().context("no boot image")?, &mut || {})?;
        }
        self.assembly.batches().try_for_each(|batch| put(&batch, memory))
    }
}

fn put(batch: &Batch<'_>, memory: &Memory) -> Result<()> {
    for (page, content) in batch.iter() {
        match content {
            Content::Zero => memory.write_page(page, &[0; PAGE_SIZE])?,
            Content::Raw(bytes) => memory.write_page(page, bytes)?,
            Content::Delta(delta) => {
                for (offset, bytes) in delta.runs() {
                    memory.write_in_page(page, offset, bytes)?;
                }
            }
        }
    }
    Ok(())
}
