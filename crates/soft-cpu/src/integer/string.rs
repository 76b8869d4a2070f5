//! MOVS, STOS, LODS, SCAS and CMPS, alone and repeated.
//!
//! A repeated instruction commits its registers iteration by iteration, so a fault leaves it to be resumed. After a bounded number of iterations it returns
//! [`Stop::Again`], which lets interrupts in. REP MOVS and REP STOS upwards between plain RAM go in bulk, a page at a time.

use iced_x86::{Code, Instruction, OpKind};
use x86::rflags;

use crate::core::{Core, DecodeMode, GPR_ZERO, Outcome, Stop, seg};
use crate::decode::{Lowered, segment_for};
use crate::flags::LazyFlags;
use crate::integer::operand::sized;
use crate::op::{Handler, Mem, Op};
use crate::ram::{HostAddress, Scalar};

const RAX: u8 = 0;
const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

/// Iterations (elements, or bulk pieces of at most a page) before a look at what is pending: at most some tens of microseconds.
const MOST_ITERATIONS: u32 = 256;

/// What is done with one element.
trait StringOp: 'static {
    /// One element; the index registers move on.
    fn once<T: Scalar>(core: &mut Core, op: &Op) -> Outcome;

    /// As many of `count` elements as go at once, index registers included; zero if the next has to go by [`StringOp::once`].
    #[inline(always)]
    fn bulk<T: Scalar>(_: &mut Core, _: &Op, _count: u64) -> u64 {
        0
    }
}

/// The source operand is `op.mem`; the destination is the same with RDI and ES, which no prefix overrides.
#[inline(always)]
fn destination(op: &Op) -> Mem {
    let segment = if op.mem.checked { seg::ES } else { seg::FLAT };
    Mem { base: RDI as u8, segment: segment as u8, ..op.mem }
}

/// Adds to an index register or the counter, as far as the address size reaches.
#[inline(always)]
fn add_to(core: &mut Core, op: &Op, register: usize, delta: u64) {
    let old = core.gpr[register];
    let new = old.wrapping_add(delta);
    core.gpr[register] = match op.mem.unused_bits {
        0 => new,
        32 => new & 0xffff_ffff,
        _ => old & !0xffff | new & 0xffff,
    };
}

#[inline(always)]
fn step<T: Scalar>(core: &Core) -> u64 {
    let size = T::SIZE as u64;
    if core.system_flags & rflags::DF != 0 { size.wrapping_neg() } else { size }
}

#[inline(always)]
fn counter(core: &Core, op: &Op) -> u64 {
    core.gpr[RCX] << (op.mem.unused_bits & 63) >> (op.mem.unused_bits & 63)
}

/// Elements of `T` at `mem`, at most `count`, that lie on one page, within the address size and within the segment, and the linear address of the first.
/// Zero if that cannot be said without raising something.
#[inline(always)]
fn extent<T: Scalar>(core: &mut Core, mem: &Mem, count: u64, write: bool) -> (u64, u64) {
    let size = T::SIZE as u64;
    let Ok(linear) = core.linear_address(mem, T::SIZE, write) else { return (0, 0) };
    let count = count.min((4096 - (linear & 0xfff)) / size);
    if count == 0 || mem.unused_bits == 0 {
        return (count, linear);
    }
    let last = core.effective_address(mem) + (count * size - 1);
    let fits = last >> (64 - u32::from(mem.unused_bits)) == 0
        && (!mem.checked || core.linear_address(mem, (count * size) as usize, write).is_ok());
    (if fits { count } else { 0 }, linear)
}

/// Where `count` elements at `linear` lie in the host's memory, if the TLB knows.
#[inline(always)]
fn host<T: Scalar>(core: &Core, linear: u64, count: u64, write: bool) -> Option<HostAddress> {
    core.tlb.lookup(core.rights, write, linear, count as usize * T::SIZE)
}

struct Movs;
impl StringOp for Movs {
    #[inline(always)]
    fn once<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
        let value: T = core.load(&op.mem)?;
        core.store(&destination(op), value)?;
        let step = step::<T>(core);
        add_to(core, op, RSI, step);
        add_to(core, op, RDI, step);
        Ok(())
    }

    #[inline(always)]
    fn bulk<T: Scalar>(core: &mut Core, op: &Op, count: u64) -> u64 {
        if core.system_flags & rflags::DF != 0 {
            return 0;
        }
        let (count, source) = extent::<T>(core, &op.mem, count, false);
        let (count, target) = extent::<T>(core, &destination(op), count, true);
        if count == 0 {
            return 0;
        }
        let (Some(from), Some(to)) = (host::<T>(core, source, count, false), host::<T>(core, target, count, true))
        else {
            return 0;
        };
        to.copy_forward::<T>(from, count as usize);
        add_to(core, op, RSI, count * T::SIZE as u64);
        add_to(core, op, RDI, count * T::SIZE as u64);
        count
    }
}

struct Stos;
impl StringOp for Stos {
    #[inline(always)]
    fn once<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
        let value: T = core.reg(RAX);
        core.store(&destination(op), value)?;
        let step = step::<T>(core);
        add_to(core, op, RDI, step);
        Ok(())
    }

    #[inline(always)]
    fn bulk<T: Scalar>(core: &mut Core, op: &Op, count: u64) -> u64 {
        if core.system_flags & rflags::DF != 0 {
            return 0;
        }
        let (count, target) = extent::<T>(core, &destination(op), count, true);
        if count == 0 {
            return 0;
        }
        let Some(to) = host::<T>(core, target, count, true) else { return 0 };
        to.fill::<T>(core.reg(RAX), count as usize);
        add_to(core, op, RDI, count * T::SIZE as u64);
        count
    }
}

struct Lods;
impl StringOp for Lods {
    #[inline(always)]
    fn once<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
        let value: T = core.load(&op.mem)?;
        core.set_reg(RAX, value);
        let step = step::<T>(core);
        add_to(core, op, RSI, step);
        Ok(())
    }
}

#[inline(always)]
fn compare<T: Scalar>(core: &mut Core, left: T, right: T) {
    let difference = T::truncate(left.widen().wrapping_sub(right.widen()));
    core.flags = LazyFlags::sub(left.widen(), right.widen(), difference.widen(), T::BITS);
}

struct Scas;
impl StringOp for Scas {
    #[inline(always)]
    fn once<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
        let right: T = core.load(&destination(op))?;
        compare(core, core.reg(RAX), right);
        let step = step::<T>(core);
        add_to(core, op, RDI, step);
        Ok(())
    }
}

struct Cmps;
impl StringOp for Cmps {
    #[inline(always)]
    fn once<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
        let left: T = core.load(&op.mem)?;
        let right: T = core.load(&destination(op))?;
        compare(core, left, right);
        let step = step::<T>(core);
        add_to(core, op, RSI, step);
        add_to(core, op, RDI, step);
        Ok(())
    }
}

fn once<S: StringOp, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    S::once::<T>(core, op)
}

/// REP: until the counter is zero.
fn repeat<S: StringOp, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    for _ in 0..MOST_ITERATIONS {
        let left = counter(core, op);
        if left == 0 {
            return Ok(());
        }
        let mut done = S::bulk::<T>(core, op, left);
        if done == 0 {
            S::once::<T>(core, op)?;
            done = 1;
        }
        add_to(core, op, RCX, done.wrapping_neg());
    }
    if counter(core, op) == 0 { Ok(()) } else { Err(Stop::Again) }
}

/// REPE and REPNE of SCAS and CMPS: also until ZF is not `EQUAL`.
fn repeat_while<S: StringOp, const EQUAL: bool, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    for _ in 0..MOST_ITERATIONS * 8 {
        if counter(core, op) == 0 {
            return Ok(());
        }
        S::once::<T>(core, op)?;
        add_to(core, op, RCX, 1u64.wrapping_neg());
        if core.flags.zf() != EQUAL {
            return Ok(());
        }
    }
    if counter(core, op) == 0 { Ok(()) } else { Err(Stop::Again) }
}

/// Either prefix repeats what compares nothing.
fn plain<S: StringOp>(i: &Instruction, size: usize) -> Handler {
    if i.has_rep_prefix() || i.has_repne_prefix() { sized!(size, repeat, S) } else { sized!(size, once, S) }
}

fn repeat_equal<S: StringOp, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    repeat_while::<S, true, T>(core, op)
}

fn repeat_not_equal<S: StringOp, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    repeat_while::<S, false, T>(core, op)
}

fn comparing<S: StringOp>(i: &Instruction, size: usize) -> Handler {
    if i.has_repne_prefix() {
        sized!(size, repeat_not_equal, S)
    } else if i.has_rep_prefix() {
        sized!(size, repeat_equal, S)
    } else {
        sized!(size, once, S)
    }
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let handler = match i.code() {
        Code::Movsb_m8_m8 => plain::<Movs>(i, 1),
        Code::Movsw_m16_m16 => plain::<Movs>(i, 2),
        Code::Movsd_m32_m32 => plain::<Movs>(i, 4),
        Code::Movsq_m64_m64 => plain::<Movs>(i, 8),
        Code::Stosb_m8_AL => plain::<Stos>(i, 1),
        Code::Stosw_m16_AX => plain::<Stos>(i, 2),
        Code::Stosd_m32_EAX => plain::<Stos>(i, 4),
        Code::Stosq_m64_RAX => plain::<Stos>(i, 8),
        Code::Lodsb_AL_m8 => plain::<Lods>(i, 1),
        Code::Lodsw_AX_m16 => plain::<Lods>(i, 2),
        Code::Lodsd_EAX_m32 => plain::<Lods>(i, 4),
        Code::Lodsq_RAX_m64 => plain::<Lods>(i, 8),
        Code::Scasb_AL_m8 => comparing::<Scas>(i, 1),
        Code::Scasw_AX_m16 => comparing::<Scas>(i, 2),
        Code::Scasd_EAX_m32 => comparing::<Scas>(i, 4),
        Code::Scasq_RAX_m64 => comparing::<Scas>(i, 8),
        Code::Cmpsb_m8_m8 => comparing::<Cmps>(i, 1),
        Code::Cmpsw_m16_m16 => comparing::<Cmps>(i, 2),
        Code::Cmpsd_m32_m32 => comparing::<Cmps>(i, 4),
        Code::Cmpsq_m64_m64 => comparing::<Cmps>(i, 8),
        _ => return None,
    };
    let unused_bits = i.op_kinds().find_map(|kind| match kind {
        OpKind::MemorySegSI | OpKind::MemoryESDI => Some(48),
        OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(32),
        OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(0),
        _ => None,
    })?;
    Some(Lowered::new(handler).mem(Mem {
        displacement: 0,
        base: RSI as u8,
        index: GPR_ZERO,
        shift: 0,
        segment: segment_for(i.memory_segment(), mode),
        unused_bits,
        checked: !mode.has(DecodeMode::CODE64),
    }))
}
