//! The image: what arrives on the bulk connection, put into the memory of the machine that waits to run it.
//!
//! A checkpoint is collected whole, committed by the brain, acked, and only then applied; the next is not looked
//! at before. So the memory is that of the newest committed checkpoint, except between an ack and the end of its
//! application, and nothing else happens on this thread in between.

use anyhow::{Context, Result};

use crate::{
    checkpoint::{Assembly, Batch, Content, MachineState, PAGE_SIZE},
    machine::Memory,
    os::boot_now,
    replication::Backup,
    wire::{Ack, Bulk, Chain, Frame, Session},
};

/// The receiving side of a session.
pub(super) struct Image {
    assembly: Assembly,
    chain: Chain,
}

impl Image {
    pub(super) fn new(ram_pages: u32, session: Session) -> Self {
        Self { assembly: Assembly::new(ram_pages), chain: Chain::new(session) }
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
        state: &mut MachineState,
    ) -> Result<Option<Ack>> {
        match Bulk::decode(frame)? {
            // It came before this image was made.
            Bulk::Attach(_) => anyhow::bail!("a second Attach"),
            Bulk::SyncPages(body) => {
                brain.handle_sync_pages()?;
                let batch = self.assembly.sync_batch(body)?;
                put(&batch, memory)?;
                self.chain.absorb_frame(frame);
            }
            Bulk::Begin(begin) => {
                brain.handle_begin(&begin, self.chain.digest())?;
                self.assembly.begin(begin.pages_max, begin.state_len)?;
                self.chain.absorb_frame(frame);
            }
            Bulk::Pages(body) => {
                brain.handle_part()?;
                self.assembly.add_pages(body)?;
                self.chain.absorb_frame(frame);
            }
            Bulk::State(body) => {
                brain.handle_part()?;
                self.assembly.add_state(body)?;
                self.chain.absorb_frame(frame);
            }
            Bulk::End(end) => {
                // A state that cannot be read must not be committed.
                let arrived =
                    MachineState::decode(self.assembly.state()).context("the machine's state")?;
                let ack = brain.handle_end(
                    boot_now(),
                    &end,
                    self.chain.digest(),
                    self.assembly.arrived(),
                )?;
                *state = arrived;
                return Ok(Some(ack));
            }
        }
        Ok(None)
    }

    /// Puts the pages of the checkpoint that was just committed into memory.
    ///
    /// # Errors
    /// Never for a batch that was taken in: its pages were checked to be of this RAM.
    pub(super) fn apply(&self, memory: &Memory) -> Result<()> {
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
