//! What a program can ask or tell the processor about itself: CPUID, RDMSR, WRMSR, the time stamp counter, random numbers, SERIALIZE, STAC and CLAC
//! (SDM vol. 2).

use iced_x86::{Instruction, Mnemonic};
use x86::{cr4, exception, msr, rflags};

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::{Lowered, register};
use crate::flags::LazyFlags;
use crate::op::Op;

fn cpuid(core: &mut Core, _: &Op) -> Outcome {
    let (leaf, subleaf) = (core.gpr[x86::gpr::RAX] as u32, core.gpr[x86::gpr::RCX] as u32);
    let mut result = core.platform.cpuid(leaf, subleaf);
    match (leaf, subleaf) {
        (1, _) => {
            const OSXSAVE: u32 = 1 << 27;
            result.ecx &= !OSXSAVE;
            if core.cr4 & cr4::OSXSAVE != 0 {
                result.ecx |= OSXSAVE;
            }
            hide_disabled_apic(core, &mut result.edx);
        }
        (0x8000_0001, _) => hide_disabled_apic(core, &mut result.edx),
        // The size of the XSAVE area for what is enabled now; compacted it is the same, as AVX is the first extended component.
        (0xd, 0 | 1) => result.ebx = if core.xcr0 & 4 != 0 { 832 } else { 576 },
        _ => {}
    }
    core.gpr[x86::gpr::RAX] = result.eax.into();
    core.gpr[x86::gpr::RBX] = result.ebx.into();
    core.gpr[x86::gpr::RCX] = result.ecx.into();
    core.gpr[x86::gpr::RDX] = result.edx.into();
    Ok(())
}

/// The APIC feature bit mirrors the enable bit of IA32_APIC_BASE (SDM vol. 3, 12.4.3).
fn hide_disabled_apic(core: &mut Core, edx: &mut u32) {
    if let Some(Ok(base)) = core.platform.msr_read(msr::IA32_APIC_BASE)
        && base & msr::apic_base::ENABLE == 0
    {
        *edx &= !(1 << 9);
    }
}

fn set_edx_eax(core: &mut Core, value: u64) {
    core.gpr[x86::gpr::RAX] = value & 0xffff_ffff;
    core.gpr[x86::gpr::RDX] = value >> 32;
}

fn rdmsr(core: &mut Core, _: &Op) -> Outcome {
    let value = core.read_msr(core.gpr[x86::gpr::RCX] as u32)?;
    set_edx_eax(core, value);
    Ok(())
}

fn wrmsr(core: &mut Core, _: &Op) -> Outcome {
    let value = u64::from(core.gpr[x86::gpr::RAX] as u32) | core.gpr[x86::gpr::RDX] << 32;
    core.write_msr(core.gpr[x86::gpr::RCX] as u32, value)
}

fn check_tsd(core: &mut Core) -> Outcome {
    if core.cpl != 0 && core.cr4 & cr4::TSD != 0 { core.raise_with(exception::GP, 0) } else { Ok(()) }
}

fn rdtsc(core: &mut Core, _: &Op) -> Outcome {
    check_tsd(core)?;
    let tsc = core.platform.tsc();
    set_edx_eax(core, tsc);
    Ok(())
}

fn rdtscp(core: &mut Core, op: &Op) -> Outcome {
    rdtsc(core, op)?;
    core.gpr[x86::gpr::RCX] = core.msrs.tsc_aux & 0xffff_ffff;
    Ok(())
}

fn rdpid(core: &mut Core, op: &Op) -> Outcome {
    core.set_reg(op.reg, core.msrs.tsc_aux & 0xffff_ffff);
    Ok(())
}

/// RDRAND and RDSEED: the host kernel's random numbers. `extra` is the operand size.
fn random(core: &mut Core, op: &Op) -> Outcome {
    let mut bytes = [0; 8];
    let filled = getrandom::fill(&mut bytes).is_ok();
    let value = if filled { u64::from_le_bytes(bytes) } else { 0 };
    match op.extra {
        2 => core.set_reg(op.reg, value as u16),
        4 => core.set_reg(op.reg, value as u32),
        _ => core.set_reg(op.reg, value),
    }
    core.flags = LazyFlags::from_bits(if filled { rflags::CF } else { 0 });
    Ok(())
}

fn stac(core: &mut Core, _: &Op) -> Outcome {
    core.system_flags |= rflags::AC;
    core.update_rights();
    Ok(())
}

fn clac(core: &mut Core, _: &Op) -> Outcome {
    core.system_flags &= !rflags::AC;
    core.update_rights();
    Ok(())
}

fn serialize(_: &mut Core, _: &Op) -> Outcome {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let user = mode.has(DecodeMode::USER);
    Some(match i.mnemonic() {
        // Serializing: what follows is looked up anew, so that code another CPU has changed is seen.
        Mnemonic::Cpuid => Lowered::new(cpuid).ends_block(),
        Mnemonic::Serialize => Lowered::new(serialize).ends_block(),
        Mnemonic::Rdmsr | Mnemonic::Wrmsr | Mnemonic::Rdpmc if user => super::general_protection(),
        Mnemonic::Rdmsr => Lowered::new(rdmsr),
        Mnemonic::Wrmsr => Lowered::new(wrmsr).ends_block(),
        // There are no performance counters.
        Mnemonic::Rdpmc => super::general_protection(),
        Mnemonic::Rdtsc => Lowered::new(rdtsc),
        Mnemonic::Rdtscp => Lowered::new(rdtscp),
        Mnemonic::Rdpid => Lowered::new(rdpid).reg(register(i.op0_register())),
        Mnemonic::Rdrand | Mnemonic::Rdseed => {
            Lowered::new(random).reg(register(i.op0_register())).extra(i.op0_register().size() as u32)
        }
        Mnemonic::Stac | Mnemonic::Clac if user => super::invalid(),
        Mnemonic::Stac => Lowered::new(stac),
        Mnemonic::Clac => Lowered::new(clac),
        _ => return None,
    })
}
