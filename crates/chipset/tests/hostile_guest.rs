//! A guest that writes anything anywhere at any time: no chip panics, and none asks to be woken in the past for ever.

use std::sync::Arc;

use bus::{Clock, IrqLine, IrqTarget, ManualClock, MmioDevice, PortDevice, PowerControl, TimedDevice};
use chipset::ged::Ged;
use chipset::ioapic::{IoApic, IoApicVersion};
use chipset::lapic::{DeliveryMode, Lapic, LapicConfig, MsiSink, TriggerMode};
use chipset::pic::Pic;
use chipset::pit::Pit;
use chipset::reset::ResetControl;
use chipset::rtc::Rtc;
use chipset::uart::Uart;

const STEPS: u32 = 200_000;

/// xorshift64*: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Small numbers most of the time, and now and then any.
    fn time_step(&mut self) -> u64 {
        match self.next() % 1000 {
            0 => self.next() >> 20,
            1..=99 => self.next() % 2_000_000_000,
            _ => self.next() % 100_000,
        }
    }
}

struct Nowhere;

impl MsiSink for Nowhere {
    fn send_msi(&self, address: u64, _data: u32) {
        assert_eq!(address & !0xf_ffff, 0xfee0_0000);
    }
}

/// Any port access.
fn poke_port(device: &mut dyn PortDevice, ports: u16, random: &mut Random) {
    let mut data = random.next().to_le_bytes();
    let size = [1, 2, 4][(random.next() % 3) as usize].min(usize::from(ports));
    let offset = (random.next() % (u64::from(ports) - size as u64 + 1)) as u16;
    let data = &mut data[..size];
    let _ = if random.next().is_multiple_of(2) { device.read(offset, data) } else { device.write(offset, data) };
}

/// Any access to `len` bytes of registers, mostly to the first `busy`.
fn poke_mmio(device: &mut dyn MmioDevice, len: u64, busy: u64, random: &mut Random) {
    let mut data = random.next().to_le_bytes();
    let size = 1u64 << (random.next() % 4);
    let range = if random.next().is_multiple_of(8) { len } else { busy };
    let offset = (random.next() % range.max(size)) & !(size - 1);
    let data = &mut data[..size as usize];
    if offset + size <= len {
        let _ = if random.next().is_multiple_of(2) { device.read(offset, data) } else { device.write(offset, data) };
    }
}

/// Wakes a device as the event loop would; it must be done with a moment after a few wake-ups.
fn wake(device: &mut dyn TimedDevice, now_ns: u64) {
    for _ in 0..4 {
        match device.next_deadline() {
            Some(deadline) if deadline <= now_ns => device.advance(now_ns),
            _ => return,
        }
    }
    assert!(device.next_deadline().is_none_or(|deadline| deadline > now_ns || now_ns > 1 << 62), "asks for ever");
}

#[test]
fn timers_and_clocks_survive_anything() {
    let clock = ManualClock::default();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let pit = Pit::new(IrqLine::detached(), Arc::new(clock.clone()));
    let (mut ports, mut port_b) = (pit.ports(), pit.port_b());
    let wall = clock.clone();
    let wall = Box::new(move || 1_700_000_000_000_000_000u64.saturating_add(wall.now_ns()));
    let mut rtc = Rtc::new(IrqLine::detached(), Arc::new(clock.clone()), wall, 0);
    let mut uart = Uart::new(IrqLine::detached(), Arc::new(clock.clone()), Box::new(std::io::sink()));
    for _ in 0..STEPS {
        poke_port(&mut ports, 4, &mut random);
        poke_port(&mut port_b, 1, &mut random);
        poke_port(&mut rtc, 2, &mut random);
        poke_port(&mut uart, 8, &mut random);
        uart.push_input(&random.next().to_le_bytes());
        clock.advance(random.time_step());
        let now_ns = clock.now_ns();
        wake(&mut ports, now_ns);
        wake(&mut rtc, now_ns);
        wake(&mut uart, now_ns);
    }
}

#[test]
fn interrupt_controllers_survive_anything() {
    let mut random = Random(0xd1b5_4a32_d192_ed03);
    let pic = Pic::new(IrqLine::detached());
    let (mut master, mut slave, mut elcr) = (pic.master(), pic.slave(), pic.elcr());
    let ioapic = IoApic::new(IoApicVersion::V20, Arc::new(Nowhere));
    let mut window = ioapic.window();
    let ged = Ged::new(IrqLine::detached(), PowerControl::new());
    let (mut selector, mut registers) = (ged.selector(), ged.registers());
    let mut reset = ResetControl::new(PowerControl::new());
    for _ in 0..STEPS {
        poke_port(&mut master, 2, &mut random);
        poke_port(&mut slave, 2, &mut random);
        poke_port(&mut elcr, 2, &mut random);
        poke_port(&mut reset, 1, &mut random);
        poke_mmio(&mut window, 0x1000, 0x14, &mut random);
        poke_mmio(&mut selector, 4, 4, &mut random);
        poke_mmio(&mut registers, 3, 3, &mut random);
        pic.set_irq(random.next() as u32 % 20, random.next().is_multiple_of(2));
        ioapic.set_irq(random.next() as u32 % 30, random.next().is_multiple_of(2));
        ioapic.eoi(random.next() as u8);
        if pic.output() {
            pic.ack();
        }
    }
}

#[test]
fn the_local_apic_survives_anything() {
    let mut random = Random(0x94d0_49bb_1331_11eb);
    let mut now_ns = 0u64;
    let mut apic = Lapic::new(LapicConfig { id: 0x105, bsp: true, x2apic: true, physical_address_bits: 46 });
    for step in 0..STEPS {
        let (value, register) = (random.next(), random.next());
        let mut data = value.to_le_bytes();
        let size = 1 << (random.next() % 4);
        match random.next() % 6 {
            0 => apic.mmio_read(register & 0xfff, &mut data[..size], now_ns),
            1 => drop(apic.mmio_write(register & 0x3f0, &data[..size], now_ns)),
            2 => drop(apic.write_msr(0x800 + register as u32 % 0x100, value >> (register % 64), now_ns)),
            3 => drop(apic.read_msr(0x800 + register as u32 % 0x100, now_ns)),
            4 => drop(apic.write_msr([0x1b, 0x6e0][step as usize % 2], value >> (register % 64), now_ns)),
            _ => {
                let trigger = if value & 1 != 0 { TriggerMode::Level } else { TriggerMode::Edge };
                if let Some(mode) = DeliveryMode::from_bits(register as u32) {
                    apic.accept(mode, (value >> 8) as u8, trigger);
                }
            }
        }
        now_ns = now_ns.saturating_add(random.time_step());
        apic.set_lint(step as usize % 2, value & 2 != 0);
        apic.advance(now_ns, now_ns);
        if let Some(vector) = apic.pending_interrupt() {
            apic.acknowledge(vector);
        }
        apic.take_event();
        if step % 1000 == 0 {
            apic.init();
            // An enabled xAPIC again, whatever mode the guest left it in.
            apic.reset();
            apic.mmio_write(0xf0, &0x1ffu32.to_le_bytes(), now_ns);
        }
    }
}
