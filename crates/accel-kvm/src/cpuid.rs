//! Between KVM's CPUID tables and the plain-data [`CpuidTable`], and what of KVM's features a VM has. Everything else of what the guest is told is `accel::cpuid`'s.

use accel::AccelError;
use accel::cpuid::{self, Place, paravirtual};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use x86::cpuid::{CpuidEntry, CpuidResult, CpuidTable};

use crate::KernelIrqchip;

/// Leaf of KVM's features.
const KVM_FEATURES: u32 = 0x4000_0001;

/// What KVM_GET_SUPPORTED_CPUID answers, as plain data.
pub(crate) fn from_kvm(supported: &CpuId) -> CpuidTable {
    let entry = |e: &kvm_cpuid_entry2| CpuidEntry {
        leaf: e.function,
        subleaf: (e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0).then_some(e.index),
        result: CpuidResult { eax: e.eax, ebx: e.ebx, ecx: e.ecx, edx: e.edx },
    };
    CpuidTable::new(supported.as_slice().iter().map(entry).collect())
}

/// The table of the vCPU at `place` for KVM_SET_CPUID2.
///
/// # Errors
/// [`AccelError::State`] when it is longer than KVM takes, which no table of KVM's own is.
pub(crate) fn to_kvm(supported: &CpuidTable, place: Place) -> Result<CpuId, AccelError> {
    let adapted = cpuid::adapt(supported, place);
    let entry = |e: &CpuidEntry| kvm_cpuid_entry2 {
        function: e.leaf,
        index: e.subleaf.unwrap_or(0),
        flags: if e.subleaf.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: e.result.eax,
        ebx: e.result.ebx,
        ecx: e.result.ecx,
        edx: e.result.edx,
        padding: [0; 3],
    };
    let entries: Vec<_> = adapted.entries().iter().map(entry).collect();
    CpuId::from_entries(&entries).map_err(|_| AccelError::State { what: "more CPUID leaves than KVM takes".to_owned() })
}

/// The paravirtual features of a VM: of the kernel's those that need nothing of the VMM, without those that need the kernel's own local APIC where that is not used. The 15-bit
/// destinations are ours: the IOAPIC and [`crate::vm`] know them, where the interrupt controllers are split and KVM takes such `long_ids`.
pub(crate) fn paravirtual_features(supported: &CpuidTable, irqchip: KernelIrqchip, long_ids: bool) -> u32 {
    use paravirtual::{MSI_EXT_DEST_ID, PV_EOI, PV_SCHED_YIELD, PV_SEND_IPI, PV_UNHALT, UNASSISTED};
    let offered = supported.get(KVM_FEATURES, 0).eax & UNASSISTED;
    match irqchip {
        KernelIrqchip::Split if long_ids => offered | MSI_EXT_DEST_ID,
        KernelIrqchip::Split | KernelIrqchip::On => offered,
        KernelIrqchip::Off => offered & !(PV_EOI | PV_UNHALT | PV_SEND_IPI | PV_SCHED_YIELD),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> CpuidTable {
        let entry =
            |leaf, subleaf, eax| CpuidEntry { leaf, subleaf, result: CpuidResult { eax, ..Default::default() } };
        CpuidTable::new(vec![entry(1, None, 7), entry(4, Some(0), 0x163), entry(KVM_FEATURES, None, u32::MAX)])
    }

    #[test]
    fn a_table_survives_the_way_to_kvm_and_back() {
        let place = Place { vcpus: 2, id: 1, tsc_khz: 1, x2apic: true, tsc_deadline: true, paravirtual: 1 };
        let expected = cpuid::adapt(&supported(), place);
        assert_eq!(from_kvm(&to_kvm(&supported(), place).unwrap()), expected);
    }

    #[test]
    fn features_that_need_the_vmm_are_not_offered() {
        for irqchip in [KernelIrqchip::Split, KernelIrqchip::On, KernelIrqchip::Off] {
            let features = paravirtual_features(&supported(), irqchip, true);
            assert_eq!(features & (1 << 4 | 1 << 10 | 1 << 14), 0, "asynchronous page faults");
        }
    }

    #[test]
    fn long_destinations_are_offered_where_they_arrive() {
        let offered = |irqchip, long_ids| {
            paravirtual_features(&supported(), irqchip, long_ids) & paravirtual::MSI_EXT_DEST_ID != 0
        };
        assert!(offered(KernelIrqchip::Split, true) && !offered(KernelIrqchip::Split, false));
        assert!(!offered(KernelIrqchip::On, true), "the kernel's IOAPIC does not know them");
    }

    #[test]
    fn without_the_kernels_local_apic_its_shortcuts_are_gone() {
        let features = paravirtual_features(&supported(), KernelIrqchip::Off, false);
        assert_eq!(features & (paravirtual::PV_EOI | paravirtual::PV_UNHALT | paravirtual::PV_SEND_IPI), 0);
        assert_ne!(features & paravirtual::CLOCKSOURCE2, 0);
    }
}
