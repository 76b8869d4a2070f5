//! Control and debug registers, XCR0, and the caches and translations they rule: MOV CRn and DRn, CLTS, XGETBV, XSETBV, INVLPG, INVPCID,
//! WBINVD and CLFLUSH with their kin (SDM vol. 2; vol. 3, 2.5 and 5).
//!
//! CR0.AM can be set, but alignment checks (#AC) are missing: no access is ever refused for its alignment alone.

use iced_x86::{Instruction, Mnemonic, Register};
use x86::paging::{self, is_canonical};
use x86::{Segment, cr0, cr4, dr6, dr7, efer, exception};

use crate::core::{Core, DecodeMode, Outcome, seg};
use crate::decode::{Lowered, is_memory, memory, register};
use crate::mmu::{Access, PHYSICAL_BITS};
use crate::op::Op;

/// The CR4 bits that CPUID offers.
pub const CR4_OFFERED: u64 = cr4::TSD
    | cr4::DE
    | cr4::PSE
    | cr4::PAE
    | cr4::MCE
    | cr4::PGE
    | cr4::PCE
    | cr4::OSFXSR
    | cr4::OSXMMEXCPT
    | cr4::UMIP
    | cr4::FSGSBASE
    | cr4::OSXSAVE
    | cr4::SMEP
    | cr4::SMAP;

/// The CR4 bits whose change makes translations stale.
const CR4_PAGING: u64 = cr4::PSE | cr4::PAE | cr4::PGE | cr4::SMEP | cr4::SMAP;

/// XCR0 bits: x87, SSE, AVX.
const XCR0_KNOWN: u64 = 7;

impl Core {
    #[cold]
    fn gp0<T>(&mut self) -> Outcome<T> {
        self.raise_with(exception::GP, 0)
    }

    /// Writes CR0, switching between real, protected and IA-32e mode (SDM vol. 3, 10.8.5 and 10.9).
    ///
    /// # Errors
    /// #GP for an impossible combination.
    pub(crate) fn write_cr0(&mut self, value: u64) -> Outcome {
        const KNOWN: u64 =
            cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::NW | cr0::CD | cr0::PG;
        let bad_pair = |needs: u64, has: u64| value & has != 0 && value & needs == 0;
        if value >> 32 != 0 || bad_pair(cr0::PE, cr0::PG) || bad_pair(cr0::CD, cr0::NW) {
            return self.gp0();
        }
        // Reserved bits below 32 are ignored, and ET is always set.
        let value = (value & KNOWN) | cr0::ET;
        let changed = value ^ self.cr0;
        if changed & cr0::PG != 0 {
            if value & cr0::PG == 0 {
                if self.mode.has(DecodeMode::CODE64) {
                    return self.gp0();
                }
                self.efer &= !efer::LMA;
            } else if self.efer & efer::LME != 0 {
                if self.cr4 & cr4::PAE == 0 || self.segments[seg::CS].has(Segment::L) {
                    return self.gp0();
                }
                self.efer |= efer::LMA;
            } else if self.cr4 & cr4::PAE != 0 {
                self.load_pdptes(self.cr3)?;
            }
        }
        self.cr0 = value;
        if changed & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            self.flush_translations();
        }
        self.update_mode();
        Ok(())
    }

    /// Loads the four PDPTEs that PAE paging outside IA-32e mode keeps in the processor (SDM vol. 3, 5.4.1).
    fn load_pdptes(&mut self, cr3: u64) -> Outcome {
        // Bits 1, 2, 5 to 8 and those above the physical address are reserved.
        const RESERVED: u64 = 0x1e6 | !((1 << PHYSICAL_BITS) - 1);
        let mut pdptes = [0; 4];
        for (index, pdpte) in pdptes.iter_mut().enumerate() {
            let entry = self.ram.load::<u64>((cr3 & 0xffff_ffe0) + index as u64 * 8).unwrap_or(u64::MAX);
            if entry & paging::P != 0 && entry & RESERVED != 0 {
                return self.gp0();
            }
            *pdpte = entry;
        }
        self.pdptes = pdptes;
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> Outcome {
        if self.is_long() {
            if value >> PHYSICAL_BITS != 0 {
                return self.gp0();
            }
        } else if self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 {
            self.load_pdptes(value)?;
        }
        self.cr3 = value;
        self.flush_non_global_translations();
        Ok(())
    }

    fn write_cr4(&mut self, value: u64) -> Outcome {
        let changed = value ^ self.cr4;
        if value & !CR4_OFFERED != 0 || (self.is_long() && value & cr4::PAE == 0) {
            return self.gp0();
        }
        if !self.is_long() && self.cr0 & cr0::PG != 0 && value & cr4::PAE != 0 && changed & CR4_PAGING != 0 {
            self.load_pdptes(self.cr3)?;
        }
        self.cr4 = value;
        if changed & CR4_PAGING != 0 {
            self.flush_translations();
        }
        self.update_mode();
        Ok(())
    }

    /// #DB for DR7.GD, #UD for DR4 and DR5 under CR4.DE; otherwise the register that is meant.
    fn debug_register(&mut self, number: u8) -> Outcome<u8> {
        if self.cr4 & cr4::DE != 0 && matches!(number, 4 | 5) {
            return self.raise(exception::UD);
        }
        if self.dr7 & dr7::GD != 0 {
            self.dr6 |= dr6::BD;
            return self.raise(exception::DB);
        }
        Ok(if matches!(number, 4 | 5) { number + 2 } else { number })
    }
}

/// A general register as an operand of MOV CRn and DRn: 64 bits in 64-bit code, else 32.
fn wide_reg(core: &Core, code: u8) -> u64 {
    if core.mode.has(DecodeMode::CODE64) { core.reg(code) } else { u64::from(core.reg::<u32>(code)) }
}

fn set_wide_reg(core: &mut Core, code: u8, value: u64) {
    let value = if core.mode.has(DecodeMode::CODE64) { value } else { value & 0xffff_ffff };
    core.set_reg(code, value);
}

fn read_cr(core: &mut Core, op: &Op) -> Outcome {
    let value = match op.aux {
        0 => core.cr0,
        2 => core.cr2,
        3 => core.cr3,
        4 => core.cr4,
        8 => core.platform.cr8(),
        _ => return core.raise(exception::UD),
    };
    set_wide_reg(core, op.reg, value);
    Ok(())
}

fn write_cr(core: &mut Core, op: &Op) -> Outcome {
    let value = wide_reg(core, op.rm);
    match op.aux {
        0 => core.write_cr0(value),
        2 => {
            core.cr2 = value;
            Ok(())
        }
        3 => core.write_cr3(value),
        4 => core.write_cr4(value),
        8 if value > 15 => core.gp0(),
        8 => {
            core.platform.set_cr8(value);
            Ok(())
        }
        _ => core.raise(exception::UD),
    }
}

fn read_dr(core: &mut Core, op: &Op) -> Outcome {
    let value = match core.debug_register(op.aux)? {
        6 => core.dr6,
        7 => core.dr7,
        number => core.dr[usize::from(number & 3)],
    };
    set_wide_reg(core, op.reg, value);
    Ok(())
}

fn write_dr(core: &mut Core, op: &Op) -> Outcome {
    let number = core.debug_register(op.aux)?;
    let value = wide_reg(core, op.rm);
    if number >= 6 && value >> 32 != 0 {
        return core.gp0();
    }
    match number {
        // B0 to B3, BD, BS and BT can be written; the rest reads as it does after reset.
        6 => core.dr6 = (value & 0xe00f) | dr6::RESET,
        7 => core.dr7 = (value & 0xffff_23ff) | dr7::RESET,
        _ => core.dr[usize::from(number & 3)] = value,
    }
    Ok(())
}

fn clts(core: &mut Core, _: &Op) -> Outcome {
    if core.cr0 & cr0::TS != 0 {
        core.cr0 &= !cr0::TS;
        core.update_mode();
    }
    Ok(())
}

fn xgetbv(core: &mut Core, _: &Op) -> Outcome {
    if core.cr4 & cr4::OSXSAVE == 0 {
        return core.raise(exception::UD);
    }
    // 1 asks which components are in use: saying that all of them are is always allowed (SDM vol. 1, 13.6).
    let value = match core.gpr[x86::gpr::RCX] as u32 {
        0 | 1 => core.xcr0,
        _ => return core.gp0(),
    };
    core.gpr[x86::gpr::RAX] = value & 0xffff_ffff;
    core.gpr[x86::gpr::RDX] = value >> 32;
    Ok(())
}

fn xsetbv(core: &mut Core, _: &Op) -> Outcome {
    if core.cr4 & cr4::OSXSAVE == 0 {
        return core.raise(exception::UD);
    }
    let value = u64::from(core.gpr[x86::gpr::RAX] as u32) | core.gpr[x86::gpr::RDX] << 32;
    let avx_alone = value & 6 == 4;
    if core.cpl != 0
        || core.gpr[x86::gpr::RCX] as u32 != 0
        || value & 1 == 0
        || value & !XCR0_KNOWN != 0
        || avx_alone
        || value & !u64::from(core.platform.cpuid(0xd, 0).eax) != 0
    {
        return core.gp0();
    }
    core.xcr0 = value;
    core.update_mode();
    Ok(())
}

fn invlpg(core: &mut Core, op: &Op) -> Outcome {
    let linear = core.segment_bases[usize::from(op.mem.segment & 7)].wrapping_add(core.effective_address(&op.mem));
    // An address that is not canonical has no translation to forget.
    if is_canonical(linear) {
        core.flush_page_translation(if core.is_long() { linear } else { linear & 0xffff_ffff });
    }
    Ok(())
}

fn invpcid(core: &mut Core, op: &Op) -> Outcome {
    let linear = core.linear_address(&op.mem, 16, false)?;
    let descriptor: u64 = core.read(linear)?;
    let address: u64 = core.read(linear.wrapping_add(8))?;
    let kind = wide_reg(core, op.reg);
    // Without PCIDs the only one there is is zero.
    if kind > 3 || (kind < 2 && descriptor != 0) || (kind == 0 && !is_canonical(address)) {
        return core.gp0();
    }
    match kind {
        0 => core.flush_page_translation(address),
        2 => core.flush_translations(),
        _ => core.flush_non_global_translations(),
    }
    Ok(())
}

fn nothing(_: &mut Core, _: &Op) -> Outcome {
    Ok(())
}

/// CLFLUSH, CLFLUSHOPT, CLWB: faults as a load of one byte would, and that is all there is to see.
fn flush_line(core: &mut Core, op: &Op) -> Outcome {
    let linear = core.linear_address(&op.mem, 1, false)?;
    let rights = core.rights;
    core.translate(linear, Access::Read, rights)?;
    Ok(())
}

fn fence(_: &mut Core, _: &Op) -> Outcome {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let user = mode.has(DecodeMode::USER);
    Some(match i.mnemonic() {
        Mnemonic::Mov if !is_memory(i, 0) && !is_memory(i, 1) => {
            let (to, from) = (i.op0_register(), i.op1_register());
            let known = |r: Register| r.is_cr() || r.is_dr();
            if !known(to) && !known(from) {
                return None;
            }
            if user {
                return Some(super::general_protection());
            }
            if known(from) {
                let handler = if from.is_cr() { read_cr } else { read_dr };
                return Some(Lowered::new(handler).reg(register(to)).aux(from.number() as u8));
            }
            let handler = if to.is_cr() { write_cr } else { write_dr };
            Lowered::new(handler).rm(register(from)).aux(to.number() as u8).ends_block()
        }
        Mnemonic::Clts
        | Mnemonic::Invlpg
        | Mnemonic::Invpcid
        | Mnemonic::Invd
        | Mnemonic::Wbinvd
        | Mnemonic::Wbnoinvd
            if user =>
        {
            super::general_protection()
        }
        Mnemonic::Clts => Lowered::new(clts).ends_block(),
        Mnemonic::Xgetbv => Lowered::new(xgetbv),
        Mnemonic::Xsetbv => Lowered::new(xsetbv).ends_block(),
        Mnemonic::Invlpg => Lowered::new(invlpg).mem(memory(i, mode)).ends_block(),
        Mnemonic::Invpcid => Lowered::new(invpcid).mem(memory(i, mode)).reg(register(i.op0_register())).ends_block(),
        // The caches of this CPU are the host's, and coherent.
        Mnemonic::Invd | Mnemonic::Wbinvd | Mnemonic::Wbnoinvd | Mnemonic::Cldemote => Lowered::new(nothing),
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => Lowered::new(flush_line).mem(memory(i, mode)),
        Mnemonic::Mfence => Lowered::new(fence),
        // Guest loads and stores are the host's own, in program order.
        Mnemonic::Lfence | Mnemonic::Sfence => Lowered::new(nothing),
        _ => return None,
    })
}
