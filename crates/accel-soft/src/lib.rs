//! The software CPU as an accelerator: vCPUs over `soft-cpu`, their local APICs, and time.
//!
//! Each vCPU runs on the thread that calls [`accel::Vcpu::run`], in slices of a few ten thousand instructions; between two slices it looks at
//! its local APIC's timer. What other threads have for it (interrupts, kicks) sets a bit that the CPU sees at its next block.
//!
//! DEVNOTE: a timer thread that sets the bit exactly on time was the alternative. A slice is a fraction of a millisecond, arming a host timer is a system
//! call at each of the guest's timer writes, and an idle vCPU sleeps exactly until its deadline anyway.

#![forbid(unsafe_code)]

mod clock;
mod platform;
mod pvclock;
mod sampler;
mod sleeper;
mod statistics;
mod vcpu;
mod vm;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use accel::{AccelError, Accelerator, Vm, VmConfig};

use crate::vm::SoftVm;
pub use soft_cpu::run::{Debugging, TranslatorMode};

/// Most vCPUs of one VM: what 8-bit APIC IDs can name, the broadcast excepted.
const MAX_VCPUS: u32 = 254;

/// The accelerator named `soft`.
#[derive(Debug, Clone, Copy)]
pub struct SoftAccelerator {
    /// Whether, and when, the guest's code is translated to the host's.
    pub translator: TranslatorMode,
    /// What is done to find its errors. In lockstep the VM must have one vCPU, and its time goes by instructions.
    pub debugging: Debugging,
    /// Whether a thread looks where the vCPUs' time goes, for their statistics.
    pub sampling: bool,
}

impl Default for SoftAccelerator {
    fn default() -> Self {
        Self { translator: TranslatorMode::DEFAULT, debugging: Debugging::default(), sampling: false }
    }
}

impl Accelerator for SoftAccelerator {
    fn name(&self) -> &'static str {
        "soft"
    }

    fn max_vcpus(&self) -> u32 {
        MAX_VCPUS
    }

    fn create_vm(&self, config: VmConfig) -> Result<Arc<dyn Vm>, AccelError> {
        if !(1..=MAX_VCPUS).contains(&config.vcpus) {
            return Err(AccelError::VcpuCount { backend: self.name(), requested: config.vcpus, most: MAX_VCPUS });
        }
        if self.debugging.lockstep && config.vcpus != 1 {
            return Err(AccelError::VcpuCount { backend: "soft (in lockstep)", requested: config.vcpus, most: 1 });
        }
        Ok(Arc::new(SoftVm::new(&config, *self)))
    }
}
