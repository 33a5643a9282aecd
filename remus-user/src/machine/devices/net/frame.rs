//! A frame's way out of a descriptor chain, and into one or more.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress};

use super::super::ring::{Breach, walk};
use super::header::NUM_BUFFERS;
use crate::machine::memory::Ram;

/// Copies what a transmit chain holds into `into`; `None` when it is more than that.
pub(super) fn gather(
    chain: DescriptorChain<&Ram>,
    ram: &Ram,
    into: &mut [u8],
) -> Result<Option<usize>, Breach> {
    let mut filled = 0;
    let mut fits = true;
    walk(chain, |descriptor| {
        if descriptor.is_write_only() {
            return Err(Breach::Chain("a buffer for writing in the transmit queue"));
        }
        let end = filled + descriptor.len() as usize;
        match into.get_mut(filled..end) {
            Some(to) if fits => ram.read_slice(to, descriptor.addr())?,
            _ => fits = false,
        }
        filled = end;
        Ok(())
    })?;
    Ok(fits.then_some(filled))
}

/// A frame behind its header, on its way into one receive chain after another.
pub(super) struct Scatter<'a> {
    bytes: &'a [u8],
    placed: usize,
    /// Where the two bytes of `num_buffers` went.
    num_buffers: [GuestAddress; 2],
}

impl<'a> Scatter<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, placed: 0, num_buffers: [GuestAddress(0); 2] }
    }

    pub(super) fn is_done(&self) -> bool {
        self.placed == self.bytes.len()
    }

    /// Fills a chain; how many bytes went into it.
    pub(super) fn fill(
        &mut self,
        chain: DescriptorChain<&Ram>,
        ram: &Ram,
    ) -> Result<usize, Breach> {
        let before = self.placed;
        walk(chain, |descriptor| {
            if !descriptor.is_write_only() {
                return Err(Breach::Chain("a buffer for reading in the receive queue"));
            }
            let rest = &self.bytes[self.placed..];
            let now = &rest[..rest.len().min(descriptor.len() as usize)];
            // Marks the pages: marks come before the used entry.
            ram.write_slice(now, descriptor.addr())?;
            for (n, address) in self.num_buffers.iter_mut().enumerate() {
                let inside = (NUM_BUFFERS + n).checked_sub(self.placed).filter(|n| *n < now.len());
                if let Some(inside) = inside {
                    // No overflow: the byte was just written.
                    *address = GuestAddress(descriptor.addr().0 + inside as u64);
                }
            }
            self.placed += now.len();
            Ok(())
        })?;
        Ok(self.placed - before)
    }

    /// Says in the header how many chains it took. All of it has been placed.
    pub(super) fn say_buffers(&self, ram: &Ram, buffers: u16) -> Result<(), Breach> {
        for (byte, address) in buffers.to_le_bytes().iter().zip(self.num_buffers) {
            ram.write_slice(&[*byte], address)?;
        }
        Ok(())
    }
}
