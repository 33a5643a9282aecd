//! The map of physical memory that Linux is given, as firmware would.

use remus_abi::boot::{GUEST_BASE, HIGH_RAM};

use crate::machine::layout::Layout;

/// Where conventional memory ends: a kilobyte of it was the BIOS's, and kernels keep off what is above.
pub(super) const LOW_END: u64 = 0x9_fc00;
/// Where the ACPI tables lie, and what firmware there is, up to 1 MiB.
pub(super) const TABLES: u64 = 0xe_0000;

/// What a run of addresses is. The numbers are those of an e820 map, and PVH's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(super) enum Use {
    Ram = 1,
    Reserved = 2,
}

/// A run of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Range {
    pub(super) address: u64,
    pub(super) bytes: u64,
    pub(super) is: Use,
}

/// Returns all ranges of the address space, in ascending order.
pub(super) fn ranges(layout: Layout) -> Vec<Range> {
    let (low, high) = layout.low_and_high_bytes();
    let mut ranges = vec![
        Range { address: 0, bytes: LOW_END, is: Use::Ram },
        Range { address: TABLES, bytes: GUEST_BASE - TABLES, is: Use::Reserved },
        Range { address: GUEST_BASE, bytes: low - GUEST_BASE, is: Use::Ram },
    ];
    if high > 0 {
        ranges.push(Range { address: HIGH_RAM, bytes: high, is: Use::Ram });
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_ascend_and_do_not_touch_the_devices() {
        for (mib, last) in [(64, 64 << 20), (5000, (4 << 30) + (1928 << 20))] {
            let ranges = ranges(Layout::of_mib(mib));
            let end = |range: &Range| range.address + range.bytes;
            assert!(ranges.windows(2).all(|pair| end(&pair[0]) <= pair[1].address));
            assert_eq!(ranges.last().map(end), Some(last));
        }
    }
}
