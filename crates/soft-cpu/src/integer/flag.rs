//! CLC, STC, CMC, CLD, STD, LAHF, SAHF and SALC.

use iced_x86::{Instruction, Mnemonic};
use x86::rflags;

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::Lowered;
use crate::flags::LazyFlags;
use crate::op::{Op, byte_register};

const AL: u8 = 0;
const AH: u8 = byte_register(0, true);

fn clc(core: &mut Core, _: &Op) -> Outcome {
    core.flags = core.flags.with_carry(false);
    Ok(())
}

fn stc(core: &mut Core, _: &Op) -> Outcome {
    core.flags = core.flags.with_carry(true);
    Ok(())
}

fn cmc(core: &mut Core, _: &Op) -> Outcome {
    core.flags = core.flags.with_carry(!core.flags.cf());
    Ok(())
}

fn cld(core: &mut Core, _: &Op) -> Outcome {
    core.system_flags &= !rflags::DF;
    Ok(())
}

fn std(core: &mut Core, _: &Op) -> Outcome {
    core.system_flags |= rflags::DF;
    Ok(())
}

fn lahf(core: &mut Core, _: &Op) -> Outcome {
    let flags = (core.flags.bits() | rflags::RESERVED_ONE) as u8;
    core.set_reg(AH, flags);
    Ok(())
}

fn sahf(core: &mut Core, _: &Op) -> Outcome {
    let overflow = core.flags.bits() & rflags::OF;
    core.flags = LazyFlags::from_bits(overflow | u64::from(core.reg::<u8>(AH)));
    Ok(())
}

fn salc(core: &mut Core, _: &Op) -> Outcome {
    let value = if core.flags.cf() { 0xffu8 } else { 0 };
    core.set_reg(AL, value);
    Ok(())
}

pub(super) fn lower(i: &Instruction, _: DecodeMode) -> Option<Lowered> {
    Some(Lowered::new(match i.mnemonic() {
        Mnemonic::Clc => clc,
        Mnemonic::Stc => stc,
        Mnemonic::Cmc => cmc,
        Mnemonic::Cld => cld,
        Mnemonic::Std => std,
        Mnemonic::Lahf => lahf,
        Mnemonic::Sahf => sahf,
        Mnemonic::Salc => salc,
        _ => return None,
    }))
}
