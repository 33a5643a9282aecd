//! How the guest's vCPUs are said to lie: one package, a core for each, one thread in each core.
//!
//! An operating system that finds nothing of this, or what is true of the host's CPUs, puts its vCPUs into packages of their
//! own, or takes them for threads of one core, and schedules by it. APIC ids are the vCPUs' numbers.
//!
//! CPUID leaves: Intel SDM 2A, CPUID, leaves 1, 4, 0xb, 0x1f; AMD APM 3, E.3 and E.4, leaves 8000_0008, 8000_001d,
//! 8000_001e.

use super::Leaf;

/// Leaves 0xb and 0x1f: their index counts levels.
const INDEXED: u32 = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Leaf 1: EDX bit that says that EBX counts more than one logical CPU.
const HTT: u32 = 1 << 28;
/// Leaf 8000_0001: ECX bit that says that these are cores.
const CMP_LEGACY: u32 = 1 << 1;

/// Makes `leaf` what vCPU `id` of `vcpus` is told. `None` for leaves that [`levels`] tells instead.
pub(super) fn of_vcpu(mut leaf: Leaf, id: u8, vcpus: u8) -> Option<Leaf> {
    let (id, count) = (u32::from(id), u32::from(vcpus));
    match leaf.function {
        0x1 => {
            leaf.ebx = leaf.ebx & 0x0000_ffff | id << 24 | count << 16;
            leaf.edx = leaf.edx & !HTT | if count > 1 { HTT } else { 0 };
        }
        // Of a cache (none: type 0): CPUs that share it, less one; cores of the package, less one.
        0x4 if leaf.eax & 0x1f != 0 => {
            let sharing = sharing(leaf.eax, count);
            leaf.eax = leaf.eax & 0x3fff | sharing << 14 | (count - 1) << 26;
        }
        0xb | 0x1f => return None,
        0x8000_0001 => {
            leaf.ecx = leaf.ecx & !CMP_LEGACY | if count > 1 { CMP_LEGACY } else { 0 };
        }
        0x8000_0008 => leaf.ecx = leaf.ecx & !0xf0ff | id_bits(vcpus) << 12 | (count - 1),
        0x8000_001d if leaf.eax & 0x1f != 0 => {
            leaf.eax = leaf.eax & !(0xfff << 14) | sharing(leaf.eax, count) << 14;
        }
        // Extended APIC id; core id, and one thread in it; one node.
        0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (id, id, 0),
        _ => {}
    }
    Some(leaf)
}

/// Returns the levels that vCPU `id` of `vcpus` is in, for a CPU whose highest basic leaf is `highest`.
pub(super) fn levels(highest: u32, id: u8, vcpus: u8) -> Vec<Leaf> {
    let level = |function, index, bits, count: u8, level: u32| Leaf {
        function,
        index,
        flags: INDEXED,
        eax: bits,
        ebx: count.into(),
        ecx: level << 8 | index,
        edx: id.into(),
    };
    let of = |function| {
        [
            level(function, 0, 0, 1, LEVEL_THREAD),
            level(function, 1, id_bits(vcpus), vcpus, LEVEL_CORE),
            level(function, 2, 0, 0, 0),
        ]
    };
    [0xb, 0x1f].into_iter().filter(|function| *function <= highest).flat_map(of).collect()
}

/// Of a cache of the level that `eax` names: the CPUs that share it, less one. A third-level cache is the package's.
fn sharing(eax: u32, count: u32) -> u32 {
    if eax >> 5 & 7 >= 3 { count - 1 } else { 0 }
}

/// Bits of an APIC id that number the vCPUs.
fn id_bits(vcpus: u8) -> u32 {
    u32::from(vcpus).next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: Leaf = Leaf { function: 0, index: 0, flags: 0, eax: 0, ebx: 0, ecx: 0, edx: 0 };

    fn told(function: u32, eax: u32, id: u8, vcpus: u8) -> Leaf {
        of_vcpu(Leaf { function, eax, ..EMPTY }, id, vcpus).unwrap()
    }

    #[test]
    fn a_vcpu_is_a_core_of_one_package() {
        let one = told(1, 0, 0, 1);
        assert_eq!((one.ebx, one.edx), (1 << 16, 0));
        let third = told(1, 0, 2, 4);
        assert_eq!((third.ebx, third.edx), (2 << 24 | 4 << 16, HTT));
        assert_eq!(told(0x8000_0008, 0, 0, 6).ecx, 3 << 12 | 5);
        assert_eq!(told(0x8000_0001, 0, 0, 1).ecx, 0);
        assert_eq!(told(0x8000_001e, 9, 3, 4).ebx, 3);
    }

    #[test]
    fn only_the_third_cache_is_shared() {
        let cache = |level: u32| level << 5 | 1;
        let all = 7 << 26 | 0x3ff << 14;
        assert_eq!(told(4, cache(1) | all, 0, 4).eax, cache(1) | 3 << 26);
        assert_eq!(told(4, cache(3), 0, 4).eax, cache(3) | 3 << 26 | 3 << 14);
        assert_eq!(told(4, 0, 0, 4).eax, 0, "there is none");
        assert_eq!(told(0x8000_001d, cache(2) | all, 0, 4).eax, cache(2) | 7 << 26);
    }

    #[test]
    fn levels_are_told_where_the_cpu_has_such_leaves() {
        assert!(of_vcpu(Leaf { function: 0xb, ..EMPTY }, 0, 4).is_none());
        assert!(levels(0xa, 0, 4).is_empty());
        assert_eq!(levels(0x1f, 0, 4).len(), 6);
        let levels = levels(0xd, 3, 5);
        let seen: Vec<_> = levels.iter().map(|l| (l.index, l.eax, l.ebx, l.ecx, l.edx)).collect();
        assert_eq!(seen, [(0, 0, 1, 0x100, 3), (1, 3, 5, 0x201, 3), (2, 0, 0, 2, 3)]);
    }
}
