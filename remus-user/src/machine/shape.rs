//! What a machine is made of: the part that both hosts must agree on, and the part that is each host's own.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::devices::DiskShape;
use super::devices::net::Offloads;
use crate::checkpoint::VCPUS_MAX;

/// Least and most RAM of a machine, in MiB. The upper end is what the boot page tables have room for.
pub const MEMORY_MIB_MIN: u32 = 16;
pub const MEMORY_MIB_MAX: u32 = 64 << 10;
/// Least and most bytes of a packet on the guest's network: what IPv4 asks of every link, and what a held frame
/// has room for.
pub const MTU_BYTES_MIN: u16 = 68;
pub const MTU_BYTES_MAX: u16 = 9000;
/// Most disks of a machine.
pub const DISKS_MAX: usize = 4;

/// A machine as its guest sees it. Primary and backup build the same.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    pub memory_mib: u32,
    pub vcpus: u8,
    /// The guest's Ethernet address.
    pub mac: [u8; 6],
    /// The longest packet that the guest sends and receives in one frame.
    pub mtu_bytes: u16,
    /// What the guest may leave to its host: as much as the gate's engine keeps.
    pub offloads: Offloads,
    /// At most [`DISKS_MAX`].
    pub disks: Vec<DiskShape>,
}

/// Where a machine runs on its host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Placement {
    /// The host CPU of each vCPU thread, in their order. Threads beyond the list, all of them when it is
    /// empty, run wherever the scheduler puts them.
    pub vcpu_cpus: Vec<u32>,
    /// The host CPUs of threads that serve devices, but for the one that owns the machine. Empty is anywhere.
    pub device_cpus: Vec<u32>,
}

impl Shape {
    /// # Errors
    /// When no machine of this shape can be made; the message names the member.
    pub fn validate(&self) -> Result<()> {
        ensure!(
            (MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&self.memory_mib),
            "memory_mib = {}: must be from {MEMORY_MIB_MIN} to {MEMORY_MIB_MAX}",
            self.memory_mib
        );
        ensure!(
            (1..=VCPUS_MAX).contains(&self.vcpus.into()),
            "vcpus = {}: must be from 1 to {VCPUS_MAX}",
            self.vcpus
        );
        ensure!(
            (MTU_BYTES_MIN..=MTU_BYTES_MAX).contains(&self.mtu_bytes),
            "mtu_bytes = {}: must be from {MTU_BYTES_MIN} to {MTU_BYTES_MAX}",
            self.mtu_bytes
        );
        ensure!(
            self.disks.len() <= DISKS_MAX,
            "disks: {} are too many: {DISKS_MAX} at most",
            self.disks.len()
        );
        self.disks.iter().try_for_each(DiskShape::validate)?;
        ensure!(self.mac != [0; 6] && self.mac[0] & 1 == 0, "mac: must be a unicast address");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_cannot_be_made_are_named() {
        let good = Shape {
            memory_mib: 256,
            vcpus: 1,
            mac: [2, 0, 0, 0, 0, 1],
            mtu_bytes: 9000,
            offloads: Offloads::None,
            disks: Vec::new(),
        };
        good.validate().unwrap();
        let says = |shape: Shape| shape.validate().unwrap_err().to_string();
        assert!(says(Shape { memory_mib: 0, ..good.clone() }).starts_with("memory_mib"));
        assert!(says(Shape { vcpus: 65, ..good.clone() }).starts_with("vcpus"));
        assert!(says(Shape { mac: [1, 0, 0, 0, 0, 1], ..good.clone() }).starts_with("mac"));
        assert!(says(Shape { mtu_bytes: 9001, ..good.clone() }).starts_with("mtu_bytes"));
        let disk = DiskShape {
            path: "/a".to_owned(),
            id: String::new(),
            readonly: true,
            bytes: 512,
            sample: 0,
        };
        let disks = vec![disk.clone(); 5];
        assert!(says(Shape { disks, ..good.clone() }).starts_with("disks: 5"));
        let disks = vec![DiskShape { bytes: 100, ..disk }];
        assert!(says(Shape { disks, ..good }).starts_with("disk /a: 100 bytes"));
    }
}
