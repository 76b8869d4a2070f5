//! Instructions that raise, hold off or wait for events: INT, INT1, INT3, INTO, UD, CLI, STI, HLT, PAUSE, and hypercalls (SDM vol. 2).
//!
//! Virtual interrupts (CR4.VME and PVI) are not offered.

use iced_x86::{Instruction, Mnemonic};
use x86::{InterruptShadow, exception, rflags};

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::Lowered;
use crate::deliver::Source;
use crate::op::Op;

impl Core {
    /// IOPL.
    pub(crate) fn iopl(&self) -> u8 {
        (self.system_flags >> 12 & 3) as u8
    }
}

fn int(core: &mut Core, op: &Op) -> Outcome {
    if core.is_v86() && core.iopl() < 3 {
        return core.raise_with(exception::GP, 0);
    }
    core.software_interrupt(op.aux, Source::Software)
}

fn int3(core: &mut Core, _: &Op) -> Outcome {
    core.software_interrupt(exception::BP, Source::Software)
}

fn into(core: &mut Core, _: &Op) -> Outcome {
    if core.flags.of() { core.software_interrupt(exception::OF, Source::Software) } else { Ok(()) }
}

fn int1(core: &mut Core, _: &Op) -> Outcome {
    core.software_interrupt(exception::DB, Source::External)
}

fn cli(core: &mut Core, _: &Op) -> Outcome {
    core.system_flags &= !rflags::IF;
    Ok(())
}

fn cli_by_iopl(core: &mut Core, op: &Op) -> Outcome {
    if core.cpl > core.iopl() { core.raise_with(exception::GP, 0) } else { cli(core, op) }
}

fn sti(core: &mut Core, _: &Op) -> Outcome {
    if core.cpl > core.iopl() {
        return core.raise_with(exception::GP, 0);
    }
    if core.system_flags & rflags::IF == 0 {
        core.system_flags |= rflags::IF;
        core.shadow = InterruptShadow::Sti;
    }
    Ok(())
}

fn hlt(core: &mut Core, _: &Op) -> Outcome {
    core.halted = true;
    Ok(())
}

fn pause(core: &mut Core, _: &Op) -> Outcome {
    core.platform.pause();
    Ok(())
}

/// The result when CPL is not 0: KVM_EPERM, negated (Linux Documentation/virt/kvm/x86/hypercalls.rst).
const NOT_PERMITTED: u64 = -1i64 as u64;

fn hypercall(core: &mut Core, _: &Op) -> Outcome {
    let mask = if core.mode.has(DecodeMode::CODE64) { u64::MAX } else { 0xffff_ffff };
    let argument = |n: usize| core.gpr[n] & mask;
    let arguments =
        [argument(x86::gpr::RBX), argument(x86::gpr::RCX), argument(x86::gpr::RDX), argument(x86::gpr::RSI)];
    let number = argument(x86::gpr::RAX);
    let result = if core.cpl != 0 { Some(NOT_PERMITTED) } else { core.platform.hypercall(number, arguments) };
    match result {
        Some(value) => core.gpr[x86::gpr::RAX] = value & mask,
        None => return core.raise(exception::UD),
    }
    Ok(())
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let user = mode.has(DecodeMode::USER);
    Some(match i.mnemonic() {
        Mnemonic::Int => Lowered::new(int).aux(i.immediate8()).ends_block(),
        Mnemonic::Int3 => Lowered::new(int3).ends_block(),
        Mnemonic::Into => Lowered::new(into).ends_block(),
        Mnemonic::Int1 => Lowered::new(int1).ends_block(),
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 | Mnemonic::Monitor | Mnemonic::Mwait => super::invalid(),
        Mnemonic::Cli if user => Lowered::new(cli_by_iopl),
        Mnemonic::Cli => Lowered::new(cli),
        Mnemonic::Sti => Lowered::new(sti).ends_block(),
        Mnemonic::Hlt if user => super::general_protection(),
        Mnemonic::Hlt => Lowered::new(hlt).ends_block(),
        // The block ends so that what the wait was for is seen soon.
        Mnemonic::Pause => Lowered::new(pause).ends_block(),
        Mnemonic::Vmcall | Mnemonic::Vmmcall => Lowered::new(hypercall).ends_block(),
        _ => return None,
    })
}
