//! A checkpoint on arrival: it is collected until it is whole, and checked so that to apply it cannot fail.
//!
//! Limits come first: [`begin`](Assembly::begin) bounds what may follow by what the machine can have, and every batch holds
//! at least one page, so a peer cannot make the assembly grow beyond one image of RAM.

use super::{
    PageSet,
    batch::{Batch, BatchError, Content},
    pack::Unpacker,
};

/// Most bytes of CPU and device state in a checkpoint.
pub const STATE_MAX: u32 = 16 << 20;

/// Collects one checkpoint at a time.
///
/// Call order, per session: [`new_session`](Self::new_session); [`sync_batch`](Self::sync_batch) for each
/// `SyncPages`, applied at once; then per checkpoint `begin`, [`add_pages`](Self::add_pages),
/// [`add_state`](Self::add_state), and, when the backup's brain has committed it ([`arrived`](Self::arrived)),
/// [`batches`](Self::batches) and [`state`](Self::state) to apply it.
pub struct Assembly {
    /// Pages that this session has carried whole: a delta needs one.
    whole: PageSet,
    unpacker: Unpacker,
    /// Bodies of `Pages`, one after another, and where each ends.
    bodies: Vec<u8>,
    ends: Vec<usize>,
    state: Vec<u8>,
    pages_max: u32,
    state_max: u32,
    pages: u32,
}

/// How much of a checkpoint has arrived.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Arrived {
    pub pages: u32,
    pub state_len: u32,
    /// Whether every page of RAM was carried whole in this session, live or in a checkpoint.
    pub covers_ram: bool,
}

impl Assembly {
    pub fn new(ram_pages: u32) -> Self {
        Self {
            whole: PageSet::new(ram_pages),
            unpacker: Unpacker::default(),
            bodies: Vec::new(),
            ends: Vec::new(),
            state: Vec::new(),
            pages_max: 0,
            state_max: 0,
            pages: 0,
        }
    }

    /// Forgets what has arrived of a checkpoint, and which pages have a base.
    pub fn new_session(&mut self) {
        self.whole.clear();
        self.forget(0, 0);
    }

    /// Checks a batch of the live sync, and returns it to be applied at once.
    ///
    /// # Errors
    /// [`BatchError`]; the session must be dropped.
    pub fn sync_batch<'b>(&'b mut self, body: &'b [u8]) -> Result<Batch<'b>, BatchError> {
        let body = self.unpacker.unpack(body)?;
        let batch = Batch::parse(body, self.whole.ram_pages())?;
        check_bases(&mut self.whole, &batch)?;
        Ok(batch)
    }

    /// Begins a checkpoint of at most `pages_max` pages and exactly `state_len` bytes of state.
    ///
    /// # Errors
    /// [`BatchError::TooMuch`] when the machine cannot have so much.
    pub fn begin(&mut self, pages_max: u32, state_len: u32) -> Result<(), BatchError> {
        if pages_max > self.whole.ram_pages() || state_len > STATE_MAX {
            return Err(BatchError::TooMuch);
        }
        self.forget(pages_max, state_len);
        Ok(())
    }

    /// # Errors
    /// [`BatchError`]; the session must be dropped.
    pub fn add_pages(&mut self, body: &[u8]) -> Result<(), BatchError> {
        let body = self.unpacker.unpack(body)?;
        let batch = Batch::parse(body, self.whole.ram_pages())?;
        let pages = self.pages.checked_add(batch.pages()).ok_or(BatchError::TooMuch)?;
        if pages > self.pages_max {
            return Err(BatchError::TooMuch);
        }
        check_bases(&mut self.whole, &batch)?;
        self.pages = pages;
        self.bodies.extend_from_slice(body);
        self.ends.push(self.bodies.len());
        Ok(())
    }

    /// # Errors
    /// [`BatchError::TooMuch`] when it is more than was announced.
    pub fn add_state(&mut self, body: &[u8]) -> Result<(), BatchError> {
        if self.state.len() + body.len() > self.state_max as usize {
            return Err(BatchError::TooMuch);
        }
        self.state.extend_from_slice(body);
        Ok(())
    }

    pub fn arrived(&self) -> Arrived {
        let state_len = u32::try_from(self.state.len()).expect("bounded by STATE_MAX");
        let covers_ram = self.whole.len() == self.whole.ram_pages() as usize;
        Arrived { pages: self.pages, state_len, covers_ram }
    }

    /// Returns the batches that were collected, in the order of arrival.
    pub fn batches(&self) -> impl Iterator<Item = Batch<'_>> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| {
            Batch::parse(&self.bodies[start..*end], self.whole.ram_pages())
                .expect("checked on arrival")
        })
    }

    pub fn state(&self) -> &[u8] {
        &self.state
    }

    fn forget(&mut self, pages_max: u32, state_max: u32) {
        self.bodies.clear();
        self.ends.clear();
        self.state.clear();
        (self.pages_max, self.state_max, self.pages) = (pages_max, state_max, 0);
    }
}

/// Checks that every delta has a base in this session, and adds the pages that come whole.
fn check_bases(whole: &mut PageSet, batch: &Batch<'_>) -> Result<(), BatchError> {
    for (page, content) in batch.iter() {
        match content {
            Content::Zero | Content::Raw(_) => whole.insert(page),
            Content::Delta(_) if whole.contains(page) => {}
            Content::Delta(_) => return Err(BatchError::NoBase(page)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Encoder, EncoderSettings, PAGE_SIZE, Page, Staging};
    use super::*;

    fn bodies(encoder: &mut Encoder, page: u32, at: usize, value: u8) -> Vec<u8> {
        let mut staging = Staging::new(1);
        let bytes = staging.push(Page(page)).unwrap();
        bytes.fill(1);
        bytes[at] = value;
        let mut run = encoder.encode(&staging);
        run.next_batch().map(|batch| batch.parts().flatten().copied().collect()).unwrap()
    }

    #[test]
    fn a_delta_from_another_session_is_refused() {
        let (mut encoder, mut assembly) =
            (Encoder::new(4, EncoderSettings::default()), Assembly::new(4));
        assembly.sync_batch(&bodies(&mut encoder, 2, 0, 5)).unwrap();
        assembly.begin(1, 0).unwrap();
        assembly.add_pages(&bodies(&mut encoder, 2, 0, 6)).unwrap();
        assembly.new_session();
        assembly.begin(1, 0).unwrap();
        let delta = bodies(&mut encoder, 2, 0, 7);
        assert_eq!(assembly.add_pages(&delta), Err(BatchError::NoBase(Page(2))));
    }

    #[test]
    fn more_than_was_announced_is_refused_before_it_is_kept() {
        let (mut encoder, mut assembly) =
            (Encoder::new(4, EncoderSettings::default()), Assembly::new(4));
        assert_eq!(assembly.begin(5, 0), Err(BatchError::TooMuch));
        assert_eq!(assembly.begin(1, STATE_MAX + 1), Err(BatchError::TooMuch));
        assembly.begin(1, 3).unwrap();
        assembly.add_pages(&bodies(&mut encoder, 0, 0, 2)).unwrap();
        assert_eq!(assembly.add_pages(&bodies(&mut encoder, 1, 0, 2)), Err(BatchError::TooMuch));
        assembly.add_state(&[1, 2]).unwrap();
        assert_eq!(assembly.add_state(&[3, 4]), Err(BatchError::TooMuch));
        assert_eq!(assembly.arrived(), Arrived { pages: 1, state_len: 2, covers_ram: false });
        assert_eq!(
            assembly.batches().flat_map(|b| b.iter().map(|(p, _)| p)).collect::<Vec<_>>(),
            [Page(0)]
        );
        assert_eq!(assembly.bodies.len(), 8 + 8 + PAGE_SIZE);
    }
}
