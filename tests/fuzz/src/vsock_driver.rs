//! A driver that lies to a socket device, whose queues are one to receive and one to transmit. Whatever it does, an honest driver that resets the device is
//! served afterwards.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use bus::{MonotonicClock, PowerControl};
use event_loop::EventLoop;
use virtio::vsock::VsockDevice;
use vsock::packet::{HEADER_LEN, Header, TYPE_STREAM, op};
use vsock::{HEARTBEAT_PORT, Heartbeat, Host, Options, PARENT_CID, Surroundings};

use crate::Target;
use crate::driver::{Driver, Queue, Step, memory_steps, program};

pub(crate) const TARGET: Target = Target { name: "vsock-driver", seeds, run, longest: 2048 };

const GUEST: u32 = 16;
const RECEIVE: Queue = Queue { size: 4, rings: [0x1000, 0x2000, 0x3000] };
const TRANSMIT: Queue = Queue { size: 4, rings: [0x4000, 0x5000, 0x6000] };
/// The honest driver's packet, and the buffer for the answer.
const PACKET: u16 = 0x7000;
const ANSWER: u16 = 0x8000;

type Task = Box<dyn FnOnce() + Send>;

struct Machine {
    driver: Driver,
    /// What the event loop would run.
    tasks: Receiver<Task>,
    _events: EventLoop,
}

impl Machine {
    fn new() -> Self {
        let clock = Arc::new(MonotonicClock::start());
        let events = EventLoop::start(clock.clone()).expect("an event loop");
        let options = Options { heartbeat: Some(Heartbeat::default()), ..Options::new(GUEST, PARENT_CID) };
        let surroundings = Surroundings { events: events.handle(), clock, power: PowerControl::new() };
        let host = Host::start(&options, surroundings).expect("a host without sockets");
        let (sender, tasks) = channel();
        let device = VsockDevice::new(GUEST, host, Box::new(move |task| sender.send(task).unwrap_or_default()));
        Self { driver: Driver::new(Box::new(device), &[RECEIVE, TRANSMIT]), tasks, _events: events }
    }

    fn step(&mut self, step: &Step<'_>) {
        self.driver.step(step);
        // A turn that leaves something to do asks for another: a few are enough for what fits into 64 KiB.
        for _ in 0..4 {
            let Ok(task) = self.tasks.try_recv() else { break };
            task();
        }
    }
}

/// What an honest driver writes into memory: a buffer to receive into, and a packet to send.
fn exchange(packet: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let descriptor = |address: u16, len: u32, flags: u16| {
        [&u64::from(address).to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &[0, 0]].concat()
    };
    let (receive, transmit) = (RECEIVE.rings, TRANSMIT.rings);
    vec![
        (receive[0], descriptor(ANSWER, 4096, 2)),
        (receive[1], vec![0, 0, 1, 0, 0, 0]),
        (transmit[0], descriptor(PACKET, packet.len() as u32, 0)),
        (transmit[1], vec![0, 0, 1, 0, 0, 0]),
        (PACKET, packet.to_vec()),
    ]
}

fn packet(op: u16, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        src_cid: GUEST.into(),
        dst_cid: PARENT_CID,
        src_port: 1024,
        dst_port: HEARTBEAT_PORT,
        len: payload.len() as u32,
        kind: TYPE_STREAM,
        op,
        buf_alloc: 1 << 16,
        ..Header::default()
    };
    let mut bytes = Vec::new();
    header.write_to(&mut bytes);
    bytes.extend(payload);
    bytes
}

thread_local! {
    static MACHINE: RefCell<Machine> = RefCell::new(Machine::new());
}

fn run(input: &[u8]) {
    MACHINE.with_borrow_mut(|machine| {
        machine.driver.power_cycle();
        machine.driver.clear_memory();
        program(input).for_each(|step| machine.step(&step));
        machine.driver.power_cycle();
        machine.driver.clear_memory();
        machine.driver.fill(exchange(&packet(op::REQUEST, b"")));
        machine.step(&Step::Start);
        machine.step(&Step::Notify(1));
        let mut answer = [0; HEADER_LEN];
        machine.driver.read(ANSWER, &mut answer);
        let answer = Header::parse(&answer).expect("a whole header");
        assert_eq!(answer.op, op::RESPONSE, "an honest driver is no longer answered");
    });
}

fn seeds() -> Vec<Vec<u8>> {
    let packets = [packet(op::REQUEST, b""), packet(op::RW, b"\xb7"), packet(9, b""), vec![0xff; 20]];
    let seed = |packet: &Vec<u8>| {
        let mut seed = memory_steps(exchange(packet));
        seed.extend([3, 4, 1, 4, 0]);
        seed
    };
    packets.iter().map(seed).collect()
}
