//! A guest's driver that lies: registers of a virtio-mmio transport in any order, and a virtqueue of any contents, before a Nitro Secure Module. Whatever it
//! does, the device answers or refuses, and registers that were locked at boot stay as they were.
//!
//! The input is a program of steps, each an operation byte with its operands; see [`Step`].

use std::cell::RefCell;

use bus::{IrqLine, MmioDevice};
use guest_memory::GuestMemory;
use nsm::{ModuleId, Nsm, PcrBank};
use virtio::nsm::NsmDevice;
use virtio::{MMIO_SIZE, MmioTransport};
use vm_memory::{Bytes, GuestAddress};

use crate::Target;

pub(crate) const TARGET: Target = Target { name: "nsm-driver", seeds, run, longest: 2048 };

/// All of the guest's RAM, in bytes.
const RAM: usize = 1 << 16;
/// Where [`Step::Start`] puts the queue.
const DESCRIPTORS: u16 = 0x1000;
const AVAILABLE: u16 = 0x2000;
const USED: u16 = 0x3000;
/// The most steps of one program, so that none takes long.
const MOST_STEPS: usize = 64;

/// What a driver does next.
pub(crate) enum Step<'a> {
    /// 0, word index, four bytes: writes a register.
    Write(u64, [u8; 4]),
    /// 1, word index: reads a register.
    Read(u64),
    /// 2, address (two bytes), length, bytes: writes guest memory.
    Memory(u16, &'a [u8]),
    /// 3: the initialization of an honest driver.
    Start,
    /// 4, queue: rings the doorbell.
    Notify(u8),
}

impl<'a> Step<'a> {
    /// Takes a step off the input; `None` at its end.
    pub(crate) fn take(input: &mut &'a [u8]) -> Option<Self> {
        let bytes = |input: &mut &'a [u8], count: usize| {
            let (bytes, rest) = input.split_at_checked(count)?;
            *input = rest;
            Some(bytes)
        };
        let register = |bytes: &[u8]| u64::from(bytes[0]) * 4 % MMIO_SIZE;
        Some(match bytes(input, 1)?[0] % 5 {
            0 => {
                let register = register(bytes(input, 1)?);
                Self::Write(register, bytes(input, 4)?.try_into().ok()?)
            }
            1 => Self::Read(register(bytes(input, 1)?)),
            2 => {
                let head = bytes(input, 3)?;
                let data = bytes(input, usize::from(head[2]).min(input.len()))?;
                Self::Memory(u16::from_le_bytes([head[0], head[1]]), data)
            }
            3 => Self::Start,
            _ => Self::Notify(bytes(input, 1)?[0]),
        })
    }
}

struct Machine {
    transport: MmioTransport,
    memory: GuestMemory,
}

impl Machine {
    fn new() -> Self {
        let memory = guest_memory::allocate(&[(0, RAM)]).expect("64 KiB of memory");
        let module = Nsm::new(ModuleId::with_default_instance(1), PcrBank::debug_boot());
        let transport = MmioTransport::new(Box::new(NsmDevice::new(module)), memory.clone(), IrqLine::detached());
        Self { transport, memory }
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
            Step::Start => {
                for (register, value) in [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x38, 2)]
                {
                    self.write(register, value);
                }
                for (register, address) in [(0x80, DESCRIPTORS), (0x90, AVAILABLE), (0xa0, USED)] {
                    self.write(register, address.into());
                    self.write(register + 4, 0);
                }
                self.write(0x44, 1);
                self.write(0x70, 15);
            }
            Step::Notify(queue) => self.write(0x50, (*queue).into()),
        }
    }
}

thread_local! {
    static MACHINE: RefCell<Machine> = RefCell::new(Machine::new());
}

fn run(mut input: &[u8]) {
    MACHINE.with_borrow_mut(|machine| {
        machine.transport.power_cycle();
        machine.memory.write_slice(&[0; RAM], GuestAddress(0)).expect("all of it is RAM");
        for _ in 0..MOST_STEPS {
            let Some(step) = Step::take(&mut input) else { break };
            machine.step(&step);
        }
        assert_eq!(locked_register(machine), [0; 48], "PCR0 has changed");
    });
}

/// PCR0, as an honest driver reads it afterwards.
fn locked_register(machine: &mut Machine) -> [u8; 48] {
    const REQUEST: &[u8] = b"\xa1\x6bDescribePCR\xa1\x65index\x00";
    const ANSWER_HEAD: &[u8] = b"\xa1\x6bDescribePCR\xa2\x64lock\xf5\x64data\x58\x30";
    machine.memory.write_slice(&[0; RAM], GuestAddress(0)).expect("all of it is RAM");
    for (address, bytes) in exchange(REQUEST, true) {
        machine.memory.write_slice(&bytes, GuestAddress(address.into())).expect("it is in RAM");
    }
    machine.step(&Step::Start);
    machine.step(&Step::Notify(0));
    let mut answer = [0; ANSWER_HEAD.len() + 48];
    machine.memory.read_slice(&mut answer, GuestAddress(0x5000)).expect("it is in RAM");
    let (head, value) = answer.split_at(ANSWER_HEAD.len());
    assert_eq!(head, ANSWER_HEAD, "an honest driver is no longer answered");
    value.try_into().expect("48 bytes are left")
}

/// What an honest driver writes into memory for a request: descriptors, the available ring, the request.
fn exchange(request: &[u8], one_chain: bool) -> [(u16, Vec<u8>); 3] {
    let descriptor = |address: u64, len: u32, flags: u16| {
        [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &1u16.to_le_bytes()].concat()
    };
    let descriptors =
        [descriptor(0x4000, request.len() as u32, u16::from(one_chain)), descriptor(0x5000, 0x3000, 2)].concat();
    let heads = if one_chain { 1u8 } else { 2 };
    [(DESCRIPTORS, descriptors), (AVAILABLE, vec![0, 0, heads, 0, 0, 0, 1, 0]), (0x4000, request.to_vec())]
}

fn seeds() -> Vec<Vec<u8>> {
    let requests = [
        &b"\x6bDescribeNSM"[..],
        b"\xa1\x67LockPCR\xa1\x65index\x10",
        b"\xa1\x69ExtendPCR\xa2\x65index\x00\x64data\x43abc",
    ];
    let mut seeds = vec![vec![1, 0, 1, 1, 1, 2, 0, 28, 0, 0, 0, 0]];
    for (request, one_chain) in requests.into_iter().zip([true, false, true]) {
        let mut seed = vec![3];
        for (address, bytes) in exchange(request, one_chain) {
            seed.push(2);
            seed.extend(address.to_le_bytes());
            seed.push(bytes.len() as u8);
            seed.extend(bytes);
        }
        seed.extend([4, 0]);
        seeds.push(seed);
    }
    seeds
}
