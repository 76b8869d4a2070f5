//! BT, BTS, BTR and BTC.
//!
//! A bit number in a register reaches beyond a memory operand, signed; an immediate one, or one for a register, counts modulo the operand's size.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::{Lowered, is_memory};
use crate::flags::{LazyFlags, sign_extend};
use crate::integer::operand::{
    Immediate, InLockedMemory, InMemory, InRegister, Place, Source, displaced, operand_size, sized_word, with_place,
    with_source,
};
use crate::op::{Handler, Op};
use crate::ram::Scalar;

/// What becomes of the word that holds the tested bit.
trait Change: 'static {
    fn change(word: u64, bit: u64) -> u64;
}

struct Set;
impl Change for Set {
    #[inline(always)]
    fn change(word: u64, bit: u64) -> u64 {
        word | bit
    }
}

struct Reset;
impl Change for Reset {
    #[inline(always)]
    fn change(word: u64, bit: u64) -> u64 {
        word & !bit
    }
}

struct Complement;
impl Change for Complement {
    #[inline(always)]
    fn change(word: u64, bit: u64) -> u64 {
        word ^ bit
    }
}

/// CF takes the bit; the other flags stay.
#[inline(always)]
fn tested<T: Scalar>(word: T, number: u32, flags: &LazyFlags) -> LazyFlags {
    flags.with_carry(word.widen() >> number & 1 != 0)
}

/// The bit number within the operand, and the operation on the memory operand that it falls into.
#[inline(always)]
fn located<S: Source, T: Scalar>(core: &mut Core, op: &Op, reaches: bool) -> Outcome<(u32, Op)> {
    let number = S::get::<T>(core, op)?.widen();
    let mut op = *op;
    if reaches {
        let words = sign_extend(number, T::BITS) as i64 >> T::BITS.trailing_zeros();
        op.mem = displaced(&op.mem, (words as u64).wrapping_mul(T::SIZE as u64));
    }
    Ok((number as u32 & (T::BITS - 1), op))
}

fn bt_register<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let number = S::get::<T>(core, op)?.widen() as u32 & (T::BITS - 1);
    core.flags = tested(core.reg::<T>(op.reg), number, &core.flags);
    Ok(())
}

fn bt_memory<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let (number, op) = located::<S, T>(core, op, op.aux != 0)?;
    let word: T = core.load(&op.mem)?;
    core.flags = tested(word, number, &core.flags);
    Ok(())
}

/// `aux`: the bit number reaches beyond the memory operand.
fn change<C: Change, S: Source, P: Place, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let (number, op) = located::<S, T>(core, op, op.aux != 0)?;
    P::update::<T>(core, &op, |word, flags| {
        (T::truncate(C::change(word.widen(), 1 << number)), tested(word, number, flags))
    })
}

fn change_forms<C: Change, S: Source>(i: &Instruction, size: usize) -> Handler {
    match (is_memory(i, 0), i.has_lock_prefix()) {
        (false, _) => sized_word!(size, change, C, S, InRegister),
        (true, false) => sized_word!(size, change, C, S, InMemory),
        (true, true) => sized_word!(size, change, C, S, InLockedMemory),
    }
}

fn forms<S: Source>(i: &Instruction, size: usize) -> Option<Handler> {
    Some(match i.mnemonic() {
        Mnemonic::Bt if is_memory(i, 0) => sized_word!(size, bt_memory, S),
        Mnemonic::Bt => sized_word!(size, bt_register, S),
        Mnemonic::Bts => change_forms::<Set, S>(i, size),
        Mnemonic::Btr => change_forms::<Reset, S>(i, size),
        Mnemonic::Btc => change_forms::<Complement, S>(i, size),
        _ => return None,
    })
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    if !matches!(i.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc) {
        return None;
    }
    let size = operand_size(i, 0);
    let by_register = i.op1_kind() == OpKind::Register;
    let handler = if by_register { forms::<InRegister>(i, size) } else { forms::<Immediate>(i, size) }?;
    let lowered = with_source(with_place(Lowered::new(handler), i, mode), i, 1, mode);
    Some(lowered.aux(u8::from(by_register && is_memory(i, 0))))
}
