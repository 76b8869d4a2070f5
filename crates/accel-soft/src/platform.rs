//! What the CPU core asks for: the local APIC's registers, time, paravirtual MSRs, and the board behind [`CpuIo`].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use accel::CpuIo;
use chipset::lapic::LapicAction;
use soft_cpu::platform::{GeneralProtection, Platform};
use x86::cpuid::CpuidResult;
use x86::msr;

use crate::pvclock;
use crate::vm::VmShared;

/// The world of one vCPU while it runs.
pub(crate) struct SoftPlatform {
    shared: Arc<VmShared>,
    id: usize,
    io: Arc<dyn CpuIo>,
    /// PAUSE gives up the core where vCPUs outnumber cores.
    yield_on_pause: bool,
}

impl SoftPlatform {
    pub(crate) fn new(shared: Arc<VmShared>, id: usize, io: Arc<dyn CpuIo>) -> Self {
        let yield_on_pause = shared.vcpus.len() > shared.host_cores;
        Self { shared, id, io, yield_on_pause }
    }

    /// The offset of `address` in the local APIC's page, if it is there.
    fn apic_offset(&self, address: u64) -> Option<u64> {
        self.shared.lapic(self.id).mmio_offset(address)
    }

    /// Does what a register write asks of the rest of the machine. The own APIC must not be locked.
    fn act(&self, action: Option<LapicAction>) {
        match action {
            None => {}
            Some(LapicAction::Ipi(message)) => self.shared.deliver(message, Some(self.id)),
            Some(LapicAction::EoiBroadcast(vector)) => self.io.eoi(vector),
        }
    }

    fn is_apic_msr(number: u32) -> bool {
        matches!(number, msr::IA32_APIC_BASE | msr::IA32_TSC_DEADLINE) || (0x800..=0x8ff).contains(&number)
    }
}

impl Platform for SoftPlatform {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        self.io.pio_read(port, data);
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        self.io.pio_write(port, data);
    }

    fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        match self.apic_offset(address) {
            Some(offset) => self.shared.lapic(self.id).mmio_read(offset, data, self.shared.clock.now_ns()),
            None => self.io.mmio_read(address, data),
        }
    }

    fn mmio_write(&mut self, address: u64, data: &[u8]) {
        let Some(offset) = self.apic_offset(address) else { return self.io.mmio_write(address, data) };
        let action = {
            let mut lapic = self.shared.lapic(self.id);
            let action = lapic.mmio_write(offset, data, self.shared.clock.now_ns());
            self.shared.notify_pending(self.id, &lapic);
            action
        };
        self.act(action);
    }

    fn msr_read(&mut self, number: u32) -> Option<Result<u64, GeneralProtection>> {
        if Self::is_apic_msr(number) {
            let value = self.shared.lapic(self.id).read_msr(number, self.shared.clock.now_ns());
            return Some(value.map_err(|_| GeneralProtection));
        }
        match number {
            msr::KVM_SYSTEM_TIME_NEW | msr::KVM_SYSTEM_TIME => {
                Some(Ok(self.shared.vcpus[self.id].system_time_msr.load(Ordering::SeqCst)))
            }
            msr::KVM_WALL_CLOCK_NEW | msr::KVM_WALL_CLOCK => {
                Some(Ok(self.shared.wall_clock_msr.load(Ordering::SeqCst)))
            }
            _ => None,
        }
    }

    fn msr_write(&mut self, number: u32, value: u64) -> Option<Result<(), GeneralProtection>> {
        if Self::is_apic_msr(number) {
            let result = {
                let mut lapic = self.shared.lapic(self.id);
                let result = lapic.write_msr(number, value, self.shared.clock.now_ns());
                self.shared.notify_pending(self.id, &lapic);
                result
            };
            return Some(result.map(|action| self.act(action)).map_err(|_| GeneralProtection));
        }
        match number {
            msr::KVM_SYSTEM_TIME_NEW | msr::KVM_SYSTEM_TIME => {
                self.shared.vcpus[self.id].system_time_msr.store(value, Ordering::SeqCst);
                pvclock::write_system_time(&self.shared, self.id, value);
                Some(Ok(()))
            }
            msr::KVM_WALL_CLOCK_NEW | msr::KVM_WALL_CLOCK => {
                self.shared.wall_clock_msr.store(value, Ordering::SeqCst);
                pvclock::write_wall_clock(&self.shared, value);
                Some(Ok(()))
            }
            _ => None,
        }
    }

    fn cr8(&mut self) -> u64 {
        self.shared.lapic(self.id).cr8().into()
    }

    fn set_cr8(&mut self, value: u64) {
        let mut lapic = self.shared.lapic(self.id);
        lapic.set_cr8(value as u8 & 0xf);
        self.shared.notify_pending(self.id, &lapic);
    }

    fn tsc(&mut self) -> u64 {
        self.shared.tsc(self.id)
    }

    fn set_tsc(&mut self, value: u64) {
        let offset = value.wrapping_sub(self.shared.clock.now_ns());
        self.shared.vcpus[self.id].tsc_offset.store(offset, Ordering::SeqCst);
        // kvmclock's page says which TSC value its time belongs to.
        let system_time = self.shared.vcpus[self.id].system_time_msr.load(Ordering::SeqCst);
        pvclock::write_system_time(&self.shared, self.id, system_time);
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> CpuidResult {
        self.shared.vcpus[self.id].cpuid.get(leaf, subleaf)
    }

    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        {
            let mut lapic = self.shared.lapic(self.id);
            if !lapic.extint_pending() {
                let vector = lapic.pending_interrupt()?;
                lapic.acknowledge(vector);
                self.shared.notify_pending(self.id, &lapic);
                return Some(vector);
            }
            lapic.acknowledge_extint();
        }
        // The PIC lowers or keeps its wire during the cycle, which comes back through `set_pic_intr`: the APIC is not locked here.
        let vector = self.io.ack_pic();
        let lapic = self.shared.lapic(self.id);
        self.shared.notify_pending(self.id, &lapic);
        vector
    }

    fn pause(&mut self) {
        if self.yield_on_pause {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }

    fn hypercall(&mut self, number: u64, arguments: [u64; 4]) -> Option<u64> {
        pvclock::hypercall(&self.shared, self.id, number, arguments)
    }
}

/// The board of a vCPU that does not run: nothing answers.
pub(crate) struct NoBoard;

impl CpuIo for NoBoard {
    fn pio_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_write(&self, _: u16, _: &[u8]) {}
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn ack_pic(&self) -> Option<u8> {
        None
    }
    fn eoi(&self, _: u8) {}
}
