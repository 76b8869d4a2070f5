//! BSF, BSR, LZCNT, TZCNT, POPCNT and CRC32.

use iced_x86::{Instruction, Mnemonic};

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::{Lowered, register};
use crate::flags::LazyFlags;
use crate::integer::operand::{Source, operand_size, sized, sized_word, sourced, with_source};
use crate::op::Op;
use crate::ram::Scalar;

/// CRC-32C (Castagnoli), bits reversed, one byte a step.
const CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 != 0 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// Where the source is zero, ZF is set and the destination keeps all its 64 bits; PF of the result is undefined and as on AMD.
#[inline(always)]
fn scan<S: Source, T: Scalar>(core: &mut Core, op: &Op, find: impl Fn(u64) -> u32) -> Outcome {
    let value = S::get::<T>(core, op)?.widen();
    if value == 0 {
        core.flags = LazyFlags::logic(0);
        return Ok(());
    }
    let position = u64::from(find(value));
    core.set_reg(op.reg, T::truncate(position));
    // A bit above the byte that PF looks at keeps ZF clear for position 0.
    core.flags = LazyFlags::logic(position | 1 << 32);
    Ok(())
}

fn bsf<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    scan::<S, T>(core, op, u64::trailing_zeros)
}

fn bsr<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    scan::<S, T>(core, op, |value| 63 - value.leading_zeros())
}

/// Flags of a count: ZF by the result, CF given; SF, PF and AF clear, OF as given.
#[inline(always)]
fn count_flags(result: u64, cf: bool, of: bool) -> LazyFlags {
    let zero = result == 0;
    LazyFlags { result: u64::from(!zero), carries: 0, delta: u64::from(zero) }.with_carry_overflow_aux(cf, of, false)
}

#[inline(always)]
fn count_zeros<S: Source, T: Scalar>(core: &mut Core, op: &Op, count: impl Fn(u64) -> u32) -> Outcome {
    let value = S::get::<T>(core, op)?.widen();
    let result = u64::from(count(value));
    core.set_reg(op.reg, T::truncate(result));
    core.flags = count_flags(result, value == 0, core.flags.of());
    Ok(())
}

fn lzcnt<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    count_zeros::<S, T>(core, op, |value| value.leading_zeros() - (64 - T::BITS))
}

fn tzcnt<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    count_zeros::<S, T>(core, op, |value| value.trailing_zeros().min(T::BITS))
}

fn popcnt<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let result = u64::from(S::get::<T>(core, op)?.widen().count_ones());
    core.set_reg(op.reg, T::truncate(result));
    core.flags = count_flags(result, false, false);
    Ok(())
}

/// `T` is the source's size; the destination's upper half is cleared in every form.
fn crc32<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let data = S::get::<T>(core, op)?.widen().to_le_bytes();
    let crc = data
        .iter()
        .take(T::SIZE)
        .fold(core.reg::<u32>(op.reg), |crc, byte| CRC32C[usize::from(crc as u8 ^ byte)] ^ crc >> 8);
    core.set_reg(op.reg, crc);
    Ok(())
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let size = || operand_size(i, 1);
    let handler = match i.mnemonic() {
        Mnemonic::Bsf => sourced!(i, 1, sized_word, size(), bsf),
        Mnemonic::Bsr => sourced!(i, 1, sized_word, size(), bsr),
        Mnemonic::Lzcnt => sourced!(i, 1, sized_word, size(), lzcnt),
        Mnemonic::Tzcnt => sourced!(i, 1, sized_word, size(), tzcnt),
        Mnemonic::Popcnt => sourced!(i, 1, sized_word, size(), popcnt),
        Mnemonic::Crc32 => sourced!(i, 1, sized, size(), crc32),
        _ => return None,
    };
    Some(with_source(Lowered::new(handler).reg(register(i.op0_register())), i, 1, mode))
}
