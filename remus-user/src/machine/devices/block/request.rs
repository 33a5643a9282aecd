//! A request, from its descriptor chain to its parts: a header that is read, data, and a byte of status.
//!
//! The guest may cut these into descriptors as it likes, so that they are found by counting bytes. What it writes
//! into its descriptors while the request is under way changes nothing: they are read once.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress};

use super::super::ring::{Breach, CHAIN_MAX, walk};
use super::SECTOR;
use crate::machine::memory::Ram;

/// Bytes of a header: what (u32), reserved (u32), first sector (u64).
const HEADER: usize = 16;

/// What the guest wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum What {
    Read,
    Write,
    Flush,
    Id,
    /// Something that is not on offer.
    Other,
}

/// A request; its lists are used again.
pub(super) struct Request {
    pub(super) head: u16,
    pub(super) what: What,
    /// The first sector that it is about.
    pub(super) sector: u64,
    /// Where the data is, or goes.
    pub(super) data: Buffers,
    pub(super) status: GuestAddress,
    /// The part of the chain that is not `data`'s, while it is read.
    other: Buffers,
}

impl Request {
    pub(super) fn new() -> Self {
        Self {
            head: 0,
            what: What::Other,
            sector: 0,
            data: Buffers::new(),
            status: GuestAddress(0),
            other: Buffers::new(),
        }
    }

    /// Reads a chain.
    pub(super) fn read(&mut self, chain: DescriptorChain<&Ram>, ram: &Ram) -> Result<(), Breach> {
        self.head = chain.head_index();
        let (out, inward) = (&mut self.other, &mut self.data);
        out.clear();
        inward.clear();
        walk(chain, |descriptor| {
            if descriptor.is_write_only() {
                inward.push(descriptor.addr(), descriptor.len());
            } else if inward.is_empty() {
                out.push(descriptor.addr(), descriptor.len());
            } else {
                return Err(Breach::Chain("a buffer for reading behind one for writing"));
            }
            Ok(())
        })?;
        let mut header = [0; HEADER];
        if out.left() < HEADER as u64 {
            return Err(Breach::Chain("a request without a header"));
        }
        out.read(ram, &mut header)?;
        let [what, sector] = [&header[..4], &header[8..]].map(number);
        self.sector = sector;
        self.status = inward.pop_byte().ok_or(Breach::Chain("a request without a status"))?;
        self.what = match u32::try_from(what).expect("four bytes") {
            VIRTIO_BLK_T_IN => What::Read,
            VIRTIO_BLK_T_OUT => What::Write,
            VIRTIO_BLK_T_FLUSH => What::Flush,
            VIRTIO_BLK_T_GET_ID => What::Id,
            _ => What::Other,
        };
        if self.what == What::Write {
            std::mem::swap(&mut self.data, &mut self.other);
        }
        Ok(())
    }

    /// Returns where on a disk of so many bytes the data begins; `None` if the data is not made of whole sectors of
    /// that disk.
    pub(super) fn place(&self, disk_bytes: u64) -> Option<u64> {
        let (bytes, begin) = (self.data.left(), self.sector.checked_mul(SECTOR)?);
        let end = begin.checked_add(bytes)?;
        (bytes.is_multiple_of(SECTOR) && end <= disk_bytes).then_some(begin)
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Buffers of the guest's, one behind another, and how far they are used up. Addresses are believed when they are
/// used.
pub(super) struct Buffers {
    all: Vec<(GuestAddress, u32)>,
    /// The buffer that is next, and how many of its bytes are used up.
    next: (usize, u32),
    left: u64,
}

impl Buffers {
    fn new() -> Self {
        Self { all: Vec::with_capacity(CHAIN_MAX), next: (0, 0), left: 0 }
    }

    fn clear(&mut self) {
        self.all.clear();
        self.next = (0, 0);
        self.left = 0;
    }

    fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    fn push(&mut self, address: GuestAddress, len: u32) {
        // A chain has at most as many descriptors as there is room for.
        self.all.push((address, len));
        self.left += u64::from(len);
    }

    /// Returns the number of bytes that are not used up.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Takes the last byte away. Nothing is used up yet.
    fn pop_byte(&mut self) -> Option<GuestAddress> {
        let (address, len) = self.all.iter_mut().rev().find(|(_, len)| *len > 0)?;
        *len -= 1;
        self.left -= 1;
        // One that would wrap around is no address of RAM.
        Some(GuestAddress(address.0.saturating_add((*len).into())))
    }

    /// Fills `to` from the next buffers, which have as much.
    pub(super) fn read(&mut self, ram: &Ram, to: &mut [u8]) -> Result<(), Breach> {
        self.each(to.len(), |address, from, len| {
            Ok(ram.read_slice(&mut to[from..from + len], address)?)
        })
    }

    /// Writes `from` into the next buffers, which have as much room. Marks the pages.
    pub(super) fn write(&mut self, ram: &Ram, from: &[u8]) -> Result<(), Breach> {
        self.each(from.len(), |address, at, len| Ok(ram.write_slice(&from[at..at + len], address)?))
    }

    /// Uses up `bytes`: shows each piece by its address, how many bytes came before it, and its length.
    fn each(
        &mut self,
        bytes: usize,
        mut piece: impl FnMut(GuestAddress, usize, usize) -> Result<(), Breach>,
    ) -> Result<(), Breach> {
        let mut before = 0;
        while before < bytes {
            let (n, used) = self.next;
            let (address, len) = self.all[n];
            let now = (bytes - before).min((len - used) as usize);
            if now > 0 {
                let at = address.0.checked_add(used.into());
                piece(at.map_or(GuestAddress(u64::MAX), GuestAddress), before, now)?;
                before += now;
            }
            let used = used + u32::try_from(now).expect("a part of a buffer");
            self.next = if used == len { (n + 1, 0) } else { (n, used) };
        }
        self.left -= bytes as u64;
        Ok(())
    }
}
