//! Whole machines on a fake processor that runs a script instead of instructions.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use accel::{AccelError, Accelerator, CpuIo, Kicker, Vcpu, VcpuExit, Vm, VmConfig};
use bus::{PowerControl, PowerRequest};
use guest_memory::GuestMemory;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};
use x86::CpuState;

use crate::{
    AccelChoice, Host, KernelIrqchip, MIB, Machine, MachineError, OnOffAuto, OnReboot, Options, Payload, Plain,
    Variant, VariantError,
};

/// What the bootstrap processor does in one run.
type Act = Box<dyn FnOnce(&Arc<dyn CpuIo>, &Shared) -> Option<VcpuExit> + Send>;

#[derive(Default)]
struct Shared {
    acts: Mutex<VecDeque<Act>>,
    memory: Mutex<Option<GuestMemory>>,
    states: Mutex<Vec<CpuState>>,
    messages: Mutex<Vec<u32>>,
    events: Mutex<Vec<(u64, u32)>>,
    resets: Mutex<u32>,
}

impl Shared {
    fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.lock().unwrap().as_ref().unwrap().read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

#[derive(Clone, Default)]
struct Fake(Arc<Shared>);

impl Accelerator for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }
    fn max_vcpus(&self) -> u32 {
        8
    }
    fn create_vm(&self, config: VmConfig) -> Result<Arc<dyn Vm>, AccelError> {
        *self.0.memory.lock().unwrap() = Some(config.memory);
        Ok(Arc::new(self.clone()))
    }
}

impl Vm for Fake {
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, AccelError> {
        Ok(Box::new(FakeVcpu { id, shared: self.0.clone(), kicked: Arc::default() }))
    }
    fn signal_msi(&self, _address: u64, data: u32) {
        self.0.messages.lock().unwrap().push(data);
    }
    fn set_pic_intr(&self, _level: bool) {}
    fn inject_nmi(&self) {}
    fn ioeventfd(&self, address: u64, value: u32) -> Option<vmm_sys_util::eventfd::EventFd> {
        self.0.events.lock().unwrap().push((address, value));
        None
    }
    fn reset(&self) {
        *self.0.resets.lock().unwrap() += 1;
    }
}

struct FakeVcpu {
    id: u32,
    shared: Arc<Shared>,
    kicked: Arc<Kick>,
}

#[derive(Default)]
struct Kick(AtomicBool);

impl Kicker for Kick {
    fn kick(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Vcpu for FakeVcpu {
    fn reset(&mut self) -> Result<(), AccelError> {
        Ok(())
    }

    fn state(&self) -> Result<CpuState, AccelError> {
        Ok(CpuState::reset(self.id == 0))
    }
    fn set_state(&mut self, state: &CpuState) -> Result<(), AccelError> {
        self.shared.states.lock().unwrap().push(state.clone());
        Ok(())
    }
    fn run(&mut self, io: &Arc<dyn CpuIo>) -> Result<VcpuExit, AccelError> {
        let act = if self.id == 0 { self.shared.acts.lock().unwrap().pop_front() } else { None };
        if let Some(exit) = act.and_then(|act| act(io, &self.shared)) {
            return Ok(exit);
        }
        while !self.kicked.0.swap(false, Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(VcpuExit::Kicked)
    }
    fn kicker(&self) -> Arc<dyn Kicker> {
        self.kicked.clone()
    }
    fn statistics(&self) -> Vec<(&'static str, u64)> {
        vec![("runs", 0)]
    }
}

/// The smallest vmlinux: one segment of four bytes at 1 MiB.
fn vmlinux() -> Vec<u8> {
    let mut file = vec![0u8; 0x1004];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let words: [(usize, u64, usize); 10] = [
        (16, 2, 2),
        (18, 62, 2),
        (24, MIB, 8),
        (32, 64, 8),
        (54, 56, 2),
        (56, 1, 2),
        (64, 1, 4),
        (72, 0x1000, 8),
        (88, MIB, 8),
        (96, 4, 8),
    ];
    for (offset, value, size) in words.into_iter().chain([(104, 0x1000, 8)]) {
        file[offset..offset + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }
    file[0x1000..].copy_from_slice(b"text");
    file
}

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Bench {
    directory: TempDir,
    fake: Fake,
    options: Options,
    screen: Screen,
}

impl Bench {
    fn new(acpi: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("vmlinux");
        std::fs::write(&kernel, vmlinux()).unwrap();
        let mut options = Options::new(kernel);
        options.memory = 8 * MIB;
        options.acpi = if acpi { OnOffAuto::On } else { OnOffAuto::Off };
        Self { directory, fake: Fake::default(), options, screen: Screen::default() }
    }

    fn act(&self, act: impl FnOnce(&Arc<dyn CpuIo>, &Shared) + Send + 'static) {
        let act = |io: &Arc<dyn CpuIo>, shared: &Shared| {
            act(io, shared);
            None
        };
        self.fake.0.acts.lock().unwrap().push_back(Box::new(act));
    }

    fn machine(&self) -> Result<Machine, MachineError> {
        let host = Host { serial: Box::new(self.screen.clone()) };
        Machine::with_accelerator(self.options.clone(), Box::new(Plain), host, &self.fake)
    }

    fn run(&self) -> Result<PowerRequest, MachineError> {
        self.machine()?.run()
    }
}

#[test]
fn the_keyboard_controllers_reset_ends_the_run() {
    let bench = Bench::new(false);
    bench.act(|io, _| io.pio_write(0x64, &[0xfe]));
    assert_eq!(bench.run().unwrap(), PowerRequest::Reset("i8042"));
}

#[test]
fn a_reset_with_an_interrupt_still_open_is_a_crash_and_restarts_where_resets_do() {
    let mut bench = Bench::new(false);
    let crash = |io: &Arc<dyn CpuIo>, _: &Shared| {
        io.mmio_write(0xfec0_0000, &0x18u32.to_le_bytes());
        io.mmio_write(0xfec0_0010, &0x30u32.to_le_bytes());
        io.pio_write(0x64, &[0xfe]);
    };
    bench.act(crash);
    assert_eq!(bench.run().unwrap(), PowerRequest::Crash("i8042"));
    bench.options.on_reboot = OnReboot::Reset;
    bench.act(crash);
    bench.fake.0.acts.lock().unwrap().push_back(Box::new(|_, _| Some(VcpuExit::TripleFault)));
    let machine = bench.machine();
    let mut machine = machine.unwrap();
    let power = machine.power();
    bench.act(move |_, _| power.request(PowerRequest::Quit));
    assert_eq!(machine.run().unwrap(), PowerRequest::Quit);
    assert_eq!(*bench.fake.0.resets.lock().unwrap(), 2);
}

#[test]
fn acpi_power_off_ends_the_run_on_all_processors() {
    let mut bench = Bench::new(true);
    bench.options.cpus = 3;
    bench.act(|io, _| io.mmio_write(0xfea0_0200, &[0x34]));
    assert_eq!(bench.run().unwrap(), PowerRequest::PowerOff);
}

#[test]
fn a_triple_fault_is_a_reset() {
    let bench = Bench::new(true);
    bench.fake.0.acts.lock().unwrap().push_back(Box::new(|_, _| Some(VcpuExit::TripleFault)));
    assert_eq!(bench.run().unwrap(), PowerRequest::Reset("triple fault"));
}

#[test]
fn a_request_from_outside_ends_the_run() {
    let machine = Bench::new(true).machine();
    let mut machine = machine.unwrap();
    let power = machine.power();
    std::thread::spawn(move || power.request(PowerRequest::Quit));
    assert_eq!(machine.run().unwrap(), PowerRequest::Quit);
}

#[test]
fn a_reset_restores_memory_processors_and_controllers_and_the_guest_runs_again() {
    let mut bench = Bench::new(true);
    bench.options.on_reboot = OnReboot::Reset;
    bench.act(|io, shared| {
        shared.memory.lock().unwrap().as_ref().unwrap().write_slice(b"junk", GuestAddress(MIB)).unwrap();
        io.mmio_write(0xfec0_0000, &0x10u32.to_le_bytes());
        io.mmio_write(0xfec0_0010, &0x30u32.to_le_bytes());
        io.mmio_write(0xfea0_0202, &[0x42]);
    });
    bench.act(|io, shared| {
        assert_eq!(shared.read(MIB, 4), b"text");
        let mut entry = [0; 4];
        io.mmio_write(0xfec0_0000, &0x10u32.to_le_bytes());
        io.mmio_read(0xfec0_0010, &mut entry);
        assert_eq!(u32::from_le_bytes(entry), 1 << 16, "the IOAPIC's entry is masked again");
        io.mmio_write(0xfea0_0200, &[0x34]);
    });
    assert_eq!(bench.run().unwrap(), PowerRequest::PowerOff);
    assert_eq!((bench.fake.0.states.lock().unwrap().len(), *bench.fake.0.resets.lock().unwrap()), (2, 1));
}

/// Plain microvm whose user gives up while it is being reset.
struct Impatient(Arc<Mutex<Option<PowerControl>>>);

impl Variant for Impatient {
    fn check_image(&self, options: &Options, head: &[u8]) -> Result<(), VariantError> {
        Plain.check_image(options, head)
    }
    fn load(&mut self, options: &Options) -> Result<Payload, VariantError> {
        Plain.load(options)
    }
    fn reset(&mut self) {
        self.0.lock().unwrap().as_ref().unwrap().request(PowerRequest::Quit);
    }
}

#[test]
fn a_user_who_quits_during_a_reset_is_heard() {
    let mut bench = Bench::new(true);
    bench.options.on_reboot = OnReboot::Reset;
    bench.act(|io, _| io.pio_write(0x64, &[0xfe]));
    let power = Arc::new(Mutex::new(None));
    let host = Host { serial: Box::new(std::io::sink()) };
    let variant = Box::new(Impatient(power.clone()));
    let mut machine = Machine::with_accelerator(bench.options.clone(), variant, host, &bench.fake).unwrap();
    *power.lock().unwrap() = Some(machine.power());
    assert_eq!(machine.run().unwrap(), PowerRequest::Quit);
}

#[test]
fn the_serial_port_writes_to_the_host_and_takes_its_input() {
    let bench = Bench::new(false);
    bench.act(|io, _| {
        io.pio_write(0x3f8, b"h");
        io.pio_write(0x3f8, b"i");
        let mut byte = [0];
        io.pio_read(0x3f8, &mut byte);
        io.pio_write(0x3f8, &byte);
        io.pio_write(0x64, &[0xfe]);
    });
    let mut machine = bench.machine().unwrap();
    assert_eq!(machine.serial().unwrap().push_input(b"!"), 1);
    machine.run().unwrap();
    assert_eq!(*bench.screen.0.lock().unwrap(), b"hi!");
}

#[test]
fn without_acpi_the_guest_finds_an_mp_table_and_its_devices_on_the_command_line() {
    let mut bench = Bench::new(false);
    bench.options.cmdline = "console=ttyS0".to_owned();
    let _machine = bench.machine().unwrap();
    assert_eq!(bench.fake.0.read(0xf0000, 4), b"_MP_");
    let expected = b"console=ttyS0 virtio_mmio.device=512@0xfeb00e00:12\0";
    assert_eq!(bench.fake.0.read(boot::layout::CMDLINE, expected.len()), expected);
}

#[test]
fn with_acpi_the_guest_finds_an_rsdp_and_an_untouched_command_line() {
    let mut bench = Bench::new(true);
    bench.options.cmdline = "quiet".to_owned();
    let _machine = bench.machine().unwrap();
    assert_eq!(bench.fake.0.read(0xe0000, 8), b"RSD PTR ");
    assert_eq!(bench.fake.0.read(boot::layout::ZERO_PAGE + 0x70, 8), 0xe0000u64.to_le_bytes());
    assert_eq!(bench.fake.0.read(boot::layout::CMDLINE, 6), b"quiet\0");
}

#[test]
fn only_the_bootstrap_processor_starts_in_the_kernel() {
    let mut bench = Bench::new(true);
    bench.options.cpus = 2;
    let _machine = bench.machine().unwrap();
    let states = bench.fake.0.states.lock().unwrap();
    assert_eq!((states[0].rip, states[1].activity), (MIB, x86::Activity::WaitForSipi));
}

#[test]
fn the_rng_answers_at_its_transport() {
    let bench = Bench::new(false);
    bench.act(|io, _| {
        let mut id = [0; 4];
        io.mmio_read(0xfeb0_0e00, &mut id);
        assert_eq!(&id, b"virt");
        io.mmio_read(0xfeb0_0e08, &mut id);
        assert_eq!(u32::from_le_bytes(id), virtio::rng::DEVICE_ID);
        io.pio_write(0xcf9, &[6]);
    });
    assert_eq!(bench.run().unwrap(), PowerRequest::Reset("port 0xcf9"));
}

#[test]
fn the_power_button_interrupts_where_acpi_is_on() {
    let bench = Bench::new(true);
    bench.act(|io, _| {
        io.mmio_write(0xfec0_0000, &(0x10 + 2 * 9u32).to_le_bytes());
        io.mmio_write(0xfec0_0010, &0x8039u32.to_le_bytes());
        io.pio_write(0xcf9, &[6]);
    });
    let mut machine = bench.machine().unwrap();
    machine.run().unwrap();
    assert!(machine.press_power_button());
    assert_eq!(bench.fake.0.messages.lock().unwrap().last().map(|data| data & 0xff), Some(0x39));
    assert!(!Bench::new(false).machine().unwrap().press_power_button());
}

#[test]
fn impossible_options_are_refused() {
    let mut bench = Bench::new(false);
    bench.options.ioapic2 = OnOffAuto::On;
    assert!(matches!(bench.run(), Err(MachineError::NeedsAcpi { option: "ioapic2" })));
    let mut bench = Bench::new(true);
    bench.options.memory = 8 * MIB + 1;
    assert!(matches!(bench.run(), Err(MachineError::MemorySize { .. })));
    let mut bench = Bench::new(false);
    bench.options.cpus = 255;
    let error = bench.run().unwrap_err().to_string();
    assert!(error.starts_with("255 vCPUs need acpi = on"), "{error}");
    let mut bench = Bench::new(true);
    bench.options.accel = AccelChoice::Kvm;
    (bench.options.kernel_irqchip, bench.options.ioapic2) = (KernelIrqchip::On, OnOffAuto::On);
    let error = bench.run().unwrap_err().to_string();
    assert!(error.contains("ioapic2 = on does not go with kernel-irqchip = on"), "{error}");
}

#[test]
fn every_queue_of_every_device_asks_for_an_event_of_its_notifications() {
    let mut bench = Bench::new(false);
    bench.options.vsock = Some(vsock::Options::new(3, vsock::HOST_CID));
    let _machine = bench.machine().unwrap();
    let notify = |transport: u64, queue| (0xfeb0_0050 + 512 * transport, queue);
    let expected = [notify(7, 0), notify(7, 1), notify(7, 2), notify(6, 0)];
    assert_eq!(*bench.fake.0.events.lock().unwrap(), expected);
}

#[test]
fn an_enclave_image_is_refused_before_anything_is_built() {
    let mut bench = Bench::new(true);
    bench.options.kernel = bench.directory.path().join("demo.eif");
    std::fs::write(&bench.options.kernel, b".eif and more").unwrap();
    assert!(matches!(bench.run(), Err(MachineError::EifForMicrovm { .. })));
}
