//! /dev/kvm: there, ours to open, and able to do what checkpoints take.

use std::{io, path::Path};

use kvm_bindings::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
use kvm_ioctls::{Cap, Kvm};

use super::Check;

const API_VERSION: i32 = 12;
const DEVICE: &str = "/dev/kvm";

/// What capture, restore, the interrupt chip and doorbells are built on.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
];

pub(super) fn checks() -> Vec<Check> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(e) => return vec![cannot_open(io::Error::from(e))],
    };
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return vec![Check::refused(
            "kvm",
            format!("{DEVICE} speaks API version {version}, not {API_VERSION}"),
            "use a kernel of this century",
        )];
    }
    vec![Check::ok("kvm", format!("{DEVICE}, API version {version}")), capabilities(&kvm)]
}

fn capabilities(kvm: &Kvm) -> Check {
    let mut missing: Vec<_> = NEEDED
        .iter()
        .filter(|(cap, _)| !kvm.check_extension(*cap))
        .map(|(_, name)| *name)
        .collect();
    if kvm.check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into()) <= 0 {
        missing.push("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2");
    }
    if missing.is_empty() {
        return Check::ok("kvm capabilities", format!("all {} present", NEEDED.len() + 1));
    }
    Check::refused(
        "kvm capabilities",
        format!("missing: {}", missing.join(", ")),
        "update this host's kernel (5.1 or later), or its hypervisor when it is a VM itself",
    )
}

fn cannot_open(error: io::Error) -> Check {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound if !Path::new(DEVICE).exists() => {
            "load kvm_intel or kvm_amd, switch virtualization on in the firmware, or allow nested \
             virtualization when this host is a VM itself"
        }
        io::ErrorKind::PermissionDenied => "run as root, or as a member of the group that owns it",
        _ => "see the kernel log (dmesg) for why kvm does not answer",
    };
    Check::refused("kvm", format!("cannot open {DEVICE}: {error}"), remedy)
}
