//! KVM as an accelerator: the host's processor runs the guest, the kernel has the local APICs, and everything else of the board stays ours.
//!
//! The interrupt controllers are split (KVM_CAP_SPLIT_IRQCHIP; Linux Documentation/virt/kvm/api.rst): PIC, IOAPIC and PIT are the same models that the software
//! CPU's machines have. The IOAPIC's messages go in by KVM_SIGNAL_MSI, the end of a level-triggered one comes back as an exit ([`vm`]), and the PIC's vector is injected when
//! the guest can take it ([`vcpu`]).
//!
//! Deliberately missing: interrupt controllers all in the kernel or all outside, irqfd and ioeventfd, dirty logging, SMM, nested virtualization, more than 254
//! vCPUs (the board's IOAPICs have 8-bit destinations).
//!
//! The crate is for x86-64 hosts, as its `kvm-bindings` structures are.

#![deny(unsafe_op_in_unsafe_fn)]

mod cpuid;
mod exit;
mod local_apic;
mod mailbox;
mod report;
mod state;
mod vcpu;
mod vm;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use accel::{AccelError, Accelerator, Vm, VmConfig};
use kvm_ioctls::{Cap, Kvm};
use tracing::info;

use crate::vm::KvmVm;

/// Most vCPUs of one VM: what 8-bit APIC IDs can name, the broadcast excepted.
const MAX_VCPUS: u32 = 254;
/// KVM_GET_API_VERSION has answered this since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// What a kernel must offer, with the name by which its documentation knows it.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// A failed KVM call as an error of this floor.
fn host(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> AccelError {
    move |error| AccelError::Host { what, source: error.into() }
}

fn unavailable(what: String) -> AccelError {
    AccelError::Unavailable { backend: "kvm", what }
}

/// The accelerator named `kvm`.
pub struct KvmAccelerator {
    kvm: Kvm,
}

impl KvmAccelerator {
    /// Opens `/dev/kvm` and checks that it offers what this crate needs.
    ///
    /// # Errors
    /// [`AccelError::Unavailable`] when it is missing, not permitted, or lacks a capability, each with its own words.
    pub fn open() -> Result<Self, AccelError> {
        let kvm = Kvm::new().map_err(|error| unavailable(why_not_opened(error.errno())))?;
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(unavailable(format!("/dev/kvm speaks API version {version} instead of {API_VERSION}")));
        }
        if let Some((_, name)) = REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(unavailable(format!("the kernel's KVM lacks {name}; use a newer kernel, or accel = soft")));
        }
        mailbox::install_signal_handler()?;
        info!("KVM opened");
        Ok(Self { kvm })
    }
}

/// Why `/dev/kvm` cannot be opened and what helps, by the error number of the attempt.
fn why_not_opened(errno: i32) -> String {
    match errno {
        libc::ENOENT => "there is no /dev/kvm; load the module kvm_intel or kvm_amd, or use accel = soft".to_owned(),
        libc::EACCES | libc::EPERM => format!(
            "this user may not open /dev/kvm; join the group {}, or use accel = soft",
            device_group().unwrap_or_else(|| "kvm".to_owned())
        ),
        libc::ENODEV | libc::ENXIO => {
            "/dev/kvm has no driver behind it: the processor's virtualization (VMX or SVM) is missing or switched off in the firmware; use accel = soft"
                .to_owned()
        }
        other => format!("/dev/kvm cannot be opened: {}", std::io::Error::from_raw_os_error(other)),
    }
}

/// The name of the group that `/dev/kvm` belongs to, or its number where it has no name.
fn device_group() -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let gid = std::fs::metadata("/dev/kvm").ok()?.gid().to_string();
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let name = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == gid).then(|| name.to_owned())
    });
    Some(name.unwrap_or(gid))
}

impl Accelerator for KvmAccelerator {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn max_vcpus(&self) -> u32 {
        u32::try_from(self.kvm.get_max_vcpus()).unwrap_or(MAX_VCPUS).min(MAX_VCPUS)
    }

    fn create_vm(&self, config: VmConfig) -> Result<Arc<dyn Vm>, AccelError> {
        let most = self.max_vcpus();
        if !(1..=most).contains(&config.vcpus) {
            return Err(AccelError::VcpuCount { backend: self.name(), requested: config.vcpus, most });
        }
        Ok(Arc::new(KvmVm::new(&self.kvm, &config)?))
    }
}
