//! One VM: its memory slots, its interrupt messages, and the events that stand for a store or an interrupt.
//!
//! DEVNOTE: a device in this process has no irqfd. Its InterruptStatus is ours and must be set before its line rises, so the interrupt comes through this process in any case, and then the plain call is the faster one. Measured on
//! the project's machine (Linux 6.18, medians): with split controllers KVM_SIGNAL_MSI takes 571 ns, a write to an irqfd with the same message 641 ns.
//! With the controllers in the kernel KVM_IRQ_LINE has the IOAPIC's pin high after 1.3 us, an irqfd after 5.6 us. [`crate::irqfd`] is for devices that another process serves.

#![expect(unsafe_code, reason = "KVM is given the addresses of guest RAM")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use accel::cpuid::Place;
use accel::{AccelError, Irqchip, Irqfd, Vcpu, Vm, VmConfig};
use chipset::lapic::{DeliveryMode, Destination, InterruptMessage, TriggerMode};
use guest_memory::GuestMemory;
use kvm_bindings::{
    KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_MAX_CPUID_ENTRIES,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap, kvm_msi,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VmFd};
use tracing::debug;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use x86::cpuid::CpuidTable;

use crate::irqchip::KernelChips;
use crate::irqfd::SplitIrqfd;
use crate::mailbox::Mailbox;
use crate::routes::{LEVEL_ROUTES, Routes, address_halves};
use crate::userspace_apic::UserspaceApics;
use crate::vcpu::KvmVcpu;
use crate::{KernelIrqchip, cpuid, host};

/// Three pages for KVM's own use on Intel processors (a real-mode task state segment); below the reset vector's region, where no board has RAM.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// One page for KVM's own use on Intel processors: an identity map.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// MSI data: trigger mode level (SDM vol. 3, 12.11.2).
const LEVEL_TRIGGERED: u32 = 1 << 15;
/// MSI that is an NMI to the processor with local APIC ID 0.
const NMI_TO_BSP: (u64, u32) = (0xfee0_0000, 0x400);

/// Where the interrupt controllers of a VM are.
pub(crate) enum Controllers {
    /// The local APICs are the kernel's, the rest is the board's.
    Split(Routes),
    /// All are the kernel's.
    Kernel(Arc<KernelChips>),
    /// The local APICs are ours, the rest is the board's.
    Userspace(UserspaceApics),
}

/// What all vCPUs of a VM share.
pub(crate) struct VmShared {
    pub(crate) fd: Arc<VmFd>,
    /// Keeps the memory mapped that KVM was given.
    pub(crate) memory: GuestMemory,
    pub(crate) mailboxes: Vec<Arc<Mailbox>>,
    pub(crate) controllers: Controllers,
}

impl VmShared {
    /// The local APICs, where they are ours.
    pub(crate) fn userspace_apics(&self) -> Option<&UserspaceApics> {
        match &self.controllers {
            Controllers::Userspace(apics) => Some(apics),
            Controllers::Split(_) | Controllers::Kernel(_) => None,
        }
    }

    /// Whether the PIC is the board's, and its vectors are injected into the kernel's local APIC by hand.
    pub(crate) fn injects_for_pic(&self) -> bool {
        matches!(self.controllers, Controllers::Split(_))
    }
}

/// A VM on KVM.
pub(crate) struct KvmVm {
    shared: Arc<VmShared>,
    /// What CPUID can answer on this host.
    supported_cpuid: CpuidTable,
    /// What every vCPU is told alike.
    place: Place,
    taken: Vec<AtomicBool>,
    page_size: usize,
}

impl KvmVm {
    pub(crate) fn new(kvm: &Kvm, irqchip: KernelIrqchip, config: &VmConfig) -> Result<Self, AccelError> {
        let fd = Arc::new(kvm.create_vm().map_err(host("KVM_CREATE_VM"))?);
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
        let mailboxes: Vec<_> = (0..config.vcpus).map(|_| Arc::new(Mailbox::default())).collect();
        let controllers = match irqchip {
            KernelIrqchip::Split => {
                let pins = [LEVEL_ROUTES as u64, 0, 0, 0];
                let split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: pins, ..Default::default() };
                fd.enable_cap(&split).map_err(host("enabling KVM_CAP_SPLIT_IRQCHIP"))?;
                Controllers::Split(Routes::default())
            }
            KernelIrqchip::On => Controllers::Kernel(Arc::new(KernelChips::new(Arc::clone(&fd))?)),
            KernelIrqchip::Off => Controllers::Userspace(UserspaceApics::new(mailboxes.clone())?),
        };
        exit_on_refusals(&fd);
        // KVM_X86_QUIRK_LINT0_REENABLED stays: LINT0 of the bootstrap processor takes the PIC's interrupts from the start, as on the software CPU and as
        // firmware would leave it, of which there is none here.
        let kernel_apic = irqchip != KernelIrqchip::Off;
        let long_ids = kernel_apic && enable_x2apic_ids(&fd);
        let supported_cpuid =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(host("KVM_GET_SUPPORTED_CPUID"))?;
        let supported_cpuid = cpuid::from_kvm(&supported_cpuid);
        let place = Place {
            vcpus: config.vcpus,
            id: 0,
            tsc_khz: 0,
            x2apic: kernel_apic,
            tsc_deadline: kernel_apic && kvm.check_extension(Cap::TscDeadlineTimer),
            paravirtual: cpuid::paravirtual_features(&supported_cpuid, irqchip, long_ids),
        };
        Ok(Self {
            page_size: kvm.get_vcpu_mmap_size().map_err(host("KVM_GET_VCPU_MMAP_SIZE"))?,
            shared: Arc::new(VmShared { fd, memory: config.memory.clone(), mailboxes, controllers }),
            supported_cpuid,
            place,
            taken: (0..config.vcpus).map(|_| AtomicBool::new(false)).collect(),
        })
    }

    fn signal(&self, address: u64, data: u32) {
        let (address_lo, address_hi) = address_halves(address);
        let msi = kvm_msi { address_lo, address_hi, data, ..Default::default() };
        // A message that no processor takes is lost, as on hardware.
        if let Err(error) = self.shared.fd.signal_msi(msi) {
            debug!("KVM refuses the MSI {data:#x} to {address:#x}: {error}");
        }
    }

    /// Takes vCPU `id` out.
    pub(crate) fn make_vcpu(&self, id: u32) -> Result<KvmVcpu, AccelError> {
        let taken = self.taken.get(id as usize).ok_or(AccelError::NoSuchVcpu { id })?;
        if taken.swap(true, Ordering::SeqCst) {
            return Err(AccelError::NoSuchVcpu { id });
        }
        let fd = self.shared.fd.create_vcpu(id.into()).map_err(host("KVM_CREATE_VCPU"))?;
        let place = Place { id, tsc_khz: fd.get_tsc_khz().unwrap_or(0), ..self.place };
        fd.set_cpuid2(&cpuid::to_kvm(&self.supported_cpuid, place)?).map_err(host("KVM_SET_CPUID2"))?;
        let xcrs = self.shared.fd.check_extension(Cap::Xcrs);
        let signature = self.supported_cpuid.get(1, 0).eax;
        KvmVcpu::new(Arc::clone(&self.shared), id, fd, xcrs, self.page_size, signature)
    }
}

/// Lets KVM_RUN end where KVM refuses an instruction of user mode too, so that [`crate::emulator`] can execute it. Otherwise, as before Linux 5.14, KVM raises #UD there by itself.
fn exit_on_refusals(fd: &VmFd) {
    let exit = kvm_enable_cap { cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE, args: [1, 0, 0, 0], ..Default::default() };
    if let Err(error) = fd.enable_cap(&exit) {
        debug!("KVM_CAP_EXIT_ON_EMULATION_FAILURE is not there: {error}");
    }
}

/// Lets messages and saved local APICs carry all 32 bits of an x2APIC ID; whether KVM can. [`crate::KvmAccelerator`] allows more vCPUs than eight bits can name only where KVM has this.
fn enable_x2apic_ids(fd: &VmFd) -> bool {
    let x2apic = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    let x2apic = kvm_enable_cap { cap: KVM_CAP_X2APIC_API, args: [x2apic.into(), 0, 0, 0], ..Default::default() };
    fd.enable_cap(&x2apic).inspect_err(|error| debug!("KVM_CAP_X2APIC_API is not there: {error}")).is_ok()
}

impl Vm for KvmVm {
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, AccelError> {
        Ok(Box::new(self.make_vcpu(id)?))
    }

    fn signal_msi(&self, address: u64, data: u32) {
        match &self.shared.controllers {
            Controllers::Userspace(apics) => {
                if let Some(message) = InterruptMessage::from_msi(address, data) {
                    apics.deliver(message, None);
                }
            }
            Controllers::Split(routes) => {
                if data & LEVEL_TRIGGERED != 0 {
                    routes.add_level(&self.shared.fd, (address, data));
                }
                self.signal(address, data);
            }
            Controllers::Kernel(_) => self.signal(address, data),
        }
    }

    fn set_pic_intr(&self, level: bool) {
        match &self.shared.controllers {
            Controllers::Userspace(apics) => apics.set_pic_intr(level),
            Controllers::Split(_) => self.shared.mailboxes[0].set_pic_intr(level),
            // The kernel's PIC has a wire of its own.
            Controllers::Kernel(_) => {}
        }
    }

    fn inject_nmi(&self) {
        match &self.shared.controllers {
            Controllers::Userspace(apics) => {
                let (destination, delivery) = (Destination::Physical(0), DeliveryMode::Nmi);
                let trigger = TriggerMode::Edge;
                apics.deliver(InterruptMessage { destination, delivery, vector: 0, trigger }, None);
            }
            Controllers::Split(_) | Controllers::Kernel(_) => {
                let (address, data) = NMI_TO_BSP;
                self.signal(address, data);
            }
        }
    }

    fn ioeventfd(&self, address: u64, value: u32) -> Option<EventFd> {
        let event = EventFd::new(EFD_NONBLOCK).ok()?;
        match self.shared.fd.register_ioevent(&event, &IoEventAddress::Mmio(address), value) {
            Ok(()) => Some(event),
            Err(error) => {
                debug!("no event for stores of {value} to {address:#x}: {error}");
                None
            }
        }
    }

    fn irqfd(&self, event: &Arc<EventFd>) -> Option<Box<dyn Irqfd>> {
        match &self.shared.controllers {
            Controllers::Split(_) => Some(Box::new(SplitIrqfd::new(&self.shared, event))),
            // The kernel's IOAPIC makes messages of its own, and without a local APIC of KVM's there is nobody to take one.
            Controllers::Kernel(_) | Controllers::Userspace(_) => None,
        }
    }

    fn irqchip(&self) -> Option<Arc<dyn Irqchip>> {
        match &self.shared.controllers {
            Controllers::Kernel(chips) => Some(Arc::clone(chips) as Arc<dyn Irqchip>),
            Controllers::Split(_) | Controllers::Userspace(_) => None,
        }
    }

    fn reset(&self) {
        match &self.shared.controllers {
            Controllers::Userspace(apics) => apics.reset(),
            // These local APICs are reached through the vCPUs, which are their threads': each resets its own before it next runs.
            Controllers::Split(_) | Controllers::Kernel(_) => {
                self.shared.mailboxes.iter().for_each(|mailbox| mailbox.request_apic_reset());
            }
        }
    }
}
