//! MXCSR and the save areas: FXSAVE, FXRSTOR, XSAVE, XSAVEOPT, XSAVEC and XRSTOR (SDM vol. 1, 10.5 and chapter 13).
//!
//! Components are x87, SSE and AVX, in the standard and the compacted format; AVX lies at offset 576 in both. XSAVEOPT and XSAVEC make
//! use of the init optimisation and not of the modified one. Not offered: XSAVES and XRSTORS.

use iced_x86::{Instruction, Mnemonic};
use x86::{cr0, cr4, exception};

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::{Lowered, memory};
use crate::fpu::{COMPONENT_AVX, COMPONENT_SSE, COMPONENT_X87, FpuState, MXCSR_DEFAULT, MXCSR_VALID, offset};
use crate::op::{Handler, Op};

const LEGACY_SIZE: usize = 512;
const HEADER_SIZE: usize = 64;
const AVX_SIZE: usize = 256;
/// XCOMP_BV: the area is in the compacted format.
const COMPACTED: u64 = 1 << 63;
/// [`Op::aux`]: the x87 pointers are 64 bits wide (REX.W).
const WIDE_POINTERS: u8 = 1;
/// [`Op::aux`]: a VEX encoding.
const VEX: u8 = 2;

/// FXSAVE and FXRSTOR: CR0.EM and TS clear, else #NM; a 16-byte boundary, else #GP.
fn fx_area(core: &mut Core, op: &Op, write: bool) -> Outcome<u64> {
    if core.cr0 & (cr0::EM | cr0::TS) != 0 {
        return core.raise(exception::NM);
    }
    let linear = core.linear_address(&op.mem, LEGACY_SIZE, write)?;
    if linear & 15 != 0 {
        return core.raise_with(exception::GP, 0);
    }
    Ok(linear)
}

/// The XMM registers that exist in this mode, in bytes.
fn xmm_size(core: &Core) -> usize {
    if core.mode.has(DecodeMode::CODE64) { 256 } else { 128 }
}

/// The x87 part of the legacy area, 32 bytes without MXCSR, and the eight registers.
fn write_x87(fpu: &FpuState, area: &mut [u8], wide_pointers: bool) {
    area[..offset::MXCSR].copy_from_slice(&fpu.image[..offset::MXCSR]);
    area[offset::FTW + 1] = 0;
    if !wide_pointers {
        // Selectors, which are not kept, take the pointers' upper halves.
        area[offset::FIP + 4..offset::FDP].fill(0);
        area[offset::FDP + 4..offset::MXCSR].fill(0);
    }
    for n in 0..8 {
        let at = offset::ST + n * 16;
        area[at..at + 10].copy_from_slice(&fpu.st(n));
        area[at + 10..at + 16].fill(0);
    }
}

fn read_x87(fpu: &mut FpuState, area: &[u8], wide_pointers: bool) {
    fpu.image[..offset::MXCSR].copy_from_slice(&area[..offset::MXCSR]);
    fpu.image[offset::FTW + 1] = 0;
    let fcw = fpu.fcw() & 0x1f3f | 0x40;
    fpu.set_fcw(fcw);
    let fop = fpu.fop();
    fpu.set_fop(fop);
    if !wide_pointers {
        fpu.image[offset::FIP + 4..offset::FDP].fill(0);
        fpu.image[offset::FDP + 4..offset::MXCSR].fill(0);
    }
    for n in 0..8 {
        let mut value = [0; 10];
        value.copy_from_slice(&area[offset::ST + n * 16..offset::ST + n * 16 + 10]);
        fpu.set_st(n, value);
    }
    fpu.update_x87_summary();
}

fn write_mxcsr(fpu: &FpuState, area: &mut [u8]) {
    area[offset::MXCSR..offset::MXCSR_MASK].copy_from_slice(&fpu.mxcsr().to_le_bytes());
    area[offset::MXCSR_MASK..offset::ST].copy_from_slice(&MXCSR_VALID.to_le_bytes());
}

fn u32_at(area: &[u8], at: usize) -> u32 {
    area[at..at + 4].iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

fn u64_at(area: &[u8], at: usize) -> u64 {
    u64::from(u32_at(area, at)) | u64::from(u32_at(area, at + 4)) << 32
}

fn fxsave(core: &mut Core, op: &Op) -> Outcome {
    let linear = fx_area(core, op, true)?;
    let slot = core.prepare_write(linear, LEGACY_SIZE)?;
    let mut area = [0; LEGACY_SIZE];
    write_x87(&core.fpu, &mut area, op.aux & WIDE_POINTERS != 0);
    write_mxcsr(&core.fpu, &mut area);
    let mut size = offset::XMM;
    if core.cr4 & cr4::OSFXSR != 0 {
        size += xmm_size(core);
        area[offset::XMM..size].copy_from_slice(&core.fpu.image[offset::XMM..size]);
    }
    // What lies above is the program's to use.
    core.slot_write_bytes(slot, &area[..size]);
    Ok(())
}

fn fxrstor(core: &mut Core, op: &Op) -> Outcome {
    let linear = fx_area(core, op, false)?;
    let mut area = [0; LEGACY_SIZE];
    core.read_bytes(linear, &mut area)?;
    let mxcsr = u32_at(&area, offset::MXCSR);
    if mxcsr & !MXCSR_VALID != 0 {
        return core.raise_with(exception::GP, 0);
    }
    read_x87(&mut core.fpu, &area, op.aux & WIDE_POINTERS != 0);
    core.fpu.set_mxcsr(mxcsr);
    if core.cr4 & cr4::OSFXSR != 0 {
        let end = offset::XMM + xmm_size(core);
        core.fpu.image[offset::XMM..end].copy_from_slice(&area[offset::XMM..end]);
    }
    Ok(())
}

/// The gates of the XSAVE family, and RFBM: the components that are asked for and enabled.
fn requested(core: &mut Core) -> Outcome<u64> {
    if core.cr4 & cr4::OSXSAVE == 0 {
        return core.raise(exception::UD);
    }
    if core.cr0 & cr0::TS != 0 {
        return core.raise(exception::NM);
    }
    let mask = core.gpr[x86::gpr::RDX] << 32 | core.gpr[x86::gpr::RAX] & 0xffff_ffff;
    Ok(mask & core.xcr0)
}

/// The area's address; `components` tells how far it reaches.
fn xsave_area(core: &mut Core, op: &Op, components: u64, write: bool) -> Outcome<(u64, usize)> {
    let size = LEGACY_SIZE + HEADER_SIZE + if components & COMPONENT_AVX != 0 { AVX_SIZE } else { 0 };
    let linear = core.linear_address(&op.mem, size, write)?;
    if linear & 63 != 0 {
        return core.raise_with(exception::GP, 0);
    }
    Ok((linear, size))
}

/// XSAVE, XSAVEOPT (`OPTIMISED`) and XSAVEC (`COMPACT` too).
fn xsave<const OPTIMISED: bool, const COMPACT: bool>(core: &mut Core, op: &Op) -> Outcome {
    let asked = requested(core)?;
    let (linear, size) = xsave_area(core, op, asked, true)?;
    let slot = core.prepare_write(linear, size)?;
    let mut area = [0; LEGACY_SIZE + HEADER_SIZE + AVX_SIZE];
    // What is not asked for stays as it is in memory, so the old contents are the base.
    core.read_bytes(linear, &mut area[..size])?;

    let fpu = &*core.fpu;
    let mut in_use = fpu.components_in_use();
    if COMPACT && fpu.mxcsr() != MXCSR_DEFAULT {
        in_use |= COMPONENT_SSE;
    }
    let saved = if OPTIMISED { asked & in_use } else { asked };
    if saved & COMPONENT_X87 != 0 {
        write_x87(fpu, &mut area, op.aux & WIDE_POINTERS != 0);
    }
    let with_mxcsr = if COMPACT { saved & COMPONENT_SSE } else { asked & (COMPONENT_SSE | COMPONENT_AVX) };
    if with_mxcsr != 0 {
        write_mxcsr(fpu, &mut area);
    }
    if saved & COMPONENT_SSE != 0 {
        let end = offset::XMM + xmm_size(core);
        area[offset::XMM..end].copy_from_slice(&core.fpu.image[offset::XMM..end]);
    }
    if saved & COMPONENT_AVX != 0 {
        let end = offset::YMM_HIGH + xmm_size(core);
        area[offset::YMM_HIGH..end].copy_from_slice(&core.fpu.image[offset::YMM_HIGH..end]);
    }
    let state = if COMPACT { 0 } else { u64_at(&area, offset::XSTATE_BV) & !asked } | asked & in_use;
    area[offset::XSTATE_BV..offset::XCOMP_BV].copy_from_slice(&state.to_le_bytes());
    if COMPACT {
        let compacted = asked | COMPACTED;
        area[offset::XCOMP_BV..offset::XCOMP_BV + 8].copy_from_slice(&compacted.to_le_bytes());
    }
    core.slot_write_bytes(slot, &area[..size]);
    Ok(())
}

/// What XRSTOR will do, checked against the rules of SDM vol. 1, 13.8.
struct Restore {
    /// Taken from memory.
    load: u64,
    /// Put into the initial configuration.
    init: u64,
    /// MXCSR's new value.
    mxcsr: Option<u32>,
}

fn plan_restore(area: &[u8], asked: u64, xcr0: u64) -> Option<Restore> {
    let (state, compaction) = (u64_at(area, offset::XSTATE_BV), u64_at(area, offset::XCOMP_BV));
    let reserved = &area[offset::XCOMP_BV + 8..offset::YMM_HIGH];
    let compacted = compaction & COMPACTED != 0;
    let valid = if compacted {
        compaction & !(xcr0 | COMPACTED) == 0 && state & !compaction == 0 && reserved.iter().all(|b| *b == 0)
    } else {
        compaction == 0 && state & !xcr0 == 0 && reserved[..8].iter().all(|b| *b == 0)
    };
    if !valid {
        return None;
    }
    let mut plan = Restore { load: asked & state, init: asked & !state, mxcsr: None };
    if compacted {
        if plan.init & COMPONENT_SSE != 0 {
            plan.mxcsr = Some(MXCSR_DEFAULT);
        } else if plan.load & COMPONENT_SSE != 0 {
            plan.mxcsr = Some(u32_at(area, offset::MXCSR));
        }
    } else if asked & (COMPONENT_SSE | COMPONENT_AVX) != 0 {
        plan.mxcsr = Some(u32_at(area, offset::MXCSR));
    }
    if plan.mxcsr.is_some_and(|mxcsr| mxcsr & !MXCSR_VALID != 0) { None } else { Some(plan) }
}

fn xrstor(core: &mut Core, op: &Op) -> Outcome {
    let asked = requested(core)?;
    let (linear, size) = xsave_area(core, op, 0, false)?;
    let mut area = [0; LEGACY_SIZE + HEADER_SIZE + AVX_SIZE];
    core.read_bytes(linear, &mut area[..size])?;
    let Some(plan) = plan_restore(&area, asked, core.xcr0) else { return core.raise_with(exception::GP, 0) };
    if plan.load & COMPONENT_AVX != 0 {
        let linear = core.linear_address(&op.mem, size + AVX_SIZE, false)?;
        core.read_bytes(linear.wrapping_add(size as u64), &mut area[size..])?;
    }
    let registers = xmm_size(core);
    core.fpu.init_components(plan.init & COMPONENT_X87);
    if plan.load & COMPONENT_X87 != 0 {
        read_x87(&mut core.fpu, &area, op.aux & WIDE_POINTERS != 0);
    }
    for (component, at) in [(COMPONENT_SSE, offset::XMM), (COMPONENT_AVX, offset::YMM_HIGH)] {
        if plan.load & component != 0 {
            core.fpu.image[at..at + registers].copy_from_slice(&area[at..at + registers]);
        } else if plan.init & component != 0 {
            core.fpu.image[at..at + registers].fill(0);
        }
    }
    if let Some(mxcsr) = plan.mxcsr {
        core.fpu.set_mxcsr(mxcsr);
    }
    Ok(())
}

/// The gates of LDMXCSR and STMXCSR.
fn check_mxcsr_access(core: &mut Core, op: &Op) -> Outcome {
    let class = if op.aux & VEX != 0 { super::Class::Avx } else { super::Class::Sse };
    if class.runs_in(core.mode) {
        return Ok(());
    }
    let vector = class.exception(core);
    core.raise(vector)
}

fn ldmxcsr(core: &mut Core, op: &Op) -> Outcome {
    check_mxcsr_access(core, op)?;
    let value: u32 = core.load(&op.mem)?;
    if value & !MXCSR_VALID != 0 {
        return core.raise_with(exception::GP, 0);
    }
    core.fpu.set_mxcsr(value);
    Ok(())
}

fn stmxcsr(core: &mut Core, op: &Op) -> Outcome {
    check_mxcsr_access(core, op)?;
    core.store(&op.mem, core.fpu.mxcsr())
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let (handler, aux): (Handler, u8) = match i.mnemonic() {
        Mnemonic::Fxsave => (fxsave, 0),
        Mnemonic::Fxsave64 => (fxsave, WIDE_POINTERS),
        Mnemonic::Fxrstor => (fxrstor, 0),
        Mnemonic::Fxrstor64 => (fxrstor, WIDE_POINTERS),
        Mnemonic::Xsave => (xsave::<false, false>, 0),
        Mnemonic::Xsave64 => (xsave::<false, false>, WIDE_POINTERS),
        Mnemonic::Xsaveopt => (xsave::<true, false>, 0),
        Mnemonic::Xsaveopt64 => (xsave::<true, false>, WIDE_POINTERS),
        Mnemonic::Xsavec => (xsave::<true, true>, 0),
        Mnemonic::Xsavec64 => (xsave::<true, true>, WIDE_POINTERS),
        Mnemonic::Xrstor => (xrstor, 0),
        Mnemonic::Xrstor64 => (xrstor, WIDE_POINTERS),
        Mnemonic::Ldmxcsr => (ldmxcsr, 0),
        Mnemonic::Vldmxcsr => (ldmxcsr, VEX),
        Mnemonic::Stmxcsr => (stmxcsr, 0),
        Mnemonic::Vstmxcsr => (stmxcsr, VEX),
        _ => return None,
    };
    Some(Lowered::new(handler).mem(memory(i, mode)).aux(aux))
}
