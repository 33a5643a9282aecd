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
mod listener;
mod patience;
mod polled;

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use libc::c_int;

pub use bulk::{AckIn, Bulk, BulkOut, HangUp};
pub use control::{Control, open_bulk};
pub use datagram::AckDatagrams;
pub use listener::{Accepted, Caller, Listener, Opening};
pub use patience::Patience;
pub use polled::{Arrived, Polled, are_ended_by_peer};

use patience::RETRANSMIT_AT_LEAST_EVERY;

/// `TCP_RTO_MAX_MS` of linux/tcp.h.
const TCP_RTO_MAX_MS: c_int = 44;

/// Sets up a connection: no Nagle delay, the time after which a peer that acknowledges nothing is given up, and, where
/// the kernel can, how often TCP tries again until then.
fn tune(stream: &impl AsFd, give_up_after: Duration) -> io::Result<()> {
    set(stream, libc::TCP_NODELAY, 1)?;
    set(stream, libc::TCP_USER_TIMEOUT, millis(give_up_after))?;
    match set(stream, TCP_RTO_MAX_MS, millis(RETRANSMIT_AT_LEAST_EVERY)) {
        // Before Linux 6.15.
        Err(e) if e.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(()),
        done => done,
    }
}

fn millis(span: Duration) -> c_int {
    c_int::try_from(span.as_millis()).unwrap_or(c_int::MAX)
}

/// Sets a TCP option of type int.
fn set(stream: &impl AsFd, option: c_int, value: c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<c_int>()).expect("four bytes");
    // SAFETY: an int option on a descriptor that lives during the call; the kernel reads one int.
    let result = unsafe {
        libc::setsockopt(
            stream.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            std::ptr::from_ref(&value).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
