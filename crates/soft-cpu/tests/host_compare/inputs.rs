//! Registers and memory for an instruction: random, but such that its memory operands mostly hit what is mapped.

use iced_x86::{ConstantOffsets, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use soft_cpu::fpu::{FSW_B, FSW_ES, offset};
use x86::{XSAVE_SIZE, rflags};

use super::case::*;
use super::encode::Bytes;
use super::random::Random;

/// Memory that a batch of cases starts from.
pub(crate) fn memory(random: &mut Random) -> Box<Memory> {
    let mut memory = Box::new(Memory { writable: [0; MEMORY_SIZE], read_only: [0; 4096] });
    let Memory { writable, read_only } = &mut *memory;
    for area in [&mut writable[..], &mut read_only[..]] {
        for chunk in area.chunks_exact_mut(16) {
            let mut bytes = random.vector();
            match random.below(8) {
                0 => bytes[..10].copy_from_slice(&random.float80()),
                1 => bytes[..8].copy_from_slice(&(CODE + random.below(CODE_SIZE as u64)).to_le_bytes()),
                2 => bytes.fill(0),
                _ => {}
            }
            chunk.copy_from_slice(&bytes);
        }
    }
    memory
}

/// Where an instruction of `len` bytes lies: mostly somewhere in the code area, sometimes across its pages or at its end.
pub(crate) fn place(len: usize, random: &mut Random) -> u64 {
    let len = len as u64;
    let within = 1 + random.below(len.max(2) - 1);
    match random.below(24) {
        0 => CODE + 4096 - within,
        1 => CODE + CODE_SIZE as u64 - len,
        2 if random.one_in(4) => CODE + CODE_SIZE as u64 - within,
        _ => CODE + 32 + random.below(CODE_SIZE as u64 - 64),
    }
}

/// An address for a memory operand of `size` bytes.
fn target(size: usize, random: &mut Random) -> u64 {
    let size = size.max(1) as u64;
    let inside = DATA + 64 + random.below(DATA_SIZE as u64 - 256);
    match random.below(24) {
        0 => DATA + 4096 - random.below(size + 1),
        1 => READ_ONLY - random.below(size + 1),
        2 => READ_ONLY + 4096 - random.below(size + 1),
        3 => DATA - random.below(size + 1),
        4 => READ_ONLY + random.below(4096),
        5..=7 => inside,
        _ => inside & !63,
    }
}

/// A stack pointer.
fn stack_pointer(random: &mut Random) -> u64 {
    match random.below(24) {
        0 => STACK + random.below(24),
        1 => STACK + STACK_SIZE as u64 - random.below(24),
        2 => STACK + 4096 - random.below(16),
        3 => STACK + 256 + random.below(STACK_SIZE as u64 - 512),
        _ => STACK + 512 + (random.below(STACK_SIZE as u64 - 1024) & !7),
    }
}

fn fpu(random: &mut Random) -> [u8; XSAVE_SIZE] {
    let mut image = [0; XSAVE_SIZE];
    let mut fcw = soft_cpu::fpu::FCW_DEFAULT;
    if random.one_in(2) {
        // Precision and rounding.
        fcw = 0x0040 | random.bits() as u16 & 0x0f00 | 0x3f;
    }
    if random.one_in(4) {
        fcw &= !(random.bits() as u16 & 0x3f);
    }
    let mut fsw = random.bits() as u16 & 0x4700;
    if random.one_in(2) {
        fsw |= (random.below(8) as u16) << 11;
    }
    if random.one_in(4) {
        fsw |= random.bits() as u16 & 0x7f;
        if !random.one_in(8) {
            // Few cases with an exception that waits: the instruction would see nothing else.
            fsw &= fcw | !0x3f;
        }
    }
    if fsw & 0x3f & !fcw != 0 {
        fsw |= FSW_ES | FSW_B;
    }
    image[offset::FCW..offset::FCW + 2].copy_from_slice(&fcw.to_le_bytes());
    image[offset::FSW..offset::FSW + 2].copy_from_slice(&fsw.to_le_bytes());
    image[offset::FTW] = match random.below(4) {
        0 => random.bits() as u8,
        1 => 0,
        _ => 0xff,
    };
    for n in 0..8 {
        image[offset::ST + n * 16..][..10].copy_from_slice(&random.float80());
    }
    let mut mxcsr = soft_cpu::fpu::MXCSR_DEFAULT;
    if random.one_in(2) {
        mxcsr |= random.bits() as u32 & 0xe07f;
    }
    if random.one_in(8) {
        mxcsr &= !(random.bits() as u32 & 0x1f80);
    }
    image[offset::MXCSR..offset::MXCSR + 4].copy_from_slice(&mxcsr.to_le_bytes());
    for n in 0..16 {
        image[offset::XMM + n * 16..][..16].copy_from_slice(&random.vector());
        image[offset::YMM_HIGH + n * 16..][..16].copy_from_slice(&random.vector());
    }
    image
}

/// Registers that know nothing of the instruction.
pub(crate) fn registers(rip: u64, compatibility: bool, random: &mut Random) -> Registers {
    const STATUS: u64 = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF;
    let mut gpr = [0; 16];
    for value in &mut gpr {
        *value = match random.below(8) {
            0 => target(8, random),
            _ => random.edge(),
        };
        if compatibility {
            *value &= 0xffff_ffff;
        }
    }
    gpr[x86::gpr::RSP] = stack_pointer(random);
    if random.one_in(2) {
        gpr[x86::gpr::RBP] = stack_pointer(random);
    }
    let direction = if random.one_in(3) { rflags::DF } else { 0 };
    let rflags = random.bits() & STATUS | direction | rflags::IF | rflags::RESERVED_ONE;
    Registers { gpr, rip, rflags, fpu: fpu(random) }
}

/// Registers for several instructions: floating-point exceptions are masked, for what the first one leaves behind is not always defined.
pub(crate) fn masked_registers(rip: u64, compatibility: bool, random: &mut Random) -> Registers {
    let mut registers = registers(rip, compatibility, random);
    let fpu = &mut registers.fpu;
    fpu[offset::FCW] |= 0x3f;
    fpu[offset::FSW] &= !(FSW_ES as u8);
    fpu[offset::FSW + 1] &= !((FSW_B >> 8) as u8);
    fpu[offset::MXCSR] |= 0x80;
    fpu[offset::MXCSR + 1] |= 0x1f;
    registers
}

/// The bytes of an instruction at `rip`, with an operand relative to RIP aimed at the data area.
pub(crate) fn aimed(bytes: Bytes, bitness: u32, rip: u64, random: &mut Random) -> Vec<u8> {
    let registers = registers(rip, bitness == 32, random);
    let mut case = Case::new(&bytes.bytes[..bytes.len], bitness, registers);
    let (instruction, offsets) = decode(&case, bitness);
    if instruction.is_ip_rel_memory_operand() {
        aim(&mut case, &instruction, &offsets, random);
    }
    case.bytes[..bytes.len].to_vec()
}

/// A case for `instruction`, whose displacement may be changed so that it reaches the data area.
pub(crate) fn case(bytes: Bytes, bitness: u32, rip: u64, random: &mut Random) -> (Case, Instruction) {
    let compatibility = bitness == 32;
    let registers = registers(rip, compatibility, random);
    let mut case = Case::new(&bytes.bytes[..bytes.len], bitness, registers);
    let (mut instruction, offsets) = decode(&case, bitness);
    if random.one_in(32) {
        patch(&mut case, &instruction, random);
        return (case, instruction);
    }
    if (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory) {
        aim(&mut case, &instruction, &offsets, random);
        instruction = decode(&case, bitness).0;
    }
    implicit(&mut case, &instruction, random);
    patch(&mut case, &instruction, random);
    (case, instruction)
}

fn decode(case: &Case, bitness: u32) -> (Instruction, ConstantOffsets) {
    let bytes = &case.bytes[..usize::from(case.len)];
    let mut decoder = Decoder::with_ip(bitness, bytes, case.registers.rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    let offsets = decoder.get_constant_offsets(&instruction);
    (instruction, offsets)
}

fn segment_base(register: Register) -> u64 {
    match register {
        Register::FS => FS_BASE,
        Register::GS => GS_BASE,
        _ => 0,
    }
}

/// Makes the memory operand point somewhere useful, by its base, its index or its displacement.
fn aim(case: &mut Case, i: &Instruction, offsets: &ConstantOffsets, random: &mut Random) {
    let wanted = target(i.memory_size().size(), random);
    let segment = segment_base(i.memory_segment());
    let (base, index) = (i.memory_base(), i.memory_index());
    let gpr = &mut case.registers.gpr;
    if index.is_vector_register() {
        let small = |random: &mut Random| random.below(64) as i64 as u64;
        for register in 0..16 {
            for half in [offset::XMM, offset::YMM_HIGH] {
                let wide = i.memory_size().size() == 8 && random.one_in(2);
                let size = if wide { 8 } else { 4 };
                if register == index.number() {
                    for lane in case.registers.fpu[half + register * 16..][..16].chunks_exact_mut(size) {
                        let value = if random.one_in(16) { random.edge() } else { small(random) };
                        lane.copy_from_slice(&value.to_le_bytes()[..size]);
                    }
                }
            }
        }
    }
    if base.is_ip() || base == Register::None && index == Register::None {
        let at = offsets.displacement_offset();
        let size = offsets.displacement_size();
        if at != 0 {
            let origin = if base.is_ip() { i.next_ip() } else { 0 };
            let value = wanted.wrapping_sub(segment).wrapping_sub(origin);
            case.bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
        return;
    }
    let rest = wanted.wrapping_sub(segment).wrapping_sub(i.memory_displacement64());
    let scale = u64::from(i.memory_index_scale());
    let full = |r: Register| r.full_register().number();
    let (register, value) = if base == Register::None {
        if index.is_vector_register() {
            return;
        }
        (index, rest / scale)
    } else if index == Register::None || index.is_vector_register() {
        (base, rest)
    } else if full(base) == full(index) {
        (base, rest / (scale + 1))
    } else {
        // An index that is an edge would leave nothing for the base to reach, but wrapping is part of the game.
        let index = gpr[full(index)] & mask(index);
        (base, rest.wrapping_sub(index.wrapping_mul(scale)))
    };
    // The bits above a narrow address register do not count: they may be anything.
    let mask = mask(register);
    let others = if case.compatibility { 0 } else { gpr[full(register)] & !mask };
    gpr[full(register)] = others | value & mask;
    if case.compatibility {
        gpr[full(register)] &= 0xffff_ffff;
    }
}

fn mask(register: Register) -> u64 {
    match register.size() {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// Registers that the instruction uses for addresses and counts without naming them.
fn implicit(case: &mut Case, i: &Instruction, random: &mut Random) {
    let gpr = &mut case.registers.gpr;
    let mut narrow = false;
    for n in 0..i.op_count() {
        let (register, is_narrow) = match i.op_kind(n) {
            OpKind::MemorySegSI | OpKind::MemorySegESI => (x86::gpr::RSI, true),
            OpKind::MemorySegRSI => (x86::gpr::RSI, false),
            OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemoryESDI | OpKind::MemoryESEDI => {
                (x86::gpr::RDI, true)
            }
            OpKind::MemorySegRDI | OpKind::MemoryESRDI => (x86::gpr::RDI, false),
            _ => continue,
        };
        narrow |= is_narrow;
        let wanted = target(i.memory_size().size().max(8), random);
        gpr[register] = if is_narrow && !case.compatibility { gpr[register] & !0xffff_ffff | wanted } else { wanted };
    }
    if i.has_rep_prefix()
        || i.has_repne_prefix()
        || matches!(i.mnemonic(), Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne)
    {
        let count = random.below(24);
        gpr[x86::gpr::RCX] =
            if narrow && !case.compatibility { gpr[x86::gpr::RCX] & !0xffff_ffff | count } else { count };
    }
    match i.mnemonic() {
        // Counts that are edges of their own.
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz if random.one_in(2) => {
            gpr[x86::gpr::RCX] = random.pick(&[0, 0x1_0000, 0x1_0000_0000, 1]);
        }
        Mnemonic::Leave | Mnemonic::Enter => gpr[x86::gpr::RBP] = stack_pointer(random),
        Mnemonic::Xlatb => {
            let address = target(1, random);
            gpr[x86::gpr::RBX] = if case.compatibility { address & 0xffff_ffff } else { address };
        }
        // Quotients that fit are rare among random numbers.
        Mnemonic::Div | Mnemonic::Idiv if random.one_in(2) => gpr[x86::gpr::RDX] = random.pick(&[0, 1, u64::MAX]),
        Mnemonic::Bt | Mnemonic::Btc | Mnemonic::Btr | Mnemonic::Bts
            if i.op0_kind() == OpKind::Memory && i.op1_kind() == OpKind::Register =>
        {
            let register = i.op1_register().full_register().number();
            let names = |r: Register| r.is_gpr() && r.full_register().number() == register;
            if !names(i.memory_base()) && !names(i.memory_index()) && register != x86::gpr::RSP {
                gpr[register] = (random.below(4096) as i64 - 2048) as u64;
            }
        }
        _ => {}
    }
    if case.compatibility {
        for value in gpr.iter_mut() {
            *value &= 0xffff_ffff;
        }
    }
}

/// A word of memory that the instruction gives a meaning.
fn patch(case: &mut Case, i: &Instruction, random: &mut Random) {
    let address = case.registers.address(i);
    let target = CODE + 32 + random.below(CODE_SIZE as u64 - 64);
    let stack = case.registers.gpr[x86::gpr::RSP];
    match i.mnemonic() {
        // What the flags do to the host afterwards must stay harmless: no single step, no alignment checks, no nested task.
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => {
            let harmful = rflags::TF | rflags::NT | rflags::AC | rflags::ID;
            put(case, stack, random.bits() & !harmful);
        }
        // Only components that we have: x87, SSE, AVX.
        Mnemonic::Xsave | Mnemonic::Xsave64 | Mnemonic::Xsavec | Mnemonic::Xsavec64 => {
            let gpr = &mut case.registers.gpr;
            gpr[x86::gpr::RAX] = gpr[x86::gpr::RAX] & !0xffff_ffff | random.below(8);
            gpr[x86::gpr::RDX] &= !0xffff_ffff;
        }
        // Bit 17 is AMD's, and not offered; of the others half the values have none that does not exist.
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr | Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => {
            let at =
                if matches!(i.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr) { 0 } else { offset::MXCSR as u64 };
            let bits = if random.one_in(2) { 0xffff } else { 0xfffd_ffff };
            put(case, address.wrapping_add(at), random.bits() & (bits | 0xffff_ffff << 32));
        }
        Mnemonic::Ret if random.one_in(2) => put(case, stack, target),
        Mnemonic::Jmp | Mnemonic::Call if i.op0_kind() == OpKind::Memory && random.one_in(2) => {
            put(case, address, target)
        }
        // The comparand is hardly ever there by chance.
        Mnemonic::Cmpxchg if i.op0_kind() == OpKind::Memory && random.one_in(2) => {
            put(case, address, case.registers.gpr[x86::gpr::RAX]);
        }
        Mnemonic::Cmpxchg8b if random.one_in(2) => {
            let [low, high] = [x86::gpr::RAX, x86::gpr::RDX].map(|r| case.registers.gpr[r] & 0xffff_ffff);
            put(case, address, low | high << 32);
        }
        _ if i.flow_control() == FlowControl::IndirectBranch
            && i.op0_kind() == OpKind::Register
            && random.one_in(2) =>
        {
            case.registers.gpr[i.op0_register().full_register().number()] = target;
        }
        _ => {}
    }
}

/// Writes `value` to `address` before the instruction, if it can be written there.
fn put(case: &mut Case, address: u64, value: u64) {
    let mapped = |address: u64| Memory::offset_of(address, 1).is_some();
    if Memory::offset_of(address, 8).is_some() {
        case.patch = (address, value);
    } else if address == case.registers.gpr[x86::gpr::RSP] && (mapped(address) || mapped(address.wrapping_add(7))) {
        // A narrow operand could be loaded from there all the same: the stack moves away from the edge.
        case.registers.gpr[x86::gpr::RSP] = STACK + 0x800;
        case.patch = (STACK + 0x800, value);
    }
}
