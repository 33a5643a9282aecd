//! The two TCP connections of a session, as the shells use them.
//!
//! - The primary's control connection is async ([`Control`]): heartbeats must not wait for anything.
//! - The bulk connection is blocking at the primary ([`BulkOut`] for its sender thread, [`AckIn`] for its ack
//!   reader): checkpoints are large, and back-pressure is the socket's.
//! - Beside them, where the primary asked for it, acks also go as datagrams ([`AckDatagrams`]).
//! - The backup serves both from one thread that also detects silence ([`Polled`]): what has arrived is
//!   drained before a late tick may suspect anybody.
//!
//! Invariants: frames are written whole, by one owner per direction; a connection that carried bytes which are
//! not a frame of its lane is of no further use, and every call says so by an error.
//!
//! Deliberately absent: who may connect (`backup` refuses), what a message means (`wire`, `replication`), and
//! encryption: the replication network must be private.

mod bulk;
mod control;
mod datagram;
mod polled;

use std::{io, os::fd::AsRawFd, time::Duration};

use libc::c_int;

pub use bulk::{AckIn, BulkOut, hang_up};
pub use control::{Control, Opening, accept, open_bulk, refuse};
pub use datagram::AckDatagrams;
pub use polled::{Arrived, Polled};

/// A peer that does not take a frame for so long is gone: the sender thread must not wait for ever.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings that every connection gets: no Nagle delay, and no wait for a dead peer's window.
fn tune(stream: &impl AsRawFd) -> io::Result<()> {
    let settings: [(_, c_int); 2] = [(libc::TCP_NODELAY, 1), (libc::TCP_USER_TIMEOUT, 5_000)];
    let length = libc::socklen_t::try_from(size_of::<c_int>()).expect("four bytes");
    settings.iter().try_for_each(|(option, value)| {
        // SAFETY: an int option on a descriptor that lives during the call; the kernel reads one int.
        let result = unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::IPPROTO_TCP,
                *option,
                std::ptr::from_ref(value).cast(),
                length,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    })
}
