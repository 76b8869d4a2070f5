//! A guest's driver that lies to a socket device: registers in any order, and receive and transmit queues of any contents. Whatever it does, an honest
//! driver that resets the device is served afterwards.
//!
//! The input is a program of [`Step`]s as for the Nitro Secure Module's driver.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use bus::{IrqLine, MmioDevice, MonotonicClock, PowerControl};
use event_loop::EventLoop;
use guest_memory::GuestMemory;
use virtio::MmioTransport;
use virtio::vsock::VsockDevice;
use vm_memory::{Bytes, GuestAddress};
use vsock::packet::{HEADER_LEN, Header, TYPE_STREAM, op};
use vsock::{HEARTBEAT_PORT, Heartbeat, Host, Options, PARENT_CID, Surroundings};

use crate::Target;
use crate::nsm_driver::Step;

pub(crate) const TARGET: Target = Target { name: "vsock-driver", seeds, run, longest: 2048 };

const GUEST: u32 = 16;
/// All of the guest's RAM, in bytes.
const RAM: usize = 1 << 16;
/// Where each queue's rings are: descriptors, the driver's, the device's.
const RINGS: [[u16; 3]; 2] = [[0x1000, 0x2000, 0x3000], [0x4000, 0x5000, 0x6000]];
/// The honest driver's packet, and the buffer for the answer.
const PACKET: u16 = 0x7000;
const ANSWER: u16 = 0x8000;
/// The most steps of one program, so that none takes long.
const MOST_STEPS: usize = 64;

type Task = Box<dyn FnOnce() + Send>;

struct Machine {
    transport: MmioTransport,
    memory: GuestMemory,
    /// What the event loop would run.
    tasks: Receiver<Task>,
    _events: EventLoop,
}

impl Machine {
    fn new() -> Self {
        let memory = guest_memory::allocate(&[(0, RAM)]).expect("64 KiB of memory");
        let clock = Arc::new(MonotonicClock::start());
        let events = EventLoop::start(clock.clone()).expect("an event loop");
        let options = Options { heartbeat: Some(Heartbeat::default()), ..Options::new(GUEST, PARENT_CID) };
        let surroundings = Surroundings { events: events.handle(), clock, power: PowerControl::new() };
        let host = Host::start(&options, surroundings).expect("a host without sockets");
        let (sender, tasks) = channel();
        let device = VsockDevice::new(GUEST, host, Box::new(move |task| sender.send(task).unwrap_or_default()));
        let transport = MmioTransport::new(Box::new(device), memory.clone(), IrqLine::detached());
        Self { transport, memory, tasks, _events: events }
    }

    fn write(&mut self, register: u64, value: u32) {
        // A refusal is an answer.
        let _ = self.transport.write(register, &value.to_le_bytes());
    }

    fn step(&mut self, step: &Step<'_>) {
        match step {
            Step::Write(register, value) => self.write(*register, u32::from_le_bytes(*value)),
            Step::Read(register) => {
                let _ = self.transport.read(*register, &mut [0; 4]);
            }
            Step::Memory(address, bytes) => {
                // What lies behind the end of RAM is dropped.
                let _ = self.memory.write(bytes, GuestAddress((*address).into()));
            }
            Step::Start => self.start(),
            Step::Notify(queue) => self.write(0x50, (*queue).into()),
        }
        // A turn that leaves something to do asks for another: a few are enough for what fits into 64 KiB.
        for _ in 0..4 {
            let Ok(task) = self.tasks.try_recv() else { break };
            task();
        }
    }

    fn start(&mut self) {
        for (register, value) in [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)] {
            self.write(register, value);
        }
        for (queue, rings) in (0..).zip(RINGS) {
            self.write(0x30, queue);
            self.write(0x38, 4);
            for (register, address) in [0x80, 0x90, 0xa0].into_iter().zip(rings) {
                self.write(register, address.into());
                self.write(register + 4, 0);
            }
            self.write(0x44, 1);
        }
        self.write(0x70, 15);
    }
}

/// What an honest driver writes into memory: a buffer to receive into, and a packet to send.
fn exchange(packet: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let descriptor = |address: u16, len: u32, flags: u16| {
        [&u64::from(address).to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &[0, 0]].concat()
    };
    let [receive, transmit] = RINGS;
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

fn clear(memory: &GuestMemory) {
    memory.write_slice(&[0; RAM], GuestAddress(0)).expect("all of it is RAM");
}

fn run(mut input: &[u8]) {
    MACHINE.with_borrow_mut(|machine| {
        machine.transport.power_cycle();
        clear(&machine.memory);
        for _ in 0..MOST_STEPS {
            let Some(step) = Step::take(&mut input) else { break };
            machine.step(&step);
        }
        machine.transport.power_cycle();
        clear(&machine.memory);
        for (address, bytes) in exchange(&packet(op::REQUEST, b"")) {
            machine.memory.write_slice(&bytes, GuestAddress(address.into())).expect("it is in RAM");
        }
        machine.step(&Step::Start);
        machine.step(&Step::Notify(1));
        let mut answer = [0; HEADER_LEN];
        machine.memory.read_slice(&mut answer, GuestAddress(ANSWER.into())).expect("it is in RAM");
        let answer = Header::parse(&answer).expect("a whole header");
        assert_eq!(answer.op, op::RESPONSE, "an honest driver is no longer answered");
    });
}

fn seeds() -> Vec<Vec<u8>> {
    let packets = [packet(op::REQUEST, b""), packet(op::RW, b"\xb7"), packet(9, b""), vec![0xff; 20]];
    let seed = |packet: &Vec<u8>| {
        let mut seed = Vec::new();
        for (address, bytes) in exchange(packet) {
            seed.push(2);
            seed.extend(address.to_le_bytes());
            seed.push(bytes.len() as u8);
            seed.extend(bytes);
        }
        seed.extend([3, 4, 1, 4, 0]);
        seed
    };
    packets.iter().map(seed).collect()
}
