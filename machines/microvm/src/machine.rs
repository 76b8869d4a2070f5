//! A machine from its options: built, run, reset, ended.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use accel::{AccelError, Accelerator, CpuIo, Vcpu, VcpuExit, Vm, VmConfig};
use accel_kvm::KvmAccelerator;
use accel_soft::{SoftAccelerator, TranslatorMode};
use boot::{Decompressor, Request};
use bus::{MonotonicClock, PowerControl, PowerRequest};
use chipset::uart::Uart;
use event_loop::EventLoop;
use guest_memory::{GuestMemory, Sharing};
use tracing::{debug, info};
use virtio::VirtioDevice;
use virtio::rng::Rng;
use virtio::vhost_user_vsock::VhostUserVsock;
use virtio::vsock::VsockDevice;
use x86::paging::PAGE_SIZE;
use x86::{CpuState, msr};

use crate::board::{Board, Parts};
use crate::variant::{self, Payload};
use crate::{AccelChoice, Decompress, Host, MIB, MachineError, OnReboot, Options, Variant, address_map, tables};

/// Least RAM: base memory, and something for a kernel above 1 MiB.
const LEAST_MEMORY: u64 = 2 * MIB;

/// Most vCPUs of a board without ACPI tables: 255 is the broadcast's local APIC ID.
const MP_TABLE_CPUS: u32 = 254;

/// What firmware leaves in IA32_MTRR_DEF_TYPE: MTRRs and fixed ranges enabled, write-back by default (SDM vol. 3, "IA32_MTRR_DEF_TYPE MSR").
const MTRR_WRITE_BACK: u64 = 0xc06;

/// The name by which a triple fault asks for a reset.
pub const TRIPLE_FAULT: &str = "triple fault";

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// COM1 from the host's side.
#[derive(Clone)]
pub struct SerialPort(Arc<Mutex<Uart>>);

impl SerialPort {
    /// Types `bytes`; returns how many the UART took. The caller keeps the others until [`SerialPort::on_room`]'s hook is called.
    pub fn push_input(&self, bytes: &[u8]) -> usize {
        lock(&self.0).push_input(bytes)
    }

    /// Sends a break condition.
    pub fn push_break(&self) {
        lock(&self.0).push_break();
    }

    /// Calls `hook` when there is room again. It runs with the UART locked, so it must only leave a note and never call back.
    pub fn on_room(&self, hook: impl Fn() + Send + 'static) {
        lock(&self.0).on_room(hook);
    }
}

/// A board with its processors and an image in its memory.
pub struct Machine {
    options: Options,
    variant: Box<dyn Variant>,
    memory: GuestMemory,
    vm: Arc<dyn Vm>,
    vcpus: Vec<Box<dyn Vcpu>>,
    board: Arc<Board>,
    power: PowerControl,
    vsock: Option<vsock::Host>,
    /// Stopped when the machine is dropped.
    _event_loop: EventLoop,
}

impl Machine {
    /// Builds the machine that the options ask for, on the processor backend that they name, and loads its image.
    ///
    /// [`AccelChoice::Auto`] is the software CPU here; who can look at the host resolves it before.
    ///
    /// # Errors
    /// [`MachineError`] when the options contradict each other, the image is refused, or the host lacks something.
    pub fn new(options: Options, variant: Box<dyn Variant>, host: Host) -> Result<Self, MachineError> {
        match options.accel {
            AccelChoice::Kvm => {
                let accelerator = KvmAccelerator::open(options.kernel_irqchip)?;
                Self::with_accelerator(options, variant, host, &accelerator)
            }
            AccelChoice::Soft | AccelChoice::Auto => {
                let Options { debugging, sampling, .. } = options;
                let accelerator = SoftAccelerator { translator: translator(&options), debugging, sampling };
                Self::with_accelerator(options, variant, host, &accelerator)
            }
        }
    }

    /// As [`Machine::new`], on the given processor backend.
    ///
    /// # Errors
    /// As [`Machine::new`].
    pub fn with_accelerator(
        options: Options,
        mut variant: Box<dyn Variant>,
        host: Host,
        accelerator: &dyn Accelerator,
    ) -> Result<Self, MachineError> {
        check(&options)?;
        variant.check_image(&options, &variant::image_head(&options)?)?;
        let payload = variant.load(&options)?;
        let mut devices = variant.devices()?;
        let clock = Arc::new(MonotonicClock::start());
        let event_loop = EventLoop::start(clock.clone())?;
        let power = PowerControl::new();
        let (mut vsock, mut sharing) = (None, Sharing::Private);
        if let Some(wanted) = &options.vsock {
            let events = event_loop.handle();
            if let Some(path) = &wanted.vhost_user {
                devices.push(Box::new(VhostUserVsock::connect(
                    path,
                    wanted.guest_cid,
                    wanted.vhost_user_direct,
                    events,
                )?));
                sharing = Sharing::Shared;
            } else {
                let surroundings =
                    vsock::Surroundings { events: events.clone(), clock: clock.clone(), power: power.clone() };
                let host = vsock::Host::start(wanted, surroundings)?;
                let run_soon = Box::new(move |task| events.run_soon(task));
                devices.push(Box::new(VsockDevice::new(wanted.guest_cid, host.clone(), run_soon)));
                vsock = Some(host);
            }
        }
        if options.rng {
            devices.push(Box::new(Rng::new()) as Box<dyn VirtioDevice>);
        }
        let (low, high) = address_map::split_ram(options.memory);
        let regions = [(0, low), (address_map::HIGH_RAM, high)];
        let regions: Vec<_> = regions.iter().filter(|r| r.1 > 0).map(|&(base, size)| (base, size as usize)).collect();
        let memory = guest_memory::allocate_for(sharing, &regions)?;
        let vm = accelerator.create_vm(VmConfig { vcpus: options.cpus, memory: memory.clone() })?;
        let parts = Parts {
            memory: &memory,
            vm: vm.clone(),
            devices,
            clock,
            power: power.clone(),
            host,
            events: event_loop.handle(),
        };
        let board = Arc::new(Board::new(&options, parts)?);
        let vcpus = (0..options.cpus).map(|id| vm.create_vcpu(id)).collect::<Result<Vec<_>, _>>()?;
        let kickers: Vec<_> = vcpus.iter().map(|vcpu| vcpu.kicker()).collect();
        power.on_request(move |_| kickers.iter().for_each(|kicker| kicker.kick()));
        let mut machine = Self { options, variant, memory, vm, vcpus, board, power, vsock, _event_loop: event_loop };
        machine.start(payload)?;
        Ok(machine)
    }

    /// The board's power button and plug: ask it for [`PowerRequest::Quit`] to end the run from outside.
    pub fn power(&self) -> PowerControl {
        self.power.clone()
    }

    /// COM1, where there is one.
    pub fn serial(&self) -> Option<SerialPort> {
        self.board.uart().cloned().map(SerialPort)
    }

    /// Presses the ACPI power button, and says whether there is one.
    pub fn press_power_button(&self) -> bool {
        let ged = self.board.ged();
        ged.iter().for_each(|ged| ged.press_power_button());
        ged.is_some()
    }

    /// What each vCPU has counted so far.
    pub fn statistics(&self) -> Vec<Vec<(&'static str, u64)>> {
        self.vcpus.iter().map(|vcpu| vcpu.statistics()).collect()
    }

    /// What the vsock has counted so far, where its other side is ours.
    pub fn vsock_statistics(&self) -> Option<vsock::Statistics> {
        self.vsock.as_ref().map(|host| host.lock().statistics())
    }

    /// Runs until the machine ends, and says how: never [`PowerRequest::Fatal`], and [`PowerRequest::Reset`] or [`PowerRequest::Crash`] only with
    /// [`OnReboot::Exit`]. A triple fault is a reset by [`TRIPLE_FAULT`]; any other reset without a shutdown before it is a crash.
    ///
    /// # Errors
    /// [`MachineError`] when a vCPU cannot go on or the machine cannot be reset.
    pub fn run(&mut self) -> Result<PowerRequest, MachineError> {
        loop {
            let request = self.run_once();
            self.board.flush();
            match self.judge(request?) {
                PowerRequest::Reset(source) | PowerRequest::Crash(source)
                    if self.options.on_reboot == OnReboot::Reset =>
                {
                    info!("reset by {source}");
                    self.reset()?;
                }
                end => return Ok(end),
            }
        }
    }

    /// Tells a reset after an orderly shutdown from one without.
    ///
    /// Before it reboots, Linux masks every pin of its IOAPICs (`native_machine_shutdown` of arch/x86/kernel/reboot.c, since 2.6) and tells KVM that the boot
    /// processor's paravirtual clock is no longer wanted (`kvm_shutdown` of arch/x86/kernel/kvmclock.c, later `kvm_guest_cpu_offline` of kvm.c). It skips both
    /// where it has no trust in itself: after a panic (`panic=`), by SysRq-b and with `reboot=force`, all of which go straight to
    /// `machine_emergency_restart`. The last step, such as command 0xFE to the i8042, is the same in both. Either of the two left undone is a crash: a kernel
    /// that dies early has no open pin yet, and one that was told `no-kvmclock` has no clock.
    ///
    /// DEVNOTE: reading "Kernel panic" on the console would be simpler, but any program in the guest can print that, and a quiet kernel does not. The pvpanic
    /// device says it soundly, but is found by ACPI or PCI, which enclaves' kernels lack.
    fn judge(&self, request: PowerRequest) -> PowerRequest {
        match request {
            PowerRequest::Reset(source)
                if source != TRIPLE_FAULT && (self.board.has_open_interrupt() || self.has_open_clock()) =>
            {
                PowerRequest::Crash(source)
            }
            request => request,
        }
    }

    /// Whether the boot processor has a paravirtual clock that KVM would still write to. Older kernels leave those of the others.
    fn has_open_clock(&self) -> bool {
        let state = self.vcpus.first().and_then(|vcpu| vcpu.state().ok());
        let clock = |&(number, value): &(u32, u64)| number == msr::KVM_SYSTEM_TIME_NEW && value & 1 != 0;
        state.is_some_and(|state| state.msrs.iter().any(clock))
    }

    /// Runs all vCPUs until somebody asks for the machine's end.
    fn run_once(&mut self) -> Result<PowerRequest, MachineError> {
        let io: Arc<dyn CpuIo> = self.board.clone();
        let power = &self.power;
        let failure = Mutex::new(None);
        thread::scope(|scope| {
            for (id, vcpu) in self.vcpus.iter_mut().enumerate() {
                let (io, failure) = (&io, &failure);
                let vcpu_loop = move || {
                    if let Err(error) = run_vcpu(vcpu.as_mut(), io, power) {
                        lock(failure).get_or_insert(MachineError::Accel(error));
                        power.request(PowerRequest::Fatal);
                    }
                };
                let started = thread::Builder::new().name(format!("vcpu-{id}")).spawn_scoped(scope, vcpu_loop);
                if let Err(source) = started {
                    let error = MachineError::Host { what: "starting a vCPU thread", source };
                    lock(failure).get_or_insert(error);
                    power.request(PowerRequest::Fatal);
                }
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            // Every vCPU's loop ends only after a request.
            None => Ok(power.requested().unwrap_or(PowerRequest::Quit)),
        }
    }

    /// The machine as after power-on: devices, controllers, memory, processors.
    fn reset(&mut self) -> Result<(), MachineError> {
        // First of all, so that a user who wants to quit while the image is loaded again is heard by the next run.
        self.power.clear();
        self.board.reset();
        self.vm.reset();
        self.variant.reset();
        let payload = self.variant.load(&self.options)?;
        self.start(payload)
    }

    /// Puts tables, image and processors into their first state.
    fn start(&mut self, payload: Payload) -> Result<(), MachineError> {
        let options = &self.options;
        let rsdp = tables::write(options, self.board.transports().slots(), &self.memory)?;
        let mut cmdline = payload.cmdline;
        if !options.acpi_on() && options.auto_kernel_cmdline {
            cmdline.push_str(&self.board.transports().cmdline());
        }
        debug!(cmdline, "kernel command line");
        let request = Request {
            kernel_name: &payload.kernel_name,
            kernel: &payload.kernel,
            initrd: payload.initrd,
            cmdline: cmdline.trim_start(),
            e820: &address_map::e820(options.memory),
            rsdp,
            decompressor: match options.decompress {
                Decompress::Native => Decompressor::Vmm,
                Decompress::Guest => Decompressor::Guest,
            },
            kaslr: if options.kaslr { Some(random()?) } else { None },
        };
        let loaded = boot::load(&self.memory, request)?;
        for (id, vcpu) in self.vcpus.iter_mut().enumerate() {
            let mut state = if id == 0 { loaded.cpu.clone() } else { CpuState::reset(false) };
            state.msrs.push((msr::IA32_MTRR_DEF_TYPE, MTRR_WRITE_BACK));
            state.msrs.sort_unstable_by_key(|&(number, _)| number);
            vcpu.reset()?;
            vcpu.set_state(&state)?;
        }
        Ok(())
    }
}

/// Where a kernel goes is drawn from these.
fn random() -> Result<[u64; 2], MachineError> {
    let failed = |error| MachineError::Host { what: "drawing random numbers", source: std::io::Error::other(error) };
    let draw = || getrandom::u64().map_err(failed);
    Ok([draw()?, draw()?])
}

fn translator(options: &Options) -> TranslatorMode {
    match options.translator.resolve(TranslatorMode::AVAILABLE) {
        // All that is executed is to be compared.
        true if options.debugging.lockstep => TranslatorMode::On { threshold: 1, precise: false },
        true => TranslatorMode::DEFAULT,
        false => TranslatorMode::Off,
    }
}

fn check(options: &Options) -> Result<(), MachineError> {
    let memory = options.memory;
    if memory < LEAST_MEMORY || !memory.is_multiple_of(PAGE_SIZE) {
        return Err(MachineError::MemorySize { memory, least: LEAST_MEMORY, page: PAGE_SIZE });
    }
    if options.ioapic2_on() && !options.acpi_on() {
        return Err(MachineError::NeedsAcpi { option: "ioapic2" });
    }
    if options.ioapic2_on() && options.kernel_has_ioapic() {
        return Err(MachineError::KernelHasOneIoapic);
    }
    if options.cpus > MP_TABLE_CPUS && !options.acpi_on() {
        return Err(MachineError::MpTableCpus { cpus: options.cpus, most: MP_TABLE_CPUS });
    }
    Ok(())
}

/// One vCPU's loop: until somebody has asked for the machine's end.
fn run_vcpu(vcpu: &mut dyn Vcpu, io: &Arc<dyn CpuIo>, power: &PowerControl) -> Result<(), AccelError> {
    while power.requested().is_none() {
        match vcpu.run(io)? {
            VcpuExit::Kicked => {}
            VcpuExit::TripleFault => power.request(PowerRequest::Reset(TRIPLE_FAULT)),
        }
    }
    Ok(())
}
