//! One vCPU's side of a local APIC that is ours (`kernel-irqchip = off`): its registers, what it asks of the processor, and what the processor does between runs.

#![expect(unsafe_code, reason = "KVM_INTERRUPT has no wrapper in kvm-ioctls")]

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use accel::{AccelError, CpuIo};
use chipset::lapic::LapicEvent;
use kvm_bindings::kvm_interrupt;
use kvm_ioctls::VcpuFd;
use x86::{Activity, CpuState, LocalApicState, Segment, gpr, rflags};

use crate::exit::{Exit, RunPage};
use crate::host;
use crate::state::{self, Features};
use crate::userspace_apic::{Access, UserspaceApics};
use crate::vm::VmShared;

/// `_IOW(KVMIO, 0x86, struct kvm_interrupt)`.
const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;

/// What comes next in a vCPU's loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// KVM_RUN.
    Run,
    /// Another look at the mailbox: the vCPU has slept.
    Again,
}

/// One vCPU's local APIC and activity.
pub(crate) struct OwnApic {
    shared: Arc<VmShared>,
    index: usize,
    activity: Activity,
    /// CPUID leaf 1, EAX, which INIT leaves in EDX.
    signature: u32,
}

impl OwnApic {
    /// # Panics
    /// Later, when the VM's local APICs are not ours: a mistake of the caller's.
    pub(crate) fn new(shared: &Arc<VmShared>, id: u32, signature: u32) -> Self {
        Self { shared: Arc::clone(shared), index: id as usize, activity: Activity::Running, signature }
    }

    fn apics(&self) -> &UserspaceApics {
        self.shared.userspace_apics().expect("a vCPU has an own local APIC only where all have")
    }

    /// Before KVM_RUN: serves what the local APIC has for the processor, sleeps if there is nothing to run, and injects an interrupt if the guest can take it.
    pub(crate) fn prepare(
        &mut self,
        fd: &VcpuFd,
        page: &mut RunPage,
        features: &Features,
        io: &dyn CpuIo,
    ) -> Result<Next, AccelError> {
        let deadline = self.apics().advance(self.index);
        self.take_events(fd, features)?;
        if self.activity == Activity::Halted && self.may_wake(fd)? {
            self.activity = Activity::Running;
            self.inject(fd, io)?;
        } else if self.activity != Activity::Running {
            self.apics().wake_at(self.index, None);
            let left = deadline.map(|at| Duration::from_nanos(at.saturating_sub(self.apics().now_ns())));
            self.shared.mailboxes[self.index].sleep(left);
            return Ok(Next::Again);
        } else if page.ready_for_interrupt() {
            self.inject(fd, io)?;
        }
        self.apics().wake_at(self.index, deadline);
        let (cr8, more) = {
            let lapic = self.apics().lock(self.index);
            (lapic.cr8(), lapic.extint_pending() || lapic.pending_interrupt().is_some())
        };
        page.set_cr8(cr8.into());
        page.request_interrupt_window(more);
        Ok(Next::Run)
    }

    /// Takes what the local APIC has besides interrupts.
    fn take_events(&mut self, fd: &VcpuFd, features: &Features) -> Result<(), AccelError> {
        loop {
            // A statement of its own, so that the APIC is unlocked again before the event is served.
            let event = self.apics().lock(self.index).take_event();
            match event {
                None => return Ok(()),
                Some(LapicEvent::Init) => self.init(fd, features)?,
                Some(LapicEvent::StartUp(start)) if self.activity == Activity::WaitForSipi => {
                    self.start_up(fd, start)?;
                }
                // A running processor ignores start-up IPIs; there is no system management mode.
                Some(LapicEvent::StartUp(_) | LapicEvent::Smi) => {}
                // KVM keeps it while another is being handled.
                Some(LapicEvent::Nmi) => fd.nmi().map_err(host("KVM_NMI"))?,
            }
        }
    }

    /// INIT (SDM vol. 3, table 10-1): as RESET, but x87, SSE and most MSRs keep their values.
    fn init(&mut self, fd: &VcpuFd, features: &Features) -> Result<(), AccelError> {
        let before = state::save(fd, features, Some(self.save()))?;
        let mut state = CpuState::reset(self.index == 0);
        state.gprs[gpr::RDX] = self.signature.into();
        (state.xsave, state.xcr0, state.tsc) = (before.xsave, before.xcr0, before.tsc);
        state.apic_base = before.apic_base;
        state::load(fd, features, &state)?;
        self.apics().lock(self.index).init();
        self.activity = state.activity;
        Ok(())
    }

    /// Start-up IPI (SDM vol. 3, 10.4.3): real mode at `page << 12`.
    fn start_up(&mut self, fd: &VcpuFd, page: u8) -> Result<(), AccelError> {
        let mut sregs = fd.get_sregs().map_err(host("KVM_GET_SREGS"))?;
        let mut cs = Segment::real_mode(u16::from(page) << 8);
        cs.attributes |= Segment::CODE;
        sregs.cs = state::segment_to(&cs);
        fd.set_sregs(&sregs).map_err(host("KVM_SET_SREGS"))?;
        let mut regs = fd.get_regs().map_err(host("KVM_GET_REGS"))?;
        regs.rip = 0;
        fd.set_regs(&regs).map_err(host("KVM_SET_REGS"))?;
        self.activity = Activity::Running;
        Ok(())
    }

    /// Whether something ends HLT: an NMI, or an interrupt that the guest takes.
    fn may_wake(&self, fd: &VcpuFd) -> Result<bool, AccelError> {
        let events = fd.get_vcpu_events().map_err(host("KVM_GET_VCPU_EVENTS"))?;
        if events.nmi.pending != 0 && events.nmi.masked == 0 {
            return Ok(true);
        }
        let pending = {
            let lapic = self.apics().lock(self.index);
            lapic.extint_pending() || lapic.pending_interrupt().is_some()
        };
        Ok(pending && fd.get_regs().map_err(host("KVM_GET_REGS"))?.rflags & rflags::IF != 0)
    }

    /// Gives KVM the most urgent interrupt, which the guest can take now.
    fn inject(&mut self, fd: &VcpuFd, io: &dyn CpuIo) -> Result<(), AccelError> {
        let vector = {
            let mut lapic = self.apics().lock(self.index);
            if lapic.extint_pending() {
                lapic.acknowledge_extint();
                None
            } else {
                let Some(vector) = lapic.pending_interrupt() else { return Ok(()) };
                lapic.acknowledge(vector);
                Some(vector)
            }
        };
        // The PIC lowers or keeps its wire during its acknowledge cycle, which comes back to the local APIC: it is not locked here.
        let Some(vector) = vector.or_else(|| io.ack_pic()) else { return Ok(()) };
        let interrupt = kvm_interrupt { irq: vector.into() };
        // SAFETY: the request takes a pointer to a `kvm_interrupt`, which the call only reads.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_INTERRUPT, &raw const interrupt) };
        if result != 0 {
            return Err(AccelError::Host { what: "KVM_INTERRUPT", source: std::io::Error::last_os_error() });
        }
        Ok(())
    }

    /// After KVM_RUN: what the guest may have changed without an exit.
    pub(crate) fn note_registers(&mut self, page: &RunPage) {
        let (apic_base, cr8) = page.apic_base_and_cr8();
        let mut lapic = self.apics().lock(self.index);
        if lapic.apic_base() != apic_base && lapic.set_apic_base(apic_base).is_err() {
            tracing::debug!("the local APIC does not take IA32_APIC_BASE {apic_base:#x}");
        }
        // CR8 is the upper half of the task priority, whose lower half only the register page has.
        if u64::from(lapic.cr8()) != cr8 {
            lapic.set_cr8(cr8 as u8 & 0xf);
        }
    }

    /// Serves an exit, if it is about the local APIC; whether it was.
    pub(crate) fn serve(&mut self, exit: &Exit, page: &mut RunPage, io: &dyn CpuIo) -> bool {
        match *exit {
            Exit::Halt => {
                self.activity = Activity::Halted;
                true
            }
            Exit::Mmio { address, len, is_write } => {
                let data = &mut page.mmio_data()[..len];
                let access = if is_write { Access::Write(data) } else { Access::Read(data) };
                self.apics().access(self.index, address, access, io)
            }
            _ => false,
        }
    }

    /// The local APIC as plain data.
    pub(crate) fn save(&self) -> LocalApicState {
        self.apics().save(self.index)
    }

    /// Fills in what of a saved state is not KVM's.
    pub(crate) fn complete(&self, state: &mut CpuState) {
        let lapic = self.apics().lock(self.index);
        (state.apic_base, state.cr8) = (lapic.apic_base(), lapic.cr8().into());
        state.nmi_pending |= lapic.nmi_pending();
        state.activity = match self.activity {
            // An interrupt that was acknowledged ends HLT.
            Activity::Halted if state.acknowledged_interrupt.is_some() => Activity::Running,
            activity => activity,
        };
    }

    /// Loads what of a state is not KVM's.
    pub(crate) fn load(&mut self, state: &CpuState) -> Result<(), AccelError> {
        if let Some(saved) = &state.local_apic {
            self.apics().load(self.index, saved);
        }
        let mut lapic = self.apics().lock(self.index);
        if lapic.apic_base() != state.apic_base && lapic.set_apic_base(state.apic_base).is_err() {
            return Err(AccelError::State {
                what: format!("IA32_APIC_BASE {:#x} where kernel-irqchip = off has no x2APIC mode", state.apic_base),
            });
        }
        lapic.set_cr8(state.cr8 as u8 & 0xf);
        drop(lapic);
        self.activity = match state.activity {
            Activity::Halted if state.acknowledged_interrupt.is_some() => Activity::Running,
            // Its owner keeps it from running.
            Activity::Shutdown => Activity::Running,
            activity => activity,
        };
        Ok(())
    }
}
