//! A guest's driver that lies: registers of a virtio-mmio transport in any order, and virtqueues of any contents. What device is behind the transport, and what
//! must hold afterwards, is each target's.
//!
//! The input is a program of steps, each an operation byte with its operands; see [`Step`].

use bus::{IrqLine, MmioDevice};
use guest_memory::GuestMemory;
use virtio::{MMIO_SIZE, MmioTransport, VirtioDevice};
use vm_memory::{Bytes, GuestAddress};

/// All of the guest's RAM, in bytes.
const RAM: usize = 1 << 16;
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

/// A queue as an honest driver sets it up.
pub(crate) struct Queue {
    /// Number of descriptors.
    pub(crate) size: u32,
    /// Where its descriptors, the driver's ring and the device's ring are.
    pub(crate) rings: [u16; 3],
}

/// A device behind its transport, in a guest of 64 KiB.
pub(crate) struct Driver {
    transport: MmioTransport,
    memory: GuestMemory,
    queues: &'static [Queue],
}

impl Driver {
    pub(crate) fn new(device: Box<dyn VirtioDevice>, queues: &'static [Queue]) -> Self {
        let memory = guest_memory::allocate(&[(0, RAM)]).expect("64 KiB of memory");
        let transport = MmioTransport::new(device, memory.clone(), IrqLine::detached());
        Self { transport, memory, queues }
    }

    /// Resets the device, as power-on does.
    pub(crate) fn power_cycle(&mut self) {
        self.transport.power_cycle();
    }

    /// Zeroes the guest's memory.
    pub(crate) fn clear_memory(&self) {
        self.memory.write_slice(&[0; RAM], GuestAddress(0)).expect("all of it is RAM");
    }

    /// Writes what an honest driver does, each to its address.
    pub(crate) fn fill(&self, contents: impl IntoIterator<Item = (u16, Vec<u8>)>) {
        for (address, bytes) in contents {
            self.memory.write_slice(&bytes, GuestAddress(address.into())).expect("it is in RAM");
        }
    }

    pub(crate) fn read(&self, address: u16, bytes: &mut [u8]) {
        self.memory.read_slice(bytes, GuestAddress(address.into())).expect("it is in RAM");
    }

    pub(crate) fn step(&mut self, step: &Step<'_>) {
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
    }

    fn write(&mut self, register: u64, value: u32) {
        // A refusal is an answer.
        let _ = self.transport.write(register, &value.to_le_bytes());
    }

    fn start(&mut self) {
        for (register, value) in [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)] {
            self.write(register, value);
        }
        for (index, queue) in (0..).zip(self.queues) {
            self.write(0x30, index);
            self.write(0x38, queue.size);
            for (register, address) in [0x80, 0x90, 0xa0].into_iter().zip(queue.rings) {
                self.write(register, address.into());
                self.write(register + 4, 0);
            }
            self.write(0x44, 1);
        }
        self.write(0x70, 15);
    }
}

/// The steps of `input`, as far as a program may go.
pub(crate) fn program(mut input: &[u8]) -> impl Iterator<Item = Step<'_>> {
    std::iter::from_fn(move || Step::take(&mut input)).take(MOST_STEPS)
}

/// The input whose steps write `contents`.
pub(crate) fn memory_steps(contents: impl IntoIterator<Item = (u16, Vec<u8>)>) -> Vec<u8> {
    let step =
        |(address, bytes): (u16, Vec<u8>)| [&[2][..], &address.to_le_bytes(), &[bytes.len() as u8], &bytes].concat();
    contents.into_iter().flat_map(step).collect()
}
