//! The boot image: what a guest begins with, at its start and after each reset.
//!
//! The image is taken once, of a machine that has been loaded and has never run. It has the pages that were written, and all
//! state beside RAM. Both hosts have the image from the beginning of a session on. So a reset is a checkpoint like any
//! other, with a mark: RAM is zeroed and gets the image's pages before the checkpoint's own are put in. And a guest that was
//! taken over can be reset where it runs now, though its kernel's file is elsewhere.
//!
//! Absent: a kernel that was replaced on disk meanwhile. The guest begins with what its machine was started with.

use super::{
    MachineState, PAGE_SIZE, Page, STATE_MAX, Staging, StateError,
    batch::{Batch, BatchError, Content},
    pack::Unpacker,
};

/// See the module.
pub struct BootImage {
    /// The pages in the parts in which they came, so that nothing is moved to make room for more.
    parts: Vec<Staging>,
    state: MachineState,
}

impl BootImage {
    /// Of the pages that are not zero, and the state in which the machine begins.
    pub fn new(pages: Staging, state: MachineState) -> Self {
        Self { parts: vec![pages], state }
    }

    /// Returns the pages that are not zero; all others are.
    pub fn pages(&self) -> impl Iterator<Item = (Page, &[u8; PAGE_SIZE])> {
        self.parts.iter().flat_map(Staging::iter)
    }

    /// Returns the pages that are not zero in parts, each of some size.
    pub fn parts(&self) -> &[Staging] {
        &self.parts
    }

    pub fn state(&self) -> &MachineState {
        &self.state
    }
}

/// Collects a boot image on arrival.
///
/// The collection never grows beyond one image of RAM and [`STATE_MAX`], whatever a peer sends.
pub struct BootAssembly {
    ram_pages: u32,
    unpacker: Unpacker,
    parts: Vec<Staging>,
    pages: usize,
    state: Vec<u8>,
}

impl BootAssembly {
    pub fn new(ram_pages: u32) -> Self {
        let unpacker = Unpacker::default();
        Self { ram_pages, unpacker, parts: Vec::new(), pages: 0, state: Vec::new() }
    }

    /// # Errors
    /// [`BatchError`]; the session must be dropped.
    pub fn add_pages(&mut self, body: &[u8]) -> Result<(), BatchError> {
        let body = self.unpacker.unpack(body)?;
        let batch = Batch::parse(body, self.ram_pages)?;
        let pages = batch.pages() as usize;
        if self.pages + pages > self.ram_pages as usize {
            return Err(BatchError::TooMuch);
        }
        let mut part = Staging::new(pages);
        for (page, content) in batch.iter() {
            match content {
                Content::Zero => {}
                Content::Raw(bytes) => {
                    *part.push(page).expect("room for all of them") = *bytes;
                }
                Content::Delta(_) => return Err(BatchError::NoBase(page)),
            }
        }
        self.parts.push(part);
        self.pages += pages;
        Ok(())
    }

    /// # Errors
    /// [`BatchError::TooMuch`] when no machine has so much.
    pub fn add_state(&mut self, body: &[u8]) -> Result<(), BatchError> {
        if self.state.len() + body.len() > STATE_MAX as usize {
            return Err(BatchError::TooMuch);
        }
        self.state.extend_from_slice(body);
        Ok(())
    }

    /// Returns the image that was collected, and begins anew.
    ///
    /// # Errors
    /// [`StateError`] when the state is not whole.
    pub fn take(&mut self) -> Result<BootImage, StateError> {
        let state = MachineState::decode(&self.state)?;
        let done = std::mem::replace(self, Self::new(self.ram_pages));
        Ok(BootImage { parts: done.parts, state })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Compression, Encoder, EncoderSettings};
    use super::*;

    const SETTINGS: EncoderSettings = EncoderSettings { copies: 4, compression: Compression::None };

    fn body(encoder: &mut Encoder, page: u32, value: u8) -> Vec<u8> {
        let mut staging = Staging::new(1);
        let bytes = staging.push(Page(page)).unwrap();
        bytes.fill(0);
        bytes[5] = value;
        let mut run = encoder.encode(&staging);
        run.next_batch().map(|batch| batch.parts().flatten().copied().collect()).unwrap()
    }

    fn encoded_state() -> Vec<u8> {
        let mut state = Vec::new();
        MachineState::default().encode(&mut state);
        state
    }

    #[test]
    fn what_was_sent_comes_out_but_for_pages_of_zeros() {
        let mut encoder = Encoder::new(4, SETTINGS);
        let mut assembly = BootAssembly::new(4);
        assembly.add_pages(&body(&mut encoder, 2, 7)).unwrap();
        assembly.add_pages(&body(&mut encoder, 1, 0)).unwrap();
        let state = encoded_state();
        let (first, second) = state.split_at(5);
        assembly.add_state(first).unwrap();
        assert!(assembly.take().is_err(), "a state of five bytes");
        assembly.add_state(second).unwrap();
        let image = assembly.take().unwrap();
        assert_eq!(
            image.pages().map(|(page, bytes)| (page, bytes[5])).collect::<Vec<_>>(),
            [(Page(2), 7)]
        );
        assert_eq!(image.state(), &MachineState::default());
        assert!(assembly.take().is_err(), "it was taken");
    }

    #[test]
    fn deltas_and_more_than_ram_has_are_refused() {
        let mut encoder = Encoder::new(2, SETTINGS);
        let mut assembly = BootAssembly::new(2);
        let whole = body(&mut encoder, 0, 7);
        assembly.add_pages(&whole).unwrap();
        let delta = body(&mut encoder, 0, 8);
        assert_eq!(assembly.add_pages(&delta), Err(BatchError::NoBase(Page(0))));
        assembly.add_pages(&whole).unwrap();
        assert_eq!(assembly.add_pages(&whole), Err(BatchError::TooMuch));
        assembly.add_state(&vec![0; STATE_MAX as usize]).unwrap();
        assert_eq!(assembly.add_state(&[0]), Err(BatchError::TooMuch));
    }
}
