//! One VM: its memory slots, its interrupt messages, and the routes by which KVM learns whose end-of-interrupt it must report.
//!
//! With the split interrupt controllers KVM reports the end of an interrupt only for level-triggered messages in its routing table. Our IOAPIC is not known here, but each of its
//! level-triggered messages passes [`accel::Vm::signal_msi`]: what is not in the table yet is put there before the message is sent. So the table
//! follows the guest's redirection entries without anybody watching them.

#![expect(unsafe_code, reason = "KVM is given the addresses of guest RAM")]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use accel::{AccelError, Vcpu, Vm, VmConfig};
use guest_memory::GuestMemory;
use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_IRQ_ROUTING_MSI, KVM_MAX_CPUID_ENTRIES,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, KvmIrqRouting, kvm_enable_cap,
    kvm_irq_routing_entry, kvm_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use tracing::{debug, warn};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::cpuid::{self, Place};
use crate::host;
use crate::mailbox::Mailbox;
use crate::vcpu::KvmVcpu;

/// Three pages for KVM's own use on Intel processors (a real-mode task state segment); below the reset vector's region, where no board has RAM.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// One page for KVM's own use on Intel processors: an identity map.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// Level-triggered messages that are remembered: more than two IOAPICs have pins.
const ROUTES: usize = 64;
/// MSI data: trigger mode level (SDM vol. 3, 12.11.2).
const LEVEL_TRIGGERED: u32 = 1 << 15;
/// MSI that is an NMI to the processor with local APIC ID 0.
const NMI_TO_BSP: (u64, u32) = (0xfee0_0000, 0x400);

/// What all vCPUs of a VM share.
pub(crate) struct VmShared {
    pub(crate) fd: VmFd,
    /// Keeps the memory mapped that KVM was given.
    pub(crate) memory: GuestMemory,
    pub(crate) mailboxes: Vec<Arc<Mailbox>>,
    /// Level-triggered messages in the routing table, the least recently sent first.
    level_messages: Mutex<VecDeque<(u64, u32)>>,
}

impl VmShared {
    fn level_messages(&self) -> MutexGuard<'_, VecDeque<(u64, u32)>> {
        self.level_messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes KVM report the end of this level-triggered message's interrupt.
    fn route(&self, message: (u64, u32)) {
        let mut messages = self.level_messages();
        let known = messages.iter().position(|m| *m == message).and_then(|at| messages.remove(at));
        messages.push_back(message);
        if known.is_some() {
            return;
        }
        if messages.len() > ROUTES {
            messages.pop_front();
        }
        let entries: Vec<_> =
            (0..).zip(messages.iter()).map(|(gsi, &(address, data))| msi_route(gsi, address, data)).collect();
        let result = KvmIrqRouting::from_entries(&entries).map(|routing| self.fd.set_gsi_routing(&routing));
        if !matches!(result, Ok(Ok(()))) {
            warn!("KVM refuses the interrupt routes ({result:?}): a level-triggered interrupt may arrive only once");
        }
    }
}

fn msi_route(gsi: u32, address: u64, data: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = address as u32;
    entry.u.msi.address_hi = (address >> 32) as u32;
    entry.u.msi.data = data;
    entry
}

/// A VM on KVM.
pub(crate) struct KvmVm {
    shared: Arc<VmShared>,
    /// What CPUID can answer on this host.
    supported_cpuid: CpuId,
    tsc_deadline: bool,
    taken: Vec<AtomicBool>,
    page_size: usize,
}

impl KvmVm {
    pub(crate) fn new(kvm: &Kvm, config: &VmConfig) -> Result<Self, AccelError> {
        let fd = kvm.create_vm().map_err(host("KVM_CREATE_VM"))?;
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(host("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(TSS_ADDRESS).map_err(host("KVM_SET_TSS_ADDR"))?;
        for (slot, region) in (0..).zip(config.memory.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the range is a mapping that `VmShared::memory` keeps alive longer than the VM's file descriptor is used, and slots do not overlap
            // because regions do not.
            unsafe { fd.set_user_memory_region(region) }.map_err(host("KVM_SET_USER_MEMORY_REGION"))?;
        }
        let split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [ROUTES as u64, 0, 0, 0], ..Default::default() };
        fd.enable_cap(&split).map_err(host("enabling KVM_CAP_SPLIT_IRQCHIP"))?;
        // KVM_X86_QUIRK_LINT0_REENABLED stays: LINT0 of the bootstrap processor takes the PIC's interrupts from the start, as on the software CPU and as
        // firmware would leave it, of which there is none here.
        let x2apic = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        let x2apic = kvm_enable_cap { cap: KVM_CAP_X2APIC_API, args: [x2apic.into(), 0, 0, 0], ..Default::default() };
        // The VM can do without.
        if let Err(error) = fd.enable_cap(&x2apic) {
            debug!("KVM_CAP_X2APIC_API is not there: {error}");
        }
        let mailboxes = (0..config.vcpus).map(|_| Arc::new(Mailbox::default())).collect();
        let level_messages = Mutex::default();
        Ok(Self {
            page_size: kvm.get_vcpu_mmap_size().map_err(host("KVM_GET_VCPU_MMAP_SIZE"))?,
            shared: Arc::new(VmShared { fd, memory: config.memory.clone(), mailboxes, level_messages }),
            supported_cpuid: kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(host("KVM_GET_SUPPORTED_CPUID"))?,
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            taken: (0..config.vcpus).map(|_| AtomicBool::new(false)).collect(),
        })
    }

    fn signal(&self, address: u64, data: u32) {
        let (address_lo, address_hi) = (address as u32, (address >> 32) as u32);
        let msi = kvm_msi { address_lo, address_hi, data, ..Default::default() };
        // A message that no processor takes is lost, as on hardware.
        if let Err(error) = self.shared.fd.signal_msi(msi) {
            debug!("KVM refuses the MSI {data:#x} to {address:#x}: {error}");
        }
    }
}

impl Vm for KvmVm {
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, AccelError> {
        let taken = self.taken.get(id as usize).ok_or(AccelError::NoSuchVcpu { id })?;
        if taken.swap(true, Ordering::SeqCst) {
            return Err(AccelError::NoSuchVcpu { id });
        }
        let fd = self.shared.fd.create_vcpu(id.into()).map_err(host("KVM_CREATE_VCPU"))?;
        let tsc_khz = fd.get_tsc_khz().unwrap_or(0);
        let place = Place { vcpus: self.taken.len() as u32, id, tsc_khz, tsc_deadline: self.tsc_deadline };
        fd.set_cpuid2(&cpuid::table(&self.supported_cpuid, place)?).map_err(host("KVM_SET_CPUID2"))?;
        let xcrs = self.shared.fd.check_extension(Cap::Xcrs);
        Ok(Box::new(KvmVcpu::new(Arc::clone(&self.shared), id, fd, xcrs, self.page_size)?))
    }

    fn signal_msi(&self, address: u64, data: u32) {
        if data & LEVEL_TRIGGERED != 0 {
            self.shared.route((address, data));
        }
        self.signal(address, data);
    }

    fn set_pic_intr(&self, level: bool) {
        self.shared.mailboxes[0].set_pic_intr(level);
    }

    fn inject_nmi(&self) {
        let (address, data) = NMI_TO_BSP;
        self.signal(address, data);
    }

    fn reset(&self) {
        // The local APICs are reached through the vCPUs, which are their threads': each resets its own before it next runs.
        self.shared.mailboxes.iter().for_each(|mailbox| mailbox.request_apic_reset());
    }
}
