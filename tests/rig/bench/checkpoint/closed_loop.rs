//! A client that measures: connections that each wait for a reply before they ask again, at once.
//!
//! It runs in a thread of its own, on the CPU that it shares with the hosts and with their priority. What it needs of
//! that CPU is in the latency of every arm alike.

use std::{net::SocketAddrV4, thread, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{client::connection::Connection, netns::NetNs, resp::Reply};

/// What is asked before this is not counted.
const WARM_UP: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Measured {
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) requests_per_s: f64,
    /// Replies other than the right one.
    pub(super) wrong: u64,
    /// Connections that died.
    pub(super) lost: u64,
}

/// Asks for `time` on `connections` connections.
pub(super) async fn closed_loop(
    netns: NetNs,
    server: SocketAddrV4,
    connections: u32,
    time: Duration,
) -> Result<Measured> {
    let (tell, told) = oneshot::channel();
    let work = move || {
        let measured = in_a_runtime(&netns, server, connections, time);
        // Nobody waits any more when the bench has given up.
        drop(tell.send(measured));
    };
    let thread = thread::Builder::new().name("client".to_owned()).spawn(work);
    thread.context("start the client")?;
    told.await.context("the client panicked")?
}

fn in_a_runtime(
    netns: &NetNs,
    server: SocketAddrV4,
    connections: u32,
    time: Duration,
) -> Result<Measured> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut opened = Vec::new();
        for _ in 0..connections {
            let connection = Connection::open(netns, server).await;
            opened.push(connection.with_context(|| format!("connect to {server}"))?);
        }
        let from = Instant::now() + WARM_UP;
        let until = from + time;
        let mut workers = JoinSet::new();
        for (n, connection) in opened.into_iter().enumerate() {
            workers.spawn(ask(connection, format!("bench:{n}"), from, until));
        }
        sleep(WARM_UP).await;
        let workers = workers.join_all().await;
        let mut us: Vec<u32> =
            workers.iter().flat_map(|worker| worker.us.iter().copied()).collect();
        us.sort_unstable();
        Ok(Measured {
            p50_us: percentile(&us, 50),
            p99_us: percentile(&us, 99),
            requests_per_s: us.len() as f64 / time.as_secs_f64(),
            wrong: workers.iter().map(|worker| worker.wrong).sum(),
            lost: workers.iter().map(|worker| u64::from(worker.lost)).sum(),
        })
    })
}

#[derive(Default)]
struct Worker {
    us: Vec<u32>,
    wrong: u64,
    lost: bool,
}

/// Sets its own key and gets it, in turns.
async fn ask(mut connection: Connection, key: String, from: Instant, until: Instant) -> Worker {
    let mut worker = Worker::default();
    for n in 0u64.. {
        let value = (n / 2).to_string();
        let asked = Instant::now();
        if asked >= until {
            break;
        }
        let (reply, right) = if n % 2 == 0 {
            let reply = connection.ask(&["SET", &key, &value]).await;
            (reply, Reply::Status("OK".to_owned()))
        } else {
            let reply = connection.ask(&["GET", &key]).await;
            (reply, Reply::Bulk(Some(value.into_bytes())))
        };
        let Ok(reply) = reply else {
            worker.lost = true;
            break;
        };
        let took = asked.elapsed();
        worker.wrong += u64::from(reply != right);
        if asked >= from {
            worker.us.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
        }
    }
    worker
}

/// Of values in order: the nearest rank; NaN of none.
fn percentile(sorted: &[u32], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).map_or(f64::NAN, |&us| us.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let hundred: Vec<u32> = (1..=100).collect();
        assert_eq!([50, 99, 100].map(|p| percentile(&hundred, p)), [50.0, 99.0, 100.0]);
        assert_eq!([1, 50, 99].map(|p| percentile(&[7], p)), [7.0; 3]);
        assert!(percentile(&[], 50).is_nan());
    }
}
