//! How the VMM starts a bare-metal guest, and what it finds.
//!
//! The guest is a static ELF64 for x86-64, loaded at its physical addresses (all at or above
//! [`GUEST_BASE`]). The VMM enters it at the ELF entry point on vCPU 0:
//!
//! - long mode, paging on, ring 0, interrupts off (IF = 0); CS = 0x10, SS = DS = ES = 0x18
//! - an identity map of everything below `max(4 GiB, end of RAM)` in 2 MiB pages, each present, writable
//!   and user-accessible; the device hole `0xc000_0000..0x1_0000_0000` is mapped uncached
//! - `rdi` = physical address of [`BootInfo`]; no stack (`rsp` = 0): the guest has its own
//! - SSE and AVX are not yet enabled in CR4 or XCR0
//!
//! Other vCPUs wait for INIT and SIPI, as after a reset. They begin in real mode, below 1 MiB: at
//! [`START_PAGE`], which the guest fills.
//!
//! The guest loads its own GDT, IDT and TSS. Low memory (below [`GUEST_BASE`]) holds the VMM's page
//! tables, its GDT, the boot block and the command line; the guest leaves it alone, but for the start page, for as
//! long as it uses those tables.

/// First byte of guest RAM that the VMM does not use itself.
pub const GUEST_BASE: u64 = 0x10_0000;
/// A page of low memory that the VMM does not use: where the guest starts its other vCPUs.
pub const START_PAGE: u64 = 0x8000;
/// RAM lies in `[0, RAM_HOLE)` and, what does not fit there, from 4 GiB up.
pub const RAM_HOLE: u64 = 0xc000_0000;
/// Where RAM goes on above the hole.
pub const HIGH_RAM: u64 = 0x1_0000_0000;
/// Device `n`'s virtio-mmio registers are at `VIRTIO_MMIO_BASE + n * VIRTIO_MMIO_SIZE`.
pub const VIRTIO_MMIO_BASE: u64 = 0xd000_0000;
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// Device `n` raises global interrupt `VIRTIO_GSI_BASE + n`: edge-triggered, IOAPIC only (the PICs end at 15).
pub const VIRTIO_GSI_BASE: u32 = 16;
/// The serial port (16550A at COM1): the guest's console.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Its interrupt, as on every PC: edge-triggered, at the PIC and the IOAPIC.
pub const SERIAL_GSI: u32 = 4;
/// A byte written here by the guest ends the machine on purpose: see [`PowerOff`].
pub const POWER_PORT: u16 = 0x604;

/// What a byte written to [`POWER_PORT`] means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PowerOff {
    /// The guest has finished.
    Done = 1,
    /// The guest cannot go on (a panic or an unexpected exception; it has said which on the serial port).
    Crash = 2,
    /// The guest wants to begin anew.
    Reset = 3,
}

pub const BOOT_MAGIC: u64 = u64::from_le_bytes(*b"RemusVM1");

/// The boot block. All addresses are guest-physical.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct BootInfo {
    /// [`BOOT_MAGIC`].
    pub magic: u64,
    /// Bytes of RAM from address 0.
    pub low_ram: u64,
    /// Bytes of RAM from [`HIGH_RAM`].
    pub high_ram: u64,
    /// The command line: ASCII, not terminated.
    pub cmdline: u64,
    pub cmdline_len: u64,
    /// How many virtio-mmio devices the guest is told of: those that it knows, the network's being device 0. Others
    /// follow.
    pub devices: u32,
    pub vcpus: u32,
}
