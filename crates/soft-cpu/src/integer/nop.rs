//! Instructions that do nothing here (NOP, hints, prefetches, ENDBR, RDSSP without shadow stacks) and those that are undefined on purpose (UD0, UD1, UD2).

use iced_x86::{Instruction, Mnemonic};
use x86::exception;

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::Lowered;
use crate::op::Op;

fn nop(_: &mut Core, _: &Op) -> Outcome {
    Ok(())
}

fn undefined(core: &mut Core, _: &Op) -> Outcome {
    core.raise(exception::UD)
}

pub(super) fn lower(i: &Instruction, _: DecodeMode) -> Option<Lowered> {
    match i.mnemonic() {
        Mnemonic::Nop
        | Mnemonic::Reservednop
        | Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Rdsspd
        | Mnemonic::Rdsspq
        | Mnemonic::Cldemote
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchit0
        | Mnemonic::Prefetchit1 => Some(Lowered::new(nop)),
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => Some(Lowered::new(undefined).ends_block()),
        _ => None,
    }
}
