//! The I/O APIC, driven through its window and its pins.

use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::lapic::MsiEvent;

/// What bound events were told to send, one after the other; `None` is nothing, and the end.
type Told = Arc<Mutex<Vec<Option<u32>>>>;

#[derive(Default)]
struct Sink(Mutex<Vec<(u64, u32)>>, Told);

struct Outlet(Told);

impl MsiEvent for Outlet {
    fn set_message(&mut self, message: Option<Msi>) {
        self.0.lock().unwrap().push(message.map(|message| message.data));
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.0.lock().unwrap().push(None);
    }
}

impl MsiSink for Sink {
    fn send_msi(&self, address: u64, data: u32) {
        self.0.lock().unwrap().push((address, data));
    }

    fn bind(&self, _: &Arc<EventFd>) -> Option<Box<dyn MsiEvent>> {
        Some(Box::new(Outlet(self.1.clone())))
    }
}

struct Bench {
    sink: Arc<Sink>,
    chip: Arc<IoApic>,
    window: IoApicWindow,
}

impl Bench {
    fn new(version: IoApicVersion) -> Self {
        let sink = Arc::new(Sink::default());
        let chip = IoApic::new(version, sink.clone());
        let window = chip.window();
        Self { sink, chip, window }
    }

    fn write(&mut self, register: u8, value: u32) {
        self.window.write(IOREGSEL, &u32::from(register).to_le_bytes()).unwrap();
        self.window.write(IOWIN, &value.to_le_bytes()).unwrap();
    }

    fn read(&mut self, register: u8) -> u32 {
        self.window.write(IOREGSEL, &[register]).unwrap();
        let mut data = [0; 4];
        self.window.read(IOWIN, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    fn entry(&mut self, pin: u8, value: u64) {
        self.write(0x11 + 2 * pin, (value >> 32) as u32);
        self.write(0x10 + 2 * pin, value as u32);
    }

    fn sent(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut *self.sink.0.lock().unwrap())
    }
}

#[test]
fn version_and_number_of_pins_are_told() {
    assert_eq!(Bench::new(IoApicVersion::V20).read(1), 0x0017_0020);
    assert_eq!(Bench::new(IoApicVersion::V11).read(1), 0x0017_0011);
}

#[test]
fn the_id_is_four_bits_and_reads_back() {
    let mut bench = Bench::new(IoApicVersion::V20);
    bench.write(0, 0xff00_0000);
    assert_eq!((bench.read(0), bench.read(2)), (0x0f00_0000, 0x0f00_0000));
}

#[test]
fn pins_are_masked_after_reset() {
    let mut bench = Bench::new(IoApicVersion::V20);
    bench.chip.set_irq(4, true);
    assert_eq!((bench.sent(), bench.read(0x18)), (vec![], 0x10000));
}

#[test]
fn an_edge_sends_one_message_a_rise() {
    let mut bench = Bench::new(IoApicVersion::V20);
    bench.entry(4, 3 << 56 | 0x31);
    bench.chip.set_irq(4, true);
    bench.chip.set_irq(4, true);
    assert_eq!(bench.sent(), [(0xfee0_3000, 0x4031)]);
    bench.chip.set_irq(4, false);
    bench.chip.set_irq(4, true);
    assert_eq!(bench.sent().len(), 1);
}

#[test]
fn an_edge_on_a_masked_pin_is_lost() {
    let mut bench = Bench::new(IoApicVersion::V20);
    bench.entry(4, 1 << 16 | 0x31);
    bench.chip.set_irq(4, true);
    bench.entry(4, 0x31);
    assert_eq!(bench.sent(), []);
}

#[test]
fn a_level_is_sent_once_until_its_eoi_and_again_while_high() {
    let mut bench = Bench::new(IoApicVersion::V20);
    bench.entry(9, 1 << 56 | 0x8000 | 0x51);
    bench.chip.set_irq(9, true);
    bench.chip.set_irq(9, true);
    assert_eq!(bench.sent(), [(0xfee0_1000, 0xc051)]);
    assert_eq!(bench.read(0x22) & 0x4000, 0x4000, "remote IRR");
    bench.chip.eoi(0x52);
    assert_eq!(bench.sent(), []);
    bench.chip.eoi(0x51);
    assert_eq!(bench.sent(), [(0xfee0_1000, 0xc051)]);
    bench.chip.set_irq(9, false);
    bench.chip.eoi(0x51);
    assert_eq!((bench.sent(), bench.read(0x22) & 0x4000), (vec![], 0));
}

#[test]
fn a_level_that_falls_and_rises_before_eoi_is_sent_after_it() {
    let mut bench = Bench::new(IoApicVersion::V20);
    bench.entry(9, 0x8051);
    for level in [true, false, true] {
        bench.chip.set_irq(9, level);
    }
    assert_eq!(bench.sent().len(), 1);
    bench.chip.eoi(0x51);
    assert_eq!(bench.sent().len(), 1);
}

#[test]
fn unmasking_a_high_level_pin_sends_it() {
    let mut bench = Bench::new(IoApicVersion::V20);
    bench.entry(9, 1 << 16 | 0x8051);
    bench.chip.set_irq(9, true);
    bench.write(0x22, 0x8051);
    assert_eq!(bench.sent(), [(0xfee0_0000, 0xc051)]);
}

#[test]
fn a_level_masked_in_service_comes_back_when_it_is_unmasked_after_eoi() {
    let mut bench = Bench::new(IoApicVersion::V20);
    bench.entry(9, 0x8051);
    bench.chip.set_irq(9, true);
    bench.write(0x22, 0x1_8051);
    bench.chip.eoi(0x51);
    assert_eq!(bench.sent().len(), 1);
    bench.write(0x22, 0x8051);
    assert_eq!(bench.sent().len(), 1);
}

#[test]
fn two_pins_may_share_a_vector() {
    let mut bench = Bench::new(IoApicVersion::V20);
    for pin in [5, 6] {
        bench.entry(pin, 0x8060);
        bench.chip.set_irq(pin.into(), true);
    }
    bench.sent();
    bench.chip.eoi(0x60);
    assert_eq!(bench.sent().len(), 2);
}

#[test]
fn the_eoi_register_exists_from_version_20_on() {
    let mut bench = Bench::new(IoApicVersion::V20);
    bench.entry(9, 0x8051);
    bench.chip.set_irq(9, true);
    bench.chip.set_irq(9, false);
    bench.window.write(EOI, &0x51u32.to_le_bytes()).unwrap();
    assert_eq!(bench.read(0x22) & 0x4000, 0);
    let old = Bench::new(IoApicVersion::V11).window.write(EOI, &[0; 4]);
    assert_eq!(old, Err(IoError::NoRegister { offset: EOI }));
}

#[test]
fn flipping_to_edge_and_back_clears_remote_irr() {
    let mut bench = Bench::new(IoApicVersion::V11);
    bench.entry(9, 0x8051);
    bench.chip.set_irq(9, true);
    bench.chip.set_irq(9, false);
    bench.write(0x22, 0x1_0051);
    bench.write(0x22, 0x8051);
    assert_eq!(bench.read(0x22), 0x8051);
}

#[test]
fn read_only_bits_cannot_be_set() {
    let mut bench = Bench::new(IoApicVersion::V20);
    bench.entry(0, u64::MAX);
    assert_eq!((bench.read(0x10), bench.read(0x11)), (0x1_afff, 0xfffe_0000));
}

#[test]
fn a_destination_of_15_bits_reaches_the_message() {
    let mut bench = Bench::new(IoApicVersion::V20);
    // APIC ID 0x12b: 0x2b in bits 63 to 56, 1 in bits 55 to 49.
    bench.entry(0, 0x2b << 56 | 1 << 49 | 0x41);
    bench.chip.set_irq(0, true);
    assert_eq!(bench.sent(), [(0xfee2_b020, 0x4041)]);
}

#[test]
fn delivery_and_destination_modes_reach_the_message() {
    let mut bench = Bench::new(IoApicVersion::V20);
    bench.entry(0, 0x0f << 56 | 0x0900 | 0x41);
    bench.entry(1, 0x0700);
    bench.chip.set_irq(0, true);
    bench.chip.set_irq(1, true);
    assert_eq!(bench.sent(), [(0xfee0_f004, 0x4141), (0xfee0_0000, 0x4700)]);
}

#[test]
fn registers_and_pins_that_do_not_exist_are_harmless() {
    let mut bench = Bench::new(IoApicVersion::V20);
    bench.chip.set_irq(24, true);
    bench.chip.set_irq(u32::MAX, true);
    bench.write(0x40, 1);
    bench.write(0xff, 1);
    bench.write(3, 1);
    assert_eq!((bench.read(0x40), bench.read(0xff), bench.read(3)), (0, 0, 0));
    let mut data = [0; 4];
    assert!(bench.window.read(0xffc, &mut data).is_err());
    assert!(bench.window.read(0x12, &mut data).is_err());
    assert!(bench.window.write(0x10, &[0; 8]).is_err());
}

#[test]
fn reset_masks_the_pins_but_not_the_lines() {
    let mut bench = Bench::new(IoApicVersion::V20);
    bench.chip.set_irq(9, true);
    bench.chip.reset();
    assert_eq!(bench.read(0x22), 0x10000);
    bench.entry(9, 0x8051);
    assert_eq!(bench.sent().len(), 1);
}

#[test]
fn a_pin_is_open_unless_it_is_masked_or_passes_the_pic_on() {
    let mut bench = Bench::new(IoApicVersion::V20);
    assert!(!bench.chip.has_open_pin());
    bench.entry(0, 0x700);
    assert!(!bench.chip.has_open_pin());
    bench.entry(5, 0x8040);
    assert!(bench.chip.has_open_pin());
    bench.entry(5, 1 << 16);
    assert!(!bench.chip.has_open_pin());
}

fn event() -> Arc<EventFd> {
    Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())
}

#[test]
fn a_bound_event_sends_what_its_pins_entry_says_until_its_end() {
    let mut bench = Bench::new(IoApicVersion::V20);
    let told = |bench: &Bench| std::mem::take(&mut *bench.sink.1.lock().unwrap());
    bench.entry(9, 0x51);
    let binding = bench.chip.bind(9, &event());
    assert_eq!(told(&bench), [Some(0x4051)]);
    bench.entry(8, 0x99);
    bench.entry(9, 0x51);
    assert_eq!(told(&bench), [], "nothing has changed");
    bench.write(0x22, 0x152);
    bench.write(0x22, 1 << 16 | 0x152);
    assert_eq!(told(&bench), [Some(0x4152), None]);
    bench.write(0x22, 0x752);
    assert_eq!(told(&bench), [], "the PIC's interrupt has no vector here");
    bench.write(0x22, 0x53);
    bench.chip.reset();
    assert_eq!(told(&bench), [Some(0x4053), None]);
    drop(binding);
    assert_eq!(told(&bench), [None]);
    bench.write(0x22, 0x54);
    assert_eq!((told(&bench), bench.sent()), (vec![], vec![]));
}

#[test]
fn unmasking_a_level_triggered_pin_signals_its_bound_events() {
    let mut bench = Bench::new(IoApicVersion::V20);
    let (bound, other) = (event(), event());
    let _bindings = (bench.chip.bind(9, &bound), bench.chip.bind(10, &other));
    bench.entry(9, 0x8051);
    assert_eq!(bound.read().ok(), Some(1));
    bench.write(0x22, 0x8052);
    assert!(bound.read().is_err(), "it was not masked");
    bench.write(0x22, 1 << 16 | 0x52);
    bench.write(0x22, 0x52);
    assert!(bound.read().is_err(), "an edge on a masked pin is lost");
    assert!(other.read().is_err());
}
