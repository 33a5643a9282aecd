//! What this host's KVM can do, asked before anything is built on it.

use std::path::Path;

use anyhow::{Context, Result, bail};
use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_ADJUST_CLOCK, KVM_CAP_DEBUGREGS, KVM_CAP_IMMEDIATE_EXIT,
    KVM_CAP_IOEVENTFD, KVM_CAP_IRQCHIP, KVM_CAP_IRQFD, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_CAP_MP_STATE, KVM_CAP_SREGS2, KVM_CAP_VCPU_EVENTS, KVM_CAP_XCRS, KVM_CAP_XSAVE2,
};
use kvm_ioctls::Kvm;
use serde::Serialize;

/// How KVM runs guests here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Intel VT-x.
    Vmx,
    /// AMD-V.
    Svm,
    /// Paging and ring 3 only, the rest emulated: bare-metal guests that live in ring 3 are fast, a stock
    /// Linux does not boot.
    Pvm,
}

/// What [`probe`] found. KVM is fit for Remus when nothing is missing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct HostReport {
    pub kind: Kind,
    /// Capabilities that Remus needs and KVM has not.
    pub missing: Vec<&'static str>,
    /// Frequency of the TSC, in kHz.
    pub tsc_khz: u32,
}

const NEEDED: [(u32, &str); 12] = [
    (KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"),
    (KVM_CAP_IRQFD, "KVM_CAP_IRQFD"),
    (KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD"),
    (KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"),
    (KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK"),
    (KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"),
    (KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS"),
    (KVM_CAP_XCRS, "KVM_CAP_XCRS"),
    (KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"),
    (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"),
    (KVM_CAP_SREGS2, "KVM_CAP_SREGS2"),
    (KVM_CAP_XSAVE2, "KVM_CAP_XSAVE2"),
];

/// Asks this host's KVM what it can do.
///
/// # Errors
/// When `/dev/kvm` is absent, closed to the caller, or of another API than the one every KVM has had since
/// 2007; the message says what to do.
pub fn probe() -> Result<HostReport> {
    let kvm = open()?;
    let missing =
        NEEDED.iter().filter(|cap| kvm.check_extension_raw(cap.0.into()) <= 0).map(|cap| cap.1);
    let missing = missing.collect();
    let tsc_khz = super::cpu::CpuProfile::of_host()?.tsc_khz();
    Ok(HostReport { kind: kind(), missing, tsc_khz })
}

/// Returns the most vCPUs that KVM gives a VM here; `None` when KVM cannot be asked.
pub fn vcpus_max() -> Option<u32> {
    u32::try_from(open().ok()?.get_max_vcpus()).ok()
}

pub(super) fn open() -> Result<Kvm> {
    let kvm = Kvm::new().map_err(|e| match e.errno() {
        libc::ENOENT => anyhow::anyhow!(
            "/dev/kvm is not there: load kvm_intel or kvm_amd, or enable virtualization in the firmware"
        ),
        libc::EACCES | libc::EPERM => anyhow::anyhow!(
            "/dev/kvm may not be opened: run as root or as a member of the group kvm"
        ),
        _ => anyhow::Error::from(e).context("open /dev/kvm"),
    })?;
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        bail!(
            "/dev/kvm is not KVM, or has an unsupported API version ({version}, not {KVM_API_VERSION}): see what is mounted \
             or bound there"
        );
    }
    Ok(kvm)
}

/// Returns how KVM runs guests on this host, as far as one can tell from outside.
pub fn kind() -> Kind {
    let has = |module: &str| Path::new("/sys/module").join(module).is_dir();
    // KVM-PVM is asked for last: its module may be built in beside the others, which then do not load.
    if cpu_flag("vmx") && has("kvm_intel") {
        Kind::Vmx
    } else if cpu_flag("svm") && has("kvm_amd") {
        Kind::Svm
    } else {
        Kind::Pvm
    }
}

fn cpu_flag(flag: &str) -> bool {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo");
    cpuinfo.is_ok_and(|text| {
        let line = text.lines().find(|line| line.starts_with("flags"));
        line.is_some_and(|line| line.split_whitespace().any(|word| word == flag))
    })
}
