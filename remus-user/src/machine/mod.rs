//! The machine: a guest under KVM, that can be stopped, captured, and put together again elsewhere.
//!
//! [`Prepared`] is a machine that does not run; [`Prepared::start`] makes it a [`Machine`];
//! [`Machine::pause`] gives a [`Paused`], and only that can be captured. What both hosts must agree on is a
//! [`Shape`] and a [`CpuProfile`].
//!
//! Threads: one for each vCPU, which captures its own state when it stops; and the one that owns the
//! [`Machine`], which serves its devices and pauses it. No others.
//!
//! Invariants:
//! - no Rust reference into guest RAM exists
//! - every page written, by the guest, the kernel or this process, is in a harvest after the write
//! - in a pause nothing writes guest RAM, and every frame sent before it has been taken by the tap
//! - nothing that the guest does is an error or a panic here: it breaks its own device or ends itself
//!
//! Absent: disks (no block device yet), PIT, PCI, hot-plug, vhost (its writes are in no dirty log), nested
//! virtualization.

mod boot;
mod capture;
mod clock;
mod copy;
mod cpu;
mod devices;
mod dirty_log;
mod fault;
mod futex;
mod help;
mod host;
mod ioctl;
mod layout;
mod memory;
mod paused;
mod prepared;
mod running;
mod shape;
mod touched;
mod vcpu;
mod vm;

pub use cpu::CpuProfile;
pub use devices::net::{NetCounters, Offloads, open_tap};
pub use fault::fault_cost;
pub use host::{HostReport, Kind, probe};
pub use layout::{Layout, Slot};
pub use memory::Memory;
pub use paused::Paused;
pub use prepared::Prepared;
pub use running::{Event, Machine};
pub use shape::{MEMORY_MIB_MAX, MEMORY_MIB_MIN, MTU_BYTES_MAX, MTU_BYTES_MIN, Placement, Shape};
pub use vcpu::End;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_move_between_threads_and_memory_is_shared() {
        fn moves<T: Send>() {}
        fn is_shared<T: Send + Sync>() {}
        moves::<Prepared>();
        moves::<Machine>();
        is_shared::<Memory>();
    }
}
