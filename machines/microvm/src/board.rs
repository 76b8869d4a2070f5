//! The chips of the board, where they are mapped, and what they do on reset.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use accel::{CpuIo, Irqchip, Irqfd, Vm};
use bus::{AddressSpaces, AddressSpacesBuilder, Clock, IrqLine, IrqTarget, MmioDevice, PortDevice, PowerControl};
use chipset::ged::{self, Ged};
use chipset::ioapic::{self, IoApic, IoApicVersion};
use chipset::lapic::{Msi, MsiEvent, MsiSink};
use chipset::pic::Pic;
use chipset::pit::Pit;
use chipset::reset::{I8042, ResetControl};
use chipset::rtc::{HostWallClock, Rtc};
use chipset::uart::{self, Uart};
use guest_memory::GuestMemory;
use virtio::VirtioDevice;
use vmm_sys_util::eventfd::EventFd;

use crate::interrupts::{self, GsiWiring, TransportPlan};
use crate::transports::Transports;
use crate::{Host, MachineError, Options, address_map as at};

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the interrupt controllers drive: the processors' side.
struct Processors(Arc<dyn Vm>);

impl MsiSink for Processors {
    fn send_msi(&self, address: u64, data: u32) {
        self.0.signal_msi(address, data);
    }

    fn bind(&self, event: &Arc<EventFd>) -> Option<Box<dyn MsiEvent>> {
        Some(Box::new(Outlet(self.0.irqfd(event)?)))
    }
}

/// An event that interrupts the processors by itself.
struct Outlet(Box<dyn Irqfd>);

impl MsiEvent for Outlet {
    fn set_message(&mut self, message: Option<Msi>) {
        self.0.set_message(message.map(|Msi { address, data }| (address, data)));
    }
}

impl IrqTarget for Processors {
    /// The PIC's INTR output, which has one pin.
    fn set_irq(&self, _pin: u32, level: bool) {
        self.0.set_pic_intr(level);
    }
}

/// What a board is built from, beside its options.
pub(crate) struct Parts<'a> {
    pub memory: &'a GuestMemory,
    pub vm: Arc<dyn Vm>,
    pub devices: Vec<Box<dyn VirtioDevice>>,
    pub clock: Arc<dyn Clock>,
    pub power: PowerControl,
    pub host: Host,
    pub events: event_loop::Handle,
}

/// The board's chips.
pub(crate) struct Board {
    spaces: AddressSpaces,
    pic: Option<Arc<Pic>>,
    ioapics: Vec<Arc<IoApic>>,
    /// The backend's controllers and PIT, in the place of the three around it.
    irqchip: Option<Arc<dyn Irqchip>>,
    pit: Option<Arc<Pit>>,
    rtc: Option<Arc<Mutex<Rtc>>>,
    uart: Option<Arc<Mutex<Uart>>>,
    ged: Option<Arc<Ged>>,
    transports: Transports,
}

fn ports(device: impl PortDevice + 'static) -> Arc<Mutex<dyn PortDevice>> {
    Arc::new(Mutex::new(device))
}

fn registers(device: impl MmioDevice + 'static) -> Arc<Mutex<dyn MmioDevice>> {
    Arc::new(Mutex::new(device))
}

impl Board {
    /// Makes and maps every chip that the options ask for.
    pub(crate) fn new(options: &Options, parts: Parts<'_>) -> Result<Self, MachineError> {
        let Parts { memory, vm, devices, clock, power, host, events } = parts;
        let mut spaces = AddressSpacesBuilder::new();
        let irqchip = vm.irqchip();
        let ours = irqchip.is_none();
        let processors = Arc::new(Processors(vm.clone()));
        let pic = (ours && options.pic.resolve(true)).then(|| Pic::new(IrqLine::new(processors.clone(), 0)));
        if let Some(pic) = &pic {
            spaces.map_port(at::PIC_MASTER, 2, ports(pic.master()))?;
            spaces.map_port(at::PIC_SLAVE, 2, ports(pic.slave()))?;
            spaces.map_port(at::PIC_ELCR, 2, ports(pic.elcr()))?;
        }
        let mut ioapics = Vec::new();
        let addresses = [ours.then_some(at::IOAPIC), (ours && options.ioapic2_on()).then_some(at::IOAPIC2)];
        for address in addresses.into_iter().flatten() {
            let ioapic = IoApic::new(IoApicVersion::V20, processors.clone());
            spaces.map_mmio(address.into(), ioapic::MMIO_LEN, registers(ioapic.window()))?;
            ioapics.push(ioapic);
        }
        let wiring = match &irqchip {
            Some(irqchip) => GsiWiring::to_backend(irqchip.clone(), options.pic.resolve(true))?,
            None => GsiWiring::new(pic.clone(), ioapics.clone()),
        };

        let has_pit = options.pit.resolve(true);
        if let Some(irqchip) = irqchip.as_ref().filter(|_| has_pit) {
            irqchip.add_pit()?;
        }
        let pit = (ours && has_pit).then(|| Pit::new(wiring.line(interrupts::TIMER), clock.clone()));
        if let Some(pit) = &pit {
            let counters = Arc::new(Mutex::new(pit.ports()));
            events.add_timed_device(&counters);
            spaces.map_port(at::PIT, 4, counters)?;
            spaces.map_port(at::PORT_B, 1, ports(pit.port_b()))?;
        }
        let rtc = options.rtc.resolve(true).then(|| {
            let mut rtc = Rtc::new(wiring.line(interrupts::RTC), clock.clone(), Box::new(HostWallClock), 0);
            let (below_4g, above_4g) = at::split_ram(options.memory);
            rtc.set_memory_sizes(below_4g, above_4g);
            Arc::new(Mutex::new(rtc))
        });
        if let Some(rtc) = &rtc {
            events.add_timed_device(rtc);
            spaces.map_port(at::RTC, 2, rtc.clone())?;
        }
        let uart = options
            .isa_serial
            .then(|| Arc::new(Mutex::new(Uart::new(wiring.line(interrupts::SERIAL), clock, host.serial))));
        if let Some(uart) = &uart {
            events.add_timed_device(uart);
            spaces.map_port(at::COM1, uart::PORTS, uart.clone())?;
        }
        let ged = options.acpi_on().then(|| Ged::new(wiring.line(interrupts::GED), power.clone()));
        if let Some(ged) = &ged {
            spaces.map_mmio(at::GED_SELECTOR.into(), ged::SELECTOR_LEN, registers(ged.selector()))?;
            spaces.map_mmio(at::GED_REGISTERS.into(), ged::REGISTERS_LEN, registers(ged.registers()))?;
        }
        spaces.map_port(at::I8042_COMMAND, 1, ports(I8042::new(power.clone())))?;
        spaces.map_port(at::RESET_CONTROL, 1, ports(ResetControl::new(power)))?;

        let plan = TransportPlan::new(options.acpi_on(), options.ioapic2_on());
        let transports = Transports::new(plan, devices, memory, &wiring, &mut spaces)?;
        transports.notify_by_events(vm.as_ref(), &events)?;
        Ok(Self { spaces: spaces.build(), pic, ioapics, irqchip, pit, rtc, uart, ged, transports })
    }

    /// The virtio devices' transports.
    pub(crate) fn transports(&self) -> &Transports {
        &self.transports
    }

    /// COM1, where there is one.
    pub(crate) fn uart(&self) -> Option<&Arc<Mutex<Uart>>> {
        self.uart.as_ref()
    }

    /// The generic event device, where ACPI is on.
    pub(crate) fn ged(&self) -> Option<&Arc<Ged>> {
        self.ged.as_ref()
    }

    /// Whether some interrupt could still reach a processor by an IOAPIC.
    pub(crate) fn has_open_interrupt(&self) -> bool {
        let backend = self.irqchip.as_ref().is_some_and(|irqchip| irqchip.has_open_pin());
        backend || self.ioapics.iter().any(|ioapic| ioapic.has_open_pin())
    }

    /// The board's reset line. No vCPU may be running.
    pub(crate) fn reset(&self) {
        // Destructured, so that a new chip has to be considered here. The controllers come after the devices that drive them.
        let Self { spaces: _, pic, ioapics, irqchip, pit, rtc, uart, ged, transports } = self;
        transports.power_cycle();
        if let Some(uart) = uart {
            lock(uart).reset();
        }
        if let Some(ged) = ged {
            ged.reset();
        }
        if let Some(rtc) = rtc {
            lock(rtc).reset();
        }
        if let Some(pit) = pit {
            pit.reset();
        }
        ioapics.iter().for_each(|ioapic| ioapic.reset());
        if let Some(pic) = pic {
            pic.reset();
        }
        if let Some(irqchip) = irqchip {
            irqchip.reset();
        }
    }

    /// Hands what the guest has written so far to the host.
    pub(crate) fn flush(&self) {
        if let Some(uart) = &self.uart {
            lock(uart).flush();
        }
    }
}

impl CpuIo for Board {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        self.spaces.port_read(port, data);
    }

    fn pio_write(&self, port: u16, data: &[u8]) {
        self.spaces.port_write(port, data);
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.spaces.mmio_read(address, data);
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        self.spaces.mmio_write(address, data);
    }

    fn ack_pic(&self) -> Option<u8> {
        self.pic.as_ref().filter(|pic| pic.output()).map(|pic| pic.ack())
    }

    fn eoi(&self, vector: u8) {
        self.ioapics.iter().for_each(|ioapic| ioapic.eoi(vector));
    }
}
