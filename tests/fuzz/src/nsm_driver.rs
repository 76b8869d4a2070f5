//! A driver that lies to a Nitro Secure Module. Whatever it does, the device answers or refuses, and registers that were locked at boot stay as they were.

use std::cell::RefCell;

use nsm::{ModuleId, Nsm, PcrBank};
use virtio::nsm::NsmDevice;

use crate::Target;
use crate::driver::{Driver, Queue, Step, memory_steps, program};

pub(crate) const TARGET: Target = Target { name: "nsm-driver", seeds, run, longest: 2048 };

const DESCRIPTORS: u16 = 0x1000;
const AVAILABLE: u16 = 0x2000;
const USED: u16 = 0x3000;
const REQUEST: u16 = 0x4000;
const ANSWER: u16 = 0x5000;
const QUEUES: &[Queue] = &[Queue { size: 2, rings: [DESCRIPTORS, AVAILABLE, USED] }];

fn machine() -> Driver {
    let module = Nsm::new(ModuleId::with_default_instance(1), PcrBank::debug_boot());
    Driver::new(Box::new(NsmDevice::new(module)), QUEUES)
}

thread_local! {
    static MACHINE: RefCell<Driver> = RefCell::new(machine());
}

fn run(input: &[u8]) {
    MACHINE.with_borrow_mut(|machine| {
        machine.power_cycle();
        machine.clear_memory();
        program(input).for_each(|step| machine.step(&step));
        assert_eq!(locked_register(machine), [0; 48], "PCR0 has changed");
    });
}

/// PCR0, as an honest driver reads it afterwards.
fn locked_register(machine: &mut Driver) -> [u8; 48] {
    const DESCRIBE: &[u8] = b"\xa1\x6bDescribePCR\xa1\x65index\x00";
    const ANSWER_HEAD: &[u8] = b"\xa1\x6bDescribePCR\xa2\x64lock\xf5\x64data\x58\x30";
    machine.clear_memory();
    machine.fill(exchange(DESCRIBE, true));
    machine.step(&Step::Start);
    machine.step(&Step::Notify(0));
    let mut answer = [0; ANSWER_HEAD.len() + 48];
    machine.read(ANSWER, &mut answer);
    let (head, value) = answer.split_at(ANSWER_HEAD.len());
    assert_eq!(head, ANSWER_HEAD, "an honest driver is no longer answered");
    value.try_into().expect("48 bytes are left")
}

/// What an honest driver writes into memory for a request: descriptors, the available ring, the request.
fn exchange(request: &[u8], one_chain: bool) -> [(u16, Vec<u8>); 3] {
    let descriptor = |address: u16, len: u32, flags: u16| {
        [&u64::from(address).to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &1u16.to_le_bytes()].concat()
    };
    let descriptors =
        [descriptor(REQUEST, request.len() as u32, u16::from(one_chain)), descriptor(ANSWER, 0x3000, 2)].concat();
    let heads = if one_chain { 1u8 } else { 2 };
    [(DESCRIPTORS, descriptors), (AVAILABLE, vec![0, 0, heads, 0, 0, 0, 1, 0]), (REQUEST, request.to_vec())]
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
        seed.extend(memory_steps(exchange(request, one_chain)));
        seed.extend([4, 0]);
        seeds.push(seed);
    }
    seeds
}
