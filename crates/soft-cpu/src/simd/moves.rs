//! The commonest vector instructions without a thunk: whole-register moves, MOVD and MOVQ, scalar loads and stores, zeroing; and the
//! instructions that only look like vector ones (prefetches, fences, MOVNTI).

use std::sync::atomic::{Ordering, fence};

use iced_x86::{Code, EncodingKind, Instruction, Mnemonic, OpKind, Register};
use x86::exception;

use super::classify;
use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::{Lowered, is_memory, memory, register};
use crate::op::{Handler, Op};
use crate::ram::Scalar;

fn nothing(_: &mut Core, _: &Op) -> Outcome {
    Ok(())
}

/// LFENCE, SFENCE and MFENCE: our own accesses are those of the guest, so a full fence covers all three.
fn full_fence(_: &mut Core, _: &Op) -> Outcome {
    fence(Ordering::SeqCst);
    Ok(())
}

fn movnti<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    core.store(&op.mem, core.reg::<T>(op.reg))
}

/// Prefetches, fences and MOVNTI, which need no SSE state to be enabled.
pub(super) fn lower_without_registers(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    Some(match i.mnemonic() {
        Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchwt1 => Lowered::new(nothing),
        Mnemonic::Lfence | Mnemonic::Sfence | Mnemonic::Mfence => Lowered::new(full_fence),
        Mnemonic::Movnti => {
            let handler: Handler = if i.op1_register().size() == 8 { movnti::<u64> } else { movnti::<u32> };
            Lowered::new(handler).mem(memory(i, mode)).reg(register(i.op1_register()))
        }
        _ => return None,
    })
}

/// The low `N` bytes of the register and zeros above: what VEX instructions and loads of less than 16 bytes leave.
#[inline(always)]
fn set_register<const N: usize, const VEX: bool>(core: &mut Core, n: u8, bytes: [u8; N]) {
    let mut low = [0; 16];
    let mut high = [0; 16];
    if N <= 16 {
        low[..N].copy_from_slice(&bytes);
    } else {
        low.copy_from_slice(&bytes[..16]);
        high[..N - 16].copy_from_slice(&bytes[16..]);
    }
    core.fpu.set_xmm(n, u128::from_le_bytes(low));
    if VEX {
        core.fpu.set_ymm_high(n, u128::from_le_bytes(high));
    }
}

#[inline(always)]
fn get_register<const N: usize>(core: &Core, n: u8) -> [u8; N] {
    let mut bytes = [0; N];
    let low = core.fpu.xmm(n).to_le_bytes();
    let count = N.min(16);
    bytes[..count].copy_from_slice(&low[..count]);
    if N > 16 {
        bytes[16..].copy_from_slice(&core.fpu.ymm_high(n).to_le_bytes()[..N - 16]);
    }
    bytes
}

/// `extra` is the alignment less one.
#[inline(always)]
fn address<const N: usize>(core: &mut Core, op: &Op, write: bool) -> Outcome<u64> {
    let linear = core.linear_address(&op.mem, N, write)?;
    if linear & u64::from(op.extra) != 0 {
        return core.raise_with(exception::GP, 0);
    }
    Ok(linear)
}

fn load<const N: usize, const VEX: bool>(core: &mut Core, op: &Op) -> Outcome {
    let linear = address::<N>(core, op, false)?;
    let mut bytes = [0; N];
    core.read_bytes(linear, &mut bytes)?;
    set_register::<N, VEX>(core, op.reg, bytes);
    Ok(())
}

fn store<const N: usize>(core: &mut Core, op: &Op) -> Outcome {
    let linear = address::<N>(core, op, true)?;
    let bytes = get_register::<N>(core, op.reg);
    core.write_bytes(linear, &bytes)
}

/// Also MOVQ between XMM registers, with `N` of 8.
fn copy<const N: usize, const VEX: bool>(core: &mut Core, op: &Op) -> Outcome {
    let bytes = get_register::<N>(core, op.rm);
    set_register::<N, VEX>(core, op.reg, bytes);
    Ok(())
}

fn zero<const VEX: bool>(core: &mut Core, op: &Op) -> Outcome {
    set_register::<1, VEX>(core, op.reg, [0]);
    Ok(())
}

fn from_gpr<const N: usize, const VEX: bool>(core: &mut Core, op: &Op) -> Outcome {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&core.gpr[usize::from(op.rm & 31)].to_le_bytes()[..N]);
    set_register::<N, VEX>(core, op.reg, bytes);
    Ok(())
}

fn to_gpr<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    core.set_reg(op.reg, T::truncate(core.fpu.xmm(op.rm) as u64));
    Ok(())
}

/// VZEROUPPER, and with `ALL` VZEROALL: outside 64-bit code registers 8 to 15 are left alone.
fn zero_upper<const ALL: bool>(core: &mut Core, _: &Op) -> Outcome {
    let registers = if core.mode.has(DecodeMode::CODE64) { 16 } else { 8 };
    for n in 0..registers {
        core.fpu.set_ymm_high(n, 0);
        if ALL {
            core.fpu.set_xmm(n, 0);
        }
    }
    Ok(())
}

/// Picks the VEX or the legacy instance of a handler.
macro_rules! by_encoding {
    ($vex:expr, $handler:ident, $n:literal) => {
        if $vex { $handler::<$n, true> as Handler } else { $handler::<$n, false> }
    };
}

fn vector(register: Register) -> Option<u8> {
    (register.is_xmm() || register.is_ymm()).then(|| register.number() as u8)
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    use Mnemonic::*;
    let vex = i.encoding() == EncodingKind::VEX;
    match i.mnemonic() {
        Vzeroupper => Some(Lowered::new(zero_upper::<false>)),
        Vzeroall => Some(Lowered::new(zero_upper::<true>)),
        Movaps | Movapd | Movdqa | Movups | Movupd | Movdqu | Lddqu | Movntps | Movntpd | Movntdq | Movntdqa
        | Vmovaps | Vmovapd | Vmovdqa | Vmovups | Vmovupd | Vmovdqu | Vlddqu | Vmovntps | Vmovntpd | Vmovntdq
        | Vmovntdqa => whole(i, mode, vex),
        Pxor | Xorps | Xorpd
            if i.op1_kind() == OpKind::Register
                && i.op0_register() == i.op1_register()
                && i.op0_register().is_xmm() =>
        {
            Some(Lowered::new(zero::<false>).reg(vector(i.op0_register())?))
        }
        Vpxor | Vxorps | Vxorpd if i.op2_kind() == OpKind::Register && i.op1_register() == i.op2_register() => {
            Some(Lowered::new(zero::<true>).reg(vector(i.op0_register())?))
        }
        Movd | Movq | Vmovd | Vmovq | Movss | Movsd | Vmovss | Vmovsd => partial(i, mode, vex),
        _ => None,
    }
}

/// Moves of 16 or 32 bytes.
fn whole(i: &Instruction, mode: DecodeMode, vex: bool) -> Option<Lowered> {
    let wide = (0..2).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_ymm());
    if is_memory(i, 0) {
        let handler: Handler = if wide { store::<32> } else { store::<16> };
        let extra = classify::alignment(i) as u32 - 1;
        return Some(Lowered::new(handler).reg(vector(i.op1_register())?).mem(memory(i, mode)).extra(extra));
    }
    let target = vector(i.op0_register())?;
    if is_memory(i, 1) {
        let handler = if wide { load::<32, true> } else { by_encoding!(vex, load, 16) };
        let extra = classify::alignment(i) as u32 - 1;
        return Some(Lowered::new(handler).reg(target).mem(memory(i, mode)).extra(extra));
    }
    let handler = if wide { copy::<32, true> } else { by_encoding!(vex, copy, 16) };
    Some(Lowered::new(handler).reg(target).rm(vector(i.op1_register())?))
}

/// Moves of 4 or 8 bytes; what merges with the target's old value is left to a thunk.
fn partial(i: &Instruction, mode: DecodeMode, vex: bool) -> Option<Lowered> {
    if i.op_count() != 2 {
        return None;
    }
    if is_memory(i, 0) {
        let handler: Handler = if i.memory_size().size() == 8 { store::<8> } else { store::<4> };
        return Some(Lowered::new(handler).reg(vector(i.op1_register())?).mem(memory(i, mode)));
    }
    if is_memory(i, 1) {
        let target = vector(i.op0_register())?;
        let handler = if i.memory_size().size() == 8 { by_encoding!(vex, load, 8) } else { by_encoding!(vex, load, 4) };
        return Some(Lowered::new(handler).reg(target).mem(memory(i, mode)));
    }
    let (target, source) = (i.op0_register(), i.op1_register());
    if source.is_gpr() {
        let handler = if source.size() == 8 { by_encoding!(vex, from_gpr, 8) } else { by_encoding!(vex, from_gpr, 4) };
        return Some(Lowered::new(handler).reg(vector(target)?).rm(register(source)));
    }
    if target.is_gpr() {
        let handler: Handler = if target.size() == 8 { to_gpr::<u64> } else { to_gpr::<u32> };
        return Some(Lowered::new(handler).reg(register(target)).rm(vector(source)?));
    }
    let movq = matches!(
        i.code(),
        Code::Movq_xmm_xmmm64 | Code::Movq_xmmm64_xmm | Code::VEX_Vmovq_xmm_xmmm64 | Code::VEX_Vmovq_xmmm64_xmm
    );
    movq.then_some(())?;
    Some(Lowered::new(by_encoding!(vex, copy, 8)).reg(vector(target)?).rm(vector(source)?))
}
