//! `[gate]`: what holds frames, how many, and what releases them.

use remus_abi::gate::{BUFFER_MIB_DEFAULT, BUFFER_MIB_MAX};
use serde::Deserialize;

use super::Check;
use crate::{
    config::{ConfigError, ReleaseTrigger},
    gate::{Engine, Release, Settings},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGate {
    buffer_mib: Option<i64>,
    engine: Option<String>,
    #[serde(default)]
    release: RawRelease,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRelease {
    uplink: Option<String>,
    trigger: Option<String>,
}

impl Check<'_, '_> {
    pub(super) fn gate(&self, raw: Option<&RawGate>) -> Result<Settings, ConfigError> {
        let Some(raw) = raw else { return Ok(Settings::default()) };
        let key = "gate.buffer_mib";
        let buffer_mib = raw.buffer_mib.unwrap_or(BUFFER_MIB_DEFAULT.into());
        let buffer_mib = self.number(key, buffer_mib, 1, BUFFER_MIB_MAX)?;
        if !buffer_mib.is_power_of_two() {
            let above = buffer_mib.next_power_of_two();
            return Err(self.wrong(
                key,
                format!("{buffer_mib} is not a power of two"),
                format!("nearest: {} or {above}", above / 2),
            ));
        }
        let release = match &raw.release.uplink {
            Some(uplink) => Release::Uplink(self.link("gate.release.uplink", uplink)?),
            None => Release::ReEntry,
        };
        let key = "gate.engine";
        let engine = match raw.engine.as_deref() {
            None | Some("bpf") => Engine::Bpf,
            Some("nfqueue") if release == Release::ReEntry => Engine::NfQueue,
            Some("nfqueue") => {
                return Err(self.wrong(
                    key,
                    "the engine nfqueue releases frames where it held them, and not by an uplink"
                        .to_owned(),
                    "leave out gate.release.uplink, or use engine = \"bpf\"",
                ));
            }
            Some(other) => {
                let what = format!("unknown engine {other:?}");
                return Err(self.wrong(key, what, "\"bpf\" or \"nfqueue\""));
            }
        };
        Ok(Settings { buffer_mib, release, engine })
    }

    pub(super) fn trigger(&self, raw: Option<&RawGate>) -> Result<ReleaseTrigger, ConfigError> {
        match raw.and_then(|gate| gate.release.trigger.as_deref()) {
            None | Some("controller") => Ok(ReleaseTrigger::Controller),
            Some("kernel") => Ok(ReleaseTrigger::Kernel),
            Some(other) => Err(self.wrong(
                "gate.release.trigger",
                format!("unknown trigger {other:?}"),
                "\"controller\": the process that runs the guest; \"kernel\": a program at the link to the \
                 backup too, at once",
            )),
        }
    }
}
