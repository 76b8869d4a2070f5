//! The PIT, driven through its ports.

use std::sync::atomic::{AtomicU32, Ordering};

use bus::{IrqTarget, ManualClock};

use super::*;

#[derive(Default)]
struct Edges(AtomicU32);

impl IrqTarget for Edges {
    fn set_irq(&self, _pin: u32, level: bool) {
        self.0.fetch_add(level.into(), Ordering::SeqCst);
    }
}

struct Bench {
    ports: PitPorts,
    port_b: PitPortB,
    clock: ManualClock,
    edges: Arc<Edges>,
    tick: u64,
}

impl Bench {
    fn new() -> Self {
        let (clock, edges) = (ManualClock::default(), Arc::new(Edges::default()));
        let pit = Pit::new(IrqLine::new(edges.clone(), 0), Arc::new(clock.clone()));
        Self { ports: pit.ports(), port_b: pit.port_b(), clock, edges, tick: 0 }
    }

    fn write(&mut self, port: u16, value: u8) {
        self.ports.write(port, &[value]).unwrap();
    }

    fn read(&mut self, port: u16) -> u8 {
        let mut data = [0];
        self.ports.read(port, &mut data).unwrap();
        data[0]
    }

    fn word(&mut self, port: u16) -> u16 {
        u16::from_le_bytes([self.read(port), self.read(port)])
    }

    /// Programs a counter with a 16-bit count.
    fn program(&mut self, counter: u8, mode: u8, count: u16) {
        self.write(3, counter << 6 | 0x30 | mode << 1);
        self.count(counter, count);
    }

    fn count(&mut self, counter: u8, count: u16) {
        for byte in count.to_le_bytes() {
            self.write(counter.into(), byte);
        }
    }

    /// Lets this many ticks pass.
    fn ticks(&mut self, ticks: u64) {
        self.tick += ticks;
        self.clock.advance(ns_of(self.tick) - self.clock.now_ns());
    }

    fn set_port_b(&mut self, value: u8) {
        self.port_b.write(0, &[value]).unwrap();
    }

    fn port_b(&mut self) -> u8 {
        let mut data = [0];
        self.port_b.read(0, &mut data).unwrap();
        data[0]
    }

    fn out2(&mut self) -> bool {
        self.port_b() & 0x20 != 0
    }

    /// Runs the event loop's part until `ticks` have passed; how many interrupts that made.
    fn run(&mut self, ticks: u64) -> u32 {
        let before = self.edges.0.load(Ordering::SeqCst);
        let end = ns_of(self.tick + ticks);
        while let Some(deadline) = self.ports.next_deadline().filter(|&d| d <= end) {
            self.clock.advance(deadline.saturating_sub(self.clock.now_ns()));
            self.ports.advance(deadline);
        }
        self.tick += ticks;
        self.clock.advance(end.saturating_sub(self.clock.now_ns()));
        self.edges.0.load(Ordering::SeqCst) - before
    }
}

#[test]
fn mode_0_counts_down_and_raises_out_once() {
    let mut bench = Bench::new();
    bench.set_port_b(1);
    bench.program(2, 0, 1000);
    assert!(!bench.out2());
    bench.ticks(1);
    assert_eq!(bench.word(2), 1000);
    bench.ticks(999);
    assert_eq!((bench.word(2), bench.out2()), (1, false));
    bench.ticks(1);
    assert_eq!((bench.word(2), bench.out2()), (0, true));
    bench.ticks(1);
    assert_eq!((bench.word(2), bench.out2()), (0xffff, true));
}

#[test]
fn mode_0_pauses_while_the_gate_is_low() {
    let mut bench = Bench::new();
    bench.set_port_b(1);
    bench.program(2, 0, 1000);
    bench.ticks(101);
    bench.set_port_b(0);
    bench.ticks(5000);
    assert_eq!((bench.word(2), bench.out2()), (900, false));
    bench.set_port_b(1);
    bench.ticks(900);
    assert!(bench.out2());
}

#[test]
fn mode_0_waits_for_a_gate_that_was_low_from_the_start() {
    let mut bench = Bench::new();
    bench.program(2, 0, 100);
    bench.ticks(1000);
    assert!(!bench.out2());
    bench.set_port_b(1);
    bench.ticks(101);
    assert!(bench.out2());
}

#[test]
fn mode_1_is_a_retriggerable_pulse() {
    let mut bench = Bench::new();
    bench.program(2, 1, 100);
    assert!(bench.out2());
    bench.ticks(500);
    assert!(bench.out2(), "nothing happens without a trigger");
    bench.set_port_b(1);
    bench.ticks(1);
    assert!(!bench.out2());
    bench.ticks(50);
    bench.set_port_b(0);
    bench.set_port_b(1);
    bench.ticks(100);
    assert!(!bench.out2(), "retriggered");
    bench.ticks(1);
    assert!(bench.out2());
}

#[test]
fn mode_2_is_low_for_the_last_tick_of_each_period() {
    let mut bench = Bench::new();
    bench.set_port_b(1);
    bench.program(2, 2, 10);
    bench.ticks(1);
    for tick in 0..30 {
        assert_eq!((bench.word(2), bench.out2()), (10 - tick % 10, tick % 10 != 9), "tick {tick}");
        bench.ticks(1);
    }
}

#[test]
fn mode_2_takes_a_new_count_at_the_end_of_its_period() {
    let mut bench = Bench::new();
    bench.set_port_b(1);
    bench.program(2, 2, 100);
    bench.ticks(51);
    bench.count(2, 1000);
    assert_eq!(bench.word(2), 50);
    bench.ticks(50);
    assert_eq!(bench.word(2), 1000);
}

#[test]
fn mode_2_starts_over_when_the_gate_rises() {
    let mut bench = Bench::new();
    bench.set_port_b(1);
    bench.program(2, 2, 100);
    bench.ticks(51);
    bench.set_port_b(0);
    assert!(bench.out2());
    bench.ticks(10);
    bench.set_port_b(1);
    bench.ticks(1);
    assert_eq!(bench.word(2), 100);
}

#[test]
fn mode_3_is_a_square_wave_counted_by_two() {
    let mut bench = Bench::new();
    bench.set_port_b(1);
    bench.program(2, 3, 10);
    bench.ticks(1);
    let mut seen = Vec::new();
    for _ in 0..10 {
        seen.push((bench.word(2), bench.out2()));
        bench.ticks(1);
    }
    let half = |level| [10, 8, 6, 4, 2].map(|count| (count, level));
    assert_eq!(seen, [half(true), half(false)].concat());
}

#[test]
fn mode_4_strobes_once_and_mode_5_at_its_trigger() {
    for mode in [4, 5] {
        let mut bench = Bench::new();
        bench.set_port_b(u8::from(mode == 4));
        bench.program(2, mode, 10);
        bench.set_port_b(1);
        bench.ticks(10);
        assert!(bench.out2(), "mode {mode}");
        bench.ticks(1);
        assert!(!bench.out2(), "mode {mode}");
        bench.ticks(1);
        assert!(bench.out2(), "mode {mode}");
    }
}

#[test]
fn a_count_of_zero_is_the_longest() {
    let mut bench = Bench::new();
    bench.set_port_b(1);
    bench.program(2, 0, 0);
    bench.ticks(0x1_0000);
    assert!(!bench.out2());
    bench.ticks(1);
    assert!(bench.out2());
}

#[test]
fn bcd_counts_are_decimal() {
    let mut bench = Bench::new();
    bench.set_port_b(1);
    bench.write(3, 0xb1); // Counter 2, word, mode 0, BCD.
    bench.count(2, 0x1000);
    bench.ticks(2);
    assert_eq!(bench.word(2), 0x0999);
    bench.ticks(1000);
    assert_eq!(bench.word(2), 0x9999);
}

#[test]
fn a_latched_count_stands_until_it_is_read() {
    let mut bench = Bench::new();
    bench.program(0, 2, 1000);
    bench.ticks(101);
    bench.write(3, 0x00);
    bench.ticks(100);
    bench.write(3, 0x00);
    assert_eq!(bench.word(0), 900);
    assert_eq!(bench.word(0), 800);
}

#[test]
fn single_byte_accesses_move_their_byte_only() {
    let mut bench = Bench::new();
    bench.write(3, 0x24); // Counter 0, high byte, mode 2.
    bench.write(0, 2);
    bench.ticks(1);
    assert_eq!((bench.read(0), bench.read(0)), (2, 2));
    bench.write(3, 0x14); // Low byte.
    bench.write(0, 77);
    bench.ticks(1);
    assert_eq!((bench.read(0), bench.read(0)), (77, 77));
}

#[test]
fn read_back_latches_status_then_count() {
    let mut bench = Bench::new();
    bench.write(3, 0x34); // Counter 0, word, mode 2.
    bench.write(3, 0xe2); // Status of counter 0.
    assert_eq!(bench.read(0), 0xf4, "OUT high, null count");
    bench.count(0, 1000);
    bench.ticks(101);
    bench.write(3, 0xc2); // Status and count.
    bench.ticks(50);
    assert_eq!(bench.read(0), 0xb4);
    assert_eq!(bench.word(0), 900);
    assert_eq!(bench.word(0), 850);
}

#[test]
fn read_back_reaches_several_counters() {
    let mut bench = Bench::new();
    bench.program(0, 2, 1000);
    bench.program(2, 0, 500);
    bench.ticks(11);
    bench.write(3, 0xda); // Counts of counters 0 and 2.
    bench.ticks(5);
    assert_eq!((bench.word(0), bench.word(2)), (990, 500));
}

#[test]
fn a_periodic_counter_0_interrupts_at_its_rate() {
    let mut bench = Bench::new();
    bench.program(0, 2, 1193);
    assert_eq!(bench.run(119_300), 99);
    bench.program(0, 3, 11_932);
    assert_eq!(bench.run(119_321), 10);
}

#[test]
fn a_one_shot_counter_0_interrupts_once() {
    for mode in [0, 4] {
        let mut bench = Bench::new();
        bench.program(0, mode, 1000);
        assert_eq!((bench.run(100_000), bench.ports.next_deadline()), (1, None), "mode {mode}");
    }
}

#[test]
fn a_control_word_stops_counter_0() {
    let mut bench = Bench::new();
    bench.program(0, 2, 1193);
    bench.write(3, 0x30);
    assert_eq!(bench.ports.next_deadline(), None);
}

#[test]
fn missed_interrupts_are_one() {
    let mut bench = Bench::new();
    bench.program(0, 2, 1193);
    bench.ticks(100_000);
    let now = bench.clock.now_ns();
    bench.ports.advance(now);
    bench.ports.advance(now);
    assert_eq!(bench.edges.0.load(Ordering::SeqCst), 1);
}

#[test]
fn a_hostile_rate_is_braked() {
    let mut bench = Bench::new();
    bench.program(0, 2, 1);
    assert!(bench.run(FREQUENCY_HZ / 100) <= 201);
}

#[test]
fn port_0x61_reads_back_gate_and_speaker_and_toggles_refresh() {
    let mut bench = Bench::new();
    bench.set_port_b(0xff);
    assert_eq!(bench.port_b() & 0xdf, 0x03);
    bench.clock.advance(REFRESH_TOGGLE_NS);
    assert_eq!(bench.port_b() & 0xdf, 0x13);
}

#[test]
fn the_control_port_reads_as_ones() {
    assert_eq!(Bench::new().read(3), 0xff);
}

#[test]
fn linux_calibration_sees_50_ms_pass() {
    let mut bench = Bench::new();
    bench.set_port_b(1);
    bench.program(2, 0, 59_659); // CLOCK_TICK_RATE / 20.
    let mut ms = 0;
    while !bench.out2() {
        bench.clock.advance(1_000_000);
        ms += 1;
    }
    assert_eq!(ms, 51);
}

#[test]
fn the_end_of_time_does_not_overflow() {
    let mut bench = Bench::new();
    bench.program(0, 2, 1193);
    bench.clock.advance(u64::MAX);
    bench.word(0);
    bench.ports.advance(u64::MAX);
    bench.write(3, 0xde);
    bench.program(0, 0, 5);
}
