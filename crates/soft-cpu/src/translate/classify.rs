//! Which template an instruction has, and what it does with the flags.

use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind, RflagsBits};

use super::parse::{self, Operands, Parts};
use super::vector::{Vector, Vectors};
use super::vector_state::Loaded;
use crate::core::{DecodeMode, seg};
use crate::op::{Mem, Op};

/// The status flags as the decoder names them.
pub(super) const ALL: u32 =
    RflagsBits::CF | RflagsBits::PF | RflagsBits::AF | RflagsBits::ZF | RflagsBits::SF | RflagsBits::OF;

/// How an instruction is translated.
#[derive(Clone, Copy)]
pub(super) enum Template<'a> {
    /// Nothing to do.
    Nop,
    /// LEA of 32 or 64 bits.
    Lea { reg: u8, wide: bool },
    /// An instruction with ModRM: the same on the host, with its operands put elsewhere.
    ModRm(Parts<'a>, Operands),
    /// A vector instruction, or one that is encoded as these are: the same on the host.
    Vector(Vector),
    /// MOV of a constant to a register of 32 or 64 bits.
    Constant { reg: u8, value: u64 },
    /// MOV of a constant to an 8-bit register that needs REX.
    ByteConstant { reg: u8, value: u8 },
    /// BSWAP.
    Swap { reg: u8, wide: bool },
    /// XCHG with the accumulator.
    Exchange { reg: u8, wide: bool },
    /// The same bytes.
    Verbatim,
    /// PUSH of a register.
    Push { reg: u8 },
    /// PUSH of memory.
    PushMemory,
    /// PUSH of a constant, sign-extended.
    PushConstant(i32),
    /// POP to a register.
    Pop { reg: u8 },
    /// LEAVE.
    Leave,
    /// A conditional jump.
    JumpIf { condition: u8, target: u64 },
    /// A direct jump.
    Jump { target: u64 },
    /// A direct call.
    Call { target: u64 },
    /// A near return that drops so many bytes besides the address.
    Return { dropped: i32 },
    /// A jump through a register.
    JumpRegister { reg: u8 },
    /// A jump through memory.
    JumpMemory,
    /// A call through a register.
    CallRegister { reg: u8 },
    /// A call through memory.
    CallMemory,
    /// DIV or IDIV of 32 or 64 bits.
    Divide(Parts<'a>),
    /// The interpreter's handler; execution goes on after it.
    Handler,
    /// The interpreter's handler of a near branch: it says where execution goes on.
    Branch,
    /// The interpreter's handler of something after which everything is looked at anew.
    Leaving,
}

/// An instruction, how it is translated, and its flags.
pub(super) struct Classified<'a> {
    pub(super) instruction: Instruction,
    pub(super) template: Template<'a>,
    /// Flags it reads.
    pub(super) read: u32,
    /// Flags that it surely overwrites.
    pub(super) kill: u32,
    /// Its host code changes flags.
    pub(super) touches: bool,
    /// Flags that somebody reads later, before it and after it.
    pub(super) live_before: u32,
    pub(super) live_after: u32,
}

impl Classified<'_> {
    /// Whether it may raise an exception.
    pub(super) fn may_fault(&self) -> bool {
        match self.template {
            Template::Nop
            | Template::Lea { .. }
            | Template::Constant { .. }
            | Template::ByteConstant { .. }
            | Template::Swap { .. }
            | Template::Exchange { .. }
            | Template::Verbatim
            | Template::JumpIf { .. }
            | Template::Jump { .. } => false,
            Template::ModRm(parts, _) => parts.memory,
            Template::Vector(vector) => vector.has_memory(),
            _ => true,
        }
    }

    /// Which registers besides the general ones have to be in the host's.
    pub(super) fn needs(&self) -> Loaded {
        if let Template::Vector(vector) = &self.template { vector.needs } else { Loaded::Nothing }
    }
}

/// Classifies the instruction `instruction` with the bytes `bytes`; `last` in its block.
pub(super) fn classify<'a>(
    instruction: Instruction,
    bytes: &'a [u8],
    op: &Op,
    last: bool,
    vectors: &mut Vectors,
) -> Classified<'a> {
    let i = &instruction;
    let mode = vectors.mode();
    let known = if is_addressable(&op.mem, mode) {
        near_flow(i, mode).or_else(|| straight(i, bytes, mode)).or_else(|| Some(Template::Vector(vectors.classify(i)?)))
    } else {
        None
    };
    let template = known.unwrap_or(match i.flow_control() {
        FlowControl::Next if !last => Template::Handler,
        // What it holds off for one instruction need not be looked at before that instruction.
        _ if i.mnemonic() == Mnemonic::Sti => Template::Branch,
        FlowControl::IndirectCall | FlowControl::Return | FlowControl::ConditionalBranch if is_near(i) => {
            Template::Branch
        }
        _ => Template::Leaving,
    });
    let modified = i.rflags_modified() & ALL;
    let (read, kill, touches) = match template {
        Template::ModRm(_, operands) if operands.by_cl => (i.rflags_read() & ALL, 0, true),
        Template::Handler if is_vector(i) => (i.rflags_read() & ALL, modified, false),
        Template::Handler | Template::Branch | Template::Leaving => (ALL, 0, false),
        _ => (i.rflags_read() & ALL, modified, modified != 0),
    };
    Classified { instruction, template, read, kill, touches, live_before: ALL, live_after: ALL }
}

fn is_near(i: &Instruction) -> bool {
    i.is_call_near_indirect()
        || i.is_jcc_short_or_near()
        || matches!(i.code(), Code::Retnq | Code::Retnq_imm16 | Code::Retnd | Code::Retnd_imm16)
        || matches!(
            i.mnemonic(),
            Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne | Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz
        )
}

/// Vector instructions touch no flags but those that the decoder says.
fn is_vector(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_vector_register())
}

/// Hints that fault on nothing.
fn is_prefetch(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(mnemonic, Prefetch | Prefetchnta | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchw)
}

/// Whether generated code can work out the operand's address: with all bits that flat code has, and without limits that it would have to know.
fn is_addressable(mem: &Mem, mode: DecodeMode) -> bool {
    let open = mode.has(DecodeMode::CODE64)
        || match usize::from(mem.segment) {
            seg::CS => false,
            seg::FS => mode.has(DecodeMode::OPEN_FS),
            seg::GS => mode.has(DecodeMode::OPEN_GS),
            _ => true,
        };
    open && matches!(mem.unused_bits, 0 | 32)
}

/// Where a direct near branch goes that generated code can follow. In 32-bit code, which stands anywhere, what lies before its page is below zero.
pub(super) fn direct_target(i: &Instruction) -> Option<u64> {
    match i.op0_kind() {
        OpKind::NearBranch64 => Some(i.near_branch_target()).filter(|target| x86::paging::is_canonical(*target)),
        OpKind::NearBranch32 => Some(i.near_branch32() as i32 as u64),
        _ => None,
    }
}

fn near_flow<'a>(i: &Instruction, mode: DecodeMode) -> Option<Template<'a>> {
    let code64 = mode.has(DecodeMode::CODE64);
    let (jump, call, near_return, dropping) = if code64 {
        (Code::Jmp_rm64, Code::Call_rm64, Code::Retnq, Code::Retnq_imm16)
    } else {
        (Code::Jmp_rm32, Code::Call_rm32, Code::Retnd, Code::Retnd_imm16)
    };
    Some(match i.flow_control() {
        FlowControl::ConditionalBranch if i.is_jcc_short_or_near() => {
            Template::JumpIf { condition: i.condition_code() as u8 - 1, target: direct_target(i)? }
        }
        FlowControl::UnconditionalBranch if i.is_jmp_short_or_near() => Template::Jump { target: direct_target(i)? },
        FlowControl::Call if i.is_call_near() => Template::Call { target: direct_target(i)? },
        FlowControl::Return if i.code() == near_return => Template::Return { dropped: 0 },
        FlowControl::Return if i.code() == dropping => Template::Return { dropped: (i.immediate(0) & 0xffff) as i32 },
        FlowControl::IndirectBranch if i.code() == jump => match i.op0_kind() {
            OpKind::Register => Template::JumpRegister { reg: i.op0_register().number() as u8 },
            _ => Template::JumpMemory,
        },
        FlowControl::IndirectCall if i.code() == call => match i.op0_kind() {
            OpKind::Register => Template::CallRegister { reg: i.op0_register().number() as u8 },
            _ => Template::CallMemory,
        },
        _ => return None,
    })
}

fn straight<'a>(i: &Instruction, bytes: &'a [u8], mode: DecodeMode) -> Option<Template<'a>> {
    if i.flow_control() != FlowControl::Next || i.code().is_jcx_short() {
        return None;
    }
    let number = |register: iced_x86::Register| register.number() as u8;
    match i.code() {
        Code::Nopw | Code::Nopd | Code::Nopq | Code::Nop_rm16 | Code::Nop_rm32 | Code::Nop_rm64 | Code::Endbr64 => {
            return Some(Template::Nop);
        }
        Code::Lfence | Code::Mfence | Code::Sfence => return Some(Template::Verbatim),
        _ if is_prefetch(i.mnemonic()) => {
            return Some(Template::Nop);
        }
        Code::Lea_r32_m | Code::Lea_r64_m => {
            return Some(Template::Lea { reg: number(i.op0_register()), wide: i.code() == Code::Lea_r64_m });
        }
        // Those of the stack's word: 64-bit code has no others of 64 bits, 32-bit code no others of 32.
        Code::Push_r64 | Code::Push_r32 => return Some(Template::Push { reg: number(i.op0_register()) }),
        Code::Push_rm64 | Code::Push_rm32 if i.op0_kind() == OpKind::Memory => return Some(Template::PushMemory),
        Code::Pushq_imm8 | Code::Pushq_imm32 | Code::Pushd_imm8 | Code::Pushd_imm32 => {
            return Some(Template::PushConstant(i.immediate(0) as i32));
        }
        Code::Pop_r64 | Code::Pop_r32 => return Some(Template::Pop { reg: number(i.op0_register()) }),
        Code::Leaveq | Code::Leaved => return Some(Template::Leave),
        _ => {}
    }
    let parts = parse::parse(bytes, mode.has(DecodeMode::CODE64))?;
    if parts.repeat != 0 && (parts.word || !parts.two_byte) {
        return None;
    }
    let wide = parts.rex & 8 != 0;
    let low = parts.opcode & 7 | (parts.rex & 1) << 3;
    match (parts.two_byte, parts.opcode) {
        (false, 0xb8..=0xbf) if !parts.word => {
            Some(Template::Constant { reg: low, value: i.immediate(1) & if wide { u64::MAX } else { 0xffff_ffff } })
        }
        (false, 0xb0..=0xb7) if parts.rex == 0 => Some(Template::Verbatim),
        (false, 0xb0..=0xb7) => Some(Template::ByteConstant { reg: low, value: *parts.immediate.first()? }),
        (true, 0xc8..=0xcf) if !parts.word => Some(Template::Swap { reg: low, wide }),
        (false, 0x91..=0x97) if !parts.word => Some(Template::Exchange { reg: low, wide }),
        (false, 0x98 | 0x99 | 0xa8 | 0xa9 | 0xf5 | 0xf8 | 0xf9) => Some(Template::Verbatim),
        (false, 0x00..=0x3f) if matches!(parts.opcode & 7, 4 | 5) => Some(Template::Verbatim),
        (false, 0xf7) if parts.reg & 7 >= 6 && !parts.word => Some(Template::Divide(parts)),
        _ => {
            let operands = parse::describe(&parts)?;
            encodable(&parts, &operands).then_some(Template::ModRm(parts, operands))
        }
    }
}

/// Whether the registers can be named once operands are replaced: AH, CH, DH and BH cannot stand beside a REX prefix.
fn encodable(parts: &Parts<'_>, operands: &Operands) -> bool {
    let used = |access: parse::Access| access != parse::NOT;
    let high = |byte: bool, register: u8| byte && parts.rex == 0 && register >= 4;
    let high_reg = used(operands.reg) && high(operands.byte_reg, parts.reg);
    let high_rm = !parts.memory && high(operands.byte_rm, parts.rm);
    if (high_reg || high_rm) && parts.memory {
        return false;
    }
    let is_stack = |byte: bool, register: u8| !byte && register == 4;
    if (high_reg && is_stack(operands.byte_rm, parts.rm))
        || (high_rm && used(operands.reg) && is_stack(operands.byte_reg, parts.reg))
    {
        return false;
    }
    // Two copies of one register in memory, both written, would overwrite each other.
    !(operands.reg.write && operands.rm.write && !parts.memory && parts.reg == parts.rm)
}
