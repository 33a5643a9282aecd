//! The virtio block device, over a file or a block device of the host's.
//!
//! Offers VERSION_1, SEG_MAX, FLUSH, EVENT_IDX, and RO for a disk that is read only. A driver that does not take
//! FLUSH finds every write on the disk when it is done. Absent: discard, write-zeroes, several queues, block sizes
//! other than 512, topology, a disk that changes its size.
//!
//! **Pauses do not wait for disks.** A disk may take milliseconds for a read, or seconds when it is ill; a pause must
//! not. So a thread of the disk's own does the I/O, into and out of a buffer that is not the guest's, and touches the
//! guest's RAM and the device only in *turns* ([`Parking`](super::parking::Parking)), each no longer than it takes to
//! copy [`CHUNK`] bytes: a pause waits for the turn that is under way, lets none begin, and leaves the thread in its
//! system call, if it is in one. What that call returns becomes the guest's after the pause. The price is one copy;
//! what it also buys is that only this process writes RAM, through the bitmap that marks what is
//! written, never the kernel behind its back.
//!
//! **A request under way is still in the ring.** A chain counts as taken when it is done, not when it is begun: the
//! index that a checkpoint saves is that of the oldest chain that is not done. So the host that takes over finds it
//! there and does it again, whole; to read twice, or write the same bytes twice, is what a disk allows. There is no
//! list of requests in flight to save, because there never is more than one.
//!
//! A disk's *content* is not in a checkpoint. Under protection only disks that nobody writes are allowed: both hosts
//! have the same one ([`DiskShape`] says what is compared).

mod device;
mod disk;
mod format;
mod request;
mod worker;

pub(in crate::machine) use device::Block;
pub(in crate::machine) use disk::Disk;
pub use disk::{DISK_ID_MAX, DISK_PATH_MAX, DiskShape};
pub use format::compressed_by;
pub(in crate::machine) use worker::Worker;

/// Bytes that are moved in one go.
const CHUNK: usize = 64 << 10;
const SECTOR: u64 = 512;
