//! A network namespace, held by a file descriptor: it has no name, so nothing under /run can outlive it, and
//! it ends with the last process, socket or descriptor in it.

use std::{
    fs::File,
    io,
    marker::PhantomData,
    net::SocketAddrV4,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    thread,
};

use anyhow::{Context, Result};
use tokio::net::{TcpSocket, TcpStream};

use crate::sys;

#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
}

impl NetNs {
    /// A new namespace with nothing in it but a loopback link that is down. IPv6 is off, so that the hosts
    /// say nothing of their own accord; frames of others' IPv6 pass bridges all the same.
    pub fn new() -> Result<Self> {
        let made = thread::scope(|scope| scope.spawn(make).join());
        let fd = made.expect("does not panic").context("make a network namespace")?;
        Ok(Self { fd })
    }

    /// The calling thread's own.
    pub fn current() -> Result<Self> {
        let file = File::open("/proc/thread-self/ns/net").context("open the network namespace")?;
        Ok(Self { fd: file.into() })
    }

    /// Another hold on the same namespace.
    pub fn another(&self) -> Result<Self> {
        let fd = self.fd.try_clone().context("duplicate a namespace's descriptor")?;
        Ok(Self { fd })
    }

    /// Enters the namespace until the guard is dropped. A socket keeps the namespace it was made in, so
    /// the guard is needed for making it and not for using it.
    pub fn enter(&self) -> Result<Entered> {
        let back = Self::current()?;
        sys::setns(self, libc::CLONE_NEWNET).context("enter a network namespace")?;
        Ok(Entered { back, thread: PhantomData })
    }

    /// A connection from here that sends at once what it is given.
    pub async fn connect(&self, server: SocketAddrV4) -> io::Result<TcpStream> {
        let socket = {
            let _entered = self.enter().map_err(io::Error::other)?;
            TcpSocket::new_v4()?
        };
        socket.set_nodelay(true)?;
        socket.connect(server.into()).await
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// While it lives the thread is in another network namespace; therefore it may not leave the thread, and
/// not be held over an await.
#[derive(Debug)]
pub struct Entered {
    back: NetNs,
    thread: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        // Going on in the wrong namespace would do harm in it.
        sys::setns(&self.back, libc::CLONE_NEWNET).expect("return to the network namespace");
    }
}

fn make() -> io::Result<OwnedFd> {
    sys::unshare(libc::CLONE_NEWNET)?;
    // /proc/sys/net shows the namespace of the thread that looks.
    for scope in ["all", "default"] {
        let knob = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
        match std::fs::write(knob, "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {} // a kernel without IPv6
            written => written?,
        }
    }
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}
