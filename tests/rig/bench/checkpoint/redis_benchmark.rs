//! The real redis-benchmark: 50 connections, 16 requests under way on each.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};

use super::bed::Bed;
use crate::{host::Share, topology::GUEST};

const PATIENCE: Duration = Duration::from_secs(60);

/// Requests a second.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Rates {
    pub(super) set: f64,
    pub(super) get: f64,
}

/// Runs it against the guest with `requests` SETs, then as many GETs. `log` takes what it prints.
pub(super) async fn redis_benchmark(bed: &Bed, requests: u32, log: &Path) -> Result<Rates> {
    let mut command = Command::new("redis-benchmark");
    command.args(["-h", &GUEST.ip().to_string(), "-p", &GUEST.port().to_string(), "--csv"]);
    command.args(["-t", "set,get", "-c", "50", "-P", "16", "-n", &requests.to_string()]);
    let mut process = bed.stage.topology.client.spawn(command, Share::Load, log)?;
    let code = process.finish(PATIENCE).await?;
    ensure!(code == Some(0), "redis-benchmark fails: see {}", log.display());
    let text = fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    parse(&text)
}

/// Takes the second field of the lines that begin with the names of the tests.
fn parse(csv: &str) -> Result<Rates> {
    let rate = |test: &str| {
        let mut lines =
            csv.lines().map(|line| line.split(',').map(|field| field.trim_matches('"')));
        let mut line = lines.find_map(|mut line| (line.next() == Some(test)).then_some(line));
        let field = line.as_mut().and_then(Iterator::next);
        match field.map(str::parse::<f64>) {
            Some(Ok(rate)) if rate.is_finite() && rate > 0.0 => Ok(rate),
            _ => bail!("redis-benchmark tells no rate of {test}: {csv}"),
        }
    };
    Ok(Rates { set: rate("SET")?, get: rate("GET")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_with_and_without_a_header() {
        let with = "WARNING: Could not fetch server CONFIG\n\
                    \"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\"\n\
                    \"SET\",\"1234.50\",\"0.1\",\"0.2\"\n\"GET\",\"2000\",\"0.1\",\"0.2\"\n";
        let rates = Rates { set: 1234.5, get: 2000.0 };
        assert_eq!(parse(with).unwrap(), rates);
        assert_eq!(parse("\"GET\",\"2000.00\"\n\"SET\",\"1234.5\"\n").unwrap(), rates);
    }

    #[test]
    fn a_run_that_told_no_rate_is_an_error() {
        for text in
            ["", "\"SET\",\"1\"\n", "\"SET\",\"nan\"\n\"GET\",\"1\"\n", "\"SET\"\n\"GET\"\n"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
