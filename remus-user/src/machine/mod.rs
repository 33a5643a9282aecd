//! The machine: a guest under KVM, that can be stopped, captured, and put together again elsewhere.
//!
//! [`Prepared`] is a machine that does not run; [`Prepared::start`] makes it a [`Machine`];
//! [`Machine::pause`] gives a [`Paused`], and only that can be captured. A guest that reset itself is put back to its
//! beginning in the same machine ([`Machine::reboot`]). What both hosts must agree on is a
//! [`Shape`] and a [`CpuProfile`].
//!
//! Threads: one for each vCPU, which captures its own state when it stops; the one that owns the [`Machine`], which
//! serves its devices and pauses it; and one for each disk, which stands aside in a pause. Threads that empty a
//! console's buffers touch nothing of the machine.
//!
//! Invariants:
//! - no Rust reference into guest RAM exists
//! - every page written, by the guest, the kernel or this process, is in a harvest after the write
//! - in a pause nothing writes guest RAM, and every frame sent before it has been taken by the tap. A disk may be at
//!   work for a request, which is then still in its ring
//! - nothing that the guest does is an error or a panic here: it breaks its own device or ends itself
//!
//! Absent: what a disk's content has to do with checkpoints (disks that are written are in none), PIT, PCI, hot-plug,
//! vhost (its writes are in no dirty log), nested virtualization.

mod barrier;
mod boot;
mod capture;
mod clock;
mod copy;
mod cpu;
mod devices;
mod dirty_log;
mod end;
mod fault;
mod flat;
mod futex;
mod help;
mod host;
mod ioctl;
mod layout;
mod memory;
mod paused;
mod prepared;
mod restore;
mod running;
mod shape;
mod touched;
mod vcpu;
mod vm;

pub use boot::{Found, Software, check_software};
pub use cpu::CpuProfile;
pub use devices::net::{NetCounters, Offloads, open_tap};
pub use devices::{Console, DISK_ID_MAX, DISK_PATH_MAX, DiskShape, compressed_by};
pub use end::End;
pub use fault::fault_cost;
pub use host::{HostReport, Kind, kind, probe, vcpus_max};
pub use layout::{Layout, Slot};
pub use memory::Memory;
pub use paused::Paused;
pub use prepared::Prepared;
pub use running::{Event, Machine};
pub use shape::{
    DISKS_MAX, MEMORY_MIB_MAX, MEMORY_MIB_MIN, MTU_BYTES_MAX, MTU_BYTES_MIN, Placement, Shape,
};

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
