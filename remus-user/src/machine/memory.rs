//! Guest RAM.
//!
//! One anonymous mapping on the host, touched when made (a first touch costs 6 to 23 us in a nested VM, and
//! neither a pause nor a takeover can spare that), in huge pages where the host has them.
//!
//! No Rust reference into it exists: the guest writes it at any time. Devices go through vm-memory, which
//! marks what it writes in [`Touched`]; whole pages go through [`Memory`]. Raw pointers to RAM stay in this
//! file.

use std::io;
use std::ptr;

use anyhow::{Context, Result, ensure};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};
use xxhash_rust::xxh3::Xxh3;

use super::copy::{PageCopier, Strides};
use super::help::Help;
use super::layout::Layout;
use super::touched::Touched;
use crate::checkpoint::{BootImage, PAGE_SIZE, Page, PageSet, StagedPage, Staging};

/// Guest RAM as vm-memory's users see it.
pub(super) type Ram = GuestMemoryMmap<Touched>;

const HUGE_PAGE: usize = 2 << 20;
/// Fewer pages are copied before anybody has come to help.
const SHARED_MIN: usize = 256;

/// Guest RAM, shared by the machine and whoever fills it from checkpoints.
pub struct Memory {
    /// Before `mapping`, which it points into.
    ram: Ram,
    mapping: Mapping,
    layout: Layout,
    copier: PageCopier,
}

impl Memory {
    /// RAM of this layout, all zero and all present.
    ///
    /// # Errors
    /// When the host has not that much memory.
    pub(super) fn new(layout: Layout) -> Result<Self> {
        let mapping = Mapping::new(layout.bytes())
            .with_context(|| format!("map {} MiB of guest memory", layout.bytes() >> 20))?;
        let mut regions = Vec::new();
        for slot in layout.slots() {
            let bytes = slot.pages as usize * PAGE_SIZE;
            let builder = MmapRegionBuilder::new_with_bitmap(bytes, Touched::new(slot.pages))
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            // SAFETY: the slots of a layout lie one after another within its bytes, which are mapped for
            // as long as `mapping` lives; it is dropped after `ram`.
            let region = unsafe { builder.with_raw_mmap_pointer(mapping.page(slot.first)) };
            let region = region.build().context("describe guest memory")?;
            regions.extend(GuestRegionMmap::new(region, GuestAddress(slot.address)));
        }
        let ram = GuestMemoryMmap::from_regions(regions).context("describe guest memory")?;
        Ok(Self { ram, mapping, layout, copier: PageCopier::detect() })
    }

    /// Returns whether the kernel may swap RAM out, so that whoever touches it waits for a disk: this host has swap,
    /// and RAM is not locked, since the limit on that is lower (RLIMIT_MEMLOCK).
    pub fn may_be_swapped(&self) -> bool {
        // One line of headings, and one for each place.
        let has_swap =
            || std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1);
        !self.mapping.is_locked && has_swap()
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    pub(super) fn ram(&self) -> &Ram {
        &self.ram
    }

    /// Returns the host address of a slot's first page, for KVM.
    pub(super) fn host_address(&self, first: Page) -> u64 {
        self.mapping.page(first) as u64
    }

    /// Writes a whole page.
    ///
    /// # Errors
    /// When the page is beyond the end of RAM.
    pub fn write_page(&self, page: Page, from: &[u8; PAGE_SIZE]) -> Result<()> {
        self.check(page)?;
        // SAFETY: the page is within the mapping, as just checked, and `from` is outside of it. The guest
        // may access the page meanwhile, as it may all of its RAM; no Rust reference to it exists.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), self.mapping.page(page), PAGE_SIZE) };
        self.mark(page);
        Ok(())
    }

    /// Writes `bytes` at `offset` of a page: for deltas.
    ///
    /// # Errors
    /// When they reach beyond the page, or the page is beyond the end of RAM.
    pub fn write_in_page(&self, page: Page, offset: usize, bytes: &[u8]) -> Result<()> {
        self.check(page)?;
        ensure!(
            offset.checked_add(bytes.len()).is_some_and(|end| end <= PAGE_SIZE),
            "{} bytes at {offset} do not fit a page",
            bytes.len()
        );
        // SAFETY: as in `write_page`, and the range is within the page.
        unsafe {
            let to = self.mapping.page(page).add(offset);
            ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
        self.mark(page);
        Ok(())
    }

    /// Makes RAM what a guest begins with. `between` is called every few milliseconds of the work.
    ///
    /// # Errors
    /// When a page of `boot` is beyond the end of RAM; what was written until then stays.
    pub fn reset(&self, boot: &BootImage, between: &mut dyn FnMut()) -> Result<()> {
        /// Some 4 ms.
        const AT_ONCE: usize = 32 << 20;
        for begin in (0..self.mapping.bytes).step_by(AT_ONCE) {
            let bytes = AT_ONCE.min(self.mapping.bytes - begin);
            // SAFETY: a part of the mapping; otherwise as in `write_page`.
            unsafe { ptr::write_bytes(self.mapping.start.add(begin), 0, bytes) };
            between();
        }
        self.touch_all();
        boot.pages().try_for_each(|(page, bytes)| self.write_page(page, bytes))
    }

    /// Reads a whole page.
    ///
    /// # Errors
    /// When the page is beyond the end of RAM.
    pub fn read_page(&self, page: Page, to: &mut [u8; PAGE_SIZE]) -> Result<()> {
        self.check(page)?;
        // SAFETY: as in `write_page`.
        unsafe { ptr::copy_nonoverlapping(self.mapping.page(page), to.as_mut_ptr(), PAGE_SIZE) };
        Ok(())
    }

    /// Returns a digest of all RAM. It is that of an instant only while the guest does not run.
    pub fn digest(&self) -> u64 {
        let mut digest = Xxh3::new();
        let mut copy = [0; PAGE_SIZE];
        for n in 0..self.layout.pages() {
            self.read_page(Page(n), &mut copy).expect("a page of this RAM");
            digest.update(&copy);
        }
        digest.digest()
    }

    /// Appends copies of `pages` to `staging`.
    ///
    /// # Errors
    /// When the staging is full or a page is beyond the end of RAM; what was copied until then stays.
    pub(super) fn copy(
        &self,
        pages: impl IntoIterator<Item = Page>,
        staging: &mut Staging,
    ) -> Result<()> {
        self.copy_with(None, pages, staging)
    }

    /// Copies pages as above, in a pause, with whoever comes to help.
    pub(super) fn copy_with(
        &self,
        help: Option<&Help>,
        pages: impl IntoIterator<Item = Page>,
        staging: &mut Staging,
    ) -> Result<()> {
        let first = staging.len();
        let listed = pages.into_iter().try_for_each(|page| {
            self.check(page)?;
            staging.push(page).context("more dirty pages than the staging holds")?;
            Ok(())
        });
        let (pages, copies) = staging.from_mut(first);
        match help {
            Some(help) if pages.len() >= SHARED_MIN => {
                let strides = Strides::new(pages, copies);
                help.share(&|| {
                    while let Some((pages, copies)) = strides.next() {
                        self.copy_checked(pages, copies);
                    }
                });
            }
            Some(_) | None => self.copy_checked(pages, copies),
        }
        listed
    }

    /// Copies pages of this RAM.
    fn copy_checked(&self, pages: &[Page], copies: &mut [StagedPage]) {
        for (page, copy) in pages.iter().zip(copies) {
            // SAFETY: the page is within the mapping: the caller has checked it.
            unsafe { self.copier.copy(copy.bytes_mut(), self.mapping.page(*page)) };
        }
        self.copier.finish();
    }

    /// Adds the pages that the VMM wrote since the last time, and forgets them.
    pub(super) fn harvest_touched(&self, pages: &mut PageSet) {
        self.each_touched(|region, base| region.harvest(|n, word| pages.add(base + n, word)));
    }

    /// Adds the pages that the VMM wrote since the last harvest.
    pub(super) fn look_at_touched(&self, pages: &mut PageSet) {
        self.each_touched(|region, base| region.look(|n, word| pages.add(base + n, word)));
    }

    fn each_touched(&self, mut each: impl FnMut(&Touched, usize)) {
        let mut base = 0;
        for region in self.ram.iter() {
            each(touched(region), base);
            base += usize::try_from(region.len()).expect("mapped") / PAGE_SIZE / 64;
        }
    }

    /// Marks all of RAM as written.
    pub(super) fn touch_all(&self) {
        self.ram.iter().for_each(|region| touched(region).mark_all());
    }

    /// Records a write of our own, after it.
    fn mark(&self, page: Page) {
        let slots = self.ram.iter().zip(self.layout.slots());
        for (region, slot) in slots {
            if let Some(n) = page.0.checked_sub(slot.first.0).filter(|n| *n < slot.pages) {
                touched(region).mark(n as usize);
            }
        }
    }

    fn check(&self, page: Page) -> Result<()> {
        ensure!(page.0 < self.layout.pages(), "page {} is beyond the end of RAM", page.0);
        Ok(())
    }
}

fn touched(region: &GuestRegionMmap<Touched>) -> &Touched {
    vm_memory::MmapRegion::bitmap(region)
}

/// A mapping of our own, aligned for huge pages.
struct Mapping {
    start: *mut u8,
    bytes: usize,
    reserved: *mut libc::c_void,
    reserved_bytes: usize,
    /// The kernel never swaps it out.
    is_locked: bool,
}

// SAFETY: the pointers are addresses of memory that any thread may access; who accesses what is up to the
// methods of `Memory`, none of which makes a reference of them.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// From the operator's pool of huge pages, if it has enough left, and otherwise from wherever; the kernel may then
    /// still find huge ones.
    fn new(bytes: usize) -> io::Result<Self> {
        let mut mapping = match Self::of_pool(bytes) {
            Ok(mapping) => mapping,
            Err(_) => Self::of_any(bytes)?,
        };
        // Best effort, both. A child of this process has no business with guest RAM, and a fork that shared
        // it would cost every page a copy. A host without huge pages does as well, slower.
        mapping.advise(libc::MADV_DONTFORK).ok();
        mapping.advise(libc::MADV_HUGEPAGE).ok();
        match mapping.advise(libc::MADV_POPULATE_WRITE) {
            // A kernel before 5.14 cannot: pages come at their first touch.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
            populated => populated?,
        }
        // SAFETY: a range of our own mapping, whose content does not change by that.
        let locked = unsafe { libc::mlock(mapping.start.cast(), mapping.bytes) };
        mapping.is_locked = locked == 0;
        Ok(mapping)
    }

    /// Makes a mapping of huge pages. The kernel reserves all of it in the pool, or refuses at once.
    fn of_pool(bytes: usize) -> io::Result<Self> {
        if !bytes.is_multiple_of(HUGE_PAGE) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let reserved = map(bytes, libc::MAP_HUGETLB | libc::MAP_HUGE_2MB)?;
        Ok(Self {
            start: reserved.cast(),
            bytes,
            reserved,
            reserved_bytes: bytes,
            is_locked: false,
        })
    }

    fn of_any(bytes: usize) -> io::Result<Self> {
        let reserved_bytes = bytes + HUGE_PAGE;
        let reserved = map(reserved_bytes, libc::MAP_NORESERVE)?;
        let start = reserved.cast::<u8>();
        let start = start.wrapping_add(start.align_offset(HUGE_PAGE));
        Ok(Self { start, bytes, reserved, reserved_bytes, is_locked: false })
    }

    fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: advice about a range of our own mapping; no kind used here changes its content.
        match unsafe { libc::madvise(self.start.cast(), self.bytes, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Returns the host address of a page; it is in bounds if the page is.
    fn page(&self, page: Page) -> *mut u8 {
        self.start.wrapping_add(page.0 as usize * PAGE_SIZE)
    }
}

/// Makes a new mapping of memory that nobody else has.
fn map(bytes: usize, flags: libc::c_int) -> io::Result<*mut libc::c_void> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let mapped = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(mapped) }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone and nothing that points into it outlives it: `Memory` drops
        // `ram` first, and a VM whose slots are here holds the `Memory`.
        let unmapped = unsafe { libc::munmap(self.reserved, self.reserved_bytes) };
        debug_assert_eq!(unmapped, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::MachineState;
    use vm_memory::Bytes;

    #[test]
    fn a_devices_write_is_seen_in_its_page_and_harvested_once() {
        let memory = Memory::new(Layout::of_mib(2)).unwrap();
        memory.ram().write_slice(&[7; 10], GuestAddress(3 * 4096 - 5)).unwrap();
        let mut page = [0; PAGE_SIZE];
        memory.read_page(Page(3), &mut page).unwrap();
        assert_eq!(page[..6], [7, 7, 7, 7, 7, 0]);
        let mut set = PageSet::new(memory.layout().pages());
        memory.harvest_touched(&mut set);
        assert_eq!(set.iter().collect::<Vec<_>>(), [Page(2), Page(3)]);
        set.clear();
        memory.harvest_touched(&mut set);
        assert!(set.is_empty());
    }

    #[test]
    fn after_a_reset_ram_is_the_boot_image_and_all_of_it_was_written() {
        let memory = Memory::new(Layout::of_mib(1)).unwrap();
        memory.write_page(Page(3), &[3; PAGE_SIZE]).unwrap();
        let mut pages = Staging::new(1);
        memory.copy([Page(3)], &mut pages).unwrap();
        let boot = BootImage::new(pages, MachineState::default());
        let begun = memory.digest();
        for page in [Page(0), Page(3), Page(255)] {
            memory.write_page(page, &[9; PAGE_SIZE]).unwrap();
        }
        let mut written = PageSet::new(memory.layout().pages());
        memory.harvest_touched(&mut written);
        memory.reset(&boot, &mut || {}).unwrap();
        assert_eq!(memory.digest(), begun);
        memory.harvest_touched(&mut written);
        assert_eq!(written.len(), 256);
    }

    #[test]
    fn pages_beyond_ram_are_refused() {
        let memory = Memory::new(Layout::of_mib(1)).unwrap();
        let mut page = [1; PAGE_SIZE];
        assert!(memory.write_page(Page(256), &page).is_err());
        assert!(memory.read_page(Page(256), &mut page).is_err());
        assert!(memory.write_in_page(Page(255), 4090, &[0; 7]).is_err());
        assert!(memory.copy([Page(0), Page(256)], &mut Staging::new(4)).is_err());
    }

    #[test]
    fn copies_are_the_pages_and_a_full_staging_says_so() {
        let memory = Memory::new(Layout::of_mib(1)).unwrap();
        memory.write_page(Page(9), &[9; PAGE_SIZE]).unwrap();
        memory.write_in_page(Page(9), 8, &[1, 2]).unwrap();
        let mut staging = Staging::new(1);
        assert!(memory.copy([Page(9), Page(10)], &mut staging).is_err());
        let (page, bytes) = staging.iter().next().unwrap();
        assert_eq!((page, &bytes[7..11]), (Page(9), [9, 1, 2, 9].as_slice()));
    }
}
