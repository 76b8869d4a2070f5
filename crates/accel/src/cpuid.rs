//! What CPUID tells a guest, whatever the backend (SDM vol. 2, CPUID; APM vol. 3, appendix E; Linux Documentation/virt/kvm/x86/cpuid.rst): the one place where it is decided.
//!
//! A backend says what its processor can do: KVM what KVM_GET_SUPPORTED_CPUID answers, the software CPU what it executes (`soft_cpu::cpuid`). [`adapt`] makes of it what one vCPU
//! answers. The policy, where there is a choice:
//!
//! - One socket of single-threaded cores, with APIC IDs in order; the last cache is the socket's, the others a core's.
//! - A hypervisor named KVM, with the time stamp counter's and the local APIC timer's frequency, and of its paravirtual features those that ask nothing of the VMM.
//! - No virtualization inside, no performance monitoring, no MONITOR, as none of them is worth an exit of each use.
//! - All else is the backend's: no instruction is hidden that it executes.

use x86::cpuid::{APIC_BUS_KHZ, CpuidEntry, CpuidResult, CpuidTable, has_amd_leaves};

/// Leaf 1, ECX: MONITOR, VMX, x2APIC, the local APIC timer's TSC-deadline mode, a hypervisor.
const MONITOR: u32 = 1 << 3;
const VMX: u32 = 1 << 5;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: more than one logical processor in the package.
const HTT: u32 = 1 << 28;
/// Leaf 0x80000001, ECX: the logical processors of leaf 1 are cores; virtualization.
const CMP_LEGACY: u32 = 1 << 1;
const SVM: u32 = 1 << 2;

/// Highest leaf of the hypervisor's: its frequencies.
const HYPERVISOR_FREQUENCIES: u32 = 0x4000_0010;
/// "KVMKVMKVM" and three zeros, in EBX, ECX and EDX.
const HYPERVISOR_NAME: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x0000_004d];

/// Bits of leaf 0x40000001, EAX: KVM's paravirtual features (Linux Documentation/virt/kvm/x86/cpuid.rst).
pub mod paravirtual {
    /// kvmclock with its old MSRs.
    pub const CLOCKSOURCE: u32 = 1 << 0;
    /// Ports need no delays between two accesses.
    pub const NOP_IO_DELAY: u32 = 1 << 1;
    /// kvmclock with its new MSRs.
    pub const CLOCKSOURCE2: u32 = 1 << 3;
    /// Time that the vCPU wanted and did not get.
    pub const STEAL_TIME: u32 = 1 << 5;
    /// The end of an interrupt without an exit.
    pub const PV_EOI: u32 = 1 << 6;
    /// A vCPU that waits for a spin lock can sleep.
    pub const PV_UNHALT: u32 = 1 << 7;
    /// Remote TLB flushes wait for no vCPU that does not run.
    pub const PV_TLB_FLUSH: u32 = 1 << 9;
    /// IPIs to many by one hypercall.
    pub const PV_SEND_IPI: u32 = 1 << 11;
    /// A vCPU gives its time to another.
    pub const PV_SCHED_YIELD: u32 = 1 << 13;
    /// MSIs and IOAPIC entries have 15 bits for the destination.
    pub const MSI_EXT_DEST_ID: u32 = 1 << 15;
    /// kvmclock needs no comparison between vCPUs.
    pub const CLOCKSOURCE_STABLE: u32 = 1 << 24;

    /// What works without the VMM's doing; the others, asynchronous page faults and migration control among them, would need it.
    pub const UNASSISTED: u32 = CLOCKSOURCE
        | NOP_IO_DELAY
        | CLOCKSOURCE2
        | STEAL_TIME
        | PV_EOI
        | PV_UNHALT
        | PV_TLB_FLUSH
        | PV_SEND_IPI
        | PV_SCHED_YIELD
        | CLOCKSOURCE_STABLE;
}

/// One vCPU among its siblings, with its clock and its local APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// This one's local APIC ID.
    pub id: u32,
    /// Frequency of its time stamp counter; 0 if the backend does not know.
    pub tsc_khz: u32,
    /// Its local APIC has the x2APIC mode.
    pub x2apic: bool,
    /// Its local APIC's timer has the TSC-deadline mode.
    pub tsc_deadline: bool,
    /// Its [`paravirtual`] features.
    pub paravirtual: u32,
}

impl Place {
    /// Bits of the APIC ID that number the cores.
    fn core_bits(self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }

    /// EAX of a cache's parameters (leaf 4, and AMD's 0x8000001D, which has no core count).
    fn cache_sharing(self, leaf: u32, eax: u32) -> u32 {
        let cores = (1u32 << self.core_bits()) - 1;
        let sharing = if eax >> 5 & 7 >= 3 { cores.min(0xfff) } else { 0 };
        let cores = if leaf == 4 { cores.min(0x3f) } else { 0 };
        eax & 0x3fff | sharing << 14 | cores << 26
    }
}

fn with(value: u32, mask: u32, on: bool) -> u32 {
    if on { value | mask } else { value & !mask }
}

/// What the vCPU at `place` answers on a processor that can do what is `offered`.
pub fn adapt(offered: &CpuidTable, place: Place) -> CpuidTable {
    let Place { vcpus, id, tsc_khz, x2apic, tsc_deadline, paravirtual } = place;
    let core_bits = place.core_bits();
    let amd = has_amd_leaves(offered.get(0, 0));
    let several = vcpus > 1;
    let mut entries: Vec<CpuidEntry> = offered
        .entries()
        .iter()
        // Performance monitoring is not offered; topology and hypervisor are made below.
        .filter(|entry| !matches!(entry.leaf, 0xa | 0xb | 0x1f | 0x4000_0000..=0x4fff_ffff))
        .copied()
        .collect();
    for CpuidEntry { leaf, subleaf: _, result } in &mut entries {
        match *leaf {
            0 => result.eax = result.eax.max(0xb),
            1 => {
                result.ebx = result.ebx & 0xffff | vcpus.min(255) << 16 | (id & 0xff) << 24;
                let ecx = with(with(result.ecx, X2APIC, x2apic), TSC_DEADLINE, tsc_deadline);
                result.ecx = (ecx | HYPERVISOR) & !(VMX | MONITOR);
                result.edx = with(result.edx, HTT, several);
            }
            // A cache type of 0 ends the list.
            4 | 0x8000_001d if result.eax & 0x1f != 0 => result.eax = place.cache_sharing(*leaf, result.eax),
            0x8000_0001 => result.ecx = with(result.ecx & !SVM, CMP_LEGACY, amd && several),
            0x8000_0008 if amd => result.ecx = (vcpus - 1).min(0xff) | core_bits << 12,
            // One thread a core, one node.
            0x8000_001e => (result.eax, result.ebx, result.ecx) = (id, id & 0xff, 0),
            _ => {}
        }
    }
    let mut add = |leaf, subleaf, [eax, ebx, ecx, edx]: [u32; 4]| {
        entries.push(CpuidEntry { leaf, subleaf, result: CpuidResult { eax, ebx, ecx, edx } });
    };
    // Level types: 1 is thread, 2 is core.
    add(0xb, Some(0), [0, 1, 1 << 8, id]);
    add(0xb, Some(1), [core_bits, vcpus, 1 | 2 << 8, id]);
    add(0xb, Some(2), [0, 0, 2, id]);
    let [ebx, ecx, edx] = HYPERVISOR_NAME;
    add(0x4000_0000, None, [HYPERVISOR_FREQUENCIES, ebx, ecx, edx]);
    add(0x4000_0001, None, [paravirtual, 0, 0, 0]);
    add(HYPERVISOR_FREQUENCIES, None, [tsc_khz, APIC_BUS_KHZ, 0, 0]);
    CpuidTable::new(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place =
        Place { vcpus: 3, id: 2, tsc_khz: 2_600_000, x2apic: true, tsc_deadline: true, paravirtual: 9 };

    fn entry(leaf: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> CpuidEntry {
        CpuidEntry { leaf, subleaf: None, result: CpuidResult { eax, ebx, ecx, edx } }
    }

    fn adapted(entries: &[CpuidEntry], place: Place) -> CpuidTable {
        adapt(&CpuidTable::new(entries.to_vec()), place)
    }

    /// Leaf 0 of an AMD processor.
    fn amd() -> CpuidEntry {
        entry(0, 0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65)
    }

    #[test]
    fn leaf_1_names_the_vcpu_and_the_hypervisor() {
        let leaf = adapted(&[entry(1, 0, 0x0700_0800, u32::MAX, u32::MAX)], PLACE).get(1, 0);
        assert_eq!((leaf.ebx >> 24, leaf.ebx >> 16 & 0xff, leaf.ebx & 0xffff), (2, 3, 0x0800));
        assert_eq!(leaf.ecx & (HYPERVISOR | VMX | MONITOR), HYPERVISOR);
        let alone = adapted(&[entry(1, 0, 0, 0, u32::MAX)], Place { vcpus: 1, id: 0, ..PLACE });
        assert_eq!(alone.get(1, 0).edx & HTT, 0);
    }

    #[test]
    fn the_local_apic_is_told_as_it_is() {
        let told = |offered, x2apic, tsc_deadline| {
            let place = Place { x2apic, tsc_deadline, ..PLACE };
            adapted(&[entry(1, 0, 0, offered, 0)], place).get(1, 0).ecx & (X2APIC | TSC_DEADLINE)
        };
        assert_eq!(told(u32::MAX, false, false), 0);
        assert_eq!(told(0, true, false), X2APIC, "KVM does not list it, and has it");
        assert_eq!(told(0, false, true), TSC_DEADLINE);
    }

    #[test]
    fn the_topology_leaves_agree() {
        let offered = [
            amd(),
            entry(0xb, 9, 9, 9, 9),
            entry(0x1f, 9, 9, 9, 9),
            entry(4, 0xffff_c163, 0, 0, 0),
            entry(0x8000_0008, 0, 0, 0, 0),
            entry(0x8000_001d, 0xffff_c163, 0, 0, 0),
            entry(0x8000_001e, 9, 9, 9, 0),
        ];
        let t = adapted(&offered, PLACE);
        assert_eq!((t.get(0xb, 1).eax, t.get(0xb, 1).ebx, t.get(0xb, 1).edx), (2, 3, 2));
        assert_eq!(t.entries().iter().filter(|e| matches!(e.leaf, 0xb | 0x1f)).count(), 3);
        assert_eq!(t.get(4, 0).eax >> 14 & 0xfff, 3, "all four APIC IDs may share the last cache");
        assert_eq!((t.get(4, 0).eax >> 26, t.get(0x8000_001d, 0).eax >> 26), (3, 0));
        assert_eq!((t.get(0x8000_0008, 0).ecx & 0xff, t.get(0x8000_0008, 0).ecx >> 12 & 0xf), (2, 2));
        assert_eq!((t.get(0x8000_001e, 0).eax, t.get(0x8000_001e, 0).ecx), (2, 0));
    }

    #[test]
    fn a_core_keeps_its_own_caches_and_the_list_keeps_its_end() {
        let t = adapted(&[entry(4, 0x0000_0121, 0, 0, 0)], PLACE);
        assert_eq!(t.get(4, 0).eax >> 14 & 0xfff, 0);
        assert_eq!(adapted(&[entry(4, 0, 0, 0, 0)], PLACE).get(4, 0).eax, 0);
    }

    #[test]
    fn there_is_no_virtualization_inside_and_no_performance_monitoring() {
        let t = adapted(&[amd(), entry(0x8000_0001, 0, 0, u32::MAX, 0), entry(0xa, 1, 2, 3, 4)], PLACE);
        assert_eq!(t.get(0x8000_0001, 0).ecx & (SVM | CMP_LEGACY), CMP_LEGACY);
        assert_eq!(t.get(0xa, 0), CpuidResult::default());
    }

    #[test]
    fn the_hypervisor_leaves_say_kvm_its_features_and_the_clocks() {
        let t = adapted(&[entry(0x4000_0001, u32::MAX, 0, 0, 0)], PLACE);
        let leaf = t.get(0x4000_0000, 0);
        let name: Vec<u8> = [leaf.ebx, leaf.ecx, leaf.edx].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(name, b"KVMKVMKVM\0\0\0");
        assert_eq!((leaf.eax, t.get(0x4000_0001, 0).eax), (0x4000_0010, 9));
        assert_eq!((t.get(0x4000_0010, 0).eax, t.get(0x4000_0010, 0).ebx), (2_600_000, 1_000_000));
    }

    #[test]
    fn every_leaf_can_be_asked_for_the_largest_machine() {
        let t =
            adapted(&[amd(), entry(1, 0, 0, 0, 0), entry(4, 0x163, 0, 0, 0)], Place { vcpus: 4096, id: 4095, ..PLACE });
        assert_eq!((t.get(1, 0).ebx >> 16, t.get(0xb, 1).ebx, t.get(0xb, 0).edx), (0xffff, 4096, 4095));
        assert_eq!(t.get(4, 0).eax >> 14, 0xfff | 0x3f << 12);
    }
}
