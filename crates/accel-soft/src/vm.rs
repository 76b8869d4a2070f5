//! One VM: its vCPUs' local APICs and the delivery of interrupt messages among them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};

use accel::cpuid::{self, Place, paravirtual};
use accel::{AccelError, Vcpu, Vm, VmConfig};
use chipset::lapic::{DeliveryMode, InterruptMessage, Lapic, LapicConfig, LocalApics, TimerDeadline, TriggerMode};
use guest_memory::GuestMemory;
use soft_cpu::cpuid::HostFacts;
use soft_cpu::mmu::PHYSICAL_BITS;
use soft_cpu::smp::{CpuGroup, attention};
use x86::cpuid::CpuidTable;

use crate::SoftAccelerator;
use crate::clock::{TSC_KHZ, VmClock};
use crate::sampler::{self, Times};
use crate::sleeper::Sleeper;
use crate::vcpu::SoftVcpu;

/// Of KVM's features those that this backend has: kvmclock with both sets of MSRs and a stable counter, and ports that are never slow.
const PARAVIRTUAL: u32 =
    paravirtual::CLOCKSOURCE | paravirtual::NOP_IO_DELAY | paravirtual::CLOCKSOURCE2 | paravirtual::CLOCKSOURCE_STABLE;

/// What a vCPU shares with the rest of the machine.
pub(crate) struct VcpuShared {
    pub(crate) sleeper: Sleeper,
    taken: AtomicBool,
    /// The guest's TSC minus the VM's clock, in ticks.
    pub(crate) tsc_offset: AtomicU64,
    /// The kvmclock page's MSR.
    pub(crate) system_time_msr: AtomicU64,
    pub(crate) cpuid: CpuidTable,
    pub(crate) times: Times,
}

/// What all vCPUs of a VM share.
pub(crate) struct VmShared {
    pub(crate) group: CpuGroup,
    pub(crate) vcpus: Vec<VcpuShared>,
    lapics: LocalApics,
    pub(crate) memory: GuestMemory,
    pub(crate) clock: VmClock,
    /// The kvmclock wall-clock MSR.
    pub(crate) wall_clock_msr: AtomicU64,
    /// Cores of the host: where vCPUs outnumber them, PAUSE yields.
    pub(crate) host_cores: usize,
    pub(crate) accelerator: SoftAccelerator,
}

impl VmShared {
    fn new(config: &VmConfig, accelerator: SoftAccelerator) -> Self {
        let offered = soft_cpu::cpuid::offered(&HostFacts::probe(), TSC_KHZ);
        let place = Place {
            vcpus: config.vcpus,
            id: 0,
            tsc_khz: TSC_KHZ as u32,
            x2apic: true,
            tsc_deadline: true,
            paravirtual: PARAVIRTUAL,
        };
        let host_cores = std::thread::available_parallelism().map_or(1, usize::from);
        let vcpus = (0..config.vcpus)
            .map(|id| VcpuShared {
                // The event loop needs a core as well.
                sleeper: Sleeper::new(host_cores > config.vcpus as usize),
                taken: AtomicBool::new(false),
                tsc_offset: AtomicU64::new(0),
                system_time_msr: AtomicU64::new(0),
                cpuid: cpuid::adapt(&offered, Place { id, ..place }),
                times: Times::default(),
            })
            .collect();
        let lapics = (0..config.vcpus).map(|id| LapicConfig {
            id,
            bsp: id == 0,
            x2apic: true,
            physical_address_bits: PHYSICAL_BITS as u8,
        });
        Self {
            group: CpuGroup::new(config.vcpus as usize),
            vcpus,
            lapics: LocalApics::new(lapics),
            memory: config.memory.clone(),
            clock: if accelerator.debugging.lockstep { VmClock::counting() } else { VmClock::start() },
            wall_clock_msr: AtomicU64::new(0),
            host_cores,
            accelerator,
        }
    }

    /// vCPU `id`'s local APIC. Never held while another lock is taken.
    pub(crate) fn lapic(&self, id: usize) -> MutexGuard<'_, Lapic> {
        self.lapics.lock(id)
    }

    /// Sets attention bits of vCPU `id` and wakes it.
    pub(crate) fn notify(&self, id: usize, bits: u32) {
        self.group.notify(id, bits);
        self.vcpus[id].sleeper.wake();
    }

    /// Tells vCPU `id` what its local APIC has for it, if anything; after every change to the APIC.
    pub(crate) fn notify_pending(&self, id: usize, lapic: &Lapic) {
        let mut bits = attention::NONE;
        if lapic.pending_interrupt().is_some() || lapic.extint_pending() {
            bits |= attention::INTERRUPT;
        }
        if lapic.event_pending() {
            bits |= attention::EVENT;
        }
        if bits != attention::NONE {
            self.notify(id, bits);
        }
    }

    /// The guest's time stamp counter on vCPU `id`.
    pub(crate) fn tsc(&self, id: usize) -> u64 {
        self.clock.now_ns().wrapping_add(self.vcpus[id].tsc_offset.load(Ordering::Relaxed))
    }

    /// Lets vCPU `id`'s APIC timer do what is due, and says in how many nanoseconds it next has something to do.
    pub(crate) fn advance_timer(&self, id: usize) -> Option<u64> {
        let now = self.clock.now_ns();
        let tsc = now.wrapping_add(self.vcpus[id].tsc_offset.load(Ordering::Relaxed));
        let mut lapic = self.lapic(id);
        if lapic.advance(now, tsc) {
            self.notify_pending(id, &lapic);
        }
        lapic.next_deadline().map(|deadline| match deadline {
            TimerDeadline::Ns(at) => at.saturating_sub(now),
            TimerDeadline::Tsc(at) => at.saturating_sub(tsc),
        })
    }

    /// Delivers a message to every local APIC that it addresses; `sender` is the vCPU that sent it, if one did.
    pub(crate) fn deliver(&self, message: InterruptMessage, sender: Option<usize>) {
        self.lapics.deliver(message, sender, |id, lapic| self.notify_pending(id, lapic));
    }
}

/// A VM on the software CPU.
pub(crate) struct SoftVm(Arc<VmShared>);

impl SoftVm {
    pub(crate) fn new(config: &VmConfig, accelerator: SoftAccelerator) -> Self {
        let shared = Arc::new(VmShared::new(config, accelerator));
        if accelerator.sampling {
            sampler::start(&shared);
        }
        Self(shared)
    }
}

impl Vm for SoftVm {
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, AccelError> {
        let index = id as usize;
        match self.0.vcpus.get(index) {
            Some(shared) if !shared.taken.swap(true, Ordering::SeqCst) => {
                Ok(Box::new(SoftVcpu::new(Arc::clone(&self.0), index)))
            }
            _ => Err(AccelError::NoSuchVcpu { id }),
        }
    }

    fn signal_msi(&self, address: u64, data: u32) {
        if let Some(message) = InterruptMessage::from_msi(address, data) {
            self.0.deliver(message, None);
        }
    }

    fn set_pic_intr(&self, level: bool) {
        let mut lapic = self.0.lapic(0);
        lapic.set_lint(0, level);
        self.0.notify_pending(0, &lapic);
    }

    fn inject_nmi(&self) {
        let mut lapic = self.0.lapic(0);
        lapic.accept(DeliveryMode::Nmi, 0, TriggerMode::Edge);
        self.0.notify_pending(0, &lapic);
    }

    fn reset(&self) {
        for (id, shared) in self.0.vcpus.iter().enumerate() {
            self.0.lapic(id).reset();
            shared.system_time_msr.store(0, Ordering::SeqCst);
            self.0.group.clear_all(id);
        }
        self.0.wall_clock_msr.store(0, Ordering::SeqCst);
    }
}
