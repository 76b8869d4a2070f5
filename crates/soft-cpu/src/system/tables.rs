//! Descriptor-table registers, the task register, and the instructions that look at descriptors: LGDT, LIDT, SGDT, SIDT, LLDT, SLDT, LTR, STR,
//! SMSW, LMSW, LAR, LSL, VERR, VERW, ARPL (SDM vol. 2).

use iced_x86::{Code, Instruction, Mnemonic};
use x86::{DescriptorTable, Segment, cr4, exception};

use super::descriptor::{is_null, selector_error};
use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::{Lowered, is_memory, memory, register};
use crate::op::Op;

/// 16-bit TSS, busy.
const TYPE_TSS16_BUSY: u16 = 3;
/// 16-bit call gate.
const TYPE_CALL_GATE16: u16 = 4;
/// Task gate.
const TYPE_TASK_GATE: u16 = 5;
/// The bit of a TSS type that says busy.
const BUSY: u16 = 2;

/// UMIP: these reveal supervisor state, so CPL 3 may be forbidden them.
fn check_umip(core: &mut Core) -> Outcome {
    if core.cpl == 3 && core.cr4 & cr4::UMIP != 0 { core.raise_with(exception::GP, 0) } else { Ok(()) }
}

/// `extra`: 8 or 4 bytes of base, or 3 of those four (16-bit operand size). `aux`: IDTR rather than GDTR.
fn load_table(core: &mut Core, op: &Op) -> Outcome {
    let linear = core.linear_address(&op.mem, if op.extra == 8 { 10 } else { 6 }, false)?;
    let limit: u16 = core.read(linear)?;
    let base = match op.extra {
        8 => core.read::<u64>(linear.wrapping_add(2))?,
        4 => u64::from(core.read::<u32>(linear.wrapping_add(2))?),
        _ => u64::from(core.read::<u32>(linear.wrapping_add(2))? & 0xff_ffff),
    };
    if op.extra == 8 && !x86::paging::is_canonical(base) {
        return core.raise_with(exception::GP, 0);
    }
    *(if op.aux != 0 { &mut core.idtr } else { &mut core.gdtr }) = DescriptorTable { base, limit };
    Ok(())
}

fn store_table(core: &mut Core, op: &Op) -> Outcome {
    check_umip(core)?;
    let table = if op.aux != 0 { core.idtr } else { core.gdtr };
    let size = if op.extra == 8 { 10 } else { 6 };
    let linear = core.linear_address(&op.mem, size, true)?;
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    core.write_bytes(linear, &bytes[..size])
}

/// The r/m16 operand that a selector comes from.
fn selector_operand(core: &mut Core, op: &Op) -> Outcome<u16> {
    if op.aux & FROM_MEMORY != 0 { core.load(&op.mem) } else { Ok(core.reg(op.rm)) }
}

/// The r/m operand that a small register goes to; registers take it zero-extended to `extra` bytes.
fn store_operand(core: &mut Core, op: &Op, value: u64) -> Outcome {
    if op.aux & FROM_MEMORY != 0 {
        return core.store(&op.mem, value as u16);
    }
    match op.extra {
        2 => core.set_reg(op.rm, value as u16),
        4 => core.set_reg(op.rm, value as u32),
        _ => core.set_reg(op.rm, value),
    }
    Ok(())
}

/// Flag in `aux`: the operand is in memory.
const FROM_MEMORY: u8 = 1;

/// The descriptor of an LDT or TSS in the GDT, all 16 bytes of it in IA-32e mode, with its address.
fn fetch_system_descriptor(core: &mut Core, selector: u16) -> Outcome<(Segment, u64)> {
    let size = if core.is_long() { 16 } else { 8 };
    let address = if selector & 4 == 0 { core.descriptor_address(selector, size) } else { None };
    let Some(address) = address else { return core.raise_with(exception::GP, selector_error(selector)) };
    let mut segment = Segment::from_descriptor(selector, core.read_system(address)?);
    if size == 16 {
        let high: u64 = core.read_system(address.wrapping_add(8))?;
        segment.base |= high << 32;
        if high >> 40 & 0x1f != 0 || !x86::paging::is_canonical(segment.base) {
            return core.raise_with(exception::GP, selector_error(selector));
        }
    }
    Ok((segment, address))
}

fn lldt(core: &mut Core, op: &Op) -> Outcome {
    let selector = selector_operand(core, op)?;
    if is_null(selector) {
        core.ldtr = Segment { selector, ..Segment::default() };
        return Ok(());
    }
    let (segment, _) = fetch_system_descriptor(core, selector)?;
    if segment.has(Segment::S) || segment.kind() != Segment::TYPE_LDT {
        return core.raise_with(exception::GP, selector_error(selector));
    }
    if !segment.has(Segment::PRESENT) {
        return core.raise_with(exception::NP, selector_error(selector));
    }
    core.ldtr = segment;
    Ok(())
}

fn ltr(core: &mut Core, op: &Op) -> Outcome {
    let selector = selector_operand(core, op)?;
    if is_null(selector) {
        return core.raise_with(exception::GP, 0);
    }
    let (mut segment, address) = fetch_system_descriptor(core, selector)?;
    let available = match segment.kind() {
        Segment::TYPE_TSS_AVAILABLE => true,
        Segment::TYPE_TSS16 => !core.is_long(),
        _ => false,
    };
    if segment.has(Segment::S) || !available {
        return core.raise_with(exception::GP, selector_error(selector));
    }
    if !segment.has(Segment::PRESENT) {
        return core.raise_with(exception::NP, selector_error(selector));
    }
    let byte: u8 = core.read_system(address.wrapping_add(5))?;
    core.write_system(address.wrapping_add(5), byte | BUSY as u8)?;
    segment.attributes |= BUSY;
    core.tr = segment;
    Ok(())
}

fn sldt(core: &mut Core, op: &Op) -> Outcome {
    check_umip(core)?;
    store_operand(core, op, u64::from(core.ldtr.selector))
}

fn str(core: &mut Core, op: &Op) -> Outcome {
    check_umip(core)?;
    store_operand(core, op, u64::from(core.tr.selector))
}

fn smsw(core: &mut Core, op: &Op) -> Outcome {
    check_umip(core)?;
    store_operand(core, op, core.cr0)
}

fn lmsw(core: &mut Core, op: &Op) -> Outcome {
    let value = u64::from(selector_operand(core, op)?) & 0xf;
    // It cannot clear PE.
    let pe = core.cr0 & x86::cr0::PE;
    core.write_cr0((core.cr0 & !0xf) | value | pe)
}

/// The descriptor that LAR, LSL, VERR or VERW may look at, raw and cached; `None` if it is not for this privilege level.
fn visible_descriptor(core: &mut Core, selector: u16) -> Outcome<Option<(Segment, u64)>> {
    if is_null(selector) {
        return Ok(None);
    }
    let Some(address) = core.descriptor_address(selector, 8) else { return Ok(None) };
    let raw: u64 = core.read_system(address)?;
    let segment = Segment::from_descriptor(selector, raw);
    let conforming = segment.has(Segment::S | Segment::CODE | Segment::CONFORMING_OR_EXPAND_DOWN);
    let visible = conforming || segment.dpl() >= core.cpl.max((selector & 3) as u8);
    Ok(visible.then_some((segment, raw)))
}

fn set_zf(core: &mut Core, zf: bool) {
    let rest = core.flags.bits() & !x86::rflags::ZF;
    core.flags = crate::flags::LazyFlags::from_bits(rest | if zf { x86::rflags::ZF } else { 0 });
}

/// Whether LAR (`gates`) or LSL may look at this type of system descriptor.
fn system_type_allowed(core: &Core, kind: u16, gates: bool) -> bool {
    match kind {
        Segment::TYPE_LDT | Segment::TYPE_TSS_AVAILABLE | Segment::TYPE_TSS_BUSY => true,
        Segment::TYPE_TSS16 | TYPE_TSS16_BUSY => !core.is_long(),
        TYPE_CALL_GATE16 | TYPE_TASK_GATE => gates && !core.is_long(),
        Segment::TYPE_CALL_GATE => gates,
        _ => false,
    }
}

/// LAR, or LSL if `aux` says so: into a register of `extra` bytes.
fn lar_lsl(core: &mut Core, op: &Op) -> Outcome {
    let selector = selector_operand(core, op)?;
    let limit_wanted = op.aux & LIMIT != 0;
    let found = visible_descriptor(core, selector)?
        .filter(|(segment, _)| segment.has(Segment::S) || system_type_allowed(core, segment.kind(), !limit_wanted));
    if let Some((segment, raw)) = found {
        let value = if limit_wanted { segment.limit } else { (raw >> 32) as u32 & 0x00ff_ff00 };
        match op.extra {
            2 => core.set_reg(op.reg, value as u16),
            _ => core.set_reg(op.reg, value),
        }
    }
    set_zf(core, found.is_some());
    Ok(())
}

/// Flag in `aux`: LSL, or VERW.
const LIMIT: u8 = 2;

fn verify(core: &mut Core, op: &Op) -> Outcome {
    let selector = selector_operand(core, op)?;
    let write = op.aux & LIMIT != 0;
    let found = visible_descriptor(core, selector)?.is_some_and(|(segment, _)| {
        let code = segment.has(Segment::CODE);
        let allowed =
            if write { !code && segment.has(Segment::READ_WRITE) } else { !code || segment.has(Segment::READ_WRITE) };
        segment.has(Segment::S) && allowed
    });
    set_zf(core, found);
    Ok(())
}

fn arpl(core: &mut Core, op: &Op) -> Outcome {
    let source = core.reg::<u16>(op.reg) & 3;
    let raise = |selector: u16| (selector & 3 < source).then_some((selector & !3) | source);
    let raised = if op.aux & FROM_MEMORY != 0 {
        // Memory is written, and must be writable, only if the selector changes.
        let raised = raise(core.load(&op.mem)?);
        if let Some(selector) = raised {
            core.store(&op.mem, selector)?;
        }
        raised
    } else {
        let raised = raise(core.reg(op.rm));
        if let Some(selector) = raised {
            core.set_reg(op.rm, selector);
        }
        raised
    };
    set_zf(core, raised.is_some());
    Ok(())
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let user = mode.has(DecodeMode::USER);
    let real = mode.has(DecodeMode::REAL);
    let base_size = match i.code() {
        Code::Lgdt_m1664 | Code::Lidt_m1664 | Code::Sgdt_m1664 | Code::Sidt_m1664 => 8,
        Code::Lgdt_m1632 | Code::Lidt_m1632 | Code::Sgdt_m1632 | Code::Sidt_m1632 => 4,
        _ => 3,
    };
    // The r/m operand of these is the first or, for LAR and LSL, the second.
    let operand = |handler, n: u32, flags: u8| {
        let lowered = Lowered::new(handler);
        if is_memory(i, n) {
            lowered.mem(memory(i, mode)).aux(flags | FROM_MEMORY)
        } else {
            lowered.rm(register(i.op_register(n))).aux(flags).extra(i.op_register(n).size() as u32)
        }
    };
    let lowered = match i.mnemonic() {
        Mnemonic::Lgdt | Mnemonic::Lidt | Mnemonic::Lmsw if user => return Some(super::general_protection()),
        Mnemonic::Lgdt => Lowered::new(load_table).mem(memory(i, mode)).extra(base_size),
        Mnemonic::Lidt => Lowered::new(load_table).mem(memory(i, mode)).extra(base_size).aux(1),
        Mnemonic::Sgdt => Lowered::new(store_table).mem(memory(i, mode)).extra(base_size),
        Mnemonic::Sidt => Lowered::new(store_table).mem(memory(i, mode)).extra(base_size).aux(1),
        Mnemonic::Smsw => operand(smsw, 0, 0),
        Mnemonic::Lmsw => operand(lmsw, 0, 0).ends_block(),
        Mnemonic::Lldt
        | Mnemonic::Ltr
        | Mnemonic::Sldt
        | Mnemonic::Str
        | Mnemonic::Lar
        | Mnemonic::Lsl
        | Mnemonic::Verr
        | Mnemonic::Verw
        | Mnemonic::Arpl
            if real =>
        {
            super::invalid()
        }
        Mnemonic::Lldt | Mnemonic::Ltr if user => super::general_protection(),
        Mnemonic::Lldt => operand(lldt, 0, 0),
        Mnemonic::Ltr => operand(ltr, 0, 0),
        Mnemonic::Sldt => operand(sldt, 0, 0),
        Mnemonic::Str => operand(str, 0, 0),
        Mnemonic::Lar => operand(lar_lsl, 1, 0).reg(register(i.op0_register())).extra(i.op0_register().size() as u32),
        Mnemonic::Lsl => {
            operand(lar_lsl, 1, LIMIT).reg(register(i.op0_register())).extra(i.op0_register().size() as u32)
        }
        Mnemonic::Verr => operand(verify, 0, 0),
        Mnemonic::Verw => operand(verify, 0, LIMIT),
        Mnemonic::Arpl => operand(arpl, 0, 0).reg(register(i.op1_register())),
        _ => return None,
    };
    Some(lowered)
}
