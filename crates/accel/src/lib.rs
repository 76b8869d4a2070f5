//! What a machine asks of a processor backend, and nothing of how a backend does it.
//!
//! An [`Accelerator`] makes a [`Vm`] over guest RAM, a [`Vm`] makes [`Vcpu`]s, and a vCPU runs until it must be told what to do next. Everything it
//! wants of the board while it runs it asks through [`CpuIo`], by callback: one instruction may touch several devices, and a software CPU
//! cannot cheaply unwind out of the middle of one.

#![forbid(unsafe_code)]

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod cpuid;
mod error;

use std::sync::Arc;

pub use error::AccelError;
use guest_memory::GuestMemory;
use vmm_sys_util::eventfd::EventFd;
use x86::CpuState;

/// How many vCPUs, and what they are told about the board.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// Number of vCPUs, 1 to [`Accelerator::max_vcpus`]. vCPU `n` has local APIC ID `n`.
    pub vcpus: u32,
    /// The guest's RAM; the vCPUs and the devices share it.
    pub memory: GuestMemory,
}

/// A processor backend: KVM, or our software CPU.
pub trait Accelerator: Send + Sync {
    /// `"soft"` or `"kvm"`, as the user names it.
    fn name(&self) -> &'static str;

    /// Most vCPUs that one VM can have.
    fn max_vcpus(&self) -> u32;

    /// Makes a VM with its local APICs; vCPU 0 is the bootstrap processor.
    ///
    /// # Errors
    /// [`AccelError`] when the host lacks what the configuration asks for.
    fn create_vm(&self, config: VmConfig) -> Result<Arc<dyn Vm>, AccelError>;
}

/// One virtual machine's processors and local APICs.
pub trait Vm: Send + Sync {
    /// Takes vCPU `id` (0-based) out; each can be taken once. It starts in the state after RESET.
    ///
    /// # Errors
    /// [`AccelError`] when there is no such vCPU, it was taken already, or the host refuses.
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, AccelError>;

    /// Delivers a message-signalled interrupt: a write of `data` to `address` in the local APICs' range (SDM vol. 3, 12.11).
    fn signal_msi(&self, address: u64, data: u32);

    /// The PIC's INTR output, wired to LINT0 of the bootstrap processor, now has this level. The vCPU fetches the vector with [`CpuIo::ack_pic`].
    fn set_pic_intr(&self, level: bool);

    /// Sends an NMI to the bootstrap processor, as the board's NMI button would.
    fn inject_nmi(&self);

    /// An event that a vCPU's store of the dword `value` to guest-physical `address` signals instead of calling [`CpuIo::mmio_write`], so that the vCPU goes on while another
    /// thread serves it. `None` where the backend has nothing faster than the call.
    fn ioeventfd(&self, address: u64, value: u32) -> Option<EventFd> {
        let _ = (address, value);
        None
    }

    /// Makes `event` one whose signals become interrupt messages by themselves, of which there is none at first: whoever signals it, another process too, interrupts a vCPU without this process. `None` where
    /// the backend has nothing like it.
    fn irqfd(&self, event: &Arc<EventFd>) -> Option<Box<dyn Irqfd>> {
        let _ = event;
        None
    }

    /// The interrupt controllers that the backend has in the board's place; `None` where PIC, IOAPICs and PIT are the board's.
    fn irqchip(&self) -> Option<Arc<dyn Irqchip>> {
        None
    }

    /// Puts every local APIC back to its state after RESET. No vCPU may be running.
    fn reset(&self);
}

/// An event of [`Vm::irqfd`], until this is dropped.
pub trait Irqfd: Send {
    /// The address and data of the message that a signal is from now on, those that wait in the event included; without one they stay in the event, where others find them.
    fn set_message(&mut self, message: Option<(u64, u32)>);
}

/// An input of one of [`Irqchip`]'s controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// Of the pair of i8259, 0 to 15.
    Pic(u8),
    /// Of the IOAPIC, 0 to 23.
    IoApic(u8),
}

/// Interrupt controllers that belong to the backend, with their registers where a PC has them: two i8259, one IOAPIC, and an i8254 if it is asked for.
pub trait Irqchip: Send + Sync {
    /// Wires each interrupt of the board's to the inputs that it drives, before a vCPU runs. A PIT of the backend's drives interrupt 0.
    ///
    /// # Errors
    /// [`AccelError`] when the host refuses.
    fn connect(&self, wires: &[(u32, Pin)]) -> Result<(), AccelError>;

    /// Adds the i8254.
    ///
    /// # Errors
    /// [`AccelError`] when the host has none.
    fn add_pit(&self) -> Result<(), AccelError>;

    /// The board's interrupt `gsi` now has this level.
    fn set_gsi(&self, gsi: u32, level: bool);

    /// Whether some pin of the IOAPIC is unmasked, not counting one that passes the PIC on.
    fn has_open_pin(&self) -> bool;

    /// RESET. No vCPU may be running.
    fn reset(&self);
}

/// What a running vCPU asks of the board.
pub trait CpuIo: Send + Sync {
    /// IN: 1, 2 or 4 bytes from `port`.
    fn pio_read(&self, port: u16, data: &mut [u8]);
    /// OUT: 1, 2 or 4 bytes to `port`.
    fn pio_write(&self, port: u16, data: &[u8]);
    /// A load of 1, 2, 4 or 8 bytes from a guest-physical address that is not RAM.
    fn mmio_read(&self, address: u64, data: &mut [u8]);
    /// A store of 1, 2, 4 or 8 bytes to a guest-physical address that is not RAM.
    fn mmio_write(&self, address: u64, data: &[u8]);
    /// The interrupt acknowledge cycle of an external (PIC) interrupt: its vector, or `None` if the PIC has withdrawn it.
    fn ack_pic(&self) -> Option<u8>;
    /// A local APIC broadcasts the end of level-triggered interrupt `vector` to the IOAPICs.
    fn eoi(&self, vector: u8);
}

/// Why [`Vcpu::run`] returned. There is no "unknown": what a backend does not model is an [`AccelError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VcpuExit {
    /// Somebody called [`Kicker::kick`].
    Kicked,
    /// The vCPU shut down: a triple fault.
    TripleFault,
}

/// One virtual processor. Its thread owns it.
pub trait Vcpu: Send {
    /// The architectural state.
    ///
    /// # Errors
    /// [`AccelError`] when the host refuses.
    fn state(&self) -> Result<CpuState, AccelError>;

    /// Loads the architectural state; MSRs that are not listed keep their values.
    ///
    /// # Errors
    /// [`AccelError`] when the state is impossible or the host refuses it.
    fn set_state(&mut self, state: &CpuState) -> Result<(), AccelError>;

    /// Puts the processor into its state after RESET, every MSR included; its local APIC is [`Vm::reset`]'s.
    ///
    /// # Errors
    /// [`AccelError`] when the host refuses.
    fn reset(&mut self) -> Result<(), AccelError>;

    /// Runs until kicked or shut down. HLT and waiting for a start-up IPI sleep inside.
    ///
    /// # Errors
    /// [`AccelError`] when the backend cannot go on; the machine must stop.
    fn run(&mut self, io: &Arc<dyn CpuIo>) -> Result<VcpuExit, AccelError>;

    /// A handle by which other threads make [`Vcpu::run`] return.
    fn kicker(&self) -> Arc<dyn Kicker>;

    /// What this vCPU has counted so far, for `--stats`: name and value, in a fixed order.
    fn statistics(&self) -> Vec<(&'static str, u64)>;
}

/// Makes a vCPU's [`Vcpu::run`] return [`VcpuExit::Kicked`] soon. A kick while it is not running ends the next run at once.
pub trait Kicker: Send + Sync {
    /// Kicks.
    fn kick(&self);
}
