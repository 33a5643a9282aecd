//! /dev/kvm must be there, ours to open, and able to do what checkpoints need.

use super::Check;
use crate::machine;

pub(super) fn checks() -> Vec<Check> {
    let host = match machine::probe() {
        Ok(host) => host,
        Err(e) => return vec![Check::refused("kvm", "/dev/kvm cannot be used", format!("{e:#}"))],
    };
    let kvm = Check::ok("kvm", format!("/dev/kvm, {:?}, TSC at {} kHz", host.kind, host.tsc_khz));
    let capabilities = if host.missing.is_empty() {
        Check::ok("kvm capabilities", "all present".to_owned())
    } else {
        Check::refused(
            "kvm capabilities",
            format!("missing: {}", host.missing.join(", ")),
            "update this host's kernel (5.17 or later), or the hypervisor if this host is a VM",
        )
    };
    vec![kvm, capabilities]
}

/// Checks that the VM has no more vCPUs than KVM gives one.
pub(super) fn vcpus(wanted: u32) -> Option<Check> {
    const NAME: &str = "vcpus";
    let most = machine::vcpus_max()?;
    Some(if wanted > most {
        let remedy = format!("set machine.vcpus to {most} or less");
        Check::refused(
            NAME,
            format!("the VM wants {wanted} vCPUs, and this host's KVM gives a VM at most {most}"),
            remedy,
        )
    } else {
        Check::ok(NAME, format!("{wanted} of at most {most}"))
    })
}
