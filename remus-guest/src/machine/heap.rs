//! How RAM is shared out: the image, the heap, the arena of the work generator.
//!
//! ```text
//! low RAM only                         with RAM above 4 GiB that is the larger half
//! 1 MiB   image                        1 MiB   image
//!         heap                                 heap, to the end of low RAM
//! middle  arena, to the end of RAM     4 GiB   arena, to the end of RAM
//! ```

use core::alloc::{GlobalAlloc, Layout};
use core::ptr;
use remus_abi::boot::{BootInfo, GUEST_BASE, HIGH_RAM, RAM_HOLE};
use talc::TalcCell;
use talc::source::Manual;

const PAGE: u64 = 4096;

#[global_allocator]
static HEAP: Heap = Heap(TalcCell::new(Manual));

struct Heap(TalcCell<Manual>);

// SAFETY: only the boot CPU allocates and frees, and no handler of an interrupt or exception does. What other CPUs
// run is `others::help` and what it calls: sums and memory that was made for them before they were started. That
// includes a panic, whose message is formatted straight into the serial port.
unsafe impl Sync for Heap {}

// SAFETY: all of it is the inner allocator's own implementation.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the same.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are the same.
        unsafe { self.0.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promises are the same.
        unsafe { self.0.realloc(memory, layout, new_size) }
    }
}

/// What [`share_out`] made.
pub(super) struct Ram {
    pub(super) heap_bytes: usize,
    pub(super) arena: &'static mut [u8],
}

unsafe extern "C" {
    /// The end of the image, by the linker.
    static _end: u8;
}

/// Gives RAM to the allocator and to the arena. To be called once, before anything allocates.
///
/// # Panics
/// Where there is not enough RAM to share out.
pub(super) fn share_out(info: &BootInfo) -> Ram {
    let image_end = ((&raw const _end) as u64).next_multiple_of(PAGE);
    let low_end = info.low_ram.min(RAM_HOLE) & !(PAGE - 1);
    let middle = (low_end / 2).next_multiple_of(PAGE);
    let (heap_end, arena, arena_bytes) = if info.high_ram > low_end / 2 {
        (low_end, HIGH_RAM, info.high_ram & !(PAGE - 1))
    } else {
        (middle, middle, low_end.saturating_sub(middle))
    };
    assert!(
        image_end > GUEST_BASE && heap_end >= image_end + (4 << 20),
        "too little RAM: give it 16 MiB"
    );
    let heap_bytes = (heap_end - image_end) as usize;
    // SAFETY: the boot contract: this is RAM that nobody else uses, and the image ends below it.
    let claimed =
        unsafe { HEAP.0.claim(ptr::with_exposed_provenance_mut(image_end as usize), heap_bytes) };
    assert!(claimed.is_some(), "the allocator refused its heap");
    // SAFETY: RAM, too, and disjoint from image and heap; zeroed by the VMM, and mapped. Called once.
    let arena = unsafe {
        core::slice::from_raw_parts_mut(
            ptr::with_exposed_provenance_mut(arena as usize),
            arena_bytes as usize,
        )
    };
    Ram { heap_bytes, arena }
}
