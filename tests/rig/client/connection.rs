//! Connections that ask in a closed loop until told to stop, then read everything back.
//!
//! A connection asks again as soon as it was answered (and a millisecond later, so that the client does not
//! compete with the hosts for the CPU it shares with them). A connection that dies is not reopened for the
//! load: that it died is the finding. Its keys are read back over a new one all the same, so that what it
//! saw confirmed is checked too.

use std::{
    io,
    net::SocketAddrV4,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use super::history::{Exchange, Gap, History, Request, Verdict};
use crate::{
    netns::NetNs,
    resp::{self, Reply},
    sys::boottime_ns,
};

/// Longer than any gap that could still be called one: after this a request counts as never answered.
const PATIENCE: Duration = Duration::from_secs(10);
const BETWEEN_REQUESTS: Duration = Duration::from_millis(1);

/// One connection to a Redis server.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// Received and not yet read as replies.
    received: Vec<u8>,
}

impl Connection {
    /// Connects from `netns`.
    pub async fn open(netns: &NetNs, server: SocketAddrV4) -> io::Result<Self> {
        let connected = timeout(PATIENCE, netns.connect(server)).await;
        let stream = connected.map_err(|_| io::ErrorKind::TimedOut)??;
        Ok(Self { stream, received: Vec::new() })
    }

    /// Sends one command and waits for its reply.
    pub async fn ask<W: AsRef<[u8]>>(&mut self, words: &[W]) -> io::Result<Reply> {
        let exchange = async {
            self.stream.write_all(&resp::command(words)).await?;
            loop {
                let parsed = resp::parse(&self.received).map_err(io::Error::other)?;
                if let Some((reply, length)) = parsed {
                    self.received.drain(..length);
                    return Ok(reply);
                }
                if self.stream.read_buf(&mut self.received).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        };
        timeout(PATIENCE, exchange).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}

/// The connections at work.
#[derive(Debug)]
pub struct Client {
    workers: JoinSet<Worker>,
    stop: Arc<AtomicBool>,
    replies: Arc<AtomicU64>,
    netns: NetNs,
    server: SocketAddrV4,
}

/// What came of the whole client.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub connections_kept: usize,
    /// Why each lost connection was lost.
    pub connections_lost: Vec<String>,
    pub verdict: Verdict,
    /// Each connection's longest time without a reply, or the one that was asked for.
    pub gaps: Vec<Gap>,
}

struct Worker {
    /// `Err` says why the connection is no more.
    connection: Result<Connection, io::Error>,
    history: History,
    ended_ns: u64,
}

impl Client {
    /// Opens `count` connections from `netns` and sets all to work. `name` keeps their keys apart from those
    /// of other clients.
    pub async fn start(
        netns: NetNs,
        server: SocketAddrV4,
        count: usize,
        name: &str,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let replies = Arc::new(AtomicU64::new(0));
        let mut opened = Vec::new();
        for n in 0..count {
            let connection = Connection::open(&netns, server).await;
            opened.push(connection.with_context(|| format!("open connection {n} to {server}"))?);
        }
        let mut workers = JoinSet::new();
        for (n, connection) in opened.into_iter().enumerate() {
            let worker = Worker {
                connection: Ok(connection),
                history: History::new(format!("{name}:{n}")),
                ended_ns: 0,
            };
            workers.spawn(worker.work(stop.clone(), replies.clone()));
        }
        Ok(Self { workers, stop, replies, netns, server })
    }

    /// Replies so far, over all connections.
    pub fn replies(&self) -> u64 {
        self.replies.load(Ordering::Relaxed)
    }

    /// Lets every connection finish its request, then reads back what was confirmed and judges all of it.
    pub async fn finish(self) -> Outcome {
        self.judge(History::longest_gap).await
    }

    /// The same, with each connection's time without a reply around `at_ns` for its gap.
    pub async fn finish_around(self, at_ns: u64) -> Outcome {
        self.judge(|history, end_ns| history.gap_over(at_ns, end_ns)).await
    }

    async fn judge(mut self, gap: impl Fn(&History, u64) -> Gap) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let mut outcome = Outcome::default();
        while let Some(worker) = self.workers.join_next().await {
            let mut worker = worker.expect("a worker does not panic");
            outcome.gaps.push(gap(&worker.history, worker.ended_ns));

            if worker.connection.is_ok() {
                worker.read_back().await;
            }
            match worker.connection {
                Ok(_) => outcome.connections_kept += 1,
                Err(why) => {
                    outcome.connections_lost.push(format!("{}: {why}", worker.history.prefix));
                    worker.connection = Connection::open(&self.netns, self.server).await;
                    if worker.connection.is_ok() {
                        worker.read_back().await;
                    }
                }
            }
            let verdict = worker.history.judge();
            outcome.verdict.replies += verdict.replies;
            outcome.verdict.unanswered += verdict.unanswered;
            outcome.verdict.contradictions.extend(verdict.contradictions);
        }
        outcome
    }
}

impl Worker {
    async fn work(mut self, stop: Arc<AtomicBool>, replies: Arc<AtomicU64>) -> Self {
        'load: for n in 0.. {
            let cycle = [
                Request::Increment,
                Request::Set { key: n },
                Request::Get { key: n },
                Request::Push { item: n },
            ];
            for request in cycle {
                if stop.load(Ordering::Relaxed) || !self.ask(request).await {
                    break 'load;
                }
                replies.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(BETWEEN_REQUESTS).await;
            }
        }
        self.ended_ns = boottime_ns();
        self
    }

    async fn read_back(&mut self) {
        for request in self.history.read_back() {
            if !self.ask(request).await {
                break;
            }
        }
    }

    /// Whether the connection lives on.
    async fn ask(&mut self, request: Request) -> bool {
        let Ok(connection) = &mut self.connection else { return false };
        let words = request.words(&self.history.prefix);
        let asked_ns = boottime_ns();
        let answer = match connection.ask(&words).await {
            Ok(reply) => Some((boottime_ns(), reply)),
            Err(error) => {
                self.connection = Err(error);
                None
            }
        };
        self.history.exchanges.push(Exchange { asked_ns, request, answer });
        self.connection.is_ok()
    }
}
