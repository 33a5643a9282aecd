//! The server as one value: store, work generator, beacon, and what `INFO` tells about them.
//!
//! Pure: time comes in as an argument, frames and bytes go out as values. The machine below it polls.

use remus_abi::boot::PowerOff;

use crate::beacon::Beacon;
use crate::command;
use crate::crew::Crew;
use crate::resp::{Args, Limits, Reply};
use crate::store::Store;

/// What follows from a command beside its reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Continue,
    /// The client asked to be hung up on, once it has its reply.
    Close,
    /// The machine is to end, once the reply is out.
    Leave(PowerOff),
}

/// How the guest's RAM is shared out. All in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    /// What the allocator was given.
    pub heap: usize,
    /// What is charged to the store, at most.
    pub store: usize,
    /// What half-read requests and unsent replies of all connections take, at most.
    pub buffers: usize,
    /// Each of a socket's two buffers.
    pub socket: usize,
    pub limits: Limits,
}

/// The server.
#[derive(Debug)]
pub struct Node<'m> {
    pub(crate) store: Store,
    pub(crate) work: Crew<'m>,
    pub(crate) beacon: Beacon,
    pub(crate) memory: Memory,
    pub(crate) port: u16,
    pub(crate) started_ns: u64,
    pub(crate) stats: Stats,
}

/// Counters for `INFO`.
#[derive(Clone, Copy, Default, Debug)]
pub struct Stats {
    pub connections: u64,
    pub connections_open: u64,
    pub connections_dropped: u64,
    pub commands: u64,
    pub retransmits: u64,
    pub doorbells: u64,
    pub sleeps: u64,
}

impl Memory {
    /// Sockets; all of them listen while they are free. Twice the 128 connections that are promised: while
    /// output is held, a connection that is over keeps its socket until its end was let out and answered.
    pub const SOCKETS: usize = 256;

    /// Shares out `heap` bytes. The parts together leave an eighth to the allocator's own needs.
    pub fn share(heap: usize) -> Self {
        let socket = (heap / 1024).clamp(4 << 10, 16 << 10);
        // Rings, packet buffers and socket structures: see `machine::net`.
        let fixed = 2 * socket * Self::SOCKETS + (2 << 20);
        let free = heap.saturating_sub(fixed);
        let bulk = (free / 16).clamp(16 << 10, 512 << 10);
        let limits = Limits { bulk, request: 2 * bulk, reply: 4 * bulk };
        Self { heap, store: free / 2, buffers: free / 4, socket, limits }
    }
}

impl<'m> Node<'m> {
    /// `port` is the server's, for `INFO`.
    pub fn new(memory: Memory, work: Crew<'m>, port: u16, now_ns: u64) -> Self {
        Self {
            store: Store::new(memory.store, memory.limits.bulk),
            work,
            beacon: Beacon::default(),
            memory,
            port,
            started_ns: now_ns,
            stats: Stats::default(),
        }
    }

    /// Executes one request and writes its reply to `reply`.
    pub fn execute(&mut self, args: Args<'_>, reply: &mut Reply<'_>, now_ns: u64) -> Outcome {
        self.stats.commands += 1;
        command::execute(self, args, reply, now_ns)
    }

    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    pub fn work(&mut self) -> &mut Crew<'m> {
        &mut self.work
    }

    pub fn beacon(&mut self) -> &mut Beacon {
        &mut self.beacon
    }

    pub fn stats(&mut self) -> &mut Stats {
        &mut self.stats
    }

    /// When work or beacon want to be looked after, if ever.
    pub fn due_ns(&self, now_ns: u64) -> Option<u64> {
        [self.work.due_ns(now_ns), self.beacon.due_ns()].into_iter().flatten().min()
    }
}
