//! One vCPU: the loop around the interpreter, its sleep, and its start.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use accel::{AccelError, CpuIo, Kicker, Vcpu, VcpuExit};
use chipset::lapic::LapicEvent;
use soft_cpu::core::Core;
use soft_cpu::msr::Msrs;
use soft_cpu::ram::Ram;
use soft_cpu::run::{Cpu, Exit};
use soft_cpu::smp::attention;
use tracing::debug;
use x86::{Activity, CpuState, LocalApicState, Segment, gpr, msr};

use crate::platform::{NoBoard, SoftPlatform};
use crate::statistics;
use crate::vm::VmShared;

/// Instructions between two looks at the APIC timer: some 0.2 ms of interpretation.
const SLICE: u64 = 20_000;

/// The same where time goes by instructions: it stands still in a slice.
const COUNTED_SLICE: u64 = 500;

/// A vCPU on the software CPU.
pub(crate) struct SoftVcpu {
    shared: Arc<VmShared>,
    id: usize,
    cpu: Cpu,
    activity: Activity,
}

impl SoftVcpu {
    pub(crate) fn new(shared: Arc<VmShared>, id: usize) -> Self {
        let platform = SoftPlatform::new(Arc::clone(&shared), id, Arc::new(NoBoard));
        let mut core = Core::new(Ram::new(&shared.memory), Box::new(platform), shared.group.link(id));
        core.layer = shared.vcpus[id].times.layer.clone();
        let activity = if id == 0 { Activity::Running } else { Activity::WaitForSipi };
        let mut cpu = Cpu::new(core);
        cpu.set_translator(shared.accelerator.translator);
        cpu.set_debugging(shared.accelerator.debugging);
        Self { shared, id, cpu, activity }
    }

    /// Takes what the local APIC has besides interrupts.
    fn take_events(&mut self) {
        loop {
            // A statement of its own, so that the APIC is unlocked again before the event is served.
            let event = self.shared.lapic(self.id).take_event();
            let Some(event) = event else { return };
            match event {
                LapicEvent::Init => self.init(),
                LapicEvent::StartUp(page) if self.activity == Activity::WaitForSipi => self.start_up(page),
                // A running processor ignores start-up IPIs; there is no system management mode.
                LapicEvent::StartUp(_) | LapicEvent::Smi => {}
                LapicEvent::Nmi => self.shared.group.notify(self.id, attention::NMI),
            }
        }
    }

    /// INIT (SDM vol. 3, table 10-1): as RESET, but x87, SSE and most MSRs keep their values.
    fn init(&mut self) {
        let bootstrap = self.id == 0;
        let mut state = CpuState::reset(bootstrap);
        state.gprs[gpr::RDX] = self.shared.vcpus[self.id].cpuid.get(1, 0).eax.into();
        state.xsave = self.cpu.core.fpu.save_image();
        self.cpu.core.load_state(&state);
        self.shared.lapic(self.id).init();
        self.activity = state.activity;
    }

    /// Start-up IPI (SDM vol. 3, 10.4.3): real mode at `page << 12`.
    fn start_up(&mut self, page: u8) {
        let core = &mut self.cpu.core;
        let mut cs = Segment::real_mode(u16::from(page) << 8);
        cs.attributes |= Segment::CODE;
        core.segments[soft_cpu::core::seg::CS] = cs;
        core.rip = 0;
        core.update_mode();
        self.activity = Activity::Running;
    }

    /// Sleeps until there is something for this vCPU, or `nanoseconds` have passed.
    fn sleep(&self, nanoseconds: Option<u64>) {
        let link = &self.cpu.core.link;
        self.shared.vcpus[self.id].sleeper.sleep(nanoseconds.map(Duration::from_nanos), || {
            link.attention() & !attention::SHOOTDOWN != attention::NONE
        });
    }

    /// Sleeps as an application processor that waits to be started; true if it was kicked.
    fn wait_for_sipi(&mut self) -> bool {
        while self.activity == Activity::WaitForSipi {
            let waiting = self.cpu.core.link.attention();
            if waiting & attention::KICK != 0 {
                self.cpu.core.link.clear(attention::KICK);
                return true;
            }
            // Whatever else is set cannot be served before the start.
            self.cpu.core.link.clear(waiting & !attention::SHOOTDOWN);
            self.take_events();
            if self.activity == Activity::WaitForSipi {
                self.sleep(None);
            }
        }
        let lapic = self.shared.lapic(self.id);
        self.shared.notify_pending(self.id, &lapic);
        false
    }
}

impl Vcpu for SoftVcpu {
    fn state(&self) -> Result<CpuState, AccelError> {
        let mut state = self.cpu.core.save_state();
        let lapic = self.shared.lapic(self.id);
        state.apic_base = lapic.apic_base();
        state.cr8 = lapic.cr8().into();
        let registers = lapic.page(self.shared.clock.now_ns());
        state.local_apic = Some(Box::new(LocalApicState { registers, tsc_deadline: lapic.tsc_deadline() }));
        state.tsc = self.shared.tsc(self.id);
        // KVM has this one under its old number too; a clock that is off is left out, as a processor without one would.
        let system_time = self.shared.vcpus[self.id].system_time_msr.load(Ordering::SeqCst);
        if system_time != 0 {
            state.msrs.push((msr::KVM_SYSTEM_TIME_NEW, system_time));
            state.msrs.sort_unstable();
        }
        if self.activity != Activity::Running {
            state.activity = self.activity;
        }
        state.nmi_pending = self.cpu.core.link.attention() & attention::NMI != 0;
        Ok(state)
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), AccelError> {
        let impossible = |what: &str| AccelError::State { what: what.to_owned() };
        if state.xsave.len() != x86::XSAVE_SIZE {
            return Err(impossible("the XSAVE image has the wrong size"));
        }
        self.cpu.core.load_state(state);
        let system_time = state.msrs.iter().find(|(number, _)| *number == msr::KVM_SYSTEM_TIME_NEW);
        let system_time = system_time.map_or(0, |&(_, value)| value);
        self.shared.vcpus[self.id].system_time_msr.store(system_time, Ordering::SeqCst);
        // Fills the guest's clock as well.
        self.cpu.core.platform.set_tsc(state.tsc);
        let mut lapic = self.shared.lapic(self.id);
        if lapic.apic_base() != state.apic_base {
            lapic.set_apic_base(state.apic_base).map_err(|_| impossible("IA32_APIC_BASE has an impossible value"))?;
        }
        if let Some(saved) = &state.local_apic {
            lapic.load_page(&saved.registers, saved.tsc_deadline, self.shared.clock.now_ns());
            self.shared.notify_pending(self.id, &lapic);
        }
        lapic.set_cr8(state.cr8 as u8 & 0xf);
        drop(lapic);
        self.activity = match state.activity {
            Activity::Halted => Activity::Running,
            other => other,
        };
        if state.nmi_pending {
            self.shared.group.notify(self.id, attention::NMI);
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), AccelError> {
        let state = CpuState::reset(self.id == 0);
        self.cpu.core.msrs = Msrs::default();
        self.cpu.core.load_state(&state);
        self.activity = state.activity;
        Ok(())
    }

    fn run(&mut self, io: &Arc<dyn CpuIo>) -> Result<VcpuExit, AccelError> {
        self.cpu.core.platform = Box::new(SoftPlatform::new(Arc::clone(&self.shared), self.id, Arc::clone(io)));
        loop {
            if self.activity == Activity::Shutdown {
                return Ok(VcpuExit::TripleFault);
            }
            if self.activity == Activity::WaitForSipi && self.wait_for_sipi() {
                return Ok(VcpuExit::Kicked);
            }
            self.shared.advance_timer(self.id);
            let before = self.cpu.core.counters.instructions;
            let exit = self.cpu.run(if self.shared.clock.counts() { COUNTED_SLICE } else { SLICE });
            self.shared.clock.advance(self.cpu.core.counters.instructions - before);
            match exit {
                Exit::Budget => {}
                Exit::Kicked => {
                    debug!(vcpu = self.id, rip = format_args!("{:#x}", self.cpu.core.rip), "stopped");
                    return Ok(VcpuExit::Kicked);
                }
                Exit::Event => self.take_events(),
                Exit::Shutdown => self.activity = Activity::Shutdown,
                Exit::Diverged => {
                    let what = self.cpu.divergence().unwrap_or_default().to_owned();
                    return Err(AccelError::Stuck { id: self.id as u32, rip: self.cpu.core.rip, what });
                }
                Exit::Halted => match self.shared.advance_timer(self.id) {
                    Some(0) => {}
                    deadline => self.sleep_halted(deadline),
                },
            }
        }
    }

    fn kicker(&self) -> Arc<dyn Kicker> {
        Arc::new(SoftKicker { shared: Arc::clone(&self.shared), id: self.id })
    }

    fn statistics(&self) -> Vec<(&'static str, u64)> {
        statistics::of(&self.cpu, self.shared.accelerator, &self.shared.vcpus[self.id].times)
    }
}

impl SoftVcpu {
    /// HLT with interrupts off still holds an undeliverable interrupt pending: only what can wake it ends this sleep.
    fn sleep_halted(&self, deadline: Option<u64>) {
        let interruptible = self.cpu.core.system_flags & x86::rflags::IF != 0;
        let link = &self.cpu.core.link;
        let mut ignored = attention::SHOOTDOWN;
        if !interruptible {
            debug!(vcpu = self.id, rip = format_args!("{:#x}", self.cpu.core.rip), "halted with interrupts off");
            ignored |= attention::INTERRUPT;
        }
        if self.cpu.core.nmi_blocked {
            ignored |= attention::NMI;
        }
        let asleep = Instant::now();
        self.shared.vcpus[self.id]
            .sleeper
            .sleep(deadline.map(Duration::from_nanos), || link.attention() & !ignored != attention::NONE);
        // No more than the deadline, which is the same in each run.
        let slept = asleep.elapsed().as_nanos() as u64;
        self.shared.clock.advance(deadline.map_or(slept, |deadline| deadline.min(slept)));
    }
}

struct SoftKicker {
    shared: Arc<VmShared>,
    id: usize,
}

impl Kicker for SoftKicker {
    fn kick(&self) {
        self.shared.notify(self.id, attention::KICK);
    }
}
