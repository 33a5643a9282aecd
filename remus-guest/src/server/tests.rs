//! The server against a client stack, over a wire that can be cut, at a time that is ours.

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use smoltcp::phy::{DeviceCapabilities, Medium, RxToken, TxToken};

use super::*;
use crate::crew::Crew;
use crate::resp::Limits;

const MS: u64 = 1_000_000;
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const SERVER_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// One end of a wire.
#[derive(Default)]
struct Port {
    incoming: VecDeque<Vec<u8>>,
    outgoing: Vec<Vec<u8>>,
}

struct Frame(Vec<u8>);
struct Room<'a>(&'a mut Vec<Vec<u8>>);

impl Device for Port {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Frame, Room<'_>)> {
        let frame = self.incoming.pop_front()?;
        Some((Frame(frame), Room(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        Some(Room(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = 1514;
        caps
    }
}

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}

struct World<'m> {
    now_ns: u64,
    server: Server,
    server_port: Port,
    node: Node<'m>,
    client: Interface,
    client_port: Port,
    sockets: SocketSet<'static>,
    /// Frames to the client are lost.
    cut: bool,
    /// When the server sent a frame that has TCP payload.
    sent_payload_ms: Vec<u64>,
    polled: Polled,
}

impl<'m> World<'m> {
    fn new(arena: &'m mut [u8]) -> Self {
        let limits = Limits { bulk: 8192, request: 16384, reply: 16384 };
        let memory =
            Memory { heap: 1 << 20, store: 1 << 20, buffers: 256 << 10, socket: 4096, limits };
        let options =
            Options { address: SERVER_IP, prefix_len: 24, gateway: None, port: Options::PORT };
        let (mut server_port, mut client_port) = (Port::default(), Port::default());
        let server = Server::new(&mut server_port, SERVER_MAC, &options, &memory, 0);
        let config = Config::new(EthernetAddress(CLIENT_MAC).into());
        let mut client = Interface::new(config, &mut client_port, instant(0));
        client.update_ip_addrs(|a| a.push(IpCidr::Ipv4(Ipv4Cidr::new(CLIENT_IP, 24))).unwrap());
        Self {
            now_ns: 0,
            server,
            server_port,
            node: Node::new(memory, Crew::alone(arena), Options::PORT, 0),
            client,
            client_port,
            sockets: SocketSet::new(Vec::new()),
            cut: false,
            sent_payload_ms: Vec::new(),
            polled: Polled { due_ns: None, leave: None },
        }
    }

    fn connect(&mut self, local_port: u16) -> smoltcp::iface::SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 4096]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        let to = (SERVER_IP, Options::PORT);
        socket.connect(self.client.context(), to, local_port).unwrap();
        self.sockets.add(socket)
    }

    fn socket(&mut self, handle: smoltcp::iface::SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Lets time pass in steps of a millisecond.
    fn run(&mut self, for_ms: u64) {
        for _ in 0..for_ms {
            self.now_ns += MS;
            self.step();
        }
    }

    fn step(&mut self) {
        let now = instant(self.now_ns);
        self.client.poll(now, &mut self.client_port, &mut self.sockets);
        self.server_port.incoming.extend(self.client_port.outgoing.drain(..));
        self.polled = self.server.poll(self.now_ns, &mut self.server_port, &mut self.node);
        for frame in self.server_port.outgoing.drain(..) {
            // Ethernet, IPv4 and TCP without options, and at least "+".
            if frame.len() > 54 && frame[12..14] == [8, 0] && frame[47] & 0x02 == 0 {
                self.sent_payload_ms.push(self.now_ns / MS);
            }
            if !self.cut {
                self.client_port.incoming.push_back(frame);
            }
        }
    }

    fn ask(&mut self, handle: smoltcp::iface::SocketHandle, request: &[u8]) {
        assert_eq!(self.socket(handle).send_slice(request), Ok(request.len()));
    }

    fn read(&mut self, handle: smoltcp::iface::SocketHandle) -> Vec<u8> {
        let socket = self.socket(handle);
        let mut all = Vec::new();
        while socket.can_recv() {
            socket.recv(|b| (b.len(), all.extend_from_slice(b))).unwrap();
        }
        all
    }
}

#[test]
fn a_lost_reply_is_sent_again_every_400_ms_without_backing_off() {
    let mut arena = [];
    let mut world = World::new(&mut arena);
    let client = world.connect(40_000);
    world.run(20);
    world.cut = true;
    world.ask(client, b"INCR a\r\n");
    world.run(30_000);
    let gaps: Vec<_> = world.sent_payload_ms.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(gaps.len() > 70, "{gaps:?}");
    assert!(gaps.iter().all(|gap| (150..=401).contains(gap)), "{gaps:?}");
    world.cut = false;
    world.run(1_000);
    assert_eq!(world.read(client), b":1\r\n");
    // And then there is silence.
    let sent = world.sent_payload_ms.len();
    world.run(2_000);
    assert_eq!(world.sent_payload_ms.len(), sent);
    assert_eq!(world.polled.due_ns, None);
}

#[test]
fn a_jump_of_the_clock_sends_again_at_once() {
    let mut arena = [];
    let mut world = World::new(&mut arena);
    let client = world.connect(40_000);
    world.run(20);
    world.cut = true;
    world.ask(client, b"PING\r\n");
    world.run(10);
    assert_eq!(world.sent_payload_ms.len(), 1);
    world.cut = false;
    world.now_ns += 700 * MS;
    world.step();
    assert_eq!(world.sent_payload_ms.len(), 2);
    world.run(2);
    assert_eq!(world.read(client), b"+PONG\r\n");
}

#[test]
fn a_lost_handshake_is_taken_up_again() {
    let mut arena = [];
    let mut world = World::new(&mut arena);
    let client = world.connect(40_000);
    world.run(5);
    assert_eq!(world.socket(client).state(), tcp::State::Established, "the ARP entry is made");
    let late = world.connect(40_001);
    world.cut = true;
    world.run(2);
    world.cut = false;
    world.run(210);
    assert_eq!(world.socket(late).state(), tcp::State::Established);
}

#[test]
fn a_peer_that_is_gone_gives_its_socket_back() {
    let mut arena = [];
    let mut world = World::new(&mut arena);
    let client = world.connect(40_000);
    let half_open = world.connect(40_001);
    world.run(20);
    world.ask(half_open, b"QUIT\r\n");
    world.run(20);
    assert_eq!(world.socket(half_open).state(), tcp::State::CloseWait, "and never closes");
    world.cut = true;
    world.ask(client, b"PING\r\n");
    world.run(1);
    assert_eq!(world.server.listening, Memory::SOCKETS - 2);
    for _ in 0..6_000 {
        world.now_ns += 100 * MS;
        world.step();
    }
    assert_eq!(world.server.listening, Memory::SOCKETS);
}

#[test]
fn more_clients_than_sockets_wait_and_none_is_refused() {
    let mut arena = [];
    let mut world = World::new(&mut arena);
    let clients: Vec<_> = (0..300).map(|i| world.connect(40_000 + i)).collect();
    world.run(3_000);
    let count = |world: &mut World<'_>, state| {
        clients.iter().filter(|c| world.socket(**c).state() == state).count()
    };
    assert_eq!(count(&mut world, tcp::State::Established), Memory::SOCKETS);
    assert_eq!(count(&mut world, tcp::State::SynSent), 300 - Memory::SOCKETS);
    for client in &clients[..100] {
        world.socket(*client).close();
    }
    world.run(10_000);
    assert_eq!(count(&mut world, tcp::State::SynSent), 0);
    let last = *clients.last().unwrap();
    world.ask(last, b"PING\r\n");
    world.run(5);
    assert_eq!(world.read(last), b"+PONG\r\n");
}

#[test]
fn pipelined_requests_are_answered_in_order_across_segments() {
    let mut arena = [];
    let mut world = World::new(&mut arena);
    let client = world.connect(40_000);
    world.run(20);
    let mut got = Vec::new();
    for _ in 0..50 {
        world.ask(client, &b"INCR a\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n".repeat(20));
        world.run(5);
        got.extend(world.read(client));
    }
    let want: Vec<u8> = (1..=1000u32)
        .flat_map(|n| {
            let digits = alloc::format!("{n}");
            alloc::format!(":{n}\r\n${}\r\n{n}\r\n", digits.len()).into_bytes()
        })
        .collect();
    assert_eq!(got, want);
}

#[test]
fn a_protocol_error_is_answered_and_ends_the_connection() {
    let mut arena = [];
    let mut world = World::new(&mut arena);
    let client = world.connect(40_000);
    world.run(20);
    world.ask(client, b"PING\r\n*1\r\n$99999\r\n");
    world.run(20);
    assert_eq!(world.read(client), b"+PONG\r\n-ERR Protocol error: invalid bulk length\r\n");
    assert!(!world.socket(client).may_recv());
}

#[test]
fn half_read_requests_of_all_together_are_bounded() {
    let mut arena = [];
    let mut world = World::new(&mut arena);
    let clients: Vec<_> = (0..60).map(|i| world.connect(40_000 + i)).collect();
    world.run(50);
    // 4 KiB at a time, as much as a socket's buffer takes: each would come to 8 KiB and a little.
    for part in [b"*2\r\n$8192\r\n".as_slice(), &[b'x'; 4000], &[b'x'; 4000]] {
        for client in &clients {
            if world.socket(*client).may_send() {
                world.ask(*client, part);
            }
        }
        world.run(50);
    }
    assert!(world.server.buffered <= world.node.memory().buffers);
    assert!(world.node.stats().connections_dropped > 0);
    assert!(world.node.stats().connections_open > 0);
}

#[test]
fn the_machine_ends_only_when_the_reply_has_arrived() {
    let mut arena = [];
    let mut world = World::new(&mut arena);
    let client = world.connect(40_000);
    world.run(20);
    world.cut = true;
    world.ask(client, b"REBOOT\r\n");
    world.run(100);
    assert_eq!(world.polled.leave, None);
    world.cut = false;
    world.run(1_500);
    assert_eq!(world.polled.leave, Some(PowerOff::Reset));
    assert_eq!(world.read(client), b"+OK\r\n");
}
