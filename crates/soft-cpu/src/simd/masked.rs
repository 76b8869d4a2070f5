//! Masked moves and gathers: only the elements that the mask selects touch memory, so each is checked by itself.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::x87;
use crate::core::{Core, DecodeMode, GPR_ZERO, Outcome};
use crate::decode::{Lowered, is_memory, memory, register, segment_for};
use crate::mem::WriteSlot;
use crate::op::{Mem, Op};

/// [`Op::extra`] of masked moves and gathers.
#[derive(Clone, Copy)]
struct Elements(u32);

impl Elements {
    /// `count` elements of `size` bytes; for gathers the indices' size in bytes, and the index register.
    fn new(size: usize, count: usize, index_size: usize, index: u8) -> Self {
        Self(size as u32 | (count as u32) << 8 | (index_size as u32) << 16 | u32::from(index) << 24)
    }

    fn size(self) -> usize {
        (self.0 & 0xff) as usize
    }

    fn count(self) -> usize {
        (self.0 >> 8 & 0xff) as usize
    }

    fn index_size(self) -> usize {
        (self.0 >> 16 & 0xff) as usize
    }

    fn index(self) -> u8 {
        (self.0 >> 24) as u8
    }
}

fn ymm(core: &Core, n: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&core.fpu.xmm(n).to_le_bytes());
    bytes[16..].copy_from_slice(&core.fpu.ymm_high(n).to_le_bytes());
    bytes
}

fn set_ymm(core: &mut Core, n: u8, bytes: &[u8; 32]) {
    let half = |at: usize| bytes[at..at + 16].iter().rev().fold(0u128, |word, byte| word << 8 | u128::from(*byte));
    core.fpu.set_xmm(n, half(0));
    core.fpu.set_ymm_high(n, half(16));
}

/// Element `n` of `size` bytes (4 or 8).
fn element(bytes: &[u8; 32], n: usize, size: usize) -> u64 {
    bytes[n * size..(n + 1) * size].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

fn set_element(bytes: &mut [u8; 32], n: usize, size: usize, value: u64) {
    bytes[n * size..(n + 1) * size].copy_from_slice(&value.to_le_bytes()[..size]);
}

fn selected(mask: &[u8; 32], n: usize, size: usize) -> bool {
    mask[(n + 1) * size - 1] & 0x80 != 0
}

/// Where element `n` of a memory operand lies.
fn element_operand(mem: &Mem, n: usize, size: usize) -> Mem {
    Mem { displacement: mem.displacement.wrapping_add((n * size) as u64), ..*mem }
}

fn load_element(core: &mut Core, mem: &Mem, size: usize) -> Outcome<u64> {
    if size == 8 { core.load::<u64>(mem) } else { Ok(u64::from(core.load::<u32>(mem)?)) }
}

/// VMASKMOVPS and its kin, the loading form: `reg` is the target, `rm` the mask.
fn masked_load(core: &mut Core, op: &Op) -> Outcome {
    let elements = Elements(op.extra);
    let size = elements.size();
    let mask = ymm(core, op.rm);
    let mut result = [0; 32];
    for n in (0..elements.count()).filter(|n| selected(&mask, *n, size)) {
        let value = load_element(core, &element_operand(&op.mem, n, size), size)?;
        set_element(&mut result, n, size, value);
    }
    set_ymm(core, op.reg, &result);
    Ok(())
}

/// The storing form: `reg` is the source, `rm` the mask.
fn masked_store(core: &mut Core, op: &Op) -> Outcome {
    let elements = Elements(op.extra);
    let size = elements.size();
    let (mask, source) = (ymm(core, op.rm), ymm(core, op.reg));
    let mut slots: [Option<WriteSlot>; 8] = [None; 8];
    for (n, slot) in slots.iter_mut().enumerate().take(elements.count()) {
        if selected(&mask, n, size) {
            let linear = core.linear_address(&element_operand(&op.mem, n, size), size, true)?;
            *slot = Some(core.prepare_write(linear, size)?);
        }
    }
    for (n, slot) in slots.iter().enumerate() {
        if let Some(slot) = *slot {
            core.slot_write_bytes(slot, &source[n * size..(n + 1) * size]);
        }
    }
    Ok(())
}

/// Stores the bytes of `source` whose mask byte has its top bit set, all or none.
fn store_bytes(core: &mut Core, mem: &Mem, source: &[u8], mask: &[u8]) -> Outcome {
    // An unusable segment faults even where the mask selects nothing.
    core.linear_address(mem, 1, true)?;
    let mut slots: [Option<WriteSlot>; 16] = [None; 16];
    for (n, (slot, mask)) in slots.iter_mut().zip(mask).enumerate() {
        if mask & 0x80 != 0 {
            let linear = core.linear_address(&element_operand(mem, n, 1), 1, true)?;
            *slot = Some(core.prepare_write(linear, 1)?);
        }
    }
    for (slot, byte) in slots.iter().zip(source) {
        if let Some(slot) = *slot {
            core.slot_write_bytes(slot, &[*byte]);
        }
    }
    Ok(())
}

/// MASKMOVDQU: `reg` is the source, `rm` the mask.
fn maskmovdqu(core: &mut Core, op: &Op) -> Outcome {
    let source = core.fpu.xmm(op.reg).to_le_bytes();
    let mask = core.fpu.xmm(op.rm).to_le_bytes();
    store_bytes(core, &op.mem, &source, &mask)
}

/// MASKMOVQ: likewise with MMX registers.
fn maskmovq(core: &mut Core, op: &Op) -> Outcome {
    x87::raise_pending(core)?;
    core.fpu.enter_mmx();
    let (source, mask) = (core.fpu.st(op.reg.into()), core.fpu.st(op.rm.into()));
    store_bytes(core, &op.mem, &source[..8], &mask[..8])
}

/// VGATHER and VPGATHER: `reg` is the target, `rm` the mask. A fault leaves the elements before it loaded and their mask bits clear.
fn gather(core: &mut Core, op: &Op) -> Outcome {
    let elements = Elements(op.extra);
    let (size, index_size) = (elements.size(), elements.index_size());
    let indices = ymm(core, elements.index());
    let mut mask = ymm(core, op.rm);
    let mut target = ymm(core, op.reg);
    let mut result = Ok(());
    let mut done = 0;
    for n in 0..elements.count() {
        if selected(&mask, n, size) {
            let raw = element(&indices, n, index_size);
            let index = if index_size == 4 { raw as u32 as i32 as u64 } else { raw };
            let displacement = op.mem.displacement.wrapping_add(index << (op.mem.shift & 3));
            match load_element(core, &Mem { displacement, index: GPR_ZERO, ..op.mem }, size) {
                Ok(value) => set_element(&mut target, n, size, value),
                Err(stop) => {
                    result = Err(stop);
                    break;
                }
            }
        }
        done = n + 1;
    }
    if result.is_ok() {
        target[elements.count() * size..].fill(0);
        mask.fill(0);
    } else {
        mask[..done * size].fill(0);
    }
    set_ymm(core, op.reg, &target);
    set_ymm(core, op.rm, &mask);
    result
}

fn invalid(core: &mut Core, _: &Op) -> Outcome {
    core.raise(x86::exception::UD)
}

fn number(register: Register) -> u8 {
    register.number() as u8
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    match i.mnemonic() {
        Mnemonic::Vmaskmovps | Mnemonic::Vpmaskmovd => Some(lower_masked(i, mode, 4)),
        Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovq => Some(lower_masked(i, mode, 8)),
        Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu => Some(
            Lowered::new(maskmovdqu)
                .reg(number(i.op1_register()))
                .rm(number(i.op2_register()))
                .mem(destination(i, mode)),
        ),
        Mnemonic::Maskmovq => Some(
            Lowered::new(maskmovq).reg(number(i.op1_register())).rm(number(i.op2_register())).mem(destination(i, mode)),
        ),
        Mnemonic::Vgatherdps | Mnemonic::Vpgatherdd => lower_gather(i, mode, 4, 4),
        Mnemonic::Vgatherqps | Mnemonic::Vpgatherqd => lower_gather(i, mode, 4, 8),
        Mnemonic::Vgatherdpd | Mnemonic::Vpgatherdq => lower_gather(i, mode, 8, 4),
        Mnemonic::Vgatherqpd | Mnemonic::Vpgatherqq => lower_gather(i, mode, 8, 8),
        _ => None,
    }
}

fn lower_masked(i: &Instruction, mode: DecodeMode, size: usize) -> Lowered {
    let (lowered, register) = if is_memory(i, 0) {
        (Lowered::new(masked_store), i.op2_register())
    } else {
        (Lowered::new(masked_load), i.op0_register())
    };
    let elements = Elements::new(size, register.size() / size, 0, 0);
    lowered.reg(number(register)).rm(number(i.op1_register())).mem(memory(i, mode)).extra(elements.0)
}

/// The operand at rDI of MASKMOVDQU and MASKMOVQ.
fn destination(i: &Instruction, mode: DecodeMode) -> Mem {
    Mem {
        base: register(Register::RDI),
        segment: segment_for(i.memory_segment(), mode),
        unused_bits: match i.op0_kind() {
            OpKind::MemorySegDI => 48,
            OpKind::MemorySegEDI => 32,
            _ => 0,
        },
        checked: !mode.has(DecodeMode::CODE64),
        ..Mem::NONE
    }
}

fn lower_gather(i: &Instruction, mode: DecodeMode, size: usize, index_size: usize) -> Option<Lowered> {
    let (target, index, mask) = (i.op0_register(), i.memory_index(), i.op2_register());
    if !index.is_vector_register() {
        return None;
    }
    if number(target) == number(index) || number(target) == number(mask) || number(index) == number(mask) {
        return Some(Lowered::new(invalid));
    }
    let mut mem = memory(i, mode);
    if i.memory_base() == Register::None {
        // Then only the displacement tells the address size.
        mem.unused_bits = if i.memory_displ_size() == 8 { 0 } else { 32 };
    }
    let count = (target.size() / size).min(index.size() / index_size);
    let elements = Elements::new(size, count, index_size, number(index));
    Some(Lowered::new(gather).reg(number(target)).rm(number(mask)).mem(mem).extra(elements.0))
}
