//! A driver's queues with a real host's side behind them.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ::vsock::packet::op;
use ::vsock::{Heartbeat, Options, PARENT_CID, Surroundings};
use bus::{MmioDevice, MonotonicClock, PowerControl};
use event_loop::EventLoop;
use tempfile::TempDir;

use super::*;
use crate::features;
use crate::testing::{AVAILABLE, DESCRIPTORS, Driver, USED};

const GUEST: u32 = 16;
/// The transmit queue's rings and its one buffer, behind those of queue 0.
const TX_DESCRIPTORS: u64 = 0x4000;
const TX_AVAILABLE: u64 = 0x5000;
const TX_USED: u64 = 0x6000;
const TX_BUFFER: u64 = 0x8000;

struct Bench {
    driver: Driver,
    sent: u16,
    directory: TempDir,
    _events: EventLoop,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(MonotonicClock::start());
        let events = EventLoop::start(clock.clone()).unwrap();
        let options = Options {
            uds_path: Some(directory.path().join("v.sock")),
            heartbeat: Some(Heartbeat::default()),
            ..Options::new(GUEST, PARENT_CID)
        };
        let surroundings = Surroundings { events: events.handle(), clock, power: PowerControl::new() };
        let host = Host::start(&options, surroundings).unwrap();
        let handle = events.handle();
        let device = VsockDevice::new(GUEST, host, Box::new(move |task| handle.run_soon(task)));
        let mut this = Self { driver: Driver::new(Box::new(device)), sent: 0, directory, _events: events };
        this.start();
        this
    }

    fn start(&mut self) {
        let driver = &mut self.driver;
        assert_eq!(driver.negotiate(features::VERSION_1 | F_STREAM), 11);
        driver.set_queue(DESCRIPTORS, AVAILABLE, USED, 256);
        driver.write(0x30, TRANSMIT.into());
        driver.write(0x38, 4);
        for (register, address) in [(0x80, TX_DESCRIPTORS), (0x90, TX_AVAILABLE), (0xa0, TX_USED)] {
            driver.write(register, address as u32);
            driver.write(register + 4, 0);
        }
        driver.write(0x44, 1);
        driver.write(0x70, 15);
    }

    /// Sends what the guest's kernel would: one chain of `bytes`.
    fn send(&mut self, bytes: &[u8]) {
        for (at, byte) in (TX_BUFFER..).zip(bytes) {
            self.driver.poke(at, [*byte]);
        }
        self.driver.descriptor(TX_DESCRIPTORS, 0, TX_BUFFER, bytes.len() as u32, 0, 0);
        self.driver.poke(TX_AVAILABLE + 4 + 2 * u64::from(self.sent % 4), [0, 0]);
        self.sent += 1;
        self.driver.poke(TX_AVAILABLE + 2, self.sent.to_le_bytes());
        self.driver.write(0x50, TRANSMIT.into());
        let sent = self.sent;
        self.wait(|driver| driver.peek_u16(TX_USED + 2) == sent);
    }

    fn wait(&mut self, done: impl Fn(&mut Driver) -> bool) {
        let start = Instant::now();
        while !done(&mut self.driver) {
            assert!(start.elapsed() < Duration::from_secs(20), "the device did nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Gives a buffer of `size` bytes and waits until it comes back; what is in it.
    fn receive(&mut self, size: u32) -> Vec<u8> {
        let before = self.driver.peek_u16(USED + 2);
        let head = self.driver.writable(&[size]);
        self.driver.kick();
        self.wait(|driver| driver.peek_u16(USED + 2) != before);
        let used = self.driver.take_used();
        let (_, len) = *used.last().unwrap();
        let bytes = self.driver.memory_at(head, 0, len as usize);
        self.driver.free_all();
        bytes
    }

    fn packet(op: u16, dst_port: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let header = Header {
            src_cid: GUEST.into(),
            dst_cid: PARENT_CID,
            src_port: 1234,
            dst_port,
            len: payload.len() as u32,
            kind: 1,
            op,
            buf_alloc: 65536,
            ..Header::default()
        };
        header.write_to(&mut bytes);
        bytes.extend(payload);
        bytes
    }
}

#[test]
fn the_guest_finds_its_cid_and_no_more() {
    let mut bench = Bench::new();
    let mut config = [0xff; 12];
    bench.driver.transport().read(0x100, &mut config).unwrap();
    assert_eq!(config, [16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bench.driver.read(0x008), DEVICE_ID);
}

#[test]
fn a_heartbeat_goes_through_the_queues_and_back() {
    let mut bench = Bench::new();
    bench.send(&Bench::packet(op::REQUEST, 9000, b""));
    let response = Header::parse(&bench.receive(4096)).unwrap();
    assert_eq!((response.op, response.src_cid, response.dst_port), (op::RESPONSE, PARENT_CID, 1234));
    bench.send(&Bench::packet(op::RW, 9000, &[0xb7]));
    let answer = bench.receive(4096);
    assert_eq!((Header::parse(&answer).unwrap().op, &answer[HEADER_LEN..]), (op::RW, &[0xb7][..]));
    bench.wait(|driver| driver.interrupted());
}

#[test]
fn a_client_of_the_hosts_reaches_a_driver_that_gave_buffers_later() {
    let mut bench = Bench::new();
    let mut client = UnixStream::connect(bench.directory.path().join("v.sock")).unwrap();
    client.write_all(b"CONNECT 5000\n").unwrap();
    let request = Header::parse(&bench.receive(4096)).unwrap();
    assert_eq!((request.op, request.dst_cid, request.dst_port), (op::REQUEST, GUEST.into(), 5000));
}

#[test]
fn a_buffer_too_small_for_data_comes_back_empty_and_the_packet_waits() {
    let mut bench = Bench::new();
    bench.send(&Bench::packet(op::REQUEST, 9000, b""));
    assert_eq!(bench.receive(HEADER_LEN as u32), b"");
    assert_eq!(Header::parse(&bench.receive(4096)).unwrap().op, op::RESPONSE);
}

#[test]
fn what_is_no_packet_is_taken_and_forgotten() {
    let mut bench = Bench::new();
    for len in [0, 1, HEADER_LEN - 1] {
        bench.send(&vec![0xff; len]);
    }
    bench.send(&Bench::packet(op::REQUEST, 9000, b""));
    assert_eq!(Header::parse(&bench.receive(4096)).unwrap().op, op::RESPONSE);
}

#[test]
fn queues_that_lie_break_this_device_until_it_is_reset() {
    let mut bench = Bench::new();
    bench.driver.poke(TX_AVAILABLE + 2, 1000u16.to_le_bytes());
    bench.driver.write(0x50, TRANSMIT.into());
    bench.wait(Driver::needs_reset);
    bench.driver.poke(TX_AVAILABLE + 2, [0, 0]);
    bench.driver.poke(TX_USED + 2, [0, 0]);
    bench.start();
    bench.send(&Bench::packet(op::REQUEST, 9000, b""));
    assert_eq!(bench.driver.peek_u16(TX_USED + 2), 1);
}
