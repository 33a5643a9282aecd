//! What a primary tells a backup about its machine, in the fields of `Hello` that the wire leaves to the shells.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::STATE_VERSION,
    gate,
    machine::{CpuProfile, Shape},
    wire::Hello,
};

/// The machine, and how its host has wired it up; the backup does the same unless its operator says otherwise.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Announced {
    /// The version of the machine's state in checkpoints: [`STATE_VERSION`], or no takeover is possible.
    pub(crate) state: u16,
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
    /// When a peer sent something else, or is of another release. Nothing in it is believed yet: the caller checks shape and
    /// names.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let announced: Self =
            serde_json::from_slice(bytes).context("the primary's description of its machine")?;
        ensure!(
            announced.state == STATE_VERSION,
            "the primary's checkpoints hold machine states of version {}, this build reads {STATE_VERSION}: run the \
             same release on both hosts",
            announced.state
        );
        Ok(announced)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{DISK_PATH_MAX, DISKS_MAX, DiskShape, Offloads};

    fn announced() -> Announced {
        // What takes most room: quotes are written with a backslash.
        let disk = DiskShape {
            path: format!("/{}", "\"".repeat(DISK_PATH_MAX - 1)),
            id: "\"".repeat(20),
            readonly: false,
            bytes: u64::MAX / 512 * 512,
            sample: u64::MAX,
        };
        let shape = Shape {
            memory_mib: 1 << 16,
            vcpus: 64,
            mac: [255; 6],
            mtu_bytes: 9000,
            offloads: Offloads::Segmentation,
            disks: vec![disk; DISKS_MAX],
        };
        Announced {
            state: STATE_VERSION,
            shape,
            tap: "t".repeat(15),
            bridge: Some("b".repeat(15)),
            gate: gate::Settings::default(),
        }
    }

    #[test]
    fn the_longest_description_fits_a_hello_and_comes_back() {
        let bytes = announced().encode().unwrap();
        assert_eq!(Announced::decode(&bytes).unwrap().shape, announced().shape);
    }

    #[test]
    fn a_primary_of_another_release_is_told_so() {
        let says = |bytes: &[u8]| format!("{:#}", Announced::decode(bytes).unwrap_err());
        let newer = Announced { state: STATE_VERSION + 1, ..announced() }.encode().unwrap();
        assert!(says(&newer).contains("run the same release on both hosts"));
        // Version 1 said nothing of it.
        let text = String::from_utf8(announced().encode().unwrap()).unwrap();
        let older = text.replacen("\"state\":2,", "", 1);
        assert!(says(older.as_bytes()).contains("missing field `state`"));
    }
}
