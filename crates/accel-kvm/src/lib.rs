//! KVM as an accelerator: the host's processor runs the guest.
//!
//! Whose the interrupt controllers are is [`KernelIrqchip`]'s choice, QEMU's `kernel-irqchip` (Linux Documentation/virt/kvm/api.rst). *Split*, the default: the kernel has the local APICs ([`local_apic`]); PIC, IOAPIC and PIT are the
//! same models that the software CPU's machines have. The IOAPIC's messages go in by KVM_SIGNAL_MSI, the end of a level-triggered one comes back as an exit ([`routes`]), and the PIC's vector is
//! queued when the guest can take it ([`vcpu`]). *On*: all are the kernel's ([`irqchip`]). *Off*: the local APICs are our models too ([`userspace_apic`], [`own_apic`]), without x2APIC and TSC deadlines.
//!
//! A store to a device's notification register can signal an event, and an event can interrupt ([`irqfd`], with *split*), both without this process.
//!
//! An instruction that KVM's own emulator refuses is executed by the software CPU ([`emulator`]).
//!
//! Deliberately missing: dirty logging, SMM, and nested virtualization.
//!
//! The crate is for x86-64 hosts, as its `kvm-bindings` structures are.

#![deny(unsafe_op_in_unsafe_fn)]

mod availability;
mod cpuid;
mod emulator;
mod exit;
mod irqchip;
mod irqfd;
mod local_apic;
mod mailbox;
mod own_apic;
mod report;
mod routes;
mod state;
mod userspace_apic;
mod vcpu;
mod vm;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use accel::{AccelError, Accelerator, Vm, VmConfig};
use kvm_ioctls::{Cap, Kvm};
use tracing::info;

use crate::vm::KvmVm;

/// Most vCPUs of a VM whose interrupt messages have eight bits for the local APIC ID, the broadcast excepted.
const MAX_SHORT_IDS: u32 = 254;

/// Which interrupt controllers are the kernel's: QEMU's `kernel-irqchip`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KernelIrqchip {
    /// The local APICs.
    #[default]
    Split,
    /// The local APICs, the PIC, one IOAPIC, and the PIT.
    On,
    /// None.
    Off,
}

/// A failed KVM call as an error of this floor.
fn host(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> AccelError {
    move |error| AccelError::Host { what, source: error.into() }
}

/// The accelerator named `kvm`.
pub struct KvmAccelerator {
    kvm: Kvm,
    irqchip: KernelIrqchip,
}

impl KvmAccelerator {
    /// Opens `/dev/kvm` and checks that it offers what this crate needs for these interrupt controllers.
    ///
    /// # Errors
    /// [`AccelError::Unavailable`] when it is missing, not permitted, or lacks a capability, each with its own words.
    pub fn open(irqchip: KernelIrqchip) -> Result<Self, AccelError> {
        let kvm = availability::open(irqchip)?;
        mailbox::install_signal_handler()?;
        info!(?irqchip, "KVM opened");
        Ok(Self { kvm, irqchip })
    }
}

impl Accelerator for KvmAccelerator {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn max_vcpus(&self) -> u32 {
        let kernel = u32::try_from(self.kvm.get_max_vcpus().min(self.kvm.get_max_vcpu_id())).unwrap_or(MAX_SHORT_IDS);
        // The kernel's IOAPIC and our local APICs know eight bits only.
        let long_ids = self.irqchip == KernelIrqchip::Split && self.kvm.check_extension(Cap::X2ApicApi);
        if long_ids { kernel } else { kernel.min(MAX_SHORT_IDS) }
    }

    fn create_vm(&self, config: VmConfig) -> Result<Arc<dyn Vm>, AccelError> {
        let most = self.max_vcpus();
        if !(1..=most).contains(&config.vcpus) {
            return Err(AccelError::VcpuCount { backend: self.name(), requested: config.vcpus, most });
        }
        Ok(Arc::new(KvmVm::new(&self.kvm, self.irqchip, &config)?))
    }
}
