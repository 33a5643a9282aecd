//! The machine's state beside its RAM, as plain values, and its form on the wire.
//!
//! What KVM hands out as C structures is kept as [`Image`]s: bytes of a known length that nobody here looks
//! into. Only the machine gives them a meaning, and only KVM judges them, so this module needs neither KVM's
//! definitions nor `unsafe`.
//!
//! On the wire (little endian, no padding; version [`STATE_VERSION`]):
//!
//! ```text
//! magic "RMST" | version u16 | vcpus u8 | devices u8
//! clock:   guest_ns u64 | real_ns u64
//! chips:   3 x 520
//! vcpu:    mp_state 4 | regs 144 | sregs 320 | xsave 4096 | xcrs 392 | lapic 1024 | events 64 | debug 128
//!          msr count u16 | count x (index u32, value u64)
//! device:  status u32 | features u64 | selectors 3 x u32 | interrupt_status u32 | queue count u8
//!          count x (size u16, next_avail u16, next_used u16, flags u8, rings 3 x u64)
//! serial:  divisor u16 | interrupt enable, interrupt identification, line control, line status, modem control,
//!          modem status, scratch: 7 x u8 | received count u8 | the bytes
//! ```
//!
//! Devices are in the order of their register pages: network, entropy, disks. None has more than its registers: a
//! request to a disk that is under way is still in its ring (`next_avail` is the oldest that is not done).
//!
//! Decoding believes nothing: lengths are bounded before anything is allocated, and bytes left over are an
//! error. Whether the *values* make sense is asked where they are put to use.

mod codec;

use std::fmt;

/// Version of the encoding above.
pub const STATE_VERSION: u16 = 2;
/// Most vCPUs a machine may have.
pub const VCPUS_MAX: usize = 64;
/// `N` bytes of a kernel structure, aligned as the kernel's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct Image<const N: usize>(pub [u8; N]);

impl<const N: usize> Default for Image<N> {
    fn default() -> Self {
        Self([0; N])
    }
}

/// A model-specific register.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Msr {
    pub index: u32,
    pub value: u64,
}

/// One vCPU. Each image is the KVM structure of the like name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VcpuState {
    pub mp_state: Image<4>,
    pub regs: Image<144>,
    pub sregs: Image<320>,
    pub xsave: Image<4096>,
    pub xcrs: Image<392>,
    pub lapic: Image<1024>,
    pub events: Image<64>,
    pub debug: Image<128>,
    pub msrs: Vec<Msr>,
}

/// kvmclock, and the host's wall clock at the same instant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClockState {
    /// The guest's kvmclock, in nanoseconds.
    pub guest_ns: u64,
    /// `CLOCK_REALTIME` of the host, in nanoseconds since 1970.
    pub real_ns: u64,
}

/// A virtqueue's registers and positions. What is in its rings is RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QueueState {
    pub size: u16,
    pub next_avail: u16,
    pub next_used: u16,
    pub ready: bool,
    pub event_idx: bool,
    pub descriptors: u64,
    pub avail: u64,
    pub used: u64,
}

/// A virtio-mmio device: its transport and its queues.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeviceState {
    pub status: u32,
    pub driver_features: u64,
    pub device_features_sel: u32,
    pub driver_features_sel: u32,
    pub queue_sel: u32,
    pub interrupt_status: u32,
    pub queues: Vec<QueueState>,
}

/// The serial port's registers, and what it has received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SerialState {
    pub divisor: u16,
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
    pub received: Vec<u8>,
}

/// A port that nobody has touched: 9600 baud, 8 bits, ready to send, its line up.
impl Default for SerialState {
    fn default() -> Self {
        Self {
            divisor: 12,
            interrupt_enable: 0,
            interrupt_identification: 0x01,
            line_control: 0x03,
            line_status: 0x60,
            modem_control: 0x08,
            modem_status: 0xb0,
            scratch: 0,
            received: Vec::new(),
        }
    }
}

/// Everything of a machine that is not RAM.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MachineState {
    pub clock: ClockState,
    /// PIC master, PIC slave, IOAPIC: KVM's `kvm_irqchip`, which begins with the number of the chip.
    pub chips: [Image<520>; 3],
    pub vcpus: Vec<VcpuState>,
    pub devices: Vec<DeviceState>,
    pub serial: SerialState,
}

/// Bytes that are no machine state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StateError {
    /// They do not begin as one.
    Magic,
    /// They are of a version that this build does not read.
    Version(u16),
    /// They end too early.
    Short,
    /// They go on after the end.
    Trailing(usize),
    /// A count or flag is out of its range.
    Range { what: &'static str, value: u64 },
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => write!(f, "not a machine state"),
            Self::Version(v) => {
                write!(f, "machine state of version {v}, this build reads {STATE_VERSION}")
            }
            Self::Short => write!(f, "machine state is cut short"),
            Self::Trailing(n) => write!(f, "{n} bytes after the machine state"),
            Self::Range { what, value } => write!(f, "machine state: {what} is {value}"),
        }
    }
}

impl std::error::Error for StateError {}
