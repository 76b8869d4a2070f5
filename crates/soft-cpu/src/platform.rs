//! What the CPU asks of the world around it: ports, memory that is not RAM, the local APIC and time.
//!
//! `soft-cpu` knows no device; `accel-soft` implements this over the local APIC and the board.

use x86::cpuid::CpuidResult;

use crate::core::Core;
use crate::layer::Layer;

/// A general-protection fault that a platform register raises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneralProtection;

/// The world around one CPU. All calls come from the thread that runs the CPU.
pub trait Platform: Send {
    /// IN: `data.len()` is 1, 2 or 4.
    fn port_read(&mut self, port: u16, data: &mut [u8]);
    /// OUT: `data.len()` is 1, 2 or 4.
    fn port_write(&mut self, port: u16, data: &[u8]);
    /// A load from a guest-physical address that is not RAM; `data.len()` is 1, 2, 4 or 8.
    fn mmio_read(&mut self, address: u64, data: &mut [u8]);
    /// A store to a guest-physical address that is not RAM; `data.len()` is 1, 2, 4 or 8.
    fn mmio_write(&mut self, address: u64, data: &[u8]);
    /// RDMSR of a register that the CPU core does not hold itself (APIC base, x2APIC, TSC deadline, paravirtual clocks):
    /// `None` where the platform has no such register either.
    ///
    /// # Errors
    /// [`GeneralProtection`] where the register exists but cannot be read now.
    fn msr_read(&mut self, number: u32) -> Option<Result<u64, GeneralProtection>>;
    /// WRMSR, likewise.
    ///
    /// # Errors
    /// [`GeneralProtection`] where the value is not allowed.
    fn msr_write(&mut self, number: u32, value: u64) -> Option<Result<(), GeneralProtection>>;
    /// CR8: the task priority's upper four bits.
    fn cr8(&mut self) -> u64;
    /// Sets CR8, 0 to 15.
    fn set_cr8(&mut self, value: u64);
    /// The time stamp counter.
    fn tsc(&mut self) -> u64;
    /// Sets the time stamp counter.
    fn set_tsc(&mut self, value: u64);
    /// CPUID, but for the bits that mirror the CPU's own state (OSXSAVE, XSAVE sizes), which the core fills in.
    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> CpuidResult;
    /// The vector of the interrupt to deliver now, acknowledged; `None` if none is ready. If another one is ready behind it, the platform sets
    /// [`crate::smp::attention::INTERRUPT`] again, and so it does whenever one becomes ready.
    fn acknowledge_interrupt(&mut self) -> Option<u8>;
    /// PAUSE was executed: a good moment to let other threads run.
    fn pause(&mut self);
    /// A VMCALL or VMMCALL: the result for RAX, or `None` where there is no such hypercall (#UD).
    fn hypercall(&mut self, number: u64, arguments: [u64; 4]) -> Option<u64>;
}

impl Core {
    /// Lets a device answer to a port or a memory access.
    pub(crate) fn device<R>(&mut self, access: impl FnOnce(&mut dyn Platform) -> R) -> R {
        self.counters.io += 1;
        let before = self.layer.replace(Layer::Device);
        let answer = access(&mut *self.platform);
        self.layer.set(before);
        answer
    }
}

/// A world with nothing in it: ports and memory outside RAM read as ones, time stands still. For tests and measurements of the CPU alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nothing;

impl Platform for Nothing {
    fn port_read(&mut self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&mut self, _: u16, _: &[u8]) {}
    fn mmio_read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&mut self, _: u64, _: &[u8]) {}
    fn msr_read(&mut self, _: u32) -> Option<Result<u64, GeneralProtection>> {
        None
    }
    fn msr_write(&mut self, _: u32, _: u64) -> Option<Result<(), GeneralProtection>> {
        None
    }
    fn cr8(&mut self) -> u64 {
        0
    }
    fn set_cr8(&mut self, _: u64) {}
    fn tsc(&mut self) -> u64 {
        0
    }
    fn set_tsc(&mut self, _: u64) {}
    fn cpuid(&mut self, _: u32, _: u32) -> CpuidResult {
        CpuidResult::default()
    }
    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        None
    }
    fn pause(&mut self) {}
    fn hypercall(&mut self, _: u64, _: [u64; 4]) -> Option<u64> {
        None
    }
}
