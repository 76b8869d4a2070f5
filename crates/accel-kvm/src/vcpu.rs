//! One vCPU: the loop around KVM_RUN, the injection of interrupts that are not the kernel's, and its state.
//!
//! Where the local APIC is the kernel's, HLT and start-up IPIs are too. An interrupt of the board's PIC is not: the wire rises, the vCPU leaves KVM_RUN, and as soon as KVM says that the guest can take an interrupt
//! (`ready_for_interrupt_injection`, or an exit that `request_interrupt_window` asks for), the vector is fetched and queued. Where the local APIC is ours, all of this happens here and in
//! [`crate::own_apic`].

#![expect(unsafe_code, reason = "another thread must reach the page that is shared with the kernel")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use accel::{AccelError, CpuIo, Kicker, Vcpu, VcpuExit};
use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, kvm_lapic_state};
use kvm_ioctls::VcpuFd;
use tracing::{debug, warn};
use x86::{Activity, CpuState};

use crate::emulator::{Emulated, Emulator};
use crate::exit::{Exit, RunPage};
use crate::mailbox::Mailbox;
use crate::own_apic::{Next, OwnApic};
use crate::state::{self, Features};
use crate::vm::VmShared;
use crate::{host, report};

/// Largest port access: a dword.
const LARGEST_PORT_ACCESS: usize = 4;

/// What this vCPU has counted.
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    runs: u64,
    ports: u64,
    mmio: u64,
    eois: u64,
    external_interrupts: u64,
    interrupted: u64,
    emulated: u64,
}

/// A vCPU on KVM.
pub(crate) struct KvmVcpu {
    shared: Arc<VmShared>,
    id: u32,
    fd: VcpuFd,
    page: RunPage,
    mailbox: Arc<Mailbox>,
    features: Features,
    /// The local APIC, where it is not the kernel's.
    own_apic: Option<OwnApic>,
    /// The kernel's local APIC and the MSRs after RESET.
    first_lapic: Option<kvm_lapic_state>,
    first_msrs: Vec<(u32, u64)>,
    /// Executes what KVM refuses to; made when that first happens.
    emulator: Option<Box<Emulator>>,
    /// A triple fault: only a new state helps.
    shut_down: bool,
    counters: Counters,
}

impl KvmVcpu {
    pub(crate) fn new(
        shared: Arc<VmShared>,
        id: u32,
        mut fd: VcpuFd,
        xcrs: bool,
        page_size: usize,
        signature: u32,
    ) -> Result<Self, AccelError> {
        let page = RunPage::new(&mut fd, page_size);
        let first_msrs = state::read_msrs(&fd, state::saved_msrs())?;
        let own_apic = shared.userspace_apics().is_some().then(|| OwnApic::new(&shared, id, signature));
        let kernel_apic = own_apic.is_none();
        let msrs = first_msrs.iter().map(|&(number, _)| number).collect();
        let features = Features { xcrs, kernel_apic, msrs };
        let first_lapic = match kernel_apic {
            true => Some(fd.get_lapic().map_err(host("KVM_GET_LAPIC"))?),
            false => None,
        };
        let mailbox = Arc::clone(&shared.mailboxes[id as usize]);
        let mut vcpu = Self {
            shared,
            id,
            fd,
            page,
            mailbox,
            features,
            own_apic,
            first_lapic,
            first_msrs,
            emulator: None,
            shut_down: false,
            counters: Counters::default(),
        };
        vcpu.set_state(&CpuState::reset(id == 0))?;
        Ok(vcpu)
    }

    /// The error for an exit that ends the machine.
    fn stuck(&self, reason: String) -> AccelError {
        let (rip, processor) = report::processor(&self.fd, &self.shared.memory);
        AccelError::Stuck { id: self.id, rip, what: format!("{reason}{processor}") }
    }

    /// Resets the local APIC, if [`accel::Vm::reset`] asked for it.
    fn reset_apic_if_asked(&self) -> Result<(), AccelError> {
        if self.mailbox.take_apic_reset()
            && let Some(first) = &self.first_lapic
        {
            // IA32_APIC_BASE first: in x2APIC mode the registers have another layout.
            let mut sregs = self.fd.get_sregs().map_err(host("KVM_GET_SREGS"))?;
            sregs.apic_base = CpuState::reset(self.id == 0).apic_base;
            sregs.cr8 = 0;
            self.fd.set_sregs(&sregs).map_err(host("KVM_SET_SREGS"))?;
            self.fd.set_lapic(first).map_err(host("KVM_SET_LAPIC"))?;
        }
        Ok(())
    }

    /// Gives KVM the PIC's vector, if the PIC has one and the guest can take it; otherwise asks to be told when it can.
    fn offer_external_interrupt(&mut self, io: &dyn CpuIo) -> Result<(), AccelError> {
        if self.mailbox.pic_intr()
            && self.page.ready_for_interrupt()
            && let Some(vector) = io.ack_pic()
        {
            state::queue_interrupt(&self.fd, vector)?;
            self.counters.external_interrupts += 1;
        }
        self.page.request_interrupt_window(self.mailbox.pic_intr());
        Ok(())
    }

    /// What is to be done before KVM_RUN; whether it is to be called at all.
    fn prepare(&mut self, io: &dyn CpuIo) -> Result<Next, AccelError> {
        match &mut self.own_apic {
            Some(apic) => apic.prepare(&self.fd, &mut self.page, &self.features, io),
            None => {
                if self.id == 0 && self.shared.injects_for_pic() {
                    self.offer_external_interrupt(io)?;
                }
                Ok(Next::Run)
            }
        }
    }

    /// Serves one exit; `Some` if the run ends with it.
    fn serve(&mut self, io: &Arc<dyn CpuIo>) -> Result<Option<VcpuExit>, AccelError> {
        let exit = self.page.exit();
        if let Some(apic) = &mut self.own_apic
            && apic.serve(&exit, &mut self.page, io.as_ref())
        {
            return Ok(None);
        }
        match exit {
            Exit::Port { port, size, count, offset, is_read } => {
                for at in (0..count).map(|n| offset.saturating_add(n * size)) {
                    self.port_access(io.as_ref(), port, at, size, is_read)?;
                }
            }
            Exit::Mmio { address, len, is_write } => {
                self.counters.mmio += 1;
                // A copy, because the devices may want this vCPU's mailbox while they are asked.
                let mut data = *self.page.mmio_data();
                if is_write {
                    io.mmio_write(address, &data[..len]);
                } else {
                    io.mmio_read(address, &mut data[..len]);
                    *self.page.mmio_data() = data;
                }
            }
            Exit::IoApicEoi(vector) => {
                self.counters.eois += 1;
                io.eoi(vector);
            }
            Exit::Halt | Exit::Resume => {}
            Exit::Shutdown => return Ok(Some(self.shut_down())),
            Exit::InternalError { suberror: KVM_INTERNAL_ERROR_EMULATION, .. } => return self.emulate(io, &exit),
            Exit::FailEntry(_) | Exit::UnknownHardware(_) | Exit::InternalError { .. } | Exit::Unexpected(_) => {
                return Err(self.stuck(report::reason(&exit).unwrap_or_default()));
            }
        }
        Ok(None)
    }

    /// Has the instruction executed that KVM refuses to, and says so with `exit`.
    fn emulate(&mut self, io: &Arc<dyn CpuIo>, exit: &Exit) -> Result<Option<VcpuExit>, AccelError> {
        let emulator = match &mut self.emulator {
            Some(emulator) => emulator,
            none => none.insert(Box::new(Emulator::new(&self.shared, self.id, &self.fd)?)),
        };
        match emulator.execute(&self.fd, &self.features, io)? {
            Emulated::Done => {
                self.counters.emulated += 1;
                Ok(None)
            }
            Emulated::Shutdown => Ok(Some(self.shut_down())),
            Emulated::Refused(why) => {
                let reason = report::reason(exit).unwrap_or_default();
                Err(self.stuck(format!("{reason}; the software CPU cannot execute it in KVM's place: {why}")))
            }
        }
    }

    /// A triple fault.
    fn shut_down(&mut self) -> VcpuExit {
        let (_, processor) = report::processor(&self.fd, &self.shared.memory);
        warn!(vcpu = self.id, "{}{processor}", report::reason(&Exit::Shutdown).unwrap_or_default());
        self.shut_down = true;
        VcpuExit::TripleFault
    }

    /// One element of a port access, whose data is `size` bytes of the page at `at`.
    fn port_access(
        &mut self,
        io: &dyn CpuIo,
        port: u16,
        at: usize,
        size: usize,
        is_read: bool,
    ) -> Result<(), AccelError> {
        self.counters.ports += 1;
        let mut copy = [0; LARGEST_PORT_ACCESS];
        let (Some(element), Some(copy)) = (self.page.data(at, size), copy.get_mut(..size)) else {
            return Err(self.stuck(format!("KVM reports a port access of {size} bytes with its data at {at:#x}")));
        };
        copy.copy_from_slice(element);
        if is_read {
            io.pio_read(port, copy);
            if let Some(element) = self.page.data(at, size) {
                element.copy_from_slice(copy);
            }
        } else {
            io.pio_write(port, copy);
        }
        Ok(())
    }

    fn run_registered(&mut self, io: &Arc<dyn CpuIo>, immediate_exit: &AtomicU8) -> Result<VcpuExit, AccelError> {
        loop {
            // Cleared before the mailbox is read: see `mailbox`.
            immediate_exit.store(0, Ordering::SeqCst);
            let leave = self.mailbox.kicked();
            if leave {
                // KVM_RUN only completes what is half done: the state is then between two instructions.
                immediate_exit.store(1, Ordering::SeqCst);
            } else if self.prepare(io.as_ref())? == Next::Again {
                continue;
            }
            self.counters.runs += 1;
            // The exit is read from the page; only the borrow is dropped here.
            let result = self.fd.run().map(drop);
            if let Some(apic) = &mut self.own_apic {
                apic.note_registers(&self.page);
            }
            match result {
                Ok(()) => {
                    if let Some(end) = self.serve(io)? {
                        return Ok(end);
                    }
                }
                Err(error) if error.errno() == libc::EINTR => {
                    self.counters.interrupted += 1;
                    if leave {
                        self.mailbox.clear_kick();
                        debug!(vcpu = self.id, "stopped");
                        return Ok(VcpuExit::Kicked);
                    }
                }
                // A processor that waited for its start-up IPI has something new.
                Err(error) if error.errno() == libc::EAGAIN => {}
                Err(error) => {
                    return Err(self.stuck(format!("KVM_RUN failed: {}", std::io::Error::from(error))));
                }
            }
        }
    }
}

impl Vcpu for KvmVcpu {
    fn state(&self) -> Result<CpuState, AccelError> {
        let mut state = state::save(&self.fd, &self.features, self.own_apic.as_ref().map(OwnApic::save))?;
        if let Some(apic) = &self.own_apic {
            apic.complete(&mut state);
        }
        if self.shut_down {
            state.activity = Activity::Shutdown;
        }
        Ok(state)
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), AccelError> {
        self.reset_apic_if_asked()?;
        state::load(&self.fd, &self.features, state)?;
        if let Some(apic) = &mut self.own_apic {
            apic.load(state)?;
        }
        self.shut_down = state.activity == Activity::Shutdown;
        Ok(())
    }

    fn reset(&mut self) -> Result<(), AccelError> {
        state::write_msrs(&self.fd, &self.first_msrs)?;
        self.set_state(&CpuState::reset(self.id == 0))
    }

    fn run(&mut self, io: &Arc<dyn CpuIo>) -> Result<VcpuExit, AccelError> {
        self.reset_apic_if_asked()?;
        if self.shut_down {
            return Ok(VcpuExit::TripleFault);
        }
        let byte = self.page.immediate_exit();
        let mailbox = Arc::clone(&self.mailbox);
        // SAFETY: the byte is in this vCPU's page, which is mapped until `self` is dropped; the guard is dropped before this function returns.
        let _running = unsafe { mailbox.enter(byte) };
        // SAFETY: as above; the byte is only accessed as an atomic, here and by the kernel.
        self.run_registered(io, unsafe { &*byte })
    }

    fn kicker(&self) -> Arc<dyn Kicker> {
        Arc::new(KvmKicker(Arc::clone(&self.mailbox)))
    }

    fn statistics(&self) -> Vec<(&'static str, u64)> {
        let Counters { runs, ports, mmio, eois, external_interrupts, interrupted, emulated } = self.counters;
        vec![
            ("entries into the guest", runs),
            ("port accesses", ports),
            ("memory-mapped accesses", mmio),
            ("ends of level interrupts", eois),
            ("interrupts from the PIC", external_interrupts),
            ("interrupted by other threads", interrupted),
            ("instructions that KVM refused", emulated),
        ]
    }
}

struct KvmKicker(Arc<Mailbox>);

impl Kicker for KvmKicker {
    fn kick(&self) {
        self.0.kick();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, OnceLock};

    use accel::VmConfig;
    use kvm_ioctls::Kvm;
    use vm_memory::{Bytes, GuestAddress};
    use x86::{Segment, exception, gpr};

    use super::*;
    use crate::KernelIrqchip;
    use crate::vm::KvmVm;

    /// Notes what is written to ports, and ends the run with it.
    #[derive(Default)]
    struct Board {
        written: Mutex<Vec<u8>>,
        kicker: OnceLock<Arc<dyn Kicker>>,
    }

    impl CpuIo for Board {
        fn pio_read(&self, _: u16, _: &mut [u8]) {}
        fn pio_write(&self, _: u16, data: &[u8]) {
            self.written.lock().unwrap().extend_from_slice(data);
            self.kicker.get().unwrap().kick();
        }
        fn mmio_read(&self, _: u64, _: &mut [u8]) {}
        fn mmio_write(&self, _: u64, _: &[u8]) {}
        fn ack_pic(&self) -> Option<u8> {
            None
        }
        fn eoi(&self, _: u8) {}
    }

    #[test]
    fn an_invalid_opcode_that_is_raised_by_hand_is_delivered() {
        let Ok(kvm) = Kvm::new() else {
            println!("skipped: /dev/kvm cannot be opened");
            return;
        };
        const CODE: u16 = 0x1000;
        const HANDLER: u16 = 0x2000;
        const STACK: u16 = 0x8000;
        let memory = guest_memory::allocate(&[(0, 1 << 20)]).unwrap();
        // jmp to itself; mov al, 0x55; out 0xe9, al; jmp to itself. A vector of real mode is an offset and a segment.
        memory.write_slice(&[0xeb, 0xfe], GuestAddress(CODE.into())).unwrap();
        memory.write_slice(&[0xb0, 0x55, 0xe6, 0xe9, 0xeb, 0xfe], GuestAddress(HANDLER.into())).unwrap();
        memory.write_obj(u32::from(HANDLER), GuestAddress(u64::from(exception::UD) * 4)).unwrap();
        let vm = KvmVm::new(&kvm, KernelIrqchip::Split, &VmConfig { vcpus: 1, memory: memory.clone() }).unwrap();
        let mut vcpu = vm.make_vcpu(0).unwrap();
        let mut state = CpuState::reset(true);
        state.cs = Segment::real_mode(0);
        state.cs.attributes |= Segment::CODE;
        state.rip = CODE.into();
        state.gprs[gpr::RSP] = STACK.into();
        vcpu.set_state(&state).unwrap();
        state::queue_invalid_opcode(&vcpu.fd).unwrap();
        let board = Arc::new(Board::default());
        assert!(board.kicker.set(vcpu.kicker()).is_ok());
        let io: Arc<dyn CpuIo> = board.clone();
        assert_eq!(vcpu.run(&io).unwrap(), VcpuExit::Kicked);
        assert_eq!(*board.written.lock().unwrap(), [0x55]);
        let pushed: u16 = memory.read_obj(GuestAddress(u64::from(STACK) - 6)).unwrap();
        assert_eq!(pushed, CODE, "it is raised at the instruction");
    }
}
