//! The engine `nfqueue`: netfilter keeps the guest's frames themselves, not copies, until a verdict.
//!
//! What goes in as a frame of 64 KB whose checksum is still to be filled in comes out as one. The eBPF
//! program `stamp` marks each IP frame with its epoch; a rule at prerouting puts what is marked into a
//! queue of this process; one verdict, on all frames up to the last of an epoch, lets them go on to the rule that
//! asks the eBPF program `lock` once more, and then to bridge, router and firewall as any frame of the tap.
//!
//! Invariants:
//! - Nobody listens: frames are dropped. So the queue is shut when this process dies, and what it held is gone.
//! - A verdict is sent only within the lease, on what [`Ledger`] finds covered; `lock` checks both again.
//! - Rules and programs outlive this process; [`NfQueue::verify`] compares the rules that are in force with those
//!   that were put in.
//!
//! Deliberately absent: frames that are not plain IP. The buffer of the engine `bpf` holds them; so IP and, say, ARP
//! keep their order each, not among each other.

mod ledger;
mod message;
mod netlink;
mod rules;
mod socket;
mod support;
mod switches;
mod xtables;

use std::{
    cell::Cell,
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use anyhow::{Context, Result, bail, ensure};
use remus_abi::{Stamp, gate::Mode, queue, releasable};

pub use self::support::{Support, forward_policy_drop, support};
use self::{
    ledger::Ledger,
    message::{Event, FrameId, QueueNumber, Verdict},
    rules::{Plan, Second, Statement},
    socket::{Datagrams, Refused, Socket},
    switches::Switches,
};
use super::{Flushed, Held, Tap, words::ControlWords};
use crate::os::boot_now;

/// Frames that the queue takes. Netfilter takes this many at most, whatever it is told.
const MAX_FRAMES: u32 = 1 << 16;
/// Bytes of messages that may wait to be read: about 1 KiB each of kernel memory. Memory in use, not reserved.
const RECEIVE_BUFFER: i32 = 128 << 20;
/// Queues are looked for from this number on.
const FIRST_QUEUE: u16 = 0x5d00;
const QUEUES: u16 = 256;
/// Frames let go by one verdict; the lease is looked at before each.
const VERDICT_STEP: u32 = 8192;

/// Whatever this stamp covers may leave now, by the words and the clock; `None` when nothing may.
fn releasable_now(words: &ControlWords) -> Option<Stamp> {
    let upto = releasable(words.mode as u64, || words.open, || words.committed);
    let may = match words.mode {
        Mode::Closed => false,
        Mode::Hold => upto < words.open && boot_now().0 <= words.lease_until_ns,
        Mode::Open => true,
    };
    may.then_some(upto)
}

/// The queue behind one tap, and the rules that lead to it.
pub(super) struct NfQueue {
    tap: String,
    queue: QueueNumber,
    listener: Socket,
    /// Owns the tables, where the kernel has that; open as long as they are ours.
    owner: Socket,
    owned: bool,
    datagrams: Datagrams,
    ledger: Ledger,
    /// The rules as the kernel showed them after they were put in, and when they were last compared.
    standing: Vec<Vec<u8>>,
    switches: Switches,
    generation: Cell<u32>,
    /// Frames that were thrown away when a term ended.
    discarded: u64,
}

impl NfQueue {
    /// Takes a free queue and puts the rules in, `lock` among them. The programs must let nothing pass yet.
    pub(super) fn install(tap: &Tap, lock: BorrowedFd<'_>) -> Result<Self> {
        let listener = Socket::open()?;
        prepare(&listener).context("prepare the netfilter queue's socket")?;
        let queue = take_queue(&listener)?;
        let owner = Socket::open()?;
        let plan = Plan {
            tap: &tap.name,
            queue,
            second: Second::Program(lock.as_raw_fd()),
            statement: Statement::Queue,
            owned: true,
        };
        let plan = put_in(&owner, plan)
            .with_context(|| format!("put the queue's rules for {} into nf_tables", tap.name))?;
        let mut queue = Self {
            tap: tap.name.clone(),
            queue,
            listener,
            owned: plan.owned,
            owner,
            datagrams: Datagrams::new(),
            ledger: Ledger::default(),
            standing: Vec::new(),
            switches: Switches::turn_on()?,
            generation: Cell::new(0),
            discarded: 0,
        };
        queue.generation.set(generation(&queue.owner)?);
        queue.standing = standing(&queue.owner, &queue.tap)?;
        Ok(queue)
    }

    /// Reads which frames have joined the queue, by the words as they are. To be called often: what is not read fills the
    /// socket, and then frames are dropped.
    fn pump(&mut self, words: &ControlWords) -> Result<()> {
        while self.datagrams.receive(&self.listener).context("read from the netfilter queue")? > 0 {
            for event in self.datagrams.iter().flat_map(message::events) {
                match event {
                    Event::Waits { queue, id, mark } if queue == self.queue => {
                        match queue::stamp(mark, words.open, words.turns, words.kept) {
                            Some(stamp) => self.ledger.handle_waits(id, stamp),
                            // Nobody's, of an epoch to come, or of a term that was not kept: it never leaves.
                            None => judge_one(&self.listener, queue, Verdict::Drop, id)?,
                        }
                    }
                    // Of a verdict on frames that the kernel has dropped meanwhile.
                    Event::Refused(libc::ENOENT) => {}
                    Event::Refused(errno) => {
                        return Err(Refused { errno }).context("a verdict was refused");
                    }
                    Event::Waits { queue, .. } => bail!("a frame of queue {queue:?}, not ours"),
                }
            }
        }
        Ok(())
    }

    /// Lets go what may leave, in order, as far as it goes in one call.
    pub(super) fn flush(&mut self, words: &ControlWords) -> Result<Flushed> {
        self.pump(words)?;
        while self.ledger.frames() > 0 {
            let Some(upto) = releasable_now(words) else { return Ok(Flushed::Refused) };
            let released = self.ledger.poll_release(upto, words.kept, VERDICT_STEP);
            let Some(last) = released else { break };
            judge_up_to(&self.listener, self.queue, Verdict::Accept, last)?;
        }
        Ok(Flushed::All)
    }

    /// The term of `words` ends: everything that has joined the queue in it is read, and dropped or left to wait.
    pub(super) fn turn(&mut self, held: Held, words: &ControlWords) -> Result<()> {
        self.pump(words)?;
        match held {
            Held::Keep => {}
            Held::Discard => {
                self.discarded += self.ledger.frames();
                if let Some(last) = self.ledger.take_all() {
                    judge_up_to(&self.listener, self.queue, Verdict::Drop, last)?;
                }
            }
        }
        Ok(())
    }

    /// Frames that were thrown away when a term ended.
    pub(super) fn discarded(&self) -> u64 {
        self.discarded
    }

    /// Frames that wait, as far as they have been read.
    pub(super) fn held(&self) -> u64 {
        self.ledger.frames()
    }

    /// Frames that the kernel dropped since the queue was made, because it was full.
    pub(super) fn dropped(&self) -> Result<u64> {
        Ok(self.instance()?.dropped)
    }

    /// Asks the kernel whether the rules are in force as they were put in, and whether the queue is still ours.
    pub(super) fn verify(&self) -> Result<()> {
        let instance = self.instance()?;
        ensure!(
            instance.port == self.listener.port(),
            "netfilter queue {} of {} is somebody else's",
            self.queue.0,
            self.tap
        );
        self.switches.verify()?;
        // Read before the rules: a change in between is seen the next time.
        let generation = generation(&self.owner)?;
        if generation != self.generation.get() {
            ensure!(
                standing(&self.owner, &self.tap)? == self.standing,
                "the rules that hold the frames of {} were changed or taken out",
                self.tap
            );
            self.generation.set(generation);
        }
        Ok(())
    }

    /// Takes the rules out, and with them whatever waits.
    pub(super) fn remove(self) -> Result<()> {
        let requests = rules::remove(&self.tap, self.owned);
        self.owner
            .ask(&requests, |_| {})
            .with_context(|| format!("take the queue's rules for {} out", self.tap))?;
        self.switches.restore()
    }

    fn instance(&self) -> Result<Instance> {
        const PATH: &str = "/proc/thread-self/net/netfilter/nfnetlink_queue";
        let text = fs::read_to_string(PATH).with_context(|| format!("read {PATH}"))?;
        let queue = self.queue;
        instance_in(&text, queue)
            .with_context(|| format!("netfilter queue {} of {} is gone", queue.0, self.tap))
    }
}

/// Takes out the rules that a gate on `tap` left when its process died, if there are any. Without an owner they drop what
/// is stamped.
///
/// # Errors
/// When the kernel refuses, as it does while another process owns them.
pub fn sweep(tap: &str) -> Result<bool> {
    let socket = Socket::open()?;
    // A kernel without nf_tables has no rules.
    if standing(&socket, tap).is_ok_and(|rules| rules.is_empty()) || generation(&socket).is_err() {
        return Ok(false);
    }
    let take_out = |owned| socket.ask(&rules::remove(tap, owned), |_| {});
    take_out(true)
        .or_else(|_| take_out(false))
        .with_context(|| format!("take the queue's rules for {tap} out"))?;
    Ok(true)
}

/// Readable when frames have joined the queue.
impl AsFd for NfQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

fn prepare(listener: &Socket) -> std::io::Result<()> {
    listener.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER)?;
    // A frame whose message does not fit is dropped and counted; the others are still to be read.
    listener.set(libc::SOL_NETLINK, libc::NETLINK_NO_ENOBUFS, 1)
}

fn take_queue(listener: &Socket) -> Result<QueueNumber> {
    for number in FIRST_QUEUE..FIRST_QUEUE + QUEUES {
        let queue = QueueNumber(number);
        match listener.ask(&message::bind(queue), |_| {}) {
            Ok(()) => {
                let configure = message::configure(queue, MAX_FRAMES);
                listener.ask(&configure, |_| {}).context("configure a netfilter queue")?;
                return Ok(queue);
            }
            Err(error) if errno_of(&error) == Some(libc::EBUSY) => {}
            Err(error) => {
                return Err(error).context(
                    "take a netfilter queue (needs CAP_NET_ADMIN and CONFIG_NETFILTER_NETLINK_QUEUE)",
                );
            }
        }
    }
    bail!("all netfilter queues from {FIRST_QUEUE} on are taken")
}

/// Puts the rules in with the best that the kernel knows, and says what that was.
fn put_in<'a>(owner: &Socket, wanted: Plan<'a>) -> Result<Plan<'a>> {
    let mut reason = None;
    for statement in [Statement::Queue, Statement::Target] {
        for owned in [true, false] {
            let plan = Plan { statement, owned, ..wanted };
            match owner.ask(&rules::install(&plan), |_| {}) {
                Ok(()) => return Ok(plan),
                Err(error) => match errno_of(&error) {
                    Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EINVAL) => reason = Some(error),
                    Some(libc::EPERM) => return Err(error).context("another process owns them"),
                    _ => return Err(error),
                },
            }
        }
    }
    Err(reason.expect("at least one way was tried")).context(
        "the kernel needs nf_tables for IPv4, IPv6 and bridges, its queue statement (CONFIG_NFT_QUEUE) or the NFQUEUE target, and \
         the bpf and physdev matches through CONFIG_NFT_COMPAT",
    )
}

fn errno_of(error: &anyhow::Error) -> Option<i32> {
    error.downcast_ref::<Refused>().map(|refused| refused.errno)
}

fn judge_one(socket: &Socket, queue: QueueNumber, verdict: Verdict, id: FrameId) -> Result<()> {
    socket.send(&message::verdict_on(queue, verdict, id)).context("send a verdict")
}

fn judge_up_to(socket: &Socket, queue: QueueNumber, verdict: Verdict, last: FrameId) -> Result<()> {
    socket.send(&message::verdict_up_to(queue, verdict, last)).context("send a verdict")
}

fn generation(socket: &Socket) -> Result<u32> {
    let mut generation = None;
    socket
        .ask(&rules::get_generation(), |reply| generation = rules::generation_in(reply))
        .context("ask nf_tables for its generation")?;
    generation.context("nf_tables tells no generation")
}

/// The rules of `tap` that are in force. A dump that was interrupted by a change is begun again.
fn standing(socket: &Socket, tap: &str) -> Result<Vec<Vec<u8>>> {
    let once = || -> Result<_> {
        let mut standing = Vec::new();
        for dump in rules::dumps() {
            socket.ask(&dump, |reply| standing.extend(rules::ours_in(reply, tap)))?;
        }
        Ok(standing)
    };
    once().or_else(|_| once()).context("read the rules of nf_tables")
}

/// What the kernel tells about a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Instance {
    port: u32,
    dropped: u64,
}

/// The line of `queue` in nfnetlink_queue's file: number, port, waiting, copy mode, copy range, dropped because the queue
/// was full, dropped because the socket was, last id.
fn instance_in(text: &str, queue: QueueNumber) -> Option<Instance> {
    text.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        if next()? != u64::from(queue.0) {
            return None;
        }
        let port = u32::try_from(next()?).ok()?;
        let (_waiting, _mode, _range) = (next()?, next()?, next()?);
        Some(Instance { port, dropped: next()? + next()? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_queue_is_found_among_others() {
        let text = "    7  1234     0 2 65531     0     0        1  1\n\
                    23808   4711    12 1 65531     3     4       99  1\n";
        let found = instance_in(text, QueueNumber(0x5d00));
        assert_eq!(found, Some(Instance { port: 4711, dropped: 7 }));
        assert_eq!(instance_in(text, QueueNumber(8)), None);
        assert_eq!(instance_in("23808 12 garbage", QueueNumber(0x5d00)), None);
    }
}
