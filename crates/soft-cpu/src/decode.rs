//! Bytes to [`Op`]s: `iced-x86` decodes, the instruction families lower.
//!
//! Each family (`integer`, `system`, `simd`) has a `lower` that takes the instructions it knows. What none takes is an invalid opcode.

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, OpKind, Register};
use x86::exception;

use crate::block::MAX_INSTRUCTION_LEN;
use crate::core::{Core, DecodeMode, GPR_PAGE, GPR_ZERO, Outcome, seg};
use crate::op::{Handler, Mem, Op, byte_register};
use crate::simd::ThunkCache;
use crate::{integer, simd, system};

/// A lowered instruction, not yet placed in its block.
#[derive(Clone, Copy)]
pub struct Lowered {
    /// The operation.
    pub op: Op,
    /// Nothing may follow in the same block: it branches, or changes how what follows is fetched, decoded or interrupted.
    pub ends_block: bool,
}

impl Lowered {
    /// An operation without operands.
    pub fn new(execute: Handler) -> Self {
        let op = Op {
            execute,
            immediate: 0,
            mem: Mem::NONE,
            offset: 0,
            len: 0,
            reg: GPR_ZERO,
            rm: GPR_ZERO,
            aux: 0,
            extra: 0,
            left: 1,
        };
        Self { op, ends_block: false }
    }

    /// Sets the immediate.
    pub fn immediate(mut self, value: u64) -> Self {
        self.op.immediate = value;
        self
    }

    /// Sets the first register operand.
    pub fn reg(mut self, code: u8) -> Self {
        self.op.reg = code;
        self
    }

    /// Sets the second register operand.
    pub fn rm(mut self, code: u8) -> Self {
        self.op.rm = code;
        self
    }

    /// Sets the memory operand.
    pub fn mem(mut self, mem: Mem) -> Self {
        self.op.mem = mem;
        self
    }

    /// Sets the small decode-time number.
    pub fn aux(mut self, aux: u8) -> Self {
        self.op.aux = aux;
        self
    }

    /// Sets the other decode-time number.
    pub fn extra(mut self, extra: u32) -> Self {
        self.op.extra = extra;
        self
    }

    /// Marks it as the last of its block.
    pub fn ends_block(mut self) -> Self {
        self.ends_block = true;
        self
    }
}

/// The code of a general register: a [`Core::gpr`] index, or a [`byte_register`] code for the 8-bit ones.
pub fn register(register: Register) -> u8 {
    if matches!(register, Register::AH | Register::CH | Register::DH | Register::BH) {
        return byte_register((register as u8) - (Register::AH as u8), true);
    }
    if register.is_gpr() { register.full_register().number() as u8 } else { GPR_ZERO }
}

/// The number of a segment register.
pub fn segment_number(register: Register) -> usize {
    match register {
        Register::ES => seg::ES,
        Register::CS => seg::CS,
        Register::SS => seg::SS,
        Register::FS => seg::FS,
        Register::GS => seg::GS,
        _ => seg::DS,
    }
}

/// The segment number that a handler should use for `register`: in 64-bit code only FS and GS have a base.
pub fn segment_for(register: Register, mode: DecodeMode) -> u8 {
    let number = segment_number(register);
    if mode.has(DecodeMode::CODE64) && number < seg::FS { seg::FLAT as u8 } else { number as u8 }
}

/// The instruction's memory operand.
pub fn memory(i: &Instruction, mode: DecodeMode) -> Mem {
    let base = i.memory_base();
    let index = i.memory_index();
    let address_bits: u32 = match (base, index) {
        (Register::RIP, _) => 64,
        (Register::EIP, _) => 32,
        (Register::None, Register::None) => i.memory_displ_size() * 8,
        (Register::None, r) | (r, _) => r.size() as u32 * 8,
    };
    // A displacement alone is encoded in 32 bits in 64-bit code and sign-extended, unless the address size is 32.
    let address_bits = match (base, index) {
        (Register::None, Register::None) if i.memory_displ_size() == 8 => 64,
        (Register::None, Register::None) if i.memory_displ_size() == 2 => 16,
        _ => address_bits,
    };
    let mut segment = segment_for(i.memory_segment(), mode);
    // The base register decides, whatever the segment prefix says: in 64-bit code it is ignored.
    let on_stack = matches!(base, Register::RSP | Register::ESP | Register::RBP | Register::EBP);
    if on_stack && usize::from(segment) == seg::FLAT {
        segment = seg::FLAT_STACK as u8;
    }
    // Where addresses have 32 bits only those count, and here a small negative displacement is a small number.
    let displacement = i.memory_displacement64();
    let displacement = if address_bits == 32 { displacement as i32 as u64 } else { displacement };
    Mem {
        // iced has added the instruction pointer, which is relative to the page here, to the displacement.
        displacement,
        base: if base.is_ip() { GPR_PAGE } else { register(base) },
        index: register(index),
        shift: i.memory_index_scale().trailing_zeros() as u8,
        segment,
        unused_bits: (64 - address_bits.clamp(16, 64)) as u8,
        checked: !mode.has(DecodeMode::CODE64),
    }
}

/// Whether operand `n` is a memory operand.
pub fn is_memory(i: &Instruction, n: u32) -> bool {
    i.op_kind(n) == OpKind::Memory
}

/// What a near branch's target is relative to: in flat code the page, elsewhere nothing.
pub fn branch_base(mode: DecodeMode) -> u8 {
    if mode.is_flat() { GPR_PAGE } else { GPR_ZERO }
}

fn invalid_opcode(core: &mut Core, _: &Op) -> Outcome {
    core.raise(exception::UD)
}

/// More than 15 bytes (SDM vol. 3, 6.15, interrupt 13).
fn too_long(core: &mut Core, _: &Op) -> Outcome {
    core.raise_with(exception::GP, 0)
}

fn lower(i: &Instruction, mode: DecodeMode, thunks: &mut ThunkCache) -> Lowered {
    if i.is_invalid() {
        return Lowered::new(invalid_opcode).ends_block();
    }
    integer::lower(i, mode).or_else(|| system::lower(i, mode)).or_else(|| simd::lower(i, mode, thunks)).unwrap_or_else(|| {
        tracing::debug!(instruction = ?i.code(), rip = format_args!("{:#x}", i.ip()), "instruction is not implemented");
        Lowered::new(invalid_opcode).ends_block()
    })
}

/// Decodes a run of at most `most` instructions from `bytes` (not past their end), and how many bytes it took. Empty when the first instruction does not fit. `ip` is the
/// instruction pointer; in flat code only its offset in the page, and what depends on it is decoded relative to [`GPR_PAGE`].
/// The operations live no longer than what `thunks` holds.
pub fn decode_block(
    bytes: &[u8],
    ip: u64,
    mode: DecodeMode,
    most: usize,
    thunks: &mut ThunkCache,
) -> (Box<[Op]>, usize) {
    decode_up_to(bytes, ip, mode, most, thunks)
}

/// As [`decode_block`] for one instruction; if they are too few it is an invalid opcode.
pub fn decode_one(bytes: &[u8], ip: u64, mode: DecodeMode, thunks: &mut ThunkCache) -> (Box<[Op]>, usize) {
    let (ops, used) = decode_up_to(bytes, ip, mode, 1, thunks);
    if ops.is_empty() { (Box::new([Lowered::new(invalid_opcode).op]), bytes.len()) } else { (ops, used) }
}

fn decode_up_to(bytes: &[u8], ip: u64, mode: DecodeMode, most: usize, thunks: &mut ThunkCache) -> (Box<[Op]>, usize) {
    let mut decoder = Decoder::with_ip(mode.bitness(), bytes, ip, DecoderOptions::NONE);
    let mut ops = Vec::with_capacity(8);
    let mut used = 0;
    let mut instruction = Instruction::default();
    while ops.len() < most && decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes {
            break;
        }
        let mut lowered = if instruction.is_invalid() && is_too_long(&bytes[used..], mode) {
            Lowered::new(too_long).ends_block()
        } else {
            lower(&instruction, mode, thunks)
        };
        lowered.op.offset = used as u16;
        lowered.op.len = instruction.len() as u8;
        used = decoder.position();
        ops.push(lowered.op);
        if lowered.ends_block {
            break;
        }
    }
    for (before, op) in ops.iter_mut().rev().enumerate() {
        op.left = before as u8 + 1;
    }
    (ops.into_boxed_slice(), used)
}

/// Whether it is not an opcode that makes the first instruction of `bytes` invalid, but its length. The first byte of such a long one is a prefix, and without it
/// the next 14 bytes are too few.
#[cold]
fn is_too_long(bytes: &[u8], mode: DecodeMode) -> bool {
    let Some(behind_prefix) = bytes.get(1..MAX_INSTRUCTION_LEN) else { return false };
    let mut decoder = Decoder::new(mode.bitness(), behind_prefix, DecoderOptions::NONE);
    decoder.decode().is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mem_of(bytes: &[u8], mode: u32) -> Mem {
        let mode = DecodeMode(mode);
        let i = Decoder::with_ip(mode.bitness(), bytes, 0x1000, DecoderOptions::NONE).decode();
        memory(&i, mode)
    }

    #[test]
    fn every_low_byte_register_is_part_of_its_full_register() {
        assert_eq!(
            [Register::BL, Register::SPL, Register::DIL, Register::R8L, Register::R15L].map(register),
            [3, 4, 7, 8, 15]
        );
        assert_eq!(register(Register::BH), byte_register(3, true));
    }

    #[test]
    fn sixteen_bytes_are_no_instruction() {
        // Fifteen prefixes and a NOP, behind another NOP.
        let mut bytes = [0x66; 17];
        (bytes[0], bytes[16]) = (0x90, 0x90);
        let mode = DecodeMode(DecodeMode::CODE64);
        let (ops, used) = decode_block(&bytes, 0, mode, 64, &mut ThunkCache::new());
        assert_eq!((ops.len(), used), (2, 16));
        assert!(std::ptr::fn_addr_eq(ops[1].execute, too_long as Handler));
        // As long as one may be.
        let (ops, used) = decode_block(&bytes[2..], 2, mode, 64, &mut ThunkCache::new());
        assert_eq!((ops.len(), used), (1, 15));
        assert!(!std::ptr::fn_addr_eq(ops[0].execute, too_long as Handler));
    }

    #[test]
    fn a_rip_relative_operand_becomes_relative_to_the_page() {
        let mem = mem_of(&[0x48, 0x8b, 0x05, 0x10, 0, 0, 0], DecodeMode::CODE64);
        assert_eq!(mem, Mem { displacement: 0x1017, base: GPR_PAGE, ..Mem::NONE });
    }

    #[test]
    fn a_negative_displacement_is_sign_extended_and_the_address_size_kept() {
        let mem = mem_of(&[0x67, 0x8b, 0x44, 0x8b, 0xfc], DecodeMode::CODE64);
        assert_eq!((mem.base, mem.index, mem.shift, mem.unused_bits), (3, 1, 2, 32));
        assert_eq!(mem.displacement, 0_u64.wrapping_sub(4));
    }

    #[test]
    fn a_sixteen_bit_operand_uses_ss_with_bp() {
        let mem = mem_of(&[0x8b, 0x46, 0x02], 0);
        assert_eq!((mem.base, mem.unused_bits, usize::from(mem.segment), mem.checked), (5, 48, seg::SS, true));
    }

    #[test]
    fn an_absolute_32_bit_address_in_64_bit_code_is_sign_extended() {
        let mem = mem_of(&[0x8b, 0x04, 0x25, 0, 0, 0, 0x80], DecodeMode::CODE64);
        assert_eq!((mem.displacement, mem.unused_bits), (0xffff_ffff_8000_0000, 0));
    }
}
