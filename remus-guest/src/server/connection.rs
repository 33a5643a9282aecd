//! One connection: bytes in, requests, replies, bytes out.

use alloc::vec::Vec;
use remus_abi::boot::PowerOff;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;

use super::OUTBOX_PAUSE;
use super::retransmit::{Watch, waits_for};
use crate::node::{Node, Outcome};
use crate::resp::{Parsed, Parser, Reply};

/// An empty buffer larger than this is given back.
const KEEP: usize = 16 << 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Nobody is connected, or not yet.
    Free,
    Serving,
    /// No request is taken any more; what replies there are go out, then the connection is closed.
    Closing,
}

/// A socket and what is half read or half sent on it.
#[derive(Debug)]
pub(super) struct Connection {
    handle: SocketHandle,
    phase: Phase,
    /// Bytes read and not yet executed: the beginning of a request.
    inbox: Vec<u8>,
    /// Replies; those before `sent` are in the socket.
    outbox: Vec<u8>,
    sent: usize,
    /// Bytes given to the socket since the connection began.
    written: u64,
    watch: Watch,
    charged: usize,
}

impl Connection {
    pub(super) fn new(handle: SocketHandle) -> Self {
        Self {
            handle,
            phase: Phase::Free,
            inbox: Vec::new(),
            outbox: Vec::new(),
            sent: 0,
            written: 0,
            watch: Watch::Quiet,
            charged: 0,
        }
    }

    pub(super) fn handle(&self) -> SocketHandle {
        self.handle
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase != Phase::Free
    }

    pub(super) fn has_replies(&self) -> bool {
        self.sent < self.outbox.len()
    }

    /// Bytes of capacity at the last [`Connection::recharge`].
    pub(super) fn charged(&self) -> usize {
        self.charged
    }

    /// Gives back buffers that are empty and large, and counts what is left.
    pub(super) fn recharge(&mut self) -> usize {
        for buffer in [&mut self.inbox, &mut self.outbox] {
            if buffer.is_empty() && buffer.capacity() > KEEP {
                *buffer = Vec::new();
            }
        }
        self.charged = self.inbox.capacity() + self.outbox.capacity();
        self.charged
    }

    /// Does what can be done now. Whether a client asked for the machine to be switched off.
    pub(super) fn serve(
        &mut self,
        socket: &mut tcp::Socket<'_>,
        port: u16,
        parser: &mut Parser,
        node: &mut Node<'_>,
        now_ns: u64,
    ) -> Option<PowerOff> {
        let mut leave = None;
        match socket.state() {
            // One that was aborted has a reset to send first.
            tcp::State::Closed if socket.remote_endpoint().is_some() => {}
            tcp::State::Closed => self.listen_again(socket, port),
            tcp::State::Listen | tcp::State::SynSent | tcp::State::SynReceived => {}
            tcp::State::Established
            | tcp::State::CloseWait
            | tcp::State::FinWait1
            | tcp::State::FinWait2
            | tcp::State::Closing
            | tcp::State::LastAck
            | tcp::State::TimeWait => {
                if self.phase == Phase::Free {
                    self.phase = Phase::Serving;
                    node.stats().connections += 1;
                }
                self.send(socket);
                while self.phase == Phase::Serving && self.unsent() < OUTBOX_PAUSE {
                    let read = self.read(socket, node.memory().limits.request);
                    let executed = self.execute(parser, node, now_ns, &mut leave);
                    self.send(socket);
                    if read == 0 && !executed {
                        // The peer will send no more, and has had every reply.
                        if !socket.may_recv() && !self.has_replies() {
                            self.phase = Phase::Closing;
                        }
                        break;
                    }
                }
                if self.phase == Phase::Closing {
                    self.inbox.clear();
                    self.discard(socket);
                    if !self.has_replies() {
                        socket.close();
                    }
                }
            }
        }
        leave
    }

    /// Hangs up without a word, and gives back the memory: the peer gets a reset.
    pub(super) fn drop_it(&mut self, socket: &mut tcp::Socket<'_>) {
        socket.abort();
        self.inbox = Vec::new();
        self.outbox = Vec::new();
        self.sent = 0;
        self.phase = Phase::Closing;
    }

    /// Looks whether the peer has acknowledged something; when to send again what it has not. A peer that
    /// has not for too long is forgotten: a reset could not reach it either.
    pub(super) fn watch(
        &mut self,
        socket: &mut tcp::Socket<'_>,
        port: u16,
        now_ns: u64,
    ) -> Option<u64> {
        self.watch.observe(waits_for(socket, self.written), now_ns);
        if self.watch.is_hopeless() {
            socket.abort();
            self.listen_again(socket, port);
        }
        self.watch.due_ns()
    }

    pub(super) fn retransmit_due_ns(&self) -> Option<u64> {
        self.watch.due_ns()
    }

    pub(super) fn forced(&mut self, now_ns: u64) {
        self.watch.forced(now_ns);
    }

    fn unsent(&self) -> usize {
        self.outbox.len() - self.sent
    }

    fn listen_again(&mut self, socket: &mut tcp::Socket<'_>, port: u16) {
        *self = Self { charged: self.charged, ..Self::new(self.handle) };
        socket.listen(port).expect("a closed socket can listen on a port that is not 0");
    }

    /// Moves bytes from the socket to the inbox, up to one more than a request may have.
    fn read(&mut self, socket: &mut tcp::Socket<'_>, request_max: usize) -> usize {
        let room = (request_max + 1).saturating_sub(self.inbox.len());
        if room == 0 || !socket.can_recv() {
            return 0;
        }
        let inbox = &mut self.inbox;
        let read = socket.recv(|bytes| {
            let n = bytes.len().min(room);
            inbox.extend_from_slice(&bytes[..n]);
            (n, n)
        });
        // The only error is that the peer has closed, after everything was read.
        read.unwrap_or(0)
    }

    /// Executes the requests in the inbox; whether there was one.
    fn execute(
        &mut self,
        parser: &mut Parser,
        node: &mut Node<'_>,
        now_ns: u64,
        leave: &mut Option<PowerOff>,
    ) -> bool {
        let limits = node.memory().limits;
        let mut done = 0;
        while self.phase == Phase::Serving && self.outbox.len() - self.sent < OUTBOX_PAUSE {
            let bytes = &self.inbox[done..];
            match parser.parse(bytes, &limits) {
                Ok(Parsed::Incomplete) => break,
                Ok(Parsed::Request { consumed }) => {
                    let args = parser.args(bytes);
                    if !args.is_empty() {
                        let mut reply = Reply::new(&mut self.outbox, limits.reply);
                        let outcome = node.execute(args, &mut reply, now_ns);
                        reply.finish();
                        match outcome {
                            Outcome::Continue => {}
                            Outcome::Close => self.phase = Phase::Closing,
                            Outcome::Leave(how) => *leave = Some(how),
                        }
                    }
                    done += consumed;
                }
                Err(e) => {
                    let mut reply = Reply::new(&mut self.outbox, limits.reply);
                    reply.error(&alloc::format!("ERR {e}"));
                    reply.finish();
                    self.phase = Phase::Closing;
                }
            }
        }
        self.inbox.drain(..done);
        done > 0
    }

    fn send(&mut self, socket: &mut tcp::Socket<'_>) {
        while self.has_replies() && socket.can_send() {
            // The only error is that the connection does not send any more.
            let sent = socket.send_slice(&self.outbox[self.sent..]).unwrap_or(0);
            self.sent += sent;
            self.written += sent as u64;
        }
        if !socket.may_send() || !self.has_replies() {
            self.outbox.clear();
            self.sent = 0;
        }
    }

    fn discard(&mut self, socket: &mut tcp::Socket<'_>) {
        while socket.can_recv() && socket.recv(|bytes| (bytes.len(), ())).is_ok() {}
    }
}
