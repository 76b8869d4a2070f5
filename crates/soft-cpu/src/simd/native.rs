//! MMX, SSE and AVX instructions as thunks: memory and general registers in, the host's execution, results out.

use iced_x86::{Instruction, Mnemonic};
use x86::{cr4, exception};

use super::arena::call;
use super::classify;
use super::thunk::{MemoryUse, Shape, ThunkCache};
use super::x87;
use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::{Lowered, memory, register};
use crate::flags::LazyFlags;
use crate::fpu::{FpuState, MXCSR_DEFAULT, offset};
use crate::mem::WriteSlot;
use crate::op::{Handler, Op};

/// The exception flags of MXCSR.
const FLAGS: u32 = 0x3f;
/// Those of them that are found before the operation (invalid, denormal, divide by zero): one unmasked keeps the others from arising.
const BEFORE: u32 = 0x07;

/// Underflow.
const UNDERFLOW: u32 = 0x10;
/// As [`Scratch::unmasked`](crate::fpu::Scratch): the masks are in what is tested against it, so nothing is stored whatever the flags are.
const STORE_NOTHING: u32 = u32::MAX;
/// MXCSR.FTZ.
const FLUSH_TO_ZERO: u32 = 1 << 15;

/// No memory operand.
const NONE: u8 = 0;
/// A memory operand that is read.
const LOAD: u8 = 1;
/// A memory operand that is written.
const STORE: u8 = 2;

/// [`Shape`] and the memory operand's size and alignment, packed into [`Op::extra`].
#[derive(Clone, Copy)]
struct Packed(u32);

impl Packed {
    const FLAGS_IN: u32 = 1 << 24;
    const FLAGS_OUT: u32 = 1 << 25;
    /// General registers or flags are involved.
    const SPECIAL: u32 = 0xffff_0000;

    fn new(shape: &Shape, size: usize, alignment: usize) -> Self {
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        Self(
            size as u32
                | (alignment as u32 - 1) << 8
                | u32::from(shape.gpr_in) << 16
                | u32::from(shape.gpr_out) << 20
                | flag(shape.flags_in, Self::FLAGS_IN)
                | flag(shape.flags_out, Self::FLAGS_OUT),
        )
    }

    #[inline(always)]
    fn size(self) -> usize {
        (self.0 & 0x3f) as usize
    }

    #[inline(always)]
    fn misaligned(self, linear: u64) -> bool {
        linear & u64::from(self.0 >> 8 & 0x3f) != 0
    }

    #[inline(always)]
    fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }

    #[inline(always)]
    fn reads_gpr(self, n: u32) -> bool {
        self.0 >> (16 + n) & 1 != 0
    }

    #[inline(always)]
    fn writes_gpr(self, n: u32) -> bool {
        self.0 >> (20 + n) & 1 != 0
    }
}

/// Reads a memory operand of `size` bytes into the scratch area.
#[inline(always)]
pub(super) fn load_operand(core: &mut Core, linear: u64, size: usize) -> Outcome {
    #[inline(always)]
    fn fixed<const N: usize>(core: &mut Core, linear: u64) -> Outcome {
        let mut bytes = [0; N];
        core.read_bytes(linear, &mut bytes)?;
        core.fpu.scratch.memory[..N].copy_from_slice(&bytes);
        Ok(())
    }
    match size {
        4 => fixed::<4>(core, linear),
        8 => fixed::<8>(core, linear),
        16 => fixed::<16>(core, linear),
        32 => fixed::<32>(core, linear),
        _ => {
            let mut bytes = [0; 32];
            let bytes = &mut bytes[..size.clamp(1, 32)];
            core.read_bytes(linear, bytes)?;
            core.fpu.scratch.memory[..bytes.len()].copy_from_slice(bytes);
            Ok(())
        }
    }
}

/// Writes the scratch area's first `size` bytes to a prepared memory operand.
#[inline(always)]
pub(super) fn store_operand(core: &mut Core, slot: WriteSlot, size: usize) {
    let bytes = core.fpu.scratch.memory;
    match size {
        4 => core.slot_write_bytes(slot, &bytes[..4]),
        8 => core.slot_write_bytes(slot, &bytes[..8]),
        16 => core.slot_write_bytes(slot, &bytes[..16]),
        _ => core.slot_write_bytes(slot, &bytes[..size.min(64)]),
    }
}

/// The linear address of the memory operand, checked for alignment.
#[inline(always)]
fn operand_address(core: &mut Core, op: &Op, packed: Packed, write: bool) -> Outcome<u64> {
    let linear = core.linear_address(&op.mem, packed.size(), write)?;
    if packed.misaligned(linear) {
        return core.raise_with(exception::GP, 0);
    }
    Ok(linear)
}

/// Calls the thunk with registers and flags around it. `FP`: it obeys MXCSR and nothing is committed if an unmasked exception comes.
#[inline(always)]
fn run<const FP: bool>(core: &mut Core, op: &Op, packed: Packed) -> Outcome {
    let fpu = &mut *core.fpu;
    let special = packed.has(Packed::SPECIAL);
    if special {
        if packed.reads_gpr(0) {
            fpu.scratch.gpr[0] = core.gpr[usize::from(op.reg & 31)];
        }
        if packed.reads_gpr(1) {
            fpu.scratch.gpr[1] = core.gpr[usize::from(op.rm & 31)];
        }
        if packed.has(Packed::FLAGS_IN) {
            fpu.scratch.flags = core.flags.bits() | x86::rflags::RESERVED_ONE;
        }
    }
    let mxcsr = fpu.mxcsr();
    let mut tiny = 0;
    if FP {
        fpu.scratch.mxcsr_run = (mxcsr | MXCSR_DEFAULT) & !FLAGS;
        fpu.scratch.unmasked = !(mxcsr >> 7) & FLAGS;
        if fpu.scratch.unmasked & UNDERFLOW != 0 {
            tiny = probe_tiny_result(fpu, op.immediate);
            if tiny != 0 {
                fpu.scratch.unmasked = STORE_NOTHING;
            }
        }
    }
    call(op.immediate, fpu);
    if FP {
        let raised = fpu.scratch.mxcsr_out & FLAGS | tiny;
        if raised & fpu.scratch.unmasked != 0 {
            return simd_exception(core, mxcsr, raised);
        }
        fpu.set_mxcsr(mxcsr | raised);
    }
    if special {
        let (gpr, flags) = (fpu.scratch.gpr, fpu.scratch.flags);
        if packed.writes_gpr(0) {
            core.gpr[usize::from(op.reg & 15)] = gpr[0];
        }
        if packed.writes_gpr(1) {
            core.gpr[usize::from(op.rm & 15)] = gpr[1];
        }
        if packed.writes_gpr(2) {
            core.gpr[x86::gpr::RCX] = gpr[2];
        }
        if packed.has(Packed::FLAGS_OUT) {
            core.flags = LazyFlags::from_bits(flags);
        }
    }
    Ok(())
}

/// With underflow unmasked an exact tiny result raises it too, which a masked run does not tell. Flushing tiny results to zero does: this runs the
/// instruction so, stores nothing, and returns the underflow flag. The real run is then to be without flushing, as the guest's would be.
#[cold]
fn probe_tiny_result(fpu: &mut FpuState, entry: u64) -> u32 {
    let (run, unmasked) = (fpu.scratch.mxcsr_run, fpu.scratch.unmasked);
    let memory = fpu.scratch.memory;
    fpu.scratch.mxcsr_run = run | FLUSH_TO_ZERO;
    fpu.scratch.unmasked = STORE_NOTHING;
    call(entry, fpu);
    let flags = fpu.scratch.mxcsr_out;
    fpu.scratch.mxcsr_run = run & !FLUSH_TO_ZERO;
    fpu.scratch.unmasked = unmasked;
    fpu.scratch.memory = memory;
    flags & UNDERFLOW
}

/// An unmasked exception: its flags are set, nothing else happens (SDM vol. 1, 11.5.3).
#[cold]
fn simd_exception(core: &mut Core, mxcsr: u32, raised: u32) -> Outcome {
    let unmasked = !(mxcsr >> 7);
    let seen = if raised & unmasked & BEFORE != 0 { raised & BEFORE } else { raised };
    core.fpu.set_mxcsr(mxcsr | seen);
    let vector = if core.cr4 & cr4::OSXMMEXCPT != 0 { exception::XM } else { exception::UD };
    core.raise(vector)
}

fn execute<const MEMORY: u8, const FP: bool>(core: &mut Core, op: &Op) -> Outcome {
    let packed = Packed(op.extra);
    if MEMORY == STORE {
        let linear = operand_address(core, op, packed, true)?;
        let slot = core.prepare_write(linear, packed.size())?;
        run::<FP>(core, op, packed)?;
        store_operand(core, slot, packed.size());
        return Ok(());
    }
    if MEMORY == LOAD {
        let linear = operand_address(core, op, packed, false)?;
        load_operand(core, linear, packed.size())?;
    }
    run::<FP>(core, op, packed)
}

/// With MMX registers: the thunk loads and saves the whole x87 and SSE state.
fn execute_mmx<const MEMORY: u8, const FP: bool>(core: &mut Core, op: &Op) -> Outcome {
    x87::raise_pending(core)?;
    let mxcsr = core.fpu.mxcsr();
    let pointers: [u8; offset::MXCSR - offset::FOP] = core.fpu.bytes(offset::FOP);
    let result = execute::<MEMORY, FP>(core, op);
    // The thunk saved our own MXCSR and instruction pointer with the rest.
    let fpu = &mut *core.fpu;
    fpu.image[offset::FOP..offset::MXCSR].copy_from_slice(&pointers);
    if !FP {
        fpu.set_mxcsr(mxcsr);
    }
    // The registers are taken into use before the operation, but not where CVTPI2PS reads memory.
    if FP && op.aux == 0 && result.is_err() && core.fault.vector == exception::XM {
        core.fpu.enter_mmx();
    }
    result
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode, thunks: &mut ThunkCache) -> Option<Lowered> {
    let (entry, shape) = thunks.thunk(i)?;
    let mmx = classify::uses_x87_registers(i);
    let handler: Handler = match (shape.memory, shape.mxcsr, mmx) {
        (MemoryUse::None, false, false) => execute::<NONE, false>,
        (MemoryUse::Load, false, false) => execute::<LOAD, false>,
        (MemoryUse::Store, false, false) => execute::<STORE, false>,
        (MemoryUse::None, true, false) => execute::<NONE, true>,
        (MemoryUse::Load, true, false) => execute::<LOAD, true>,
        (MemoryUse::Store, true, false) => execute::<STORE, true>,
        (MemoryUse::None, false, true) => execute_mmx::<NONE, false>,
        (MemoryUse::Load, false, true) => execute_mmx::<LOAD, false>,
        (MemoryUse::Store, false, true) => execute_mmx::<STORE, false>,
        (MemoryUse::None, true, true) => execute_mmx::<NONE, true>,
        (MemoryUse::Load | MemoryUse::Store, true, true) => execute_mmx::<LOAD, true>,
    };
    let mut size = 0;
    let mut alignment = 1;
    if shape.memory != MemoryUse::None {
        size = i.memory_size().size();
        alignment = classify::alignment(i);
        if !(1..=32).contains(&size) {
            return None;
        }
    }
    let mut lowered = Lowered::new(handler).immediate(entry).extra(Packed::new(&shape, size, alignment).0);
    if let Some(gpr) = shape.gpr[0] {
        lowered = lowered.reg(register(gpr));
    }
    if let Some(gpr) = shape.gpr[1] {
        lowered = lowered.rm(register(gpr));
    }
    if shape.memory != MemoryUse::None {
        lowered = lowered.mem(memory(i, mode));
    }
    let untouched = i.mnemonic() == Mnemonic::Cvtpi2ps && shape.memory != MemoryUse::None;
    Some(lowered.aux(u8::from(untouched)))
}
