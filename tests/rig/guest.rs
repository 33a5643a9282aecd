//! The demo guest's own commands, beyond those of Redis: its work generator and its beacon.

use std::{
    io,
    net::SocketAddrV4,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, sleep};

use crate::{client::connection::Connection, netns::NetNs, resp::Reply, sys::boottime_ns};

const CLOCK_READINGS: usize = 10;

/// A connection on which the rig steers the guest.
#[derive(Debug)]
pub struct Guest {
    connection: Connection,
}

/// How far the work generator was at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub at_ns: u64,
    pub pages: u64,
}

impl Progress {
    /// Pages a second between two readings.
    pub fn rate_until(self, later: Self) -> f64 {
        let seconds = later.at_ns.saturating_sub(self.at_ns) as f64 / 1e9;
        later.pages.saturating_sub(self.pages) as f64 / seconds
    }
}

impl Guest {
    /// Waits until the guest answers.
    pub async fn wait(netns: &NetNs, server: SocketAddrV4, patience: Duration) -> Result<Self> {
        let until = Instant::now() + patience;
        loop {
            match Self::greet(netns, server).await {
                Ok(guest) => return Ok(guest),
                Err(error) if Instant::now() >= until => {
                    return Err(error).with_context(|| format!("no guest answers at {server}"));
                }
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn greet(netns: &NetNs, server: SocketAddrV4) -> io::Result<Self> {
        let opening = Connection::open(netns, server);
        let limit = Duration::from_secs(1);
        let opened = tokio::time::timeout(limit, opening).await;
        let mut connection = opened.map_err(|_| io::ErrorKind::TimedOut)??;
        match connection.ask(&["PING"]).await? {
            Reply::Status(pong) if pong == "PONG" => Ok(Self { connection }),
            other => Err(io::Error::other(format!("PING was answered {other:?}"))),
        }
    }

    /// Touches `pages` pages again and again, `bytes` bytes of each; `rate` pages a second, 0 for as many as it
    /// can.
    pub async fn start_work(&mut self, pages: u32, bytes: u32, rate: u32) -> Result<()> {
        let numbers = [pages, bytes, rate].map(|number| number.to_string());
        let [pages, bytes, rate] = numbers.each_ref().map(String::as_str);
        self.done(&["WORK", "START", "hot", pages, bytes, rate]).await
    }

    pub async fn stop_work(&mut self) -> Result<()> {
        self.done(&["WORK", "STOP"]).await
    }

    pub async fn progress(&mut self) -> Result<Progress> {
        // The guest looks when it is asked: input is not held. The answer is, for up to an epoch.
        let at_ns = boottime_ns();
        let reply = self.connection.ask(&["WORK", "STAT"]).await.context("WORK STAT")?;
        let Reply::Array(Some(fields)) = &reply else { bail!("WORK STAT was answered {reply:?}") };
        let Some(Reply::Integer(pages)) = fields.get(1) else {
            bail!("WORK STAT was answered {reply:?}")
        };
        Ok(Progress { at_ns, pages: u64::try_from(*pages).context("negative progress")? })
    }

    /// Pages that each vCPU has worked through.
    pub async fn progress_of_vcpus(&mut self) -> Result<Vec<u64>> {
        let info = self.info().await?;
        let of = |vcpu: usize| field(&info, &format!("work_progress_{vcpu}"));
        (0..).map_while(of).map(|pages| pages.parse().context("odd progress")).collect()
    }

    /// How many vCPUs the guest has started, the first included.
    pub async fn vcpus_started(&mut self) -> Result<u8> {
        let info = self.info().await?;
        let started = field(&info, "vcpus_started").context("no vcpus_started in INFO")?;
        started.parse().context("odd vcpus_started")
    }

    async fn info(&mut self) -> Result<String> {
        match self.connection.ask(&["INFO"]).await.context("INFO")? {
            Reply::Bulk(Some(text)) => String::from_utf8(text).context("INFO is no text"),
            other => bail!("INFO was answered {other:?}"),
        }
    }

    /// How far the guest's clock is ahead of this host's, by the quickest of some answers.
    pub async fn clock_off_ms(&mut self) -> Result<f64> {
        let (mut quickest_ms, mut off_ms) = (f64::INFINITY, 0.0);
        for _ in 0..CLOCK_READINGS {
            let (round_trip_ms, off) = self.read_clock().await?;
            if round_trip_ms < quickest_ms {
                (quickest_ms, off_ms) = (round_trip_ms, off);
            }
        }
        Ok(off_ms)
    }

    /// How long an answer took, and how far the guest's clock was ahead of the middle of that.
    async fn read_clock(&mut self) -> Result<(f64, f64)> {
        let real_ms = || {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            since.map(|since| since.as_secs_f64() * 1e3).context("a host before 1970")
        };
        let asked_ms = real_ms()?;
        let reply = self.connection.ask(&["TIME"]).await.context("TIME")?;
        let round_trip_ms = real_ms()? - asked_ms;
        let Reply::Array(Some(fields)) = &reply else { bail!("TIME was answered {reply:?}") };
        let number = |at: usize| match fields.get(at) {
            Some(Reply::Bulk(Some(text))) => std::str::from_utf8(text).ok()?.parse::<f64>().ok(),
            _ => None,
        };
        let (Some(seconds), Some(micros)) = (number(0), number(1)) else {
            bail!("TIME was answered {reply:?}")
        };
        let guest_ms = seconds * 1e3 + micros / 1e3;
        Ok((round_trip_ms, guest_ms - (asked_ms + round_trip_ms / 2.0)))
    }

    pub async fn start_beacon(&mut self, period_ms: u32) -> Result<()> {
        self.done(&["BEACON", "START", &period_ms.to_string()]).await
    }

    /// The counter of the newest beacon that the guest has sent.
    pub async fn beacon(&mut self) -> Result<u64> {
        match self.connection.ask(&["BEACON"]).await.context("BEACON")? {
            Reply::Integer(counter) => u64::try_from(counter).context("negative beacon"),
            other => bail!("BEACON was answered {other:?}"),
        }
    }

    /// Has it begin anew, with nothing of what it knew. This connection ends with it.
    pub async fn reboot(&mut self) -> Result<()> {
        self.done(&["REBOOT"]).await
    }

    async fn done(&mut self, words: &[&str]) -> Result<()> {
        match self.connection.ask(words).await.with_context(|| words.join(" "))? {
            Reply::Status(_) => Ok(()),
            other => bail!("{} was answered {other:?}", words.join(" ")),
        }
    }
}

/// The value of a line of INFO.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}
