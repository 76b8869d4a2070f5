//! Instructions that KVM refuses, executed by the software CPU one at a time.
//!
//! KVM executes instructions itself where the processor cannot: those that reach a device, those of modes that the processor does not run in, and all of them where there is no hardware virtualization. Its emulator
//! knows a part of the instruction set, and KVM_RUN ends with KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION, at any other (Linux Documentation/virt/kvm/api.rst): a vector load
//! from a device's memory is enough. What the processor holds is then as before the instruction. So it is loaded into a software CPU over the same RAM, that one executes the instruction and delivers its exception,
//! and what has changed goes back.
//!
//! What only KVM has, such an instruction cannot reach, and the machine ends as it would have without this: registers of interrupt controllers that are the kernel's, and MSRs that no [`CpuState`] holds.

use std::sync::{Arc, Mutex, PoisonError};

use accel::{AccelError, CpuIo};
use chipset::ioapic;
use chipset::lapic::register_offset;
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::VcpuFd;
use soft_cpu::CR4_OFFERED;
use soft_cpu::core::Core;
use soft_cpu::platform::{GeneralProtection, Nothing, Platform};
use soft_cpu::ram::Ram;
use soft_cpu::run::{Cpu, Single};
use soft_cpu::smp::CpuLink;
use tracing::debug;
use x86::cpuid::{CpuidResult, CpuidTable};
use x86::{CpuState, cr4};

use crate::state::{self, Features};
use crate::userspace_apic::Access;
use crate::vm::{Controllers, VmShared};
use crate::{cpuid, host};

/// Privilege level 3.
const USER: u8 = 3;
/// The kernel's IOAPIC.
const IOAPIC: u64 = 0xfec0_0000;

/// CR4 with which an instruction may be executed here: what the software CPU has, and process-context identifiers, which only MOV to CR3 and INVPCID know of, and KVM executes these itself.
///
/// DEVNOTE: protection keys are let through, though the software CPU looks at none: a program that uses them could reach its own page past its own key, by an instruction that KVM refuses. Linux switches them on wherever
/// they exist, so without this nothing would be executed here on a newer host.
const CR4_UNDERSTOOD: u64 = CR4_OFFERED | cr4::PCIDE | cr4::PKE;

/// What came of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Emulated {
    /// It completed, or its exception is delivered.
    Done,
    /// A triple fault.
    Shutdown,
    /// It cannot be executed here either, and why. What the vCPU holds is as before it.
    Refused(&'static str),
}

/// What an instruction wanted and could not have, if anything.
type Lacking = Arc<Mutex<Option<&'static str>>>;

/// What one instruction sees around its processor.
struct Surroundings {
    shared: Arc<VmShared>,
    index: usize,
    io: Arc<dyn CpuIo>,
    cpuid: Arc<CpuidTable>,
    /// IA32_APIC_BASE of a local APIC that is the kernel's.
    kernel_apic: Option<u64>,
    tsc: u64,
    cr8: u64,
    lacking: Lacking,
}

impl Surroundings {
    fn lacks(&self, what: &'static str) {
        *self.lacking.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
    }

    /// Whether a register of the kernel's interrupt controllers is there.
    fn is_the_kernels(&self, address: u64) -> bool {
        let in_apic = self.kernel_apic.is_some_and(|base| register_offset(base, address).is_some());
        let in_ioapic = matches!(self.shared.controllers, Controllers::Kernel(_))
            && (IOAPIC..IOAPIC + ioapic::MMIO_LEN).contains(&address);
        let found = in_apic || in_ioapic;
        if found {
            self.lacks("it reaches an interrupt controller of the kernel's");
        }
        found
    }

    /// Whether the kernel's PIC or PIT may be at a port.
    fn has_the_kernels_ports(&self) -> bool {
        let kernel = matches!(self.shared.controllers, Controllers::Kernel(_));
        if kernel {
            self.lacks("it reaches a port, which may be an interrupt controller's of the kernel's");
        }
        kernel
    }
}

impl Platform for Surroundings {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        if !self.has_the_kernels_ports() {
            self.io.pio_read(port, data);
        }
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        if !self.has_the_kernels_ports() {
            self.io.pio_write(port, data);
        }
    }

    fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        if self.is_the_kernels(address) {
            return;
        }
        let own = self.shared.userspace_apics();
        if !own.is_some_and(|apics| apics.access(self.index, address, Access::Read(data), self.io.as_ref())) {
            self.io.mmio_read(address, data);
        }
    }

    fn mmio_write(&mut self, address: u64, data: &[u8]) {
        if self.is_the_kernels(address) {
            return;
        }
        let own = self.shared.userspace_apics();
        if !own.is_some_and(|apics| apics.access(self.index, address, Access::Write(data), self.io.as_ref())) {
            self.io.mmio_write(address, data);
        }
    }

    fn msr_read(&mut self, _: u32) -> Option<Result<u64, GeneralProtection>> {
        self.lacks("it reads an MSR that only KVM has");
        None
    }

    fn msr_write(&mut self, _: u32, _: u64) -> Option<Result<(), GeneralProtection>> {
        self.lacks("it writes an MSR that only KVM has");
        None
    }

    fn cr8(&mut self) -> u64 {
        self.cr8
    }

    fn set_cr8(&mut self, _: u64) {
        self.lacks("it sets the task priority");
    }

    fn tsc(&mut self) -> u64 {
        self.tsc
    }

    fn set_tsc(&mut self, _: u64) {
        self.lacks("it sets the time stamp counter");
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> CpuidResult {
        self.cpuid.get(leaf, subleaf)
    }

    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        None
    }

    fn pause(&mut self) {}

    fn hypercall(&mut self, _: u64, _: [u64; 4]) -> Option<u64> {
        self.lacks("it is a call to KVM");
        None
    }
}

/// A software CPU for one vCPU of KVM's.
pub(crate) struct Emulator {
    shared: Arc<VmShared>,
    index: usize,
    cpu: Cpu,
    cpuid: Arc<CpuidTable>,
}

impl Emulator {
    /// For vCPU `id`, whose file descriptor is `fd`.
    pub(crate) fn new(shared: &Arc<VmShared>, id: u32, fd: &VcpuFd) -> Result<Self, AccelError> {
        let cpuid = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(host("KVM_GET_CPUID2"))?;
        let core = Core::new(Ram::new(&shared.memory), Box::new(Nothing), CpuLink::alone());
        debug!(vcpu = id, "KVM refuses an instruction: the software CPU executes it, and what else it refuses");
        Ok(Self {
            shared: Arc::clone(shared),
            index: id as usize,
            cpu: Cpu::new(core),
            cpuid: Arc::new(cpuid::from_kvm(&cpuid)),
        })
    }

    /// Executes the next instruction of the vCPU, which KVM has just refused. What cannot be executed here either raises #UD in user mode, as KVM itself has it: a program does not end the machine.
    ///
    /// # Errors
    /// [`AccelError::Host`] when KVM does not give or take the processor's state.
    pub(crate) fn execute(
        &mut self,
        fd: &VcpuFd,
        features: &Features,
        io: &Arc<dyn CpuIo>,
    ) -> Result<Emulated, AccelError> {
        let (before, _) = state::save_processor(fd, features)?;
        match self.execute_from(&before, fd, features, io)? {
            Emulated::Refused(why) if before.ss.dpl() == USER => {
                debug!(vcpu = self.index, "#UD for an instruction of user mode that KVM refuses: {why}");
                state::queue_invalid_opcode(fd)?;
                Ok(Emulated::Done)
            }
            other => Ok(other),
        }
    }

    /// The same, from this state.
    fn execute_from(
        &mut self,
        before: &CpuState,
        fd: &VcpuFd,
        features: &Features,
        io: &Arc<dyn CpuIo>,
    ) -> Result<Emulated, AccelError> {
        if before.cr4 & !CR4_UNDERSTOOD != 0 {
            return Ok(Emulated::Refused("the guest has switched on in CR4 what the software CPU does not have"));
        }
        let lacking = Lacking::default();
        let core = &mut self.cpu.core;
        core.platform = Box::new(Surroundings {
            shared: Arc::clone(&self.shared),
            index: self.index,
            io: Arc::clone(io),
            cpuid: Arc::clone(&self.cpuid),
            kernel_apic: features.kernel_apic.then_some(before.apic_base),
            tsc: before.tsc,
            cr8: before.cr8,
            lacking: Arc::clone(&lacking),
        });
        core.load_state(before);
        core.forgot_translations = false;
        let result = self.cpu.run_one();
        let core = &self.cpu.core;
        if let Some(what) = lacking.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Ok(Emulated::Refused(what));
        }
        match result {
            Single::Undefined => {
                return Ok(Emulated::Refused("it knows no such instruction, or not all of it is in RAM"));
            }
            Single::Shutdown => return Ok(Emulated::Shutdown),
            Single::Done if core.halted => return Ok(Emulated::Refused("it halts the processor")),
            Single::Done => {}
        }
        let after = CpuState { cr8: before.cr8, apic_base: before.apic_base, ..core.save_state() };
        if core.forgot_translations {
            state::forget_translations(fd, before)?;
        }
        state::load_changes(fd, features, before, &after)?;
        Ok(Emulated::Done)
    }
}
