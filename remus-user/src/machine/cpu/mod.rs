//! The CPU that the guest sees: what the primary's host offers, which the backup's host must offer too.

mod topology;

use std::time::Duration;

use anyhow::{Context, Result};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

/// CPUID, the TSC's frequency and the model-specific registers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CpuProfile {
    leaves: Vec<Leaf>,
    tsc_khz: u32,
    /// Registers that can be read, hence are part of a vCPU's state.
    msrs: Vec<u32>,
}

/// One answer of CPUID.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Leaf {
    function: u32,
    index: u32,
    flags: u32,
    eax: u32,
    ebx: u32,
    ecx: u32,
    edx: u32,
}

/// XCR0 components of AMX: 8 KiB of state that would take XSAVE beyond its 4096 bytes.
const XCR0_AMX: u32 = 3 << 17;
/// Leaf 1, ECX: the APIC's timer takes a TSC value. KVM has it without saying so (Documentation/virt/kvm/api.rst, 4.5).
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: there is a hypervisor, which tells of itself from leaf 4000_0000 on. Without it Linux does not look for
/// kvmclock, and finds no other clock here.
const HYPERVISOR: u32 = 1 << 31;
/// KVM's leaf 4000_0001, EAX, as in asm/kvm_para.h. Page faults handed to the guest while the host fetches a page (bits 4, 10,
/// 14) are of no use to a guest whose RAM is all there, and could be under way in a checkpoint; bit 17 is for
/// encrypted guests.
const KVM_UNUSED: u32 = 1 << 4 | 1 << 10 | 1 << 14 | 1 << 17;
/// TSC frequencies that KVM takes for the same (its `tsc_tolerance_ppm`).
const TSC_TOLERANCE_PPM: u64 = 250;

/// Words of CPUID that are sets of features, one bit each: function, index, register.
const FEATURE_WORDS: [(u32, u32, Register); 13] = [
    (0x1, 0, Register::Ecx),
    (0x1, 0, Register::Edx),
    (0x7, 0, Register::Ebx),
    (0x7, 0, Register::Ecx),
    (0x7, 0, Register::Edx),
    (0x7, 1, Register::Eax),
    (0xd, 0, Register::Eax),
    (0xd, 1, Register::Eax),
    (0x4000_0001, 0, Register::Eax),
    (0x8000_0001, 0, Register::Ecx),
    (0x8000_0001, 0, Register::Edx),
    (0x8000_0007, 0, Register::Edx),
    (0x8000_0008, 0, Register::Ebx),
];

/// Features that people know by name.
const NAMES: [(u32, u32, Register, u32, &str); 24] = [
    (0x1, 0, Register::Ecx, 0, "sse3"),
    (0x1, 0, Register::Ecx, 9, "ssse3"),
    (0x1, 0, Register::Ecx, 12, "fma"),
    (0x1, 0, Register::Ecx, 13, "cmpxchg16b"),
    (0x1, 0, Register::Ecx, 19, "sse4.1"),
    (0x1, 0, Register::Ecx, 20, "sse4.2"),
    (0x1, 0, Register::Ecx, 21, "x2apic"),
    (0x1, 0, Register::Ecx, 23, "popcnt"),
    (0x1, 0, Register::Ecx, 25, "aes"),
    (0x1, 0, Register::Ecx, 26, "xsave"),
    (0x1, 0, Register::Ecx, 28, "avx"),
    (0x1, 0, Register::Ecx, 30, "rdrand"),
    (0x7, 0, Register::Ebx, 3, "bmi1"),
    (0x7, 0, Register::Ebx, 5, "avx2"),
    (0x7, 0, Register::Ebx, 8, "bmi2"),
    (0x7, 0, Register::Ebx, 9, "erms"),
    (0x7, 0, Register::Ebx, 16, "avx512f"),
    (0x7, 0, Register::Ebx, 18, "rdseed"),
    (0x7, 0, Register::Ebx, 29, "sha"),
    (0x7, 0, Register::Ebx, 30, "avx512bw"),
    (0x7, 0, Register::Ecx, 9, "vaes"),
    (0x8000_0001, 0, Register::Edx, 20, "nx"),
    (0x8000_0001, 0, Register::Edx, 26, "1 GiB pages"),
    (0x8000_0001, 0, Register::Edx, 27, "rdtscp"),
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl CpuProfile {
    /// Asks KVM what this host offers to its guests.
    ///
    /// # Errors
    /// When KVM cannot be asked.
    pub fn of_host() -> Result<Self> {
        let kvm = Kvm::new().context("open /dev/kvm")?;
        let offered =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")?;
        let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let usable = |leaf: &kvm_cpuid_entry2| Leaf::from(leaf).usable(deadline);
        let leaves = offered.as_slice().iter().filter_map(usable).collect();
        // Frequency and registers are a vCPU's to tell.
        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
        let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
        let mut profile = Self { leaves, tsc_khz: 0, msrs: Vec::new() };
        profile.apply(&vcpu, 0, 1)?;
        profile.tsc_khz = vcpu.get_tsc_khz().context("KVM_GET_TSC_KHZ")?;
        let listed = kvm.get_msr_index_list().context("KVM_GET_MSR_INDEX_LIST")?;
        profile.msrs =
            listed.as_slice().iter().copied().filter(|&index| is_readable(&vcpu, index)).collect();
        Ok(profile)
    }

    /// Returns what a guest of `primary` has and would miss here, each by name: nothing when the guest could go on
    /// here.
    pub fn lacks(&self, primary: &Self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.vendor() != primary.vendor() {
            missing.push("a CPU of the same vendor".to_owned());
        }
        for (function, index, register) in FEATURE_WORDS {
            let gone =
                primary.word(function, index, register) & !self.word(function, index, register);
            let bits = (0..32).filter(|bit| gone & 1 << bit != 0);
            missing.extend(bits.map(|bit| name(function, index, register, bit)));
        }
        let (here, there) = (u64::from(self.tsc_khz), u64::from(primary.tsc_khz));
        if here.abs_diff(there) * 1_000_000 > there * TSC_TOLERANCE_PPM {
            missing.push(format!("a TSC of {there} kHz (it has {here} kHz)"));
        }
        let msrs = primary.msrs.iter().filter(|index| !self.msrs.contains(index));
        missing.extend(msrs.map(|index| format!("model-specific register {index:#x}")));
        missing
    }

    /// Frequency of the guest's TSC, in kHz.
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    /// Returns the ticks by which the guest's TSC goes on in `time`.
    pub(super) fn ticks(&self, time: Duration) -> u64 {
        let ticks = time.as_nanos() * u128::from(self.tsc_khz) / 1_000_000;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    pub(super) fn msrs(&self) -> &[u32] {
        &self.msrs
    }

    /// Gives vCPU `id` of `vcpus` this CPU.
    pub(super) fn apply(&self, vcpu: &VcpuFd, id: u8, vcpus: u8) -> Result<()> {
        let leaves = self.leaves.iter().filter_map(|leaf| topology::of_vcpu(*leaf, id, vcpus));
        let levels = topology::levels(self.word(0, 0, Register::Eax), id, vcpus);
        let entries: Vec<_> = leaves.chain(levels).map(kvm_cpuid_entry2::from).collect();
        let entries = CpuId::from_entries(&entries).context("more CPUID leaves than KVM takes")?;
        vcpu.set_cpuid2(&entries).context("KVM_SET_CPUID2")
    }

    fn vendor(&self) -> [u32; 3] {
        [Register::Ebx, Register::Ecx, Register::Edx].map(|register| self.word(0, 0, register))
    }

    fn word(&self, function: u32, index: u32, register: Register) -> u32 {
        let leaf = self.leaves.iter().find(|l| l.function == function && l.index == index);
        leaf.map_or(0, |leaf| match register {
            Register::Eax => leaf.eax,
            Register::Ebx => leaf.ebx,
            Register::Ecx => leaf.ecx,
            Register::Edx => leaf.edx,
        })
    }
}

impl Leaf {
    /// Returns this leaf without what no guest is to use, and without what the leaf says of the CPU that happened to be
    /// asked.
    fn usable(mut self, tsc_deadline: bool) -> Option<Self> {
        match (self.function, self.index) {
            (0x1, _) => {
                self.ebx &= 0x00ff_ffff;
                let timer = if tsc_deadline { TSC_DEADLINE } else { 0 };
                self.ecx = self.ecx & !TSC_DEADLINE | timer | HYPERVISOR;
            }
            (0x7, 0) => self.edx &= !(1 << 22 | 1 << 24 | 1 << 25),
            (0xb | 0x1f, _) => self.edx = 0,
            (0xd, 0) => self.eax &= !XCR0_AMX,
            (0xd, 17 | 18) | (0x1d | 0x1e, _) => return None,
            (0x4000_0001, _) => self.eax &= !KVM_UNUSED,
            (0x8000_001e, _) => self.eax = 0,
            _ => {}
        }
        Some(self)
    }
}

impl From<&kvm_cpuid_entry2> for Leaf {
    fn from(entry: &kvm_cpuid_entry2) -> Self {
        let &kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, padding: _ } = entry;
        Self { function, index, flags, eax, ebx, ecx, edx }
    }
}

impl From<Leaf> for kvm_cpuid_entry2 {
    fn from(leaf: Leaf) -> Self {
        let Leaf { function, index, flags, eax, ebx, ecx, edx } = leaf;
        Self { function, index, flags, eax, ebx, ecx, edx, padding: [0; 3] }
    }
}

fn name(function: u32, index: u32, register: Register, bit: u32) -> String {
    let known = NAMES.iter().find(|n| (n.0, n.1, n.2, n.3) == (function, index, register, bit));
    known.map_or_else(
        || format!("CPUID {function:x}.{index}:{register:?} bit {bit}"),
        |known| known.4.to_owned(),
    )
}

fn is_readable(vcpu: &VcpuFd, index: u32) -> bool {
    let entry = kvm_msr_entry { index, ..Default::default() };
    let mut one = Msrs::from_entries(&[entry]).expect("one entry fits");
    vcpu.get_msrs(&mut one).is_ok_and(|read| read == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, ebx: u32) -> Leaf {
        Leaf { function, index, flags: 0, eax: 0, ebx, ecx: 0, edx: 0 }
    }

    #[test]
    fn what_the_backup_lacks_is_named() {
        let primary = CpuProfile {
            leaves: vec![leaf(0, 0, 5), leaf(7, 0, 1 << 16 | 1 << 5)],
            tsc_khz: 2_600_000,
            msrs: vec![0x10, 0x174],
        };
        assert!(primary.lacks(&primary).is_empty());
        let backup = CpuProfile {
            leaves: vec![leaf(0, 0, 5), leaf(7, 0, 1 << 5 | 1 << 3)],
            tsc_khz: 2_600_100,
            msrs: vec![0x10],
        };
        assert_eq!(backup.lacks(&primary), ["avx512f", "model-specific register 0x174"]);
        let slow = CpuProfile { tsc_khz: 2_000_000, ..primary.clone() };
        assert_eq!(slow.lacks(&primary), ["a TSC of 2600000 kHz (it has 2000000 kHz)"]);
    }

    #[test]
    fn the_deadline_timer_is_offered_where_there_is_one() {
        let mut first = leaf(1, 0, 0xff << 24);
        first.ecx = 1;
        let usable = first.usable(true).unwrap();
        assert_eq!((usable.ebx, usable.ecx), (0, 1 | TSC_DEADLINE | HYPERVISOR));
        assert_eq!(usable.usable(false).unwrap().ecx, 1 | HYPERVISOR);
    }

    #[test]
    fn amx_is_not_offered() {
        let mut tiles = leaf(0xd, 0, 0);
        tiles.eax = 0x7 | XCR0_AMX;
        assert_eq!(tiles.usable(true).unwrap().eax, 0x7);
        assert_eq!(leaf(0x1d, 0, 1).usable(true), None);
    }
}
