//! /dev/kvm: there, ours to open, and able to do what checkpoints take.

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
            "update this host's kernel (5.17 or later), or its hypervisor when it is a VM itself",
        )
    };
    vec![kvm, capabilities]
}

/// Checks that the VM has no more vCPUs than KVM gives one.
pub(super) fn vcpus(wanted: u32) -> Option<Check> {
    const NAME: &str = "vcpus";
    let most = machine::vcpus_max()?;
    Some(if wanted > most {
        let remedy = format!("let machine.vcpus be {most} or less");
        Check::refused(
            NAME,
            format!("{wanted} are wanted, this host's KVM gives a VM {most}"),
            remedy,
        )
    } else {
        Check::ok(NAME, format!("{wanted} of at most {most}"))
    })
}
