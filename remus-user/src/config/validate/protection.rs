//! `[protection]`: how often, how fast, and how soon.

use std::{net::SocketAddr, time::Duration};

use serde::Deserialize;

use super::{Check, MEMORY_MIB_MAX};
use crate::{
    checkpoint::{COPIES_DEFAULT, Compression, EncoderSettings},
    config::{ConfigError, LEASE_MARGIN, Protection, Start},
    replication::{Mode, Tempo},
};

const EPOCH_MS_DEFAULT: i64 = 25;
const EPOCH_MS_MAX: u32 = 10_000;
const IDLE_MS_DEFAULT: i64 = 250;
const RATE_MAX_DEFAULT: i64 = 2000;
const PAUSE_MAX_US_DEFAULT: i64 = 2000;
const PAGES_PER_MIB: u32 = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawProtection {
    backup: String,
    start: Option<String>,
    mode: Option<String>,
    epoch_ms: Option<i64>,
    idle_ms: Option<i64>,
    output_delay_us: Option<i64>,
    rate_max: Option<i64>,
    pause_max_us: Option<i64>,
    depth: Option<i64>,
    delta_cache_mib: Option<i64>,
    compression: Option<String>,
    heartbeat_ms: Option<i64>,
    detect_ms: Option<i64>,
    lease_ms: Option<i64>,
}

impl Check<'_, '_> {
    pub(super) fn protection(&self, raw: &RawProtection) -> Result<Protection, ConfigError> {
        let backup: SocketAddr = raw.backup.parse().map_err(|_| {
            self.wrong(
                "protection.backup",
                format!("{:?} is not IP:PORT", raw.backup),
                "write an address, not a name: backup = \"10.99.0.2:7000\", or \"[fd00::2]:7000\"",
            )
        })?;
        if backup.port() == 0 || backup.ip().is_unspecified() || backup.ip().is_multicast() {
            return Err(self.wrong(
                "protection.backup",
                format!("{backup} is not a usable address"),
                "write the address and port that `remus backup --listen` was given",
            ));
        }
        let start = match raw.start.as_deref() {
            None | Some("protected") => Start::Protected,
            Some("unprotected") => Start::Unprotected,
            Some(other) => {
                return Err(self.wrong(
                    "protection.start",
                    format!("unknown start {other:?}"),
                    "\"protected\": nothing leaves before the backup has a checkpoint; \"unprotected\": the guest \
                     may talk at once, and what it said is lost if the host dies before that",
                ));
            }
        };
        let ms = |key, value: Option<i64>, default, min, max| {
            self.number(key, value.unwrap_or(default), min, max)
        };
        let tempo = self.tempo(raw)?;
        let pause_max_us = raw.pause_max_us.unwrap_or(PAUSE_MAX_US_DEFAULT);
        let pause_max_us = self.number("protection.pause_max_us", pause_max_us, 300, 1_000_000)?;
        let depth = self.number("protection.depth", raw.depth.unwrap_or(2), 1, 16)?;
        let heartbeat_ms = ms("protection.heartbeat_ms", raw.heartbeat_ms, 10, 1, 1000)?;
        let detect_ms = ms("protection.detect_ms", raw.detect_ms, 100, 30, 60_000)?;
        let lease_ms = ms("protection.lease_ms", raw.lease_ms, 60, 5, 60_000)?;
        if detect_ms < 3 * heartbeat_ms {
            return Err(self.wrong(
                "protection.detect_ms",
                format!("{detect_ms} ms is less than three heartbeats of {heartbeat_ms} ms"),
                format!(
                    "one late heartbeat must not cause a takeover: use detect_ms = {} or more, or a shorter heartbeat_ms",
                    3 * heartbeat_ms
                ),
            ));
        }
        let lease_max = detect_ms.saturating_sub(margin_ms());
        if lease_ms > lease_max {
            return Err(self.wrong(
                "protection.lease_ms",
                format!("{lease_ms} ms is too long for detect_ms = {detect_ms}"),
                format!(
                    "the old primary must be mute {} ms before its backup speaks: use lease_ms = {lease_max} or \
                    less, or detect_ms = {} or more",
                    margin_ms(),
                    lease_ms + margin_ms()
                ),
            ));
        }
        if lease_ms < 2 * heartbeat_ms {
            return Err(self.wrong(
                "protection.lease_ms",
                format!("{lease_ms} ms is less than two heartbeats: heartbeat_ms = {heartbeat_ms}"),
                format!(
                    "one lost answer must not end the lease, or replies wait: use heartbeat_ms = {} or less, or lease_ms = {} \
                    or more",
                    lease_ms / 2,
                    2 * heartbeat_ms
                ),
            ));
        }
        let duration = |ms: u32| Duration::from_millis(u64::from(ms));
        Ok(Protection {
            backup,
            start,
            tempo,
            pause_max: Duration::from_micros(pause_max_us.into()),
            depth: depth as usize,
            encoding: self.encoding(raw)?,
            heartbeat: duration(heartbeat_ms),
            detect: duration(detect_ms),
            lease: duration(lease_ms),
        })
    }

    fn tempo(&self, raw: &RawProtection) -> Result<Tempo, ConfigError> {
        let mode = match raw.mode.as_deref() {
            None | Some("latency") => Mode::Latency,
            Some("throughput") => Mode::Throughput,
            Some("fixed") => Mode::Fixed,
            Some(other) => {
                return Err(self.wrong(
                    "protection.mode",
                    format!("unknown mode {other:?}"),
                    "\"latency\": output waits as briefly as possible; \"throughput\": the guest is stopped as rarely \
                     as possible; \"fixed\": every epoch lasts epoch_ms",
                ));
            }
        };
        let epoch_ms = raw.epoch_ms.unwrap_or(EPOCH_MS_DEFAULT);
        let epoch_ms = self.number("protection.epoch_ms", epoch_ms, 1, EPOCH_MS_MAX)?;
        let idle_ms = raw.idle_ms.unwrap_or(i64::from(epoch_ms).max(IDLE_MS_DEFAULT));
        let idle_ms = self.number("protection.idle_ms", idle_ms, 1, EPOCH_MS_MAX)?;
        if idle_ms < epoch_ms {
            return Err(self.wrong(
                "protection.idle_ms",
                format!("{idle_ms} ms is less than epoch_ms = {epoch_ms}"),
                format!("an idle guest is not stopped more often than one that works: use {epoch_ms} or more"),
            ));
        }
        let delay_us = raw.output_delay_us.unwrap_or(0);
        let delay_us = self.number("protection.output_delay_us", delay_us, 0, 1_000_000)?;
        let rate_max = raw.rate_max.unwrap_or(RATE_MAX_DEFAULT);
        let rate_max = self.number("protection.rate_max", rate_max, 1, 10_000)?;
        let interval_min = Duration::from_secs(1) / rate_max;
        let epoch_max = Duration::from_millis(epoch_ms.into());
        if interval_min > epoch_max {
            return Err(self.wrong(
                "protection.rate_max",
                format!(
                    "{rate_max} checkpoints a second are fewer than one each epoch_ms = {epoch_ms}"
                ),
                format!(
                    "use rate_max = {} or more, or a longer epoch_ms",
                    1000_u32.div_ceil(epoch_ms)
                ),
            ));
        }
        Ok(Tempo {
            mode,
            epoch_max,
            output_delay: Duration::from_micros(delay_us.into()),
            interval_min,
            idle_max: Duration::from_millis(idle_ms.into()),
        })
    }

    fn encoding(&self, raw: &RawProtection) -> Result<EncoderSettings, ConfigError> {
        let key = "protection.delta_cache_mib";
        let mib = raw.delta_cache_mib.unwrap_or((COPIES_DEFAULT / PAGES_PER_MIB).into());
        let copies = self.number(key, mib, 2, MEMORY_MIB_MAX)? * PAGES_PER_MIB;
        let compression = match raw.compression.as_deref() {
            None | Some("none") => Compression::None,
            Some("lz4") => Compression::Lz4,
            Some("zstd") => Compression::Zstd,
            Some(other) => {
                return Err(self.wrong(
                    "protection.compression",
                    format!("unknown compression {other:?}"),
                    "use \"none\"; or \"lz4\" or \"zstd\" for a link that is slower than these compress",
                ));
            }
        };
        Ok(EncoderSettings { copies, compression })
    }
}

fn margin_ms() -> u32 {
    u32::try_from(LEASE_MARGIN.as_millis()).expect("a margin of milliseconds")
}
