//! A tap that is somebody else's: another VMM has it open, or will open it. Nothing changes such a tap here; this only asks
//! whether a gate can be put in front of it.

use anyhow::{Result, bail};

use super::{
    links::{IfIndex, Kind, Links},
    sysfs,
};

/// A tap that a gate can guard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ForeignTap {
    pub index: IfIndex,
    /// Whether an administrator has set the tap up. It is best to put a gate on the tap before that.
    pub up: bool,
}

impl Links {
    /// Looks at the tap `name`.
    ///
    /// # Errors
    /// When the link does not exist, is not a tap, or is one whose frames a gate would stamp too late; with what to do.
    pub fn foreign_tap(&self, name: &str) -> Result<ForeignTap> {
        let Some(link) = self.find(name)? else {
            bail!("there is no tap {name} here: make it first (ip tuntap add {name} mode tap)");
        };
        match link.kind {
            Kind::Tap { .. } => {}
            Kind::Bridge { .. } | Kind::Other(_) => {
                bail!("{name} is a {}, not a tap: name the guest's tap", link.kind)
            }
        }
        if let Some(misfit) = misfit(name)? {
            bail!("{misfit}");
        }
        Ok(ForeignTap { index: link.index, up: link.up })
    }
}

/// Returns what about the tap `name` would let frames meet the gate later than `write()` returns, or on several CPUs at
/// once, with what to do about it; `None` when all is well. Whoever opens the tap may change this, so a gate that is on
/// the tap looks on every tick.
///
/// # Errors
/// When sysfs cannot be asked: then nobody knows.
fn misfit(name: &str) -> Result<Option<String>> {
    let Some(flags) = sysfs::tun_flags(name)? else {
        return Ok(Some(format!("{name} is not a tap any more")));
    };
    if flags & libc::IFF_MULTI_QUEUE != 0 {
        return Ok(Some(format!(
            "tap {name} has several queues, and the gate guards one: open it without multi_queue (QEMU: no queues=)"
        )));
    }
    if flags & libc::IFF_NAPI != 0 {
        return Ok(Some(format!(
            "tap {name} was opened with IFF_NAPI: frames would reach the gate after they were sent. Open it without IFF_NAPI"
        )));
    }
    Ok(sysfs::receive_packet_steering(name)?.map(|mask| {
        format!(
            "tap {name} has receive packet steering on (rps_cpus = {mask}): frames would pass the gate late. Write 0 \
             to /sys/class/net/{name}/queues/rx-0/rps_cpus"
        )
    }))
}
