//! Ports: IN, OUT, INS, OUTS (SDM vol. 2; vol. 1, chapter 19).

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use x86::{Segment, exception, rflags};

use crate::core::{Core, DecodeMode, Outcome, Stop, seg};
use crate::decode::{Lowered, is_memory, segment_for};
use crate::op::{Mem, Op};
use crate::ram::Scalar;

/// Iterations of a repeated string instruction before it looks at what is pending.
const BURST: u32 = 256;

impl Core {
    /// Whether the current program may touch `size` ports from `port` on: IOPL or the TSS's permission bitmap.
    #[inline]
    fn check_port(&mut self, port: u16, size: usize) -> Outcome {
        if self.cpl <= self.iopl() && !self.is_v86() {
            return Ok(());
        }
        self.check_port_bitmap(port, size)
    }

    #[cold]
    fn check_port_bitmap(&mut self, port: u16, size: usize) -> Outcome {
        let limit = u64::from(self.tr.limit);
        let known = matches!(self.tr.kind(), Segment::TYPE_TSS_AVAILABLE | Segment::TYPE_TSS_BUSY);
        if known && limit >= 103 {
            let base = u64::from(self.read_system::<u16>(self.tr.base.wrapping_add(102))?);
            let at = base + u64::from(port / 8);
            // Two bytes are read, whatever the port: the bitmap ends with a byte of ones.
            if at < limit {
                let bits: u16 = self.read_system(self.tr.base.wrapping_add(at))?;
                if bits >> (port % 8) & ((1 << size) - 1) == 0 {
                    return Ok(());
                }
            }
        }
        self.raise_with(exception::GP, 0)
    }

    fn port_in<T: Scalar>(&mut self, port: u16) -> T {
        let mut bytes = [0; 8];
        self.device(|platform| platform.port_read(port, &mut bytes[..T::SIZE]));
        T::truncate(u64::from_le_bytes(bytes))
    }

    fn port_out<T: Scalar>(&mut self, port: u16, value: T) {
        self.device(|platform| platform.port_write(port, &value.widen().to_le_bytes()[..T::SIZE]));
    }
}

/// The port: `immediate` if `aux` says so, else DX.
fn port(core: &Core, op: &Op) -> u16 {
    if op.aux & IMMEDIATE != 0 { op.immediate as u16 } else { core.gpr[x86::gpr::RDX] as u16 }
}

const IMMEDIATE: u8 = 1;
/// The string instruction is repeated.
const REPEATED: u8 = 2;

fn input<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let port = port(core, op);
    core.check_port(port, T::SIZE)?;
    let value: T = core.port_in(port);
    core.set_reg(x86::gpr::RAX as u8, value);
    Ok(())
}

fn output<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let port = port(core, op);
    core.check_port(port, T::SIZE)?;
    let value: T = core.reg(x86::gpr::RAX as u8);
    core.port_out(port, value);
    Ok(())
}

/// Adds `step` to the part of an address register that the address size covers.
fn advance(core: &mut Core, index: usize, step: u64, unused_bits: u8) {
    let mask = u64::MAX >> (unused_bits & 63);
    let value = core.gpr[index];
    let sum = value.wrapping_add(step) & mask;
    core.gpr[index] = if unused_bits == 48 { (value & !mask) | sum } else { sum };
}

/// Runs `once` as often as RCX says under REP, RCX and the index register `index` moving with each iteration.
fn repeat<T: Scalar>(core: &mut Core, op: &Op, index: usize, mut once: impl FnMut(&mut Core) -> Outcome) -> Outcome {
    let unused = op.mem.unused_bits;
    let step = if core.system_flags & rflags::DF != 0 { (T::SIZE as u64).wrapping_neg() } else { T::SIZE as u64 };
    if op.aux & REPEATED == 0 {
        once(core)?;
        advance(core, index, step, unused);
        return Ok(());
    }
    let mask = u64::MAX >> (unused & 63);
    for _ in 0..BURST {
        if core.gpr[x86::gpr::RCX] & mask == 0 {
            return Ok(());
        }
        once(core)?;
        advance(core, index, step, unused);
        advance(core, x86::gpr::RCX, u64::MAX, unused);
    }
    if core.gpr[x86::gpr::RCX] & mask == 0 { Ok(()) } else { Err(Stop::Again) }
}

fn ins<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let port = port(core, op);
    core.check_port(port, T::SIZE)?;
    repeat::<T>(core, op, x86::gpr::RDI, |core| {
        let linear = core.linear_address(&op.mem, T::SIZE, true)?;
        // The port is read only when the store cannot fault any more.
        let slot = core.prepare_write(linear, T::SIZE)?;
        let value: T = core.port_in(port);
        core.slot_write(slot, value);
        Ok(())
    })
}

fn outs<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let port = port(core, op);
    core.check_port(port, T::SIZE)?;
    repeat::<T>(core, op, x86::gpr::RSI, |core| {
        let value: T = core.load(&op.mem)?;
        core.port_out(port, value);
        Ok(())
    })
}

/// The memory operand of INS or OUTS: an index register and a segment.
fn string_operand(i: &Instruction, mode: DecodeMode, n: u32) -> Option<Mem> {
    let (index, unused_bits) = match i.op_kind(n) {
        OpKind::MemoryESDI => (x86::gpr::RDI, 48),
        OpKind::MemoryESEDI => (x86::gpr::RDI, 32),
        OpKind::MemoryESRDI => (x86::gpr::RDI, 0),
        OpKind::MemorySegSI => (x86::gpr::RSI, 48),
        OpKind::MemorySegESI => (x86::gpr::RSI, 32),
        OpKind::MemorySegRSI => (x86::gpr::RSI, 0),
        _ => return None,
    };
    let segment = if index == x86::gpr::RDI { Register::ES } else { i.memory_segment() };
    debug_assert!(!is_memory(i, n) && seg::FLAT < 8);
    Some(Mem {
        base: index as u8,
        unused_bits,
        segment: segment_for(segment, mode),
        checked: !mode.has(DecodeMode::CODE64),
        ..Mem::NONE
    })
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let repeated = if i.has_rep_prefix() || i.has_repne_prefix() { REPEATED } else { 0 };
    let placed = |lowered: Lowered, n: u32| {
        let op = i.op_kind(n);
        if op == OpKind::Immediate8 { lowered.aux(IMMEDIATE).immediate(i.immediate(n) & 0xff) } else { lowered }
    };
    Some(match i.mnemonic() {
        Mnemonic::In => placed(
            match i.op0_register() {
                Register::AL => Lowered::new(input::<u8>),
                Register::AX => Lowered::new(input::<u16>),
                _ => Lowered::new(input::<u32>),
            },
            1,
        ),
        // A write may have asked for a reset or a power-off: it should not be followed by the rest of a block.
        Mnemonic::Out => placed(
            match i.op1_register() {
                Register::AL => Lowered::new(output::<u8>),
                Register::AX => Lowered::new(output::<u16>),
                _ => Lowered::new(output::<u32>),
            },
            0,
        )
        .ends_block(),
        Mnemonic::Insb => Lowered::new(ins::<u8>).mem(string_operand(i, mode, 0)?).aux(repeated),
        Mnemonic::Insw => Lowered::new(ins::<u16>).mem(string_operand(i, mode, 0)?).aux(repeated),
        Mnemonic::Insd => Lowered::new(ins::<u32>).mem(string_operand(i, mode, 0)?).aux(repeated),
        Mnemonic::Outsb => Lowered::new(outs::<u8>).mem(string_operand(i, mode, 1)?).aux(repeated).ends_block(),
        Mnemonic::Outsw => Lowered::new(outs::<u16>).mem(string_operand(i, mode, 1)?).aux(repeated).ends_block(),
        Mnemonic::Outsd => Lowered::new(outs::<u32>).mem(string_operand(i, mode, 1)?).aux(repeated).ends_block(),
        _ => return None,
    })
}
