//! DAA, DAS, AAA, AAS, AAM and AAD: not in 64-bit code, where iced finds them invalid.
//!
//! Undefined flags: OF is clear; AAA and AAS set ZF, SF and PF by AL.

use iced_x86::{Instruction, Mnemonic};
use x86::exception;

use crate::core::{Core, Outcome};
use crate::decode::Lowered;
use crate::flags::{LazyFlags, sign_extend};
use crate::op::{Op, byte_register};

const AL: u8 = 0;
const AX: u8 = 0;
const AH: u8 = byte_register(0, true);

fn finish(core: &mut Core, al: u8, cf: bool, af: bool) {
    core.set_reg(AL, al);
    core.flags = LazyFlags::logic(sign_extend(al.into(), 8)).with_carry_overflow_aux(cf, false, af);
}

fn daa(core: &mut Core, _: &Op) -> Outcome {
    let (before, cf) = (core.reg::<u8>(AL), core.flags.cf());
    let low = before & 0xf > 9 || core.flags.af();
    let high = before > 0x99 || cf;
    let al = before.wrapping_add(if low { 6 } else { 0 }).wrapping_add(if high { 0x60 } else { 0 });
    finish(core, al, high, low);
    Ok(())
}

fn das(core: &mut Core, _: &Op) -> Outcome {
    let (before, cf) = (core.reg::<u8>(AL), core.flags.cf());
    let low = before & 0xf > 9 || core.flags.af();
    let high = before > 0x99 || cf;
    let al = before.wrapping_sub(if low { 6 } else { 0 }).wrapping_sub(if high { 0x60 } else { 0 });
    // Below 6 the first correction borrows.
    finish(core, al, high || low && before < 6, low);
    Ok(())
}

fn aaa(core: &mut Core, _: &Op) -> Outcome {
    let adjust = core.reg::<u8>(AL) & 0xf > 9 || core.flags.af();
    if adjust {
        core.set_reg(AX, core.reg::<u16>(AX).wrapping_add(0x106));
    }
    let al = core.reg::<u8>(AL) & 0xf;
    finish(core, al, adjust, adjust);
    Ok(())
}

fn aas(core: &mut Core, _: &Op) -> Outcome {
    let adjust = core.reg::<u8>(AL) & 0xf > 9 || core.flags.af();
    if adjust {
        core.set_reg(AX, core.reg::<u16>(AX).wrapping_sub(0x106));
    }
    let al = core.reg::<u8>(AL) & 0xf;
    finish(core, al, adjust, adjust);
    Ok(())
}

fn aam(core: &mut Core, op: &Op) -> Outcome {
    let (al, radix) = (core.reg::<u8>(AL), op.immediate as u8);
    let (Some(quotient), Some(remainder)) = (al.checked_div(radix), al.checked_rem(radix)) else {
        return core.raise(exception::DE);
    };
    core.set_reg(AH, quotient);
    finish(core, remainder, false, false);
    Ok(())
}

fn aad(core: &mut Core, op: &Op) -> Outcome {
    let (al, ah) = (core.reg::<u8>(AL), core.reg::<u8>(AH));
    core.set_reg(AH, 0u8);
    finish(core, al.wrapping_add(ah.wrapping_mul(op.immediate as u8)), false, false);
    Ok(())
}

pub(super) fn lower(i: &Instruction) -> Option<Lowered> {
    Some(match i.mnemonic() {
        Mnemonic::Daa => Lowered::new(daa),
        Mnemonic::Das => Lowered::new(das),
        Mnemonic::Aaa => Lowered::new(aaa),
        Mnemonic::Aas => Lowered::new(aas),
        Mnemonic::Aam => Lowered::new(aam).immediate(i.immediate(0)),
        Mnemonic::Aad => Lowered::new(aad).immediate(i.immediate(0)),
        _ => return None,
    })
}
