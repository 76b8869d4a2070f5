//! What CPUID answers on KVM (SDM vol. 2, CPUID; APM vol. 3, appendix E; Linux Documentation/virt/kvm/x86/cpuid.rst): all that the host's KVM supports, with this machine's topology,
//! and of KVM's own features those that need nothing of the VMM.
//!
//! The policy is the software CPU's where it is a matter of choice: one socket of single-threaded cores, APIC IDs in order, a hypervisor named KVM with the time
//! stamp counter's and the APIC timer's frequency, no performance monitoring. Which instructions there are is the host's matter: here they run at full speed, so nothing is masked.

use accel::AccelError;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// The frequency of KVM's local APIC timer, in kHz.
const APIC_BUS_KHZ: u32 = 1_000_000;
/// KVM's feature bits that only need the kernel: kvmclock (both sets of MSRs), no port delays, steal time, PV EOI, unhalt, TLB flush, IPIs, sched yield, stable clock.
const KVM_FEATURES: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 9 | 1 << 11 | 1 << 13 | 1 << 24;

/// Leaf 1, ECX: hypervisor, TSC deadline, x2APIC, MONITOR, OSXSAVE.
const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
const X2APIC: u32 = 1 << 21;
const MONITOR: u32 = 1 << 3;
/// Leaf 1, EDX: more than one logical processor in the package.
const HTT: u32 = 1 << 28;
/// Leaf 0x80000001, ECX: virtualization (SVM); leaf 1, ECX: VMX. There is no nesting.
const SVM: u32 = 1 << 2;
const VMX: u32 = 1 << 5;
/// Leaf 0x80000001, ECX: the logical processors of leaf 1 are cores.
const CMP_LEGACY: u32 = 1 << 1;

/// One vCPU among its siblings, and its clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) vcpus: u32,
    pub(crate) id: u32,
    /// 0 if KVM does not say.
    pub(crate) tsc_khz: u32,
    /// KVM_CAP_TSC_DEADLINE_TIMER.
    pub(crate) tsc_deadline: bool,
}

impl Place {
    /// Bits of the APIC ID that number the cores.
    fn core_bits(self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }
}

/// The table of the vCPU at `place`.
pub(crate) fn table(supported: &CpuId, place: Place) -> Result<CpuId, AccelError> {
    CpuId::from_entries(&adapt(supported.as_slice(), place))
        .map_err(|_| AccelError::State { what: "more CPUID leaves than KVM takes".to_owned() })
}

/// `supported` with this machine's topology and our policy.
fn adapt(supported: &[kvm_cpuid_entry2], place: Place) -> Vec<kvm_cpuid_entry2> {
    let core_bits = place.core_bits();
    let amd = supported.iter().any(|e| e.function == 0 && e.ecx == 0x444d_4163);
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .iter()
        // The topology leaves are made below; performance monitoring is not offered.
        .filter(|e| !matches!(e.function, 0xa | 0xb | 0x1f | 0x4000_0010))
        .copied()
        .collect();
    for entry in &mut entries {
        match entry.function {
            0 => entry.eax = entry.eax.max(0xb),
            1 => {
                entry.ebx = entry.ebx & 0xffff | place.vcpus.min(255) << 16 | (place.id & 0xff) << 24;
                entry.ecx = (entry.ecx | HYPERVISOR | X2APIC) & !(VMX | MONITOR);
                entry.ecx = entry.ecx & !TSC_DEADLINE | if place.tsc_deadline { TSC_DEADLINE } else { 0 };
                entry.edx = entry.edx & !HTT | if place.vcpus > 1 { HTT } else { 0 };
            }
            // Deterministic cache parameters: the last cache is the socket's, the others a core's.
            4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
                let sharing = if entry.eax >> 5 & 7 >= 3 { (1 << core_bits) - 1 } else { 0 };
                let cores = if entry.function == 4 { ((1u32 << core_bits) - 1).min(0x3f) } else { 0 };
                entry.eax = entry.eax & 0x3fff | sharing << 14 | cores << 26;
            }
            0x4000_0000 => entry.eax = entry.eax.max(0x4000_0010),
            0x4000_0001 => entry.eax &= KVM_FEATURES,
            0x8000_0001 => {
                entry.ecx = entry.ecx & !(SVM | CMP_LEGACY) | if amd && place.vcpus > 1 { CMP_LEGACY } else { 0 };
            }
            0x8000_0008 if amd => entry.ecx = (place.vcpus - 1).min(0xff) | core_bits << 12,
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (place.id, place.id & 0xff, 0),
            _ => {}
        }
    }
    let mut leaf = |function, index, flags, [eax, ebx, ecx, edx]: [u32; 4]| {
        entries.push(kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, padding: [0; 3] });
    };
    let indexed = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    // Level types: 1 is thread, 2 is core.
    leaf(0xb, 0, indexed, [0, 1, 1 << 8, place.id]);
    leaf(0xb, 1, indexed, [core_bits, place.vcpus, 1 | 2 << 8, place.id]);
    leaf(0xb, 2, indexed, [0, 0, 2, place.id]);
    leaf(0x4000_0010, 0, 0, [place.tsc_khz, APIC_BUS_KHZ, 0, 0]);
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn answer(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries.iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    const PLACE: Place = Place { vcpus: 3, id: 2, tsc_khz: 2_600_000, tsc_deadline: true };

    #[test]
    fn leaf_1_names_the_vcpu_and_the_hypervisor() {
        let entries = adapt(&[entry(1, 0, 0x0700_0800, u32::MAX, u32::MAX)], PLACE);
        let leaf = answer(&entries, 1, 0);
        assert_eq!((leaf.ebx >> 24, leaf.ebx >> 16 & 0xff, leaf.ebx & 0xffff), (2, 3, 0x0800));
        assert_ne!(leaf.ecx & HYPERVISOR, 0);
        assert_eq!(leaf.ecx & VMX, 0);
    }

    #[test]
    fn a_kvm_without_the_deadline_timer_does_not_offer_it() {
        let entries = adapt(&[entry(1, 0, 0, u32::MAX, 0)], Place { tsc_deadline: false, ..PLACE });
        assert_eq!(answer(&entries, 1, 0).ecx & TSC_DEADLINE, 0);
    }

    #[test]
    fn the_topology_leaves_are_the_machines() {
        let entries = adapt(&[entry(0xb, 9, 9, 9, 9), entry(4, 0xffff_c163, 0, 0, 0)], PLACE);
        assert_eq!(entries.iter().filter(|e| e.function == 0xb).count(), 3);
        assert_eq!((answer(&entries, 0xb, 1).eax, answer(&entries, 0xb, 1).ebx), (2, 3));
        assert_eq!(answer(&entries, 4, 0).eax >> 14 & 0xfff, 3, "all four APIC IDs may share the last cache");
    }

    #[test]
    fn features_that_need_the_vmm_are_not_offered() {
        let entries = adapt(&[entry(0x4000_0000, 0x4000_0001, 0, 0, 0), entry(0x4000_0001, u32::MAX, 0, 0, 0)], PLACE);
        assert_eq!(answer(&entries, 0x4000_0001, 0).eax & (1 << 4 | 1 << 10 | 1 << 14), 0, "asynchronous page faults");
        assert_eq!(answer(&entries, 0x4000_0000, 0).eax, 0x4000_0010);
        assert_eq!(answer(&entries, 0x4000_0010, 0).eax, 2_600_000);
    }
}
