//! SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS and the FS and GS base instructions (SDM vol. 2).
//!
//! SYSCALL and SYSRET work in compatibility mode as on AMD processors, and SYSENTER in IA-32e mode as on Intel's: a guest uses what its vendor has.
//! SYSCALL outside IA-32e mode (AMD only) is missing and raises #UD.

use iced_x86::{Instruction, Mnemonic, Register};
use x86::paging::is_canonical;
use x86::{InterruptShadow, Segment, cr4, efer, exception, rflags};

use crate::core::{Core, DecodeMode, Outcome, seg};
use crate::decode::{Lowered, register};
use crate::op::Op;

/// Attributes of the flat segments that the fast system calls load without looking at a table.
mod flat {
    pub(super) const CODE64: u16 = 0xa09b;
    pub(super) const CODE32: u16 = 0xc09b;
    pub(super) const DATA: u16 = 0xc093;
}

/// A flat segment for `selector`, whose RPL is also its DPL.
fn flat_segment(selector: u16, attributes: u16) -> Segment {
    Segment { selector, base: 0, limit: 0xffff_ffff, attributes: attributes | (selector & 3) << 5 }
}

impl Core {
    fn enter_flat(&mut self, cpl: u8, cs: Segment, ss: Segment, rip: u64) {
        self.cpl = cpl;
        self.segments[seg::CS] = cs;
        self.segments[seg::SS] = ss;
        self.rip = rip;
        self.update_code_mode();
    }
}

fn syscall(core: &mut Core, _: &Op) -> Outcome {
    if core.efer & (efer::SCE | efer::LMA) != efer::SCE | efer::LMA {
        return core.raise(exception::UD);
    }
    let flags = core.rflags() & !rflags::RF;
    core.gpr[x86::gpr::RCX] = core.rip;
    core.gpr[11] = flags;
    let target = if core.mode.has(DecodeMode::CODE64) { core.msrs.lstar } else { core.msrs.cstar };
    core.set_rflags(flags & !core.msrs.fmask);
    if flags & rflags::TF != 0 && core.system_flags & rflags::TF == 0 {
        // The mask has cleared TF before the trap of this instruction could come.
        core.shadow = InterruptShadow::MovSs;
    }
    let selector = (core.msrs.star >> 32) as u16 & 0xfffc;
    core.enter_flat(
        0,
        flat_segment(selector, flat::CODE64),
        flat_segment(selector.wrapping_add(8), flat::DATA),
        target,
    );
    Ok(())
}

/// `aux`: 8 returns to 64-bit code, 4 to compatibility mode.
fn sysret(core: &mut Core, op: &Op) -> Outcome {
    if core.efer & (efer::SCE | efer::LMA) != efer::SCE | efer::LMA {
        return core.raise(exception::UD);
    }
    let rcx = core.gpr[x86::gpr::RCX];
    if core.cpl != 0 || (op.aux == 8 && !is_canonical(rcx)) {
        return core.raise_with(exception::GP, 0);
    }
    let selector = (core.msrs.star >> 48) as u16;
    let (cs, rip) = if op.aux == 8 {
        (flat_segment(selector.wrapping_add(16) | 3, flat::CODE64), rcx)
    } else {
        (flat_segment(selector | 3, flat::CODE32), rcx & 0xffff_ffff)
    };
    let flags = core.gpr[11] & !(rflags::RF | rflags::VM);
    core.set_rflags(flags);
    core.enter_flat(3, cs, flat_segment(selector.wrapping_add(8) | 3, flat::DATA), rip);
    Ok(())
}

fn sysenter(core: &mut Core, _: &Op) -> Outcome {
    let selector = core.msrs.sysenter_cs as u16 & 0xfffc;
    if core.mode.has(DecodeMode::REAL) && !core.is_v86() || selector == 0 {
        return core.raise_with(exception::GP, 0);
    }
    core.system_flags &= !(rflags::VM | rflags::IF | rflags::RF);
    let (code, mask) = if core.is_long() { (flat::CODE64, u64::MAX) } else { (flat::CODE32, 0xffff_ffff) };
    core.gpr[x86::gpr::RSP] = core.msrs.sysenter_esp & mask;
    let rip = core.msrs.sysenter_eip & mask;
    core.enter_flat(0, flat_segment(selector, code), flat_segment(selector.wrapping_add(8), flat::DATA), rip);
    core.update_mode();
    Ok(())
}

/// `aux`: 8 returns to 64-bit code, 4 to 32-bit code.
fn sysexit(core: &mut Core, op: &Op) -> Outcome {
    let selector = core.msrs.sysenter_cs as u16 & 0xfffc;
    let (rcx, rdx) = (core.gpr[x86::gpr::RCX], core.gpr[x86::gpr::RDX]);
    let bad_target = op.aux == 8 && !(is_canonical(rcx) && is_canonical(rdx));
    if core.mode.has(DecodeMode::REAL) || core.cpl != 0 || selector == 0 || bad_target {
        return core.raise_with(exception::GP, 0);
    }
    let (offset, code, mask) = if op.aux == 8 { (32, flat::CODE64, u64::MAX) } else { (16, flat::CODE32, 0xffff_ffff) };
    core.gpr[x86::gpr::RSP] = rcx & mask;
    let cs = flat_segment(selector.wrapping_add(offset) | 3, code);
    core.enter_flat(3, cs, flat_segment(selector.wrapping_add(offset + 8) | 3, flat::DATA), rdx & mask);
    Ok(())
}

impl Core {
    /// Sets the base of FS or GS.
    #[inline]
    pub(crate) fn set_segment_base(&mut self, number: usize, base: u64) {
        self.segments[number].base = base;
        self.segment_bases[number & 7] = base;
    }
}

fn swapgs(core: &mut Core, _: &Op) -> Outcome {
    let base = core.segment_bases[seg::GS];
    core.set_segment_base(seg::GS, core.msrs.kernel_gs_base);
    core.msrs.kernel_gs_base = base;
    Ok(())
}

/// `aux` is the segment, `extra` the operand size.
fn read_base(core: &mut Core, op: &Op) -> Outcome {
    if core.cr4 & cr4::FSGSBASE == 0 {
        return core.raise(exception::UD);
    }
    let base = core.segment_bases[usize::from(op.aux & 7)];
    if op.extra == 4 {
        core.set_reg(op.reg, base as u32);
    } else {
        core.set_reg(op.reg, base);
    }
    Ok(())
}

fn write_base(core: &mut Core, op: &Op) -> Outcome {
    if core.cr4 & cr4::FSGSBASE == 0 {
        return core.raise(exception::UD);
    }
    let base = if op.extra == 4 { u64::from(core.reg::<u32>(op.reg)) } else { core.reg(op.reg) };
    if !is_canonical(base) {
        return core.raise_with(exception::GP, 0);
    }
    core.set_segment_base(if op.aux == seg::FS as u8 { seg::FS } else { seg::GS }, base);
    Ok(())
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let code64 = mode.has(DecodeMode::CODE64);
    let base = |handler, number| {
        let size = if i.op0_register() >= Register::RAX && i.op0_register() <= Register::R15 { 8 } else { 4 };
        Lowered::new(handler).reg(register(i.op0_register())).aux(number as u8).extra(size)
    };
    Some(match i.mnemonic() {
        Mnemonic::Syscall => Lowered::new(syscall).ends_block(),
        Mnemonic::Sysret => Lowered::new(sysret).aux(4).ends_block(),
        Mnemonic::Sysretq => Lowered::new(sysret).aux(8).ends_block(),
        Mnemonic::Sysenter => Lowered::new(sysenter).ends_block(),
        Mnemonic::Sysexit => Lowered::new(sysexit).aux(4).ends_block(),
        Mnemonic::Sysexitq => Lowered::new(sysexit).aux(8).ends_block(),
        Mnemonic::Swapgs if !code64 => super::invalid(),
        Mnemonic::Swapgs if mode.has(DecodeMode::USER) => super::general_protection(),
        Mnemonic::Swapgs => Lowered::new(swapgs),
        Mnemonic::Rdfsbase => base(read_base, seg::FS),
        Mnemonic::Rdgsbase => base(read_base, seg::GS),
        Mnemonic::Wrfsbase => base(write_base, seg::FS),
        Mnemonic::Wrgsbase => base(write_base, seg::GS),
        _ => return None,
    })
}
