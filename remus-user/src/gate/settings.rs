//! How a gate is built: what an operator may choose. Pure.

use anyhow::{Result, ensure};
use remus_abi::gate::{BUFFER_MIB_DEFAULT, BUFFER_MIB_MAX};
use serde::{Deserialize, Serialize};

use crate::names::LinkName;

/// The same on both hosts, but for the name of the uplink.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// MiB of frames that can be held at once, each rounded up to 64 B: a power of two, at most
    /// `BUFFER_MIB_MAX`. A gate takes about 1.6 times as much of the host's memory.
    pub buffer_mib: u32,
    pub release: Release,
    pub engine: Engine,
}

/// Who keeps the frames that wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// The eBPF programs themselves: copies of the frames, in a buffer.
    Bpf,
    /// Netfilter: the IP frames themselves, large ones and unfinished checksums as they are. The buffer has the rest.
    NfQueue,
}

/// Which way released frames go.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Release {
    /// Back into the tap's ingress: bridge, router and firewall see them arrive from the tap.
    ReEntry,
    /// Straight out of this interface, past bridge and firewall; frames for other ports of the bridge or for the
    /// host itself do not reach them.
    Uplink(LinkName),
}

impl Default for Settings {
    fn default() -> Self {
        Self { buffer_mib: BUFFER_MIB_DEFAULT, release: Release::ReEntry, engine: Engine::Bpf }
    }
}

impl Settings {
    /// # Errors
    /// When a number is out of range: it came from another host, or past the config's checks.
    pub fn validate(&self) -> Result<()> {
        let mib = self.buffer_mib;
        ensure!(
            mib.is_power_of_two() && mib <= BUFFER_MIB_MAX,
            "the gate's buffer must be a power of two of MiB up to {BUFFER_MIB_MAX}, not {mib}"
        );
        ensure!(
            self.engine == Engine::Bpf || self.release == Release::ReEntry,
            "netfilter's queue releases frames where they were held, not by an uplink"
        );
        Ok(())
    }
}
