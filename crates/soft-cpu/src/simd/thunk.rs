//! Thunks: an instruction of the guest wrapped so that it can be called like a function.
//!
//! A thunk is `extern "sysv64" fn(*mut FpuState)`. It loads the vector registers that its instruction names, runs the instruction with
//! its memory operand redirected to [`Scratch::memory`] and its general registers renamed to RAX (then RDX and RCX, where the
//! instruction says so itself), and stores what was written. It never faults: memory is in the scratch area, all floating-point
//! exceptions are masked, and MXCSR and the x87 control word have been made valid by whoever wrote them.
//!
//! Vector registers keep their numbers, because the calling convention preserves none.

use std::collections::HashMap;
use std::mem::offset_of;

use iced_x86::{
    Encoder, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, RflagsBits,
};

use super::arena::{Arena, Part};
use super::classify;
use crate::fpu::{FpuState, Scratch, offset};

/// No thunk is longer, in bytes: sixteen registers of 256 bits loaded and stored are 16 * (9 + 10 + 9 + 10), the rest is less than 200.
const MAX_THUNK_LEN: usize = 1024;

const MEMORY: usize = offset_of!(FpuState, scratch) + offset_of!(Scratch, memory);
const GPR: usize = offset_of!(FpuState, scratch) + offset_of!(Scratch, gpr);
const FLAGS: usize = offset_of!(FpuState, scratch) + offset_of!(Scratch, flags);
const MXCSR_RUN: usize = offset_of!(FpuState, scratch) + offset_of!(Scratch, mxcsr_run);
const MXCSR_OUT: usize = offset_of!(FpuState, scratch) + offset_of!(Scratch, mxcsr_out);
const MXCSR_HOST: usize = offset_of!(FpuState, scratch) + offset_of!(Scratch, mxcsr_host);
const UNMASKED: usize = offset_of!(FpuState, scratch) + offset_of!(Scratch, unmasked);

/// The status flags as the decoder names them; its sets also hold the x87 condition codes.
const STATUS: u32 = RflagsBits::CF | RflagsBits::PF | RflagsBits::AF | RflagsBits::ZF | RflagsBits::SF | RflagsBits::OF;

/// What a thunk's caller has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Shape {
    /// The general registers of the guest behind RAX and RDX.
    pub(super) gpr: [Option<Register>; 2],
    /// Which of RAX, RDX, RCX are read: bits 0 and 1.
    pub(super) gpr_in: u8,
    /// Which of RAX, RDX, RCX are written: bits 0 to 2.
    pub(super) gpr_out: u8,
    /// It reads status flags.
    pub(super) flags_in: bool,
    /// It writes status flags.
    pub(super) flags_out: bool,
    /// It obeys and changes MXCSR.
    pub(super) mxcsr: bool,
    /// What it does with its memory operand.
    pub(super) memory: MemoryUse,
}

/// What an instruction does with its memory operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum MemoryUse {
    /// There is none, or it is not touched.
    #[default]
    None,
    /// Reads it.
    Load,
    /// Writes all of it.
    Store,
}

/// One CPU's thunks, by their code: what differs only in its memory operand shares one.
#[derive(Default)]
pub struct ThunkCache {
    arena: Option<Arena>,
    failed: bool,
    entries: HashMap<Box<[u8]>, u64>,
    factory: Option<Box<InstructionInfoFactory>>,
}

impl ThunkCache {
    /// An empty cache; memory is taken when the first thunk is made.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether `thunks` more surely fit.
    pub fn has_room_for(&self, thunks: usize) -> bool {
        self.arena.as_ref().is_none_or(|arena| arena.room(Part::Hot) >= thunks * MAX_THUNK_LEN)
    }

    /// Forgets every thunk: no operation that was decoded with this cache may be executed any more.
    pub fn clear(&mut self) {
        self.entries.clear();
        if let Some(arena) = &mut self.arena {
            arena.clear();
        }
    }

    /// The thunk for `i`: the address to call and its shape. `None` if there can be none: the instruction has another form than this
    /// module knows, or there is no memory for code.
    pub(super) fn thunk(&mut self, i: &Instruction) -> Option<(u64, Shape)> {
        let factory = self.factory.get_or_insert_with(|| Box::new(InstructionInfoFactory::new()));
        let (code, shape) = build(i, factory)?;
        if let Some(entry) = self.entries.get(code.as_slice()) {
            return Some((*entry, shape));
        }
        if self.arena.is_none() && !self.failed {
            match Arena::new() {
                Ok(arena) => self.arena = Some(arena),
                Err(error) => {
                    self.failed = true;
                    tracing::error!(%error, "no memory for generated code: the guest has no x87, SSE and AVX");
                }
            }
        }
        let entry = self.arena.as_mut()?.append(Part::Hot, &code)?;
        self.entries.insert(code.into_boxed_slice(), entry);
        Some((entry, shape))
    }
}

/// Whether an access may write.
pub(super) fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

fn reads(access: OpAccess) -> bool {
    matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// RAX in the size of `register`.
fn rax_like(register: Register) -> Register {
    match register.size() {
        8 => Register::RAX,
        4 => Register::EAX,
        2 => Register::AX,
        _ => Register::AL,
    }
}

/// Which vector registers an instruction touches, by number.
#[derive(Default)]
struct Vectors {
    used: u16,
    written: u16,
    wide: bool,
}

fn build(i: &Instruction, factory: &mut InstructionInfoFactory) -> Option<(Vec<u8>, Shape)> {
    let info = factory.info(i);
    let vex = i.encoding() == EncodingKind::VEX;
    let x87 = classify::uses_x87_registers(i);
    let mut shape = Shape { mxcsr: classify::raises_simd_exceptions(i.mnemonic()), ..Shape::default() };
    shape.flags_in = i.rflags_read() & STATUS != 0;
    shape.flags_out = i.rflags_modified() & STATUS != 0;

    let mut vectors = Vectors::default();
    for used in info.used_registers() {
        if used.register().is_vector_register() {
            let bit = 1u16.checked_shl(used.register().number() as u32)?;
            vectors.used |= bit;
            if writes(used.access()) {
                vectors.written |= bit;
            }
        }
    }

    let mut native = *i;
    native.set_segment_prefix(Register::None);
    native.set_has_rep_prefix(false);
    native.set_has_repne_prefix(false);
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Register => {
                let register = i.op_register(n);
                vectors.wide |= register.is_ymm();
                if register.is_gpr() {
                    let full = register.full_register();
                    if shape.gpr[0].is_some_and(|other| other != full) {
                        return None;
                    }
                    shape.gpr[0] = Some(full);
                    shape.gpr_in |= u8::from(reads(info.op_access(n)));
                    shape.gpr_out |= u8::from(writes(info.op_access(n)));
                    native.set_op_register(n, rax_like(register));
                }
            }
            OpKind::Memory => {
                shape.memory = match info.op_access(n) {
                    OpAccess::Read | OpAccess::CondRead => MemoryUse::Load,
                    OpAccess::Write | OpAccess::CondWrite => MemoryUse::Store,
                    _ => return None,
                };
                native.set_memory_base(Register::RDI);
                native.set_memory_index(Register::None);
                native.set_memory_index_scale(1);
                native.set_memory_displ_size(8);
                native.set_memory_displacement64(MEMORY as u64);
            }
            OpKind::Immediate8 | OpKind::Immediate8_2nd => {}
            _ => return None,
        }
    }
    implicit_registers(i.mnemonic(), &mut shape)?;

    let mut encoder = Encoder::new(64);
    encoder.encode(&native, 0).ok()?;
    let instruction = encoder.take_buffer();

    let mut e = Emitter::default();
    if x87 {
        e.fxrstor();
    }
    if shape.mxcsr {
        e.mxcsr(2, MXCSR_RUN);
    }
    if !x87 || vex {
        e.vectors(vectors.used, vex, vectors.wide, false);
    }
    for n in 0..2 {
        if shape.gpr_in >> n & 1 != 0 {
            e.mov_gpr(n, false);
        }
    }
    if shape.flags_in {
        e.rdi_operand(&[0xff], 6, FLAGS); // push
        e.code.push(0x9d); // popfq
    }
    e.code.extend_from_slice(&instruction);
    if shape.flags_out {
        e.code.push(0x9c); // pushfq
        e.rdi_operand(&[0x8f], 0, FLAGS); // pop
    }
    let mut skip = None;
    if shape.mxcsr {
        e.mxcsr(3, MXCSR_OUT);
        e.mxcsr(2, MXCSR_HOST);
        e.rdi_operand(&[0x44, 0x8b], 0, MXCSR_OUT); // mov r8d, mxcsr_out
        e.rdi_operand(&[0x44, 0x85], 0, UNMASKED); // test unmasked, r8d
        e.code.extend_from_slice(&[0x0f, 0x85, 0, 0, 0, 0]); // jne
        skip = Some(e.code.len());
    }
    if x87 {
        e.rdi_operand(&[0x48, 0x0f, 0xae], 0, 0); // fxsave64
    } else {
        e.vectors(vectors.written, vex, true, true);
    }
    for n in 0..3 {
        if shape.gpr_out >> n & 1 != 0 {
            e.mov_gpr(n, true);
        }
    }
    if let Some(from) = skip {
        let distance = (e.code.len() - from) as u32;
        e.code[from - 4..from].copy_from_slice(&distance.to_le_bytes());
    }
    if x87 {
        e.code.extend_from_slice(&[0xdb, 0xe3]); // fninit
        e.mxcsr(2, MXCSR_HOST);
    }
    if vex {
        e.code.extend_from_slice(&[0xc5, 0xf8, 0x77]); // vzeroupper
    }
    e.code.push(0xc3);
    debug_assert!(e.code.len() <= MAX_THUNK_LEN);
    Some((e.code, shape))
}

/// The general registers that an instruction uses without naming them.
fn implicit_registers(mnemonic: Mnemonic, shape: &mut Shape) -> Option<()> {
    let (explicit_lengths, index) = match mnemonic {
        Mnemonic::Pcmpestri | Mnemonic::Vpcmpestri | Mnemonic::Pcmpestri64 | Mnemonic::Vpcmpestri64 => (true, true),
        Mnemonic::Pcmpestrm | Mnemonic::Vpcmpestrm | Mnemonic::Pcmpestrm64 | Mnemonic::Vpcmpestrm64 => (true, false),
        Mnemonic::Pcmpistri | Mnemonic::Vpcmpistri => (false, true),
        _ => return Some(()),
    };
    if shape.gpr[0].is_some() {
        return None;
    }
    if explicit_lengths {
        shape.gpr = [Some(Register::RAX), Some(Register::RDX)];
        shape.gpr_in = 3;
    }
    shape.gpr_out = if index { 4 } else { 0 };
    Some(())
}

/// Writes the few instructions that surround the guest's. All addresses are a 32-bit displacement from RDI.
#[derive(Default)]
struct Emitter {
    code: Vec<u8>,
}

impl Emitter {
    /// An opcode with a register field and the operand `[rdi + at]`.
    fn rdi_operand(&mut self, opcode: &[u8], reg: u8, at: usize) {
        self.code.extend_from_slice(opcode);
        self.code.push(0x80 | (reg & 7) << 3 | 7);
        self.code.extend_from_slice(&(at as u32).to_le_bytes());
    }

    fn fxrstor(&mut self) {
        self.rdi_operand(&[0x48, 0x0f, 0xae], 1, 0);
    }

    /// LDMXCSR (`form` 2) or STMXCSR (3).
    fn mxcsr(&mut self, form: u8, at: usize) {
        self.rdi_operand(&[0x0f, 0xae], form, at);
    }

    /// Between scratch word `n` and RAX, RDX or RCX.
    fn mov_gpr(&mut self, n: u8, store: bool) {
        let number = [0, 2, 1][usize::from(n)];
        self.rdi_operand(&[0x48, if store { 0x89 } else { 0x8b }], number, GPR + usize::from(n) * 8);
    }

    /// Loads or stores the vector registers in `set`: 128 bits by legacy instructions, or by VEX ones 128 or (`wide`) 256.
    fn vectors(&mut self, set: u16, vex: bool, wide: bool, store: bool) {
        for n in (0..16u8).filter(|n| set >> n & 1 != 0) {
            let low = offset::XMM + usize::from(n) * 16;
            let high = offset::YMM_HIGH + usize::from(n) * 16;
            let opcode = if store { 0x29 } else { 0x28 }; // movaps
            if !vex {
                if n >= 8 {
                    self.code.push(0x44);
                }
                self.rdi_operand(&[0x0f, opcode], n, low);
                continue;
            }
            let inverted_r = if n < 8 { 0x80 } else { 0 };
            self.rdi_operand(&[0xc5, inverted_r | 0x78, opcode], n, low); // vmovaps xmm
            if wide && store {
                self.rdi_operand(&[0xc4, inverted_r | 0x63, 0x7d, 0x19], n, high); // vextractf128
                self.code.push(1);
            } else if wide {
                self.rdi_operand(&[0xc4, inverted_r | 0x63, (!n & 15) << 3 | 5, 0x18], n, high); // vinsertf128
                self.code.push(1);
            }
        }
    }
}
