//! Commit acks as datagrams, at the backup: for the program `ack` on the primary's side, which may release before
//! anybody there has woken up.
//!
//! The ack on the bulk connection says the same: a datagram that is lost, or that the kernel does not take, is
//! not missed. So nothing here waits, and no error is one.

use std::{
    io,
    net::{SocketAddr, TcpStream, UdpSocket},
};

use remus_abi::ack::{AckDatagram, AckKey};

use crate::wire::{Ack, AckTo};

/// The sending end of a session's datagrams.
pub struct AckDatagrams {
    socket: UdpSocket,
    key: AckKey,
}

impl AckDatagrams {
    /// To the address that the other end of `control` has, from the one that this end has.
    ///
    /// # Errors
    /// When the connection is gone, or no socket is to be had.
    pub(super) fn beside(control: &TcpStream, to: &AckTo) -> io::Result<Self> {
        let (mut here, mut there) = (control.local_addr()?, control.peer_addr()?);
        here.set_port(0);
        there.set_port(to.port.get());
        let socket = UdpSocket::bind(plain(here))?;
        socket.connect(plain(there))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, key: to.key })
    }

    /// Says `ack`. What the kernel refuses now is as good as lost on the way.
    pub fn say(&self, ack: &Ack) {
        let Ack { session, term, epoch, sent, digest: _ } = *ack;
        let datagram = AckDatagram { session: session.get(), term, epoch, sent_ns: sent.0 };
        self.socket.send(&datagram.encode(self.key)).ok();
    }
}

/// An IPv4 peer of a socket that serves both families is one of IPv4: its datagrams are told apart by that.
fn plain(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => (v4, v6.port()).into(),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}
