//! What a primary tells a backup about its machine, in the fields of `Hello` that the wire leaves to the shells.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    gate,
    machine::{CpuProfile, Shape},
    wire::Hello,
};

/// The machine, and how its host has wired it up; the backup does the same unless its operator says otherwise.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Announced {
    pub(crate) shape: Shape,
    pub(crate) tap: String,
    pub(crate) bridge: Option<String>,
    pub(crate) gate: gate::Settings,
}

impl Announced {
    /// # Errors
    /// When it is longer than `Hello` has room for: names are bounded, so that is a bug.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        bounded(serde_json::to_vec(self)?, Hello::SHAPE_MAX).context("describe the machine")
    }

    /// # Errors
    /// When a peer sent something else. Nothing in it is believed yet: the caller checks shape and names.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).context("the primary's description of its machine")
    }
}

/// # Errors
/// When the profile is longer than `Hello` has room for.
pub(crate) fn encode_cpu(cpu: &CpuProfile) -> Result<Vec<u8>> {
    bounded(serde_json::to_vec(cpu)?, Hello::CPU_MAX).context("describe the CPU")
}

/// # Errors
/// When a peer sent something else.
pub(crate) fn decode_cpu(bytes: &[u8]) -> Result<CpuProfile> {
    serde_json::from_slice(bytes).context("the primary's description of its CPU")
}

fn bounded(bytes: Vec<u8>, max: usize) -> Result<Vec<u8>> {
    ensure!(bytes.len() <= max, "{} bytes where the protocol has room for {max}", bytes.len());
    Ok(bytes)
}
