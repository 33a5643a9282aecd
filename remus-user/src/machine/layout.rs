//! Where RAM lies: page numbers, guest addresses and KVM's memory slots.
//!
//! RAM is one run of pages on the host and in checkpoints ([`Page`] 0, 1, 2 ...). To the guest it has a hole
//! below 4 GiB, where the devices are: what does not fit under the hole goes on above it. Each side of the
//! hole is one memory slot. Both sides begin at a multiple of 64 pages, so that a slot's dirty log is whole
//! words of a `PageSet`.

use remus_abi::boot::{HIGH_RAM, RAM_HOLE};

use crate::checkpoint::{PAGE_SIZE, Page};

const PAGES_PER_MIB: u32 = 256;
const HOLE_PAGE: u32 = 3 * 1024 * PAGES_PER_MIB;
const _: () = assert!(PAGES_PER_MIB as usize * PAGE_SIZE == 1 << 20);
const _: () = assert!(HOLE_PAGE as u64 * PAGE_SIZE as u64 == RAM_HOLE);

/// The pages of a machine's RAM and their guest addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    pages: u32,
}

/// One run of RAM in guest addresses, and the memory slot that holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    pub number: u32,
    /// Its first guest-physical address.
    pub address: u64,
    pub first: Page,
    pub pages: u32,
}

impl Layout {
    /// Makes a RAM of `mib` mebibytes.
    pub fn of_mib(mib: u32) -> Self {
        Self { pages: mib * PAGES_PER_MIB }
    }

    /// Returns the size of RAM in pages.
    pub fn pages(self) -> u32 {
        self.pages
    }

    /// Returns the size of RAM in bytes.
    pub fn bytes(self) -> usize {
        self.pages as usize * PAGE_SIZE
    }

    /// Returns the bytes of RAM that begin at guest address 0, and those that begin at [`HIGH_RAM`].
    pub fn low_and_high_bytes(self) -> (u64, u64) {
        let low = self.pages.min(HOLE_PAGE);
        (u64::from(low) * PAGE_SIZE as u64, u64::from(self.pages - low) * PAGE_SIZE as u64)
    }

    /// Returns the slots in ascending order: one, or two when RAM reaches beyond the hole.
    pub fn slots(self) -> impl Iterator<Item = Slot> {
        let low = self.pages.min(HOLE_PAGE);
        let high = self.pages - low;
        let low = Slot { number: 0, address: 0, first: Page(0), pages: low };
        let high = Slot { number: 1, address: HIGH_RAM, first: Page(HOLE_PAGE), pages: high };
        [low, high].into_iter().filter(|slot| slot.pages > 0)
    }

    /// Returns the guest-physical address of a page; `None` beyond the end of RAM.
    pub fn address_of(self, page: Page) -> Option<u64> {
        let at = u64::from(page.0) * PAGE_SIZE as u64;
        (page.0 < self.pages).then_some(if page.0 < HOLE_PAGE {
            at
        } else {
            at - RAM_HOLE + HIGH_RAM
        })
    }

    /// Returns the page that holds a guest-physical address; `None` in the hole and beyond the end.
    pub fn page_at(self, address: u64) -> Option<Page> {
        let offset = if address < RAM_HOLE {
            address
        } else {
            address.checked_sub(HIGH_RAM)?.checked_add(RAM_HOLE)?
        };
        let page = u32::try_from(offset / PAGE_SIZE as u64).ok()?;
        (page < self.pages).then_some(Page(page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn ram_below_the_hole_is_one_slot_and_numbers_itself() {
        let layout = Layout::of_mib(64);
        assert_eq!(layout.slots().count(), 1);
        assert_eq!(layout.address_of(Page(5)), Some(5 * 4096));
        assert_eq!(layout.page_at(5 * 4096 + 17), Some(Page(5)));
        assert_eq!(layout.address_of(Page(64 * 256)), None);
        assert_eq!(layout.page_at(64 << 20), None);
    }

    #[test]
    fn the_hole_counts_no_pages() {
        let layout = Layout::of_mib(4096);
        let slots: Vec<_> = layout.slots().collect();
        assert_eq!(slots.len(), 2);
        assert_eq!(slots[1].address, 4 * GIB);
        assert_eq!(slots[0].pages + slots[1].pages, layout.pages());
        assert_eq!(slots[1].first.0 % 64, 0);
        let last_low = Page(slots[1].first.0 - 1);
        assert_eq!(layout.address_of(last_low), Some(3 * GIB - 4096));
        assert_eq!(layout.address_of(slots[1].first), Some(4 * GIB));
        for hole in [3 * GIB, 4 * GIB - 1, 5 * GIB, u64::MAX] {
            assert_eq!(layout.page_at(hole), None, "{hole:#x}");
        }
    }

    #[test]
    fn every_page_comes_back_from_its_address() {
        let layout = Layout::of_mib(5000);
        for n in (0..layout.pages()).step_by(4099) {
            let address = layout.address_of(Page(n)).unwrap();
            assert_eq!(layout.page_at(address + 4095), Some(Page(n)));
        }
    }
}
