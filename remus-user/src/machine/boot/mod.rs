//! Starting a bare-metal guest, as `remus_abi::boot` describes it to the guest.
//!
//! Low memory, below `GUEST_BASE`, as it is filled here:
//!
//! ```text
//! 0x0_1000  PML4, one entry
//! 0x0_2000  page directory pointers, one a GiB
//! 0x0_3000  GDT: code 0x10, data 0x18
//! 0x0_4000  BootInfo
//! 0x0_5000  command line, up to a page
//! 0x0_8000  the guest's own: where it starts its other vCPUs (`START_PAGE`)
//! 0x1_0000  page directories, one a GiB
//! ```

mod elf;
mod entry;

pub(super) use elf::load;
