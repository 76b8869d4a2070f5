//! The RTC, driven through its ports.

use std::sync::atomic::{AtomicBool, Ordering};

use bus::{IrqTarget, ManualClock};

use super::*;

/// 2024-02-29 13:07:09 UTC, a Thursday.
const START: u64 = 1_709_212_029;

#[derive(Default)]
struct Wire(AtomicBool);

impl IrqTarget for Wire {
    fn set_irq(&self, _pin: u32, level: bool) {
        self.0.store(level, Ordering::SeqCst);
    }
}

struct Bench {
    rtc: Rtc,
    clock: ManualClock,
    wire: Arc<Wire>,
}

impl Bench {
    fn new() -> Self {
        let (clock, wire) = (ManualClock::default(), Arc::new(Wire::default()));
        let wall = clock.clone();
        let wall = move || START * NS_PER_S + wall.now_ns();
        let rtc = Rtc::new(IrqLine::new(wire.clone(), 8), Arc::new(clock.clone()), Box::new(wall), 0);
        Self { rtc, clock, wire }
    }

    fn read(&mut self, index: u8) -> u8 {
        self.rtc.write(0, &[index]).unwrap();
        let mut data = [0];
        self.rtc.read(1, &mut data).unwrap();
        data[0]
    }

    fn write(&mut self, index: u8, value: u8) {
        self.rtc.write(0, &[index]).unwrap();
        self.rtc.write(1, &[value]).unwrap();
    }

    fn time(&mut self) -> [u8; 8] {
        [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS].map(|index| self.read(index))
    }

    /// Lets time pass as the event loop would, waking the clock at its deadlines.
    fn run(&mut self, ns: u64) {
        let end = self.clock.now_ns() + ns;
        while let Some(deadline) = self.rtc.next_deadline().filter(|&at| at <= end) {
            self.clock.advance(deadline - self.clock.now_ns());
            self.rtc.advance(deadline);
        }
        self.clock.advance(end - self.clock.now_ns());
    }

    fn irq(&self) -> bool {
        self.wire.0.load(Ordering::SeqCst)
    }
}

#[test]
fn the_time_is_the_walls_in_bcd_and_24_hours() {
    let mut bench = Bench::new();
    assert_eq!(bench.time(), [0x20, 0x24, 0x02, 0x29, 0x05, 0x13, 0x07, 0x09]);
    bench.clock.advance(51 * NS_PER_S);
    assert_eq!(bench.time(), [0x20, 0x24, 0x02, 0x29, 0x05, 0x13, 0x08, 0x00]);
}

#[test]
fn binary_and_12_hour_forms_follow_register_b() {
    let mut bench = Bench::new();
    bench.write(REG_B, 0x04);
    assert_eq!(bench.time(), [20, 24, 2, 29, 5, 0x81, 7, 9]);
}

#[test]
fn an_offset_is_added() {
    let clock = ManualClock::default();
    let mut rtc = Rtc::new(IrqLine::detached(), Arc::new(clock), Box::new(|| START * NS_PER_S), 3600);
    rtc.write(0, &[HOURS]).unwrap();
    let mut data = [0];
    rtc.read(1, &mut data).unwrap();
    assert_eq!(data, [0x14]);
}

#[test]
fn the_clock_can_be_set_and_goes_on_from_there() {
    let mut bench = Bench::new();
    bench.write(REG_B, 0x82);
    for (index, value) in
        [(CENTURY, 0x19), (YEAR, 0x99), (MONTH, 0x12), (DAY, 0x31), (HOURS, 0x23), (MINUTES, 0x59), (SECONDS, 0x58)]
    {
        bench.write(index, value);
    }
    bench.clock.advance(5 * NS_PER_S);
    assert_eq!(bench.read(SECONDS), 0x58, "stopped while it is set");
    bench.write(REG_B, 0x02);
    bench.clock.advance(2 * NS_PER_S);
    assert_eq!(bench.time(), [0x20, 0x00, 0x01, 0x01, 0x07, 0x00, 0x00, 0x00]);
}

#[test]
fn a_field_can_be_set_while_the_clock_goes() {
    let mut bench = Bench::new();
    bench.write(HOURS, 0x20);
    assert_eq!(bench.time()[5..], [0x20, 0x07, 0x09]);
}

#[test]
fn a_divider_in_reset_stops_the_clock() {
    let mut bench = Bench::new();
    bench.write(REG_A, 0x60);
    bench.clock.advance(10 * NS_PER_S);
    assert_eq!(bench.read(SECONDS), 0x09);
    bench.write(REG_A, 0x26);
    bench.clock.advance(NS_PER_S);
    assert_eq!(bench.read(SECONDS), 0x10);
}

#[test]
fn update_in_progress_shows_just_before_the_second() {
    let mut bench = Bench::new();
    bench.clock.advance(NS_PER_S - 244_001);
    assert_eq!(bench.read(REG_A), 0x26);
    bench.clock.advance(1);
    assert_eq!(bench.read(REG_A), 0xa6);
    bench.clock.advance(244_000);
    assert_eq!(bench.read(REG_A), 0x26);
}

#[test]
fn the_update_ended_interrupt_comes_each_second_until_acknowledged() {
    let mut bench = Bench::new();
    bench.write(REG_B, 0x12);
    bench.run(NS_PER_S - 1);
    assert!(!bench.irq());
    bench.run(1);
    assert!(bench.irq());
    assert_eq!(bench.rtc.next_deadline(), None, "one that waits needs no other");
    assert_eq!(bench.read(REG_C) & 0x90, 0x90);
    assert!(!bench.irq());
    assert_eq!(bench.read(REG_C), 0);
    bench.run(NS_PER_S);
    assert!(bench.irq());
}

#[test]
fn flags_rise_without_their_interrupts() {
    let mut bench = Bench::new();
    assert_eq!(bench.rtc.next_deadline(), None);
    bench.clock.advance(NS_PER_S);
    assert_eq!(bench.read(REG_C) & 0xf0, 0x50);
    assert!(!bench.irq());
}

#[test]
fn the_alarm_matches_its_time() {
    let mut bench = Bench::new();
    for (index, value) in [(HOURS_ALARM, 0x13), (MINUTES_ALARM, 0x08), (SECONDS_ALARM, 0x30)] {
        bench.write(index, value);
    }
    bench.write(REG_B, 0x22);
    bench.run(80 * NS_PER_S);
    assert!(!bench.irq());
    bench.run(NS_PER_S);
    assert!(bench.irq());
    assert_eq!(bench.read(REG_C) & 0xa0, 0xa0);
}

#[test]
fn alarm_bytes_from_c0_on_match_everything() {
    let mut bench = Bench::new();
    for (index, value) in [(HOURS_ALARM, 0xff), (MINUTES_ALARM, 0xc0), (SECONDS_ALARM, 0x11)] {
        bench.write(index, value);
    }
    bench.write(REG_B, 0x22);
    bench.run(2 * NS_PER_S);
    assert!(bench.irq());
}

#[test]
fn an_alarm_that_passed_unseen_is_still_flagged() {
    let mut bench = Bench::new();
    for (index, value) in [(HOURS_ALARM, 0x14), (MINUTES_ALARM, 0x00), (SECONDS_ALARM, 0x00)] {
        bench.write(index, value);
    }
    bench.clock.advance(7200 * NS_PER_S);
    assert_eq!(bench.read(REG_C) & 0x20, 0x20);
}

#[test]
fn the_periodic_interrupt_has_the_rate_of_register_a() {
    for (rate, hz) in [(0x6, 1024), (0xf, 2), (0x3, 8192), (0x1, 256), (0x2, 128)] {
        let mut bench = Bench::new();
        bench.write(REG_A, 0x20 | rate);
        bench.write(REG_B, 0x42);
        let mut count = 0;
        while bench.clock.now_ns() < NS_PER_S {
            let deadline = bench.rtc.next_deadline().unwrap();
            bench.run(deadline - bench.clock.now_ns());
            assert!(bench.irq());
            assert_eq!(bench.read(REG_C) & 0xc0, 0xc0);
            count += 1;
        }
        assert_eq!(count, hz, "rate {rate}");
    }
}

#[test]
fn setting_the_clock_switches_the_update_interrupt_off() {
    let mut bench = Bench::new();
    bench.write(REG_B, 0x92);
    assert_eq!(bench.read(REG_B), 0x82);
}

#[test]
fn memory_keeps_bytes_and_status_registers_do_not() {
    let mut bench = Bench::new();
    bench.write(0x0f, 0xa5);
    bench.write(0xff, 0x5a); // Bit 7 of the index masks NMIs.
    bench.write(REG_D, 0);
    assert_eq!((bench.read(0x0f), bench.read(0x7f), bench.read(REG_D)), (0xa5, 0x5a, 0x80));
}

#[test]
fn memory_sizes_are_where_qemu_puts_them() {
    let mut bench = Bench::new();
    bench.rtc.set_memory_sizes(3 << 30, 5 << 30);
    let word = |bench: &mut Bench, index| u16::from_le_bytes([bench.read(index), bench.read(index + 1)]);
    assert_eq!(word(&mut bench, 0x15), 640);
    assert_eq!((word(&mut bench, 0x17), word(&mut bench, 0x30)), (0xffff, 0xffff));
    assert_eq!(word(&mut bench, 0x34), 0xbf00);
    assert_eq!([0x5b, 0x5c, 0x5d].map(|index| bench.read(index)), [0x00, 0x40, 0x01]);
    bench.rtc.set_memory_sizes(8 << 20, 0);
    assert_eq!((word(&mut bench, 0x17), word(&mut bench, 0x34)), (7 * 1024, 0));
}

#[test]
fn reset_disables_interrupts_and_keeps_time_and_memory() {
    let mut bench = Bench::new();
    bench.write(0x40, 7);
    bench.write(REG_B, 0x12);
    bench.run(NS_PER_S);
    bench.rtc.reset();
    assert_eq!((bench.irq(), bench.read(REG_B), bench.read(0x40)), (false, 0x02, 7));
}

#[test]
fn a_wall_clock_that_steps_back_does_no_harm() {
    let start = Moment { clock_ns: 0, unix_ns: START * NS_PER_S };
    let mut core = RtcCore::new(i64::MIN, start);
    core.advance(Moment { clock_ns: 5, unix_ns: 0 });
    core.advance(Moment { clock_ns: u64::MAX, unix_ns: u64::MAX });
    core.read(REG_C, start);
    core.next_deadline(Moment { clock_ns: u64::MAX, unix_ns: u64::MAX });
}
