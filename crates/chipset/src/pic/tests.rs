//! The two PICs, driven through their ports and pins.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

#[derive(Default)]
struct Intr(AtomicBool);

impl IrqTarget for Intr {
    fn set_irq(&self, _pin: u32, level: bool) {
        self.0.store(level, Ordering::SeqCst);
    }
}

struct Bench {
    pic: Arc<Pic>,
    intr: Arc<Intr>,
}

impl Bench {
    /// Initialized as Linux does: vectors 0x30 and 0x38, nothing masked.
    fn new() -> Self {
        let intr = Arc::new(Intr::default());
        let bench = Self { pic: Pic::new(IrqLine::new(intr.clone(), 0)), intr };
        bench.initialize(0x01);
        bench
    }

    fn initialize(&self, icw4: u8) {
        for (chip, base, wiring) in [(0, 0x30, 4), (1, 0x38, 2)] {
            for (port, value) in [(0, 0x11), (1, base), (1, wiring), (1, icw4), (1, 0)] {
                self.write(chip, port, value);
            }
        }
    }

    fn ports(&self, chip: usize) -> PicPorts {
        if chip == 0 { self.pic.master() } else { self.pic.slave() }
    }

    fn write(&self, chip: usize, port: u16, value: u8) {
        self.ports(chip).write(port, &[value]).unwrap();
    }

    fn read(&self, chip: usize, port: u16) -> u8 {
        let mut data = [0];
        self.ports(chip).read(port, &mut data).unwrap();
        data[0]
    }

    fn isr(&self, chip: usize) -> u8 {
        self.write(chip, 0, 0x0b);
        self.read(chip, 0)
    }

    fn irr(&self, chip: usize) -> u8 {
        self.write(chip, 0, 0x0a);
        self.read(chip, 0)
    }

    fn raise(&self, pin: u32) {
        self.pic.set_irq(pin, true);
    }

    fn pulse(&self, pin: u32) {
        self.pic.set_irq(pin, true);
        self.pic.set_irq(pin, false);
    }

    fn intr(&self) -> bool {
        self.intr.0.load(Ordering::SeqCst)
    }
}

#[test]
fn an_edge_raises_intr_and_its_vector_is_acknowledged() {
    let bench = Bench::new();
    bench.pulse(4);
    assert!(bench.intr());
    assert_eq!(bench.irr(0), 1 << 4);
    assert_eq!(bench.pic.ack(), 0x34);
    assert_eq!((bench.intr(), bench.irr(0), bench.isr(0)), (false, 0, 1 << 4));
}

#[test]
fn a_slave_interrupt_comes_through_the_cascade() {
    let bench = Bench::new();
    bench.raise(8);
    assert_eq!(bench.pic.ack(), 0x38);
    assert_eq!((bench.isr(0), bench.isr(1)), (4, 1));
    bench.write(1, 0, 0x60);
    bench.write(0, 0, 0x62);
    assert_eq!((bench.isr(0), bench.isr(1)), (0, 0));
}

#[test]
fn two_slave_interrupts_are_both_delivered() {
    let bench = Bench::new();
    bench.raise(9);
    bench.raise(10);
    assert_eq!(bench.pic.ack(), 0x39);
    bench.write(1, 0, 0x20);
    bench.write(0, 0, 0x20);
    assert!(bench.intr());
    assert_eq!(bench.pic.ack(), 0x3a);
}

#[test]
fn lower_inputs_win_and_interrupt_higher_ones() {
    let bench = Bench::new();
    bench.raise(5);
    bench.raise(3);
    assert_eq!(bench.pic.ack(), 0x33);
    assert!(!bench.intr(), "5 waits for 3");
    bench.raise(1);
    assert_eq!(bench.pic.ack(), 0x31);
    bench.write(0, 0, 0x20);
    assert_eq!(bench.isr(0), 1 << 3, "non-specific EOI ends the most urgent");
    bench.write(0, 0, 0x20);
    assert_eq!(bench.pic.ack(), 0x35);
}

#[test]
fn a_masked_edge_waits_in_the_irr() {
    let bench = Bench::new();
    bench.write(0, 1, 0x10);
    bench.pulse(4);
    assert_eq!((bench.intr(), bench.irr(0), bench.read(0, 1)), (false, 0x10, 0x10));
    bench.write(0, 1, 0);
    assert!(bench.intr());
}

#[test]
fn a_withdrawn_interrupt_is_a_spurious_irq_7() {
    let bench = Bench::new();
    assert_eq!((bench.pic.ack(), bench.isr(0)), (0x37, 0));
}

#[test]
fn a_withdrawn_slave_interrupt_is_a_spurious_irq_15() {
    let bench = Bench::new();
    bench.pic.elcr().write(1, &[0x02]).unwrap();
    bench.raise(9);
    bench.pic.set_irq(9, false);
    assert_eq!((bench.pic.ack(), bench.isr(0), bench.isr(1)), (0x3f, 4, 0));
}

#[test]
fn a_level_input_follows_its_line_and_asks_again_after_eoi() {
    let bench = Bench::new();
    bench.pic.elcr().write(0, &[0x20]).unwrap();
    bench.raise(5);
    bench.pic.set_irq(5, false);
    assert!(!bench.intr());
    bench.raise(5);
    assert_eq!(bench.pic.ack(), 0x35);
    bench.write(0, 0, 0x20);
    assert!(bench.intr());
    bench.pic.set_irq(5, false);
    assert!(!bench.intr());
}

#[test]
fn a_high_edge_input_does_not_ask_again() {
    let bench = Bench::new();
    bench.raise(5);
    bench.raise(5);
    bench.pic.ack();
    bench.write(0, 0, 0x20);
    bench.raise(5);
    assert!(!bench.intr());
}

#[test]
fn elcr_refuses_the_inputs_that_are_always_edges() {
    let bench = Bench::new();
    bench.pic.elcr().write(0, &[0xff, 0xff]).unwrap();
    let mut data = [0; 2];
    bench.pic.elcr().read(0, &mut data).unwrap();
    assert_eq!(data, [0xf8, 0xde]);
}

#[test]
fn icw1_forgets_edges_mask_and_service_but_not_elcr() {
    let bench = Bench::new();
    bench.pic.elcr().write(0, &[0x20]).unwrap();
    bench.raise(4);
    bench.pic.ack();
    bench.pulse(3);
    bench.write(0, 1, 0xff);
    bench.raise(5);
    bench.initialize(1);
    assert_eq!((bench.isr(0), bench.irr(0), bench.read(0, 1)), (0, 0x20, 0));
}

#[test]
fn reinitializing_the_master_keeps_the_slaves_request() {
    let bench = Bench::new();
    bench.raise(9);
    for (port, value) in [(0, 0x11), (1, 0x30), (1, 4), (1, 1)] {
        bench.write(0, port, value);
    }
    assert_eq!(bench.pic.ack(), 0x39);
}

#[test]
fn auto_eoi_leaves_nothing_in_service() {
    let bench = Bench::new();
    bench.initialize(0x03);
    bench.pulse(4);
    assert_eq!((bench.pic.ack(), bench.isr(0)), (0x34, 0));
}

#[test]
fn rotation_in_auto_eoi_puts_the_served_input_last() {
    let bench = Bench::new();
    bench.initialize(0x03);
    bench.write(0, 0, 0x80);
    bench.pulse(0);
    bench.pic.ack();
    bench.pulse(0);
    bench.pulse(1);
    assert_eq!(bench.pic.ack(), 0x31);
}

#[test]
fn rotation_on_eoi_puts_the_ended_input_last() {
    for eoi in [0xa0, 0xe3] {
        let bench = Bench::new();
        bench.pulse(3);
        bench.pic.ack();
        bench.write(0, 0, eoi);
        bench.pulse(3);
        bench.pulse(7);
        assert_eq!(bench.pic.ack(), 0x37, "{eoi:#x}");
    }
}

#[test]
fn set_priority_chooses_the_lowest_input() {
    let bench = Bench::new();
    bench.write(0, 0, 0xc4);
    bench.pulse(4);
    bench.pulse(5);
    assert_eq!(bench.pic.ack(), 0x35);
}

#[test]
fn special_mask_mode_lets_lower_priorities_through() {
    let bench = Bench::new();
    bench.pulse(1);
    bench.pic.ack();
    bench.pulse(6);
    bench.write(0, 1, 1 << 1);
    assert!(!bench.intr());
    bench.write(0, 0, 0x68);
    assert!(bench.intr());
    bench.write(0, 0, 0x48);
    assert!(!bench.intr());
}

#[test]
fn special_fully_nested_mode_lets_the_slave_interrupt_itself() {
    let bench = Bench::new();
    bench.initialize(0x11);
    bench.pulse(12);
    bench.pic.ack();
    bench.pulse(9);
    assert_eq!(bench.pic.ack(), 0x39);
}

#[test]
fn a_slave_in_special_mask_mode_asks_again_while_it_is_in_service() {
    let bench = Bench::new();
    bench.initialize(0x11);
    bench.write(1, 0, 0x68);
    bench.pulse(9);
    bench.pic.ack();
    bench.pulse(10);
    bench.write(1, 1, 1 << 1);
    bench.pulse(11);
    assert_eq!(bench.pic.ack(), 0x3a);
    bench.write(1, 1, 1 << 1 | 1 << 2);
    assert_eq!(bench.pic.ack(), 0x3b);
}

#[test]
fn a_poll_acknowledges_by_reading() {
    let bench = Bench::new();
    bench.pulse(4);
    bench.write(0, 0, 0x0c);
    assert_eq!(bench.read(0, 0), 0x84);
    assert_eq!((bench.intr(), bench.isr(0)), (false, 0x10));
    bench.write(0, 0, 0x0c);
    assert_eq!(bench.read(0, 0), 0);
}

#[test]
fn single_mode_has_no_icw3() {
    let bench = Bench::new();
    for (port, value) in [(0, 0x12), (1, 0x50), (1, 0xaa)] {
        bench.write(0, port, value);
    }
    assert_eq!(bench.read(0, 1), 0xaa);
}

#[test]
fn pins_that_do_not_exist_are_ignored() {
    let bench = Bench::new();
    for pin in [2, 16, u32::MAX] {
        bench.raise(pin);
    }
    assert!(!bench.intr());
}

#[test]
fn reset_lowers_intr() {
    let bench = Bench::new();
    bench.pulse(4);
    bench.pic.reset();
    assert!(!bench.intr());
}
