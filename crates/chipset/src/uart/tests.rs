//! The UART, driven through its ports.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bus::{IrqTarget, ManualClock};

use super::*;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[derive(Default)]
struct Wire(AtomicBool);

impl IrqTarget for Wire {
    fn set_irq(&self, _pin: u32, level: bool) {
        self.0.store(level, Ordering::SeqCst);
    }
}

struct Bench {
    uart: Uart,
    wire: Arc<Wire>,
    sink: Sink,
    clock: ManualClock,
}

impl Bench {
    fn new() -> Self {
        let (wire, sink, clock) = (Arc::new(Wire::default()), Sink::default(), ManualClock::default());
        let uart = Uart::new(IrqLine::new(wire.clone(), 4), Arc::new(clock.clone()), Box::new(sink.clone()));
        Self { uart, wire, sink, clock }
    }

    fn with_fifo(trigger: u8) -> Self {
        let mut bench = Self::new();
        bench.write(2, trigger << 6 | 1);
        bench
    }

    fn write(&mut self, port: u16, value: u8) {
        self.uart.write(port, &[value]).unwrap();
    }

    fn read(&mut self, port: u16) -> u8 {
        let mut data = [0];
        self.uart.read(port, &mut data).unwrap();
        data[0]
    }

    fn irq(&self) -> bool {
        self.wire.0.load(Ordering::SeqCst)
    }

    fn output(&self) -> Vec<u8> {
        self.sink.0.lock().unwrap().clone()
    }
}

#[test]
fn registers_after_reset() {
    let mut bench = Bench::new();
    let registers: Vec<u8> = (1..8).map(|port| bench.read(port)).collect();
    assert_eq!(registers, [0, 0x01, 3, 0, 0x60, 0xb0, 0]);
}

#[test]
fn a_line_of_output_leaves_at_its_newline() {
    let mut bench = Bench::new();
    for &byte in b"hello" {
        bench.write(0, byte);
    }
    assert_eq!(bench.output(), b"");
    bench.write(0, b'\n');
    assert_eq!(bench.output(), b"hello\n");
}

#[test]
fn a_prompt_leaves_after_a_short_while() {
    let mut bench = Bench::new();
    bench.write(0, b'#');
    let deadline = bench.uart.next_deadline().unwrap();
    bench.clock.advance(deadline);
    bench.uart.advance(deadline);
    assert_eq!((bench.output(), bench.uart.next_deadline()), (b"#".to_vec(), None));
}

#[test]
fn output_leaves_when_the_machine_ends() {
    let mut bench = Bench::new();
    bench.write(0, b'x');
    let sink = bench.sink.clone();
    drop(bench);
    assert_eq!(*sink.0.lock().unwrap(), b"x");
}

#[test]
fn endless_output_without_newlines_does_not_gather_forever() {
    let mut bench = Bench::new();
    for _ in 0..3000 {
        bench.write(0, b'x');
    }
    assert_eq!(bench.output().len(), 2048);
}

#[test]
fn enabling_thre_raises_it_and_reading_iir_clears_it() {
    let mut bench = Bench::new();
    bench.write(1, 2);
    assert!(bench.irq());
    assert_eq!(bench.read(2), 2);
    assert!(!bench.irq());
    assert_eq!(bench.read(2), 1);
}

#[test]
fn thre_rises_again_when_it_is_disabled_and_enabled() {
    let mut bench = Bench::new();
    bench.write(1, 2);
    bench.read(2);
    bench.write(1, 2);
    assert!(!bench.irq(), "the same value again enables nothing");
    bench.write(1, 0);
    bench.write(1, 2);
    assert!(bench.irq());
}

#[test]
fn each_transmission_raises_thre() {
    let mut bench = Bench::new();
    bench.write(1, 2);
    bench.read(2);
    bench.write(0, b'a');
    assert!(bench.irq());
    assert_eq!(bench.read(2), 2);
    assert!(!bench.irq());
}

#[test]
fn reading_iir_for_something_more_urgent_leaves_thre_pending() {
    let mut bench = Bench::new();
    bench.write(1, 3);
    bench.uart.push_input(b"a");
    assert_eq!(bench.read(2), 4);
    assert_eq!(bench.read(0), b'a');
    assert_eq!(bench.read(2), 2);
}

#[test]
fn interrupts_are_told_in_the_order_of_their_priority() {
    let mut bench = Bench::new();
    bench.write(1, 0xf);
    bench.write(4, 0x10); // Modem lines change.
    bench.write(4, 0);
    bench.uart.push_break();
    assert_eq!(bench.read(2), 6);
    bench.read(5);
    assert_eq!(bench.read(2), 4);
    bench.read(0);
    assert_eq!(bench.read(2), 2);
    assert_eq!(bench.read(2), 0);
    bench.read(6);
    assert_eq!(bench.read(2), 1);
    assert!(!bench.irq());
}

#[test]
fn received_bytes_interrupt_at_the_trigger_level_and_time_out_below() {
    let mut bench = Bench::with_fifo(1);
    bench.write(1, 1);
    assert_eq!(bench.uart.push_input(b"abc"), 3);
    assert_eq!(bench.read(2), 0xcc);
    bench.uart.push_input(b"d");
    assert_eq!(bench.read(2), 0xc4);
    assert_eq!(bench.read(5), 0x61);
    let bytes: Vec<u8> = (0..4).map(|_| bench.read(0)).collect();
    assert_eq!((bytes.as_slice(), bench.irq(), bench.read(5)), (b"abcd".as_slice(), false, 0x60));
}

#[test]
fn input_beyond_the_fifo_stays_with_its_sender_who_hears_of_room() {
    let mut bench = Bench::with_fifo(0);
    let calls = Arc::new(AtomicU32::new(0));
    let counter = calls.clone();
    bench.uart.on_room(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    assert_eq!(bench.uart.push_input(&[b'x'; 20]), 16);
    assert_eq!(bench.uart.push_input(b"x"), 0);
    bench.read(0);
    bench.read(0);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(bench.uart.push_input(b"xx"), 2);
    bench.read(0);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[test]
fn without_the_fifo_there_is_room_for_one_byte() {
    let mut bench = Bench::new();
    assert_eq!(bench.uart.push_input(b"ab"), 1);
}

#[test]
fn clearing_or_switching_the_fifo_drops_what_it_holds() {
    for fcr in [0x03, 0x00] {
        let mut bench = Bench::with_fifo(0);
        bench.uart.push_input(b"abc");
        bench.write(2, fcr);
        assert_eq!(bench.read(5), 0x60, "{fcr:#x}");
    }
}

#[test]
fn the_fifo_shows_in_iir() {
    let mut bench = Bench::with_fifo(0);
    assert_eq!(bench.read(2), 0xc1);
    bench.write(2, 0);
    assert_eq!(bench.read(2), 0x01);
}

#[test]
fn the_divisor_hides_behind_dlab() {
    let mut bench = Bench::new();
    bench.write(3, 0x83);
    bench.write(0, 0x34);
    bench.write(1, 0x12);
    assert_eq!((bench.read(0), bench.read(1)), (0x34, 0x12));
    bench.write(3, 0x03);
    assert_eq!((bench.read(1), bench.output()), (0, vec![]));
}

#[test]
fn loopback_returns_bytes_and_modem_lines() {
    let mut bench = Bench::new();
    bench.write(4, 0x1a); // What Linux's autoconfig writes: loop, OUT2, RTS.
    assert_eq!(bench.read(6) & 0xf0, 0x90);
    bench.write(0, 0x5a);
    assert_eq!(bench.read(0), 0x5a);
    assert_eq!(bench.uart.push_input(b"x"), 0);
    bench.uart.flush();
    assert_eq!(bench.output(), b"");
}

#[test]
fn loopback_overruns_are_told_once() {
    let mut bench = Bench::with_fifo(0);
    bench.write(4, 0x10);
    for byte in 0..17 {
        bench.write(0, byte);
    }
    assert_eq!((bench.read(5), bench.read(5)), (0x63, 0x61));
    assert_eq!(bench.read(0), 0);
}

#[test]
fn scratch_and_ier_keep_what_they_can() {
    let mut bench = Bench::new();
    bench.write(7, 0xa5);
    bench.write(1, 0xff);
    assert_eq!((bench.read(7), bench.read(1)), (0xa5, 0x0f));
}

#[test]
fn reset_lowers_the_line() {
    let mut bench = Bench::new();
    bench.write(1, 2);
    bench.uart.reset();
    assert!(!bench.irq());
}
