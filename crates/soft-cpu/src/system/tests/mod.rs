//! Small programs in a machine with descriptor tables: every gate of its IDT leads to a HLT of its own.

mod events;
mod modes;
mod privilege;
mod registers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::{Bytes, GuestAddress};
use x86::cpuid::CpuidResult;
use x86::{DescriptorTable, Segment};

use crate::platform::{GeneralProtection, Platform};
use crate::run::{Cpu, Exit};
use crate::smp::attention;
use crate::testing::{CODE, long_mode};

const GDT: u64 = 0x3000;
const TSS: u64 = 0x4000;
const IDT: u64 = 0x5000;
/// Where the handler of vector 0 is; each has 16 bytes.
const HANDLERS: u64 = 0x11_0000;
const RSP0: u64 = 0x2_0000;
const IST1: u64 = 0x3_0000;
const USER_STACK: u64 = 0x4_0000;
/// Not mapped.
const NOWHERE: u64 = 0x4000_0000;

const CS32: u16 = 0x08;
const CS64: u16 = 0x10;
const SS: u16 = 0x18;
const USER_CS32: u16 = 0x23;
const USER_SS: u16 = 0x2b;
const USER_CS64: u16 = 0x33;
const TR: u16 = 0x38;

const DESCRIPTORS: [u64; 9] = [
    0,
    0x00cf_9b00_0000_ffff,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x0000_8900_4000_0067,
    0,
];

fn put<T: vm_memory::ByteValued>(cpu: &Cpu, address: u64, value: T) {
    cpu.core.ram.memory().write_obj(value, GuestAddress(address)).unwrap();
}

fn get<T: vm_memory::ByteValued>(cpu: &Cpu, address: u64) -> T {
    cpu.core.ram.memory().read_obj(GuestAddress(address)).unwrap()
}

fn put_code(cpu: &Cpu, address: u64, code: &[u8]) {
    cpu.core.ram.memory().write_slice(code, GuestAddress(address)).unwrap();
}

/// A 64-bit gate: `kind` is 14 or 15.
fn put_gate(cpu: &Cpu, vector: u8, target: u64, kind: u64, dpl: u64, ist: u64) {
    let at = IDT + u64::from(vector) * 16;
    let low = (target & 0xffff)
        | u64::from(CS64) << 16
        | ist << 32
        | (0x80 | dpl << 5 | kind) << 40
        | (target & 0xffff_0000) << 32;
    put(cpu, at, low);
    put(cpu, at + 8, target >> 32);
}

fn handler(vector: u8) -> u64 {
    HANDLERS + u64::from(vector) * 16
}

/// 64-bit code at [`CODE`] at CPL 0, all of the first GiB mapped for everybody.
fn machine(code: &[u8]) -> Cpu {
    let mut cpu = long_mode(code);
    put(&cpu, 0x1000, 0x2007u64);
    put(&cpu, 0x2000, 0x87u64);
    for (n, descriptor) in DESCRIPTORS.into_iter().enumerate() {
        put(&cpu, GDT + n as u64 * 8, descriptor);
    }
    put(&cpu, TSS + 4, RSP0);
    put(&cpu, TSS + 36, IST1);
    // The port permission bitmap begins past the limit: no ports.
    put(&cpu, TSS + 102, 0x68u16);
    for vector in 0..=255 {
        put_gate(&cpu, vector, handler(vector), 14, 0, 0);
        put_code(&cpu, handler(vector), &[0xf4]);
    }
    let core = &mut cpu.core;
    core.gdtr = DescriptorTable { base: GDT, limit: 0x47 };
    core.idtr = DescriptorTable { base: IDT, limit: 0xfff };
    core.tr = Segment { selector: TR, base: TSS, limit: 0x67, attributes: 0x8b };
    core.msrs.star = u64::from(CS64) << 32 | u64::from(USER_CS32) << 48;
    core.msrs.lstar = handler(200);
    cpu
}

/// The same, at CPL 3 with its own stack.
fn user_machine(code: &[u8]) -> Cpu {
    let mut cpu = machine(code);
    let core = &mut cpu.core;
    core.segments[1] = Segment::from_descriptor(USER_CS64, DESCRIPTORS[6]);
    core.segments[2] = Segment::from_descriptor(USER_SS, DESCRIPTORS[5]);
    core.cpl = 3;
    core.gpr[4] = USER_STACK;
    core.update_mode();
    cpu
}

/// Runs to a HLT.
fn run(cpu: &mut Cpu) {
    assert_eq!(cpu.run(10_000), Exit::Halted, "rip {:#x}", cpu.core.rip);
}

/// Runs to the HLT of a handler and says whose it is.
fn vector(cpu: &mut Cpu) -> u8 {
    run(cpu);
    let offset = cpu.core.rip.wrapping_sub(HANDLERS);
    assert!(offset < 256 * 16, "halted at {:#x}, which is no handler", cpu.core.rip);
    (offset / 16) as u8
}

/// Vector, error code and RIP of the exception that the program runs into.
fn exception(cpu: &mut Cpu) -> (u8, u64, u64) {
    let vector = vector(cpu);
    let rsp = cpu.core.gpr[4];
    let with_code = x86::exception::has_error_code(vector);
    let code = if with_code { get(cpu, rsp) } else { 0u64 };
    (vector, code, get(cpu, rsp + if with_code { 8 } else { 0 }))
}

/// Word `n` of the stack.
fn stack(cpu: &Cpu, n: u64) -> u64 {
    get(cpu, cpu.core.gpr[4] + n * 8)
}

/// A world with one interrupt line, a CR8, a TSC and an answer to hypercall 7.
#[derive(Clone, Default)]
struct World {
    interrupt: Arc<AtomicU8>,
    cr8: u64,
    tsc: u64,
}

impl World {
    /// Puts it round `cpu`.
    fn around(cpu: &mut Cpu) -> Self {
        let world = Self::default();
        cpu.core.platform = Box::new(world.clone());
        world
    }

    fn interrupt(&self, cpu: &Cpu, vector: u8) {
        self.interrupt.store(vector, Ordering::SeqCst);
        cpu.core.link.group().notify(0, attention::INTERRUPT);
    }
}

impl Platform for World {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        data.fill(port as u8);
    }
    fn port_write(&mut self, _: u16, _: &[u8]) {}
    fn mmio_read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&mut self, _: u64, _: &[u8]) {}
    fn msr_read(&mut self, number: u32) -> Option<Result<u64, GeneralProtection>> {
        (number == 0x6e0).then_some(Err(GeneralProtection))
    }
    fn msr_write(&mut self, _: u32, _: u64) -> Option<Result<(), GeneralProtection>> {
        None
    }
    fn cr8(&mut self) -> u64 {
        self.cr8
    }
    fn set_cr8(&mut self, value: u64) {
        self.cr8 = value;
    }
    fn tsc(&mut self) -> u64 {
        self.tsc
    }
    fn set_tsc(&mut self, value: u64) {
        self.tsc = value;
    }
    fn cpuid(&mut self, leaf: u32, _: u32) -> CpuidResult {
        match leaf {
            // AuthenticAMD.
            0 => CpuidResult { eax: 0x16, ebx: 0x6874_7541, ecx: 0x444d_4163, edx: 0x6974_6e65 },
            0xd => CpuidResult { eax: 7, ..CpuidResult::default() },
            _ => CpuidResult::default(),
        }
    }
    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        Some(self.interrupt.swap(0, Ordering::SeqCst)).filter(|v| *v != 0)
    }
    fn pause(&mut self) {}
    fn hypercall(&mut self, number: u64, arguments: [u64; 4]) -> Option<u64> {
        (number == 7).then(|| arguments.iter().sum())
    }
}

#[test]
fn a_program_that_does_nothing_halts() {
    let mut cpu = machine(&[0xf4]);
    run(&mut cpu);
    assert_eq!(cpu.core.rip, CODE + 1);
}
