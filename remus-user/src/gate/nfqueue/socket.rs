//! A netlink socket to netfilter: requests with their answers, and datagrams by the hundred.
//!
//! The kernel works on a request within the send: when that returns, the answers are in the socket.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result, bail};

use super::netlink::{Reply, Requests, replies};

/// Bytes of a receive buffer; longer than any packet message without content, and than most dump messages.
const DATAGRAM: usize = 512;
/// Datagrams taken in one call.
const AT_ONCE: usize = 128;
/// A dump's datagram fills a page or two (`NLMSG_GOODSIZE`), or what the receive asks for, up to 32 KiB.
const ANSWER: usize = 32 << 10;

pub(super) struct Socket {
    fd: OwnedFd,
    port: u32,
}

/// Why the kernel did not do what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Refused {
    pub(super) errno: i32,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        io::Error::from_raw_os_error(self.errno).fmt(f)
    }
}

impl std::error::Error for Refused {}

impl Socket {
    /// A socket to the netfilter of the caller's network namespace.
    pub(super) fn open() -> Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: creates a descriptor; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_NETFILTER) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("open a netlink socket to netfilter");
        }
        // SAFETY: a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let port = bound_port(fd.as_fd()).context("bind a netlink socket")?;
        Ok(Self { fd, port })
    }

    /// The address under which the kernel knows this socket.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// Sets an integer option.
    pub(super) fn set(&self, level: i32, option: i32, value: i32) -> io::Result<()> {
        let length = libc::socklen_t::try_from(size_of::<i32>()).expect("4 fits");
        // SAFETY: a value of that length, alive during the call.
        let result = unsafe {
            libc::setsockopt(self.fd.as_raw_fd(), level, option, (&raw const value).cast(), length)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub(super) fn send(&self, requests: &Requests) -> io::Result<()> {
        let bytes = requests.bytes();
        // SAFETY: a buffer of that length, alive during the call.
        let sent =
            unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sends `requests` and hands every message of data that answers them to `each`.
    ///
    /// # Errors
    /// [`Refused`], found by `downcast_ref`, when the kernel refuses one of the requests: the first.
    pub(super) fn ask(&self, requests: &Requests, mut each: impl FnMut(&Reply<'_>)) -> Result<()> {
        self.send(requests).context("send to netfilter")?;
        let mut buffer = vec![0; ANSWER];
        let mut refused = None;
        let mut interrupted = false;
        let mut answered = false;
        loop {
            // SAFETY: a buffer of that length, alive during the call.
            let got = unsafe {
                libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0)
            };
            let Ok(got) = usize::try_from(got) else {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::WouldBlock => break,
                    io::ErrorKind::Interrupted => continue,
                    _ => return Err(error).context("read netfilter's answer"),
                }
            };
            answered = true;
            for reply in replies(&buffer[..got]) {
                match reply {
                    Reply::Data { .. } => each(&reply),
                    Reply::Refused { errno, .. } => {
                        refused.get_or_insert(Refused { errno });
                    }
                    Reply::Done => {}
                    Reply::Interrupted => interrupted = true,
                }
            }
        }
        match refused {
            Some(refused) => Err(refused.into()),
            None if !answered => bail!("netfilter does not answer"),
            None if interrupted => bail!("netfilter's rules changed while they were read"),
            None => Ok(()),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Binds to an address of the kernel's choice and tells it.
fn bound_port(fd: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: sockaddr_nl is plain data; zero asks for any port.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::sa_family_t::try_from(libc::AF_NETLINK).expect("16 fits");
    let mut length = libc::socklen_t::try_from(size_of_val(&address)).expect("12 fits");
    let place = &raw mut address;
    // SAFETY: an address of that length, alive during the call.
    if unsafe { libc::bind(fd.as_raw_fd(), place.cast(), length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a place for the address and its length, alive during the call.
    if unsafe { libc::getsockname(fd.as_raw_fd(), place.cast(), &raw mut length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(address.nl_pid)
}

/// Buffers for many datagrams, made once.
pub(super) struct Datagrams {
    buffers: Box<[[u8; DATAGRAM]]>,
    lengths: Vec<usize>,
}

impl Datagrams {
    pub(super) fn new() -> Self {
        let buffers = vec![[0; DATAGRAM]; AT_ONCE].into_boxed_slice();
        Self { buffers, lengths: Vec::with_capacity(AT_ONCE) }
    }

    /// Takes what is there, up to a buffer's worth each of [`AT_ONCE`] datagrams, without waiting. None: nothing is.
    pub(super) fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        self.lengths.clear();
        let mut vectors: [libc::iovec; AT_ONCE] = std::array::from_fn(|n| libc::iovec {
            iov_base: self.buffers[n].as_mut_ptr().cast(),
            iov_len: DATAGRAM,
        });
        // SAFETY: mmsghdr is plain data; zero is a header without address, vectors and control data.
        let mut headers: [libc::mmsghdr; AT_ONCE] = unsafe { std::mem::zeroed() };
        for (header, vector) in headers.iter_mut().zip(&mut vectors) {
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: that many headers, each with a vector and buffer of its own; all are alive during the call.
        let got = unsafe {
            libc::recvmmsg(
                socket.fd.as_raw_fd(),
                headers.as_mut_ptr(),
                u32::try_from(AT_ONCE).expect("a small number"),
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let Ok(got) = usize::try_from(got) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                _ => Err(error),
            };
        };
        self.lengths.extend(headers[..got].iter().map(|header| header.msg_len as usize));
        Ok(got)
    }

    /// What was received last.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.buffers.iter().zip(&self.lengths).map(|(buffer, length)| {
            // A datagram that was cut tells its id all the same, which comes first.
            &buffer[..(*length).min(DATAGRAM)]
        })
    }
}
