//! The TCP server: smoltcp's sockets below, [`Node`] above.
//!
//! A fixed number of sockets, all of which listen while they are free; so many connections can begin at
//! once, and no memory is allocated for one that comes. A SYN beyond them waits: see [`backlog`]. [`Server::poll`] takes in what the device has,
//! executes what is complete, sends what can be sent, and says when it wants to be called again.
//!
//! What a connection may make the server hold is bounded three times: one request and one reply by
//! [`Limits`](crate::resp::Limits); what it has not read yet by [`OUTBOX_PAUSE`], beyond which its next
//! requests wait; and all connections together by [`Memory::buffers`](crate::node::Memory), beyond which
//! the one that wants more is dropped.
//!
//! When segments are sent again is decided in [`retransmit`], not by smoltcp.

mod backlog;
mod connection;
mod retransmit;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use remus_abi::boot::PowerOff;
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketSet};
use smoltcp::phy::Device;
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Cidr};

use self::backlog::Backlog;
use self::connection::Connection;
use self::retransmit::Rewinder;
use crate::node::{Memory, Node};
use crate::options::Options;
use crate::resp::Parser;

/// Bytes of unsent replies beyond which a connection's next requests wait.
const OUTBOX_PAUSE: usize = 64 << 10;
/// Frames taken in before the sockets are served.
const INGRESS_BATCH: usize = 64;
/// Rounds of sending, one frame a socket each, before the caller gets the CPU back.
const EGRESS_ROUNDS: usize = 32;

/// What [`Server::poll`] leaves to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Polled {
    /// When to poll again even if no frame has come; at once if not in the future.
    pub due_ns: Option<u64>,
    /// How a client has asked for the machine's end, if one has; it has its reply.
    pub leave: Option<PowerOff>,
}

/// The server's network side.
pub struct Server {
    iface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    rewinder: Rewinder,
    parser: Parser,
    port: u16,
    /// Sockets that listened when they were last looked at.
    listening: usize,
    /// Capacity of all connections' buffers.
    buffered: usize,
    leave: Option<PowerOff>,
}

impl Server {
    /// A server that listens. Allocates everything it will need but the connections' growing buffers.
    pub fn new<D: Device>(
        device: &mut D,
        mac: [u8; 6],
        options: &Options,
        memory: &Memory,
        now_ns: u64,
    ) -> Self {
        let mut config = Config::new(EthernetAddress(mac).into());
        // Initial sequence numbers differ from one boot to the next.
        config.random_seed = now_ns;
        let mut iface = Interface::new(config, device, instant(now_ns));
        iface.update_ip_addrs(|addresses| {
            let cidr = Ipv4Cidr::new(options.address, options.prefix_len);
            addresses.push(IpCidr::Ipv4(cidr)).expect("an interface has room for one address");
        });
        if let Some(gateway) = options.gateway {
            iface
                .routes_mut()
                .add_default_ipv4_route(gateway)
                .expect("the table has room for one route");
        }
        let mut sockets = SocketSet::new(Vec::with_capacity(Memory::SOCKETS));
        let connections = (0..Memory::SOCKETS)
            .map(|_| {
                let buffer = || tcp::SocketBuffer::new(alloc::vec![0; memory.socket]);
                let mut socket = tcp::Socket::new(buffer(), buffer());
                // Replies are whole when they are written: nothing is gained by waiting for more.
                socket.set_nagle_enabled(false);
                socket
                    .listen(options.port)
                    .expect("a new socket can listen on a port that is not 0");
                Connection::new(sockets.add(socket))
            })
            .collect();
        Self {
            iface,
            sockets,
            connections,
            rewinder: Rewinder::new(),
            parser: Parser::default(),
            port: options.port,
            listening: Memory::SOCKETS,
            buffered: 0,
            leave: None,
        }
    }

    /// One round: frames in, requests, frames out.
    pub fn poll<D: Device>(&mut self, now_ns: u64, device: &mut D, node: &mut Node<'_>) -> Polled {
        let now = instant(now_ns);
        let mut more_ingress = true;
        let mut shown = Backlog { device, port: self.port, listening: self.listening };
        for _ in 0..INGRESS_BATCH {
            match self.iface.poll_ingress_single(now, &mut shown, &mut self.sockets) {
                PollIngressSingleResult::None => {
                    more_ingress = false;
                    break;
                }
                PollIngressSingleResult::PacketProcessed
                | PollIngressSingleResult::SocketStateChanged => {}
            }
        }
        let retransmit_ns = self.serve(now_ns, node);
        let mut rounds = 0;
        while rounds < EGRESS_ROUNDS
            && self.iface.poll_egress(now, device, &mut self.sockets)
                == PollResult::SocketStateChanged
        {
            rounds += 1;
        }
        // A socket that has something for a full device wants to be polled at once: whoever owns the device
        // knows better, and waits for room.
        let due_ns = if more_ingress || rounds == EGRESS_ROUNDS {
            Some(now_ns)
        } else {
            let stack = self.iface.poll_at(now, &self.sockets).map(nanoseconds);
            [stack, retransmit_ns].into_iter().flatten().min()
        };
        Polled { due_ns, leave: self.leave.filter(|_| self.all_replies_are_out()) }
    }

    /// Serves every connection. When the first retransmission is due.
    fn serve(&mut self, now_ns: u64, node: &mut Node<'_>) -> Option<u64> {
        let mut open = 0;
        self.listening = 0;
        let mut retransmit_ns: Option<u64> = None;
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(connection.handle());
            if socket.state() != tcp::State::Listen {
                let asked = connection.serve(socket, self.port, &mut self.parser, node, now_ns);
                self.leave = self.leave.or(asked);
            }
            self.buffered = self.buffered - connection.charged() + connection.recharge();
            if socket.state() == tcp::State::Listen {
                self.listening += 1;
                connection.watch(socket, self.port, now_ns);
                continue;
            }
            if self.buffered > node.memory().buffers {
                node.stats().connections_dropped += 1;
                connection.drop_it(socket);
                self.buffered = self.buffered - connection.charged() + connection.recharge();
            }
            open += u64::from(connection.is_open());
            let due_ns = connection.watch(socket, self.port, now_ns);
            if due_ns.is_some_and(|due_ns| due_ns <= now_ns) {
                node.stats().retransmits += 1;
                self.rewinder.rewind(
                    &mut self.iface,
                    &mut self.sockets,
                    connection.handle(),
                    now_ns,
                );
                connection.forced(now_ns);
            }
            let due_ns = connection.retransmit_due_ns();
            retransmit_ns = [retransmit_ns, due_ns].into_iter().flatten().min();
        }
        node.stats().connections_open = open;
        retransmit_ns
    }

    fn all_replies_are_out(&self) -> bool {
        self.connections.iter().all(|c| {
            let socket = self.sockets.get::<tcp::Socket<'_>>(c.handle());
            !c.has_replies() && socket.send_queue() == 0
        })
    }
}

fn instant(now_ns: u64) -> Instant {
    Instant::from_micros(i64::try_from(now_ns / 1000).unwrap_or(i64::MAX))
}

fn nanoseconds(at: Instant) -> u64 {
    u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1000)
}
