//! Buffers that travel between the engine and its sender, and how many of them there are.

use remus_abi::{Epoch, Term};

use crate::checkpoint::{MachineState, Staging, Verdict};

/// Pages that a fresh staging has room for; it grows when an epoch dirties more.
const STAGING_PAGES: usize = 2048;

/// One set of buffers, and what is in them.
pub(crate) struct Shipment {
    pub(super) staging: Staging,
    pub(super) state: MachineState,
    pub(super) payload: Payload,
    /// The sender's answer: what the comparer found, page by page.
    pub(super) verdicts: Vec<Verdict>,
    /// The sender's answer: bytes written for it.
    pub(super) bytes: u64,
    /// The sender's own: the machine's state as bytes.
    pub(super) encoded: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Payload {
    /// Pages of the live sync.
    Sync,
    /// A whole checkpoint.
    Checkpoint {
        term: Term,
        epoch: Epoch,
        predecessor: Epoch,
        /// The guest was reset in it.
        reset: bool,
    },
}

impl Shipment {
    fn new() -> Self {
        Self {
            staging: Staging::new(STAGING_PAGES),
            state: MachineState::default(),
            payload: Payload::Sync,
            verdicts: Vec::new(),
            bytes: 0,
            encoded: Vec::new(),
        }
    }
}

/// The shipments that are with the engine. None is made before the first session: a takeover does not wait for their
/// memory.
#[derive(Default)]
pub(super) struct Spare {
    #[expect(clippy::vec_box, reason = "they travel in their boxes, and come back in them")]
    here: Vec<Box<Shipment>>,
    /// How many there are in all.
    made: usize,
}

impl Spare {
    /// Makes shipments until there are `count` in all.
    pub(super) fn make(&mut self, count: usize) {
        while self.made < count {
            self.here.push(Box::new(Shipment::new()));
            self.made += 1;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.here.is_empty()
    }

    /// # Panics
    /// When there is none: the caller asked [`is_empty`](Self::is_empty).
    pub(super) fn take(&mut self) -> Box<Shipment> {
        let mut shipment = self.here.pop().expect("the caller looked");
        shipment.staging.clear();
        shipment
    }

    pub(super) fn put_back(&mut self, shipment: Box<Shipment>) {
        self.here.push(shipment);
    }

    /// Makes room for `pages` pages in the buffer that the next pause fills, so that no pause pays a first touch.
    pub(super) fn make_room(&mut self, pages: usize) {
        if let Some(next) = self.here.last_mut() {
            next.staging.reserve(pages);
        }
    }
}
