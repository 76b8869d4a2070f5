//! From an instruction form to bytes: prefixes, operands and immediates at random, kept if the decoder finds the form again.
//!
//! Building bytes rather than instructions reaches the encodings that no assembler writes: both VEX prefixes, REX bits that mean nothing, prefixes
//! that are ignored, every ModRM and SIB byte.

use iced_x86::{Code, Decoder, DecoderOptions, EncodingKind, Instruction, MandatoryPrefix, OpCodeTableKind};

use super::case::MAX_LEN;
use super::random::Random;

/// How often bytes are made before a form is given up for this time.
const ATTEMPTS: u32 = 400;
/// What follows the opcode: ModRM, SIB, displacement and immediate of the longest forms.
const TAIL: usize = 14;

/// Bytes of one instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes {
    /// The bytes.
    pub(crate) bytes: [u8; MAX_LEN],
    /// How many count.
    pub(crate) len: usize,
}

/// Whether `code` can be looked for at all.
pub(crate) fn is_candidate(code: Code, bitness: u32) -> bool {
    let pseudo = matches!(
        code,
        Code::INVALID
            | Code::DeclareByte
            | Code::DeclareWord
            | Code::DeclareDword
            | Code::DeclareQword
            | Code::Zero_bytes
    );
    let info = code.op_code();
    let exists = if bitness == 64 { info.mode64() } else { info.mode32() };
    // FSTCW and its kin with WAIT are two instructions.
    !pseudo && matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX) && exists && !info.fwait()
}

/// Random bytes for `code`, to lie at `ip`.
pub(crate) fn encode(code: Code, bitness: u32, ip: u64, random: &mut Random) -> Option<(Bytes, Instruction)> {
    for _ in 0..ATTEMPTS {
        let mut bytes = Vec::with_capacity(32);
        if code.encoding() == EncodingKind::VEX {
            vex(code, bitness, &mut bytes, random);
        } else {
            legacy(code, bitness, &mut bytes, random);
        }
        let opcode_end = bytes.len();
        for _ in 0..TAIL {
            bytes.push(if random.one_in(3) { random.edge() as u8 } else { random.bits() as u8 });
        }
        let group = code.op_code().group_index();
        let modrm = &mut bytes[opcode_end];
        if random.one_in(2) {
            *modrm |= 0xc0;
        }
        if group >= 0 {
            *modrm = *modrm & 0xc7 | (group as u8) << 3;
        }
        let rm_group = code.op_code().rm_group_index();
        if rm_group >= 0 {
            *modrm = *modrm & 0xf8 | rm_group as u8;
        }
        if let Some(found) = decode(&bytes, bitness, ip)
            && found.1.code() == code
        {
            return Some(found);
        }
    }
    None
}

/// The first instruction of `bytes`, if it is one.
pub(crate) fn decode(bytes: &[u8], bitness: u32, ip: u64) -> Option<(Bytes, Instruction)> {
    let instruction = Decoder::with_ip(bitness, bytes, ip, DecoderOptions::NONE).decode();
    let len = instruction.len();
    if instruction.is_invalid() || len > MAX_LEN {
        return None;
    }
    let mut found = Bytes { bytes: [0; MAX_LEN], len };
    found.bytes[..len].copy_from_slice(&bytes[..len]);
    Some((found, instruction))
}

/// Prefixes that any instruction may have.
fn free_prefixes(bitness: u32, bytes: &mut Vec<u8>, random: &mut Random) {
    if random.one_in(8) {
        // FS and GS are null in 32-bit processes.
        bytes.push(if bitness == 64 {
            random.pick(&[0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65])
        } else {
            random.pick(&[0x26, 0x36, 0x3e])
        });
    }
}

fn legacy(code: Code, bitness: u32, bytes: &mut Vec<u8>, random: &mut Random) {
    let info = code.op_code();
    free_prefixes(bitness, bytes, random);
    if random.one_in(if info.address_size() == 0 { 8 } else { 2 }) {
        bytes.push(0x67);
    }
    let mandatory = info.mandatory_prefix();
    if info.can_use_lock_prefix() && random.one_in(4) {
        bytes.push(0xf0);
    }
    if info.can_use_rep_prefix() || info.can_use_repne_prefix() {
        if random.one_in(2) {
            bytes.push(if random.one_in(3) { 0xf2 } else { 0xf3 });
        }
    } else if mandatory == MandatoryPrefix::None && random.one_in(16) {
        bytes.push(random.pick(&[0xf2, 0xf3]));
    }
    match mandatory {
        MandatoryPrefix::None => {
            if random.one_in(if info.operand_size() == 16 { 2 } else { 6 }) {
                bytes.push(0x66);
            }
        }
        MandatoryPrefix::PNP => {}
        MandatoryPrefix::P66 => bytes.push(0x66),
        MandatoryPrefix::PF3 | MandatoryPrefix::PF2 => {
            if random.one_in(8) {
                bytes.push(0x66);
            }
            bytes.push(if mandatory == MandatoryPrefix::PF3 { 0xf3 } else { 0xf2 });
        }
    }
    if bitness == 64 && random.one_in(2) {
        bytes.push(0x40 | random.bits() as u8 & 15);
    }
    match info.table() {
        OpCodeTableKind::T0F => bytes.push(0x0f),
        OpCodeTableKind::T0F38 => bytes.extend([0x0f, 0x38]),
        OpCodeTableKind::T0F3A => bytes.extend([0x0f, 0x3a]),
        _ => {}
    }
    let opcode = info.op_code();
    if info.op_code_len() == 2 {
        bytes.push((opcode >> 8) as u8);
    }
    // Some opcodes hold a register in their low three bits.
    let register = if random.one_in(2) { 0 } else { random.below(8) as u8 };
    bytes.push((opcode as u8).wrapping_add(register));
}

fn vex(code: Code, bitness: u32, bytes: &mut Vec<u8>, random: &mut Random) {
    let info = code.op_code();
    free_prefixes(bitness, bytes, random);
    if random.one_in(8) {
        bytes.push(0x67);
    }
    let pp = match info.mandatory_prefix() {
        MandatoryPrefix::P66 => 1,
        MandatoryPrefix::PF3 => 2,
        MandatoryPrefix::PF2 => 3,
        _ => 0,
    };
    let map = match info.table() {
        OpCodeTableKind::T0F38 => 2,
        OpCodeTableKind::T0F3A => 3,
        _ => 1,
    };
    let free = |random: &mut Random| random.bits() as u8 & 1;
    let l = if info.is_lig() { free(random) } else { info.l() as u8 };
    let w = if info.is_wig() { free(random) } else { info.w() as u8 };
    let vvvv = if random.one_in(2) { 15 } else { random.bits() as u8 & 15 };
    let last = vvvv << 3 | l << 2 | pp;
    if map == 1 && w == 0 && random.one_in(2) {
        let r = if bitness == 64 { free(random) << 7 } else { 0x80 };
        bytes.extend([0xc5, r | last]);
    } else {
        let rxb = if bitness == 64 { random.bits() as u8 & 7 } else { 7 };
        bytes.extend([0xc4, rxb << 5 | map, w << 7 | last]);
    }
    let opcode = info.op_code();
    if info.op_code_len() == 2 {
        bytes.push((opcode >> 8) as u8);
    }
    bytes.push(opcode as u8);
}
