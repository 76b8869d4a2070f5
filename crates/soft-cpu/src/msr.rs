//! The MSRs that the CPU core holds itself; all others are the platform's (local APIC, TSC deadline, paravirtual clocks) or do not exist and raise #GP.
//!
//! Registers of one vendor only exist when CPUID names that vendor, and what the guest finds in them is what KVM shows: caches, machine checks and
//! memory types have nothing to rule here, so their registers hold values and do nothing. Deliberately missing: performance counters, last-branch records (read as
//! zero), branch single-stepping, VMX, SVM, IA32_XSS, architectural LBRs.

use x86::paging::is_canonical;
use x86::{cr0, cr4, efer, exception, msr};

use crate::core::{Core, Outcome, seg};

/// Number of variable-range MTRRs.
const VARIABLE_MTRRS: usize = 8;
/// IA32_MTRRCAP: eight variable ranges, fixed ranges, write-combining.
const MTRR_CAP: u64 = VARIABLE_MTRRS as u64 | 1 << 8 | 1 << 10;
/// IA32_PAT after reset (SDM vol. 3, table 13-12).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// IA32_MISC_ENABLE: fast strings on; no branch trace store, no precise event sampling.
const MISC_ENABLE_RESET: u64 = 1 | 1 << 11 | 1 << 12;
/// IA32_SPEC_CTRL: IBRS, STIBP, SSBD.
const SPEC_CTRL_KNOWN: u64 = 7;
/// What IA32_ARCH_CAPABILITIES says: guest code never runs speculatively on the host under the guest's own addresses, so nothing that is known about real
/// processors can be exploited between guest programs. RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO,
/// FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO.
pub const ARCH_CAPABILITIES: u64 = 1 << 0
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27
    | 1 << 62;

/// EFER bit: automatic IBRS (APM vol. 2, 3.1.7).
const EFER_AUTOIBRS: u64 = 1 << 21;

/// Numbers that only this file needs.
mod number {
    pub(super) const EBL_CR_POWERON: u32 = 0x2a;
    pub(super) const PLATFORM_INFO: u32 = 0xce;
    pub(super) const MISC_FEATURES_ENABLES: u32 = 0x140;
    pub(super) const LBR_FIRST: u32 = 0x1db;
    pub(super) const LBR_LAST: u32 = 0x1de;
    pub(super) const K7_EVNTSEL0: u32 = 0xc001_0000;
    pub(super) const K7_PERFCTR3: u32 = 0xc001_0007;
    pub(super) const SYSCFG: u32 = 0xc001_0010;
    pub(super) const HWCR: u32 = 0xc001_0015;
    pub(super) const NB_CFG: u32 = 0xc001_001f;
    pub(super) const PATCH_LOADER: u32 = 0xc001_0020;
    pub(super) const INT_PENDING_MSG: u32 = 0xc001_0055;
    pub(super) const MMIO_CONF_BASE: u32 = 0xc001_0058;
    pub(super) const LS_CFG: u32 = 0xc001_1020;
    pub(super) const DC_CFG: u32 = 0xc001_1022;
    pub(super) const BU_CFG2: u32 = 0xc001_102a;
    pub(super) const DE_CFG: u32 = 0xc001_1029;
}

/// HWCR bit 24: the TSC counts at the P0 frequency.
const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// DE_CFG bit 1: LFENCE is dispatch-serializing.
const DE_CFG_LFENCE_SERIALIZE: u64 = 1 << 1;

/// Their values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Msrs {
    /// IA32_STAR.
    pub star: u64,
    /// IA32_LSTAR.
    pub lstar: u64,
    /// IA32_CSTAR.
    pub cstar: u64,
    /// IA32_FMASK.
    pub fmask: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// IA32_SYSENTER_CS.
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
    /// IA32_TSC_ADJUST.
    pub tsc_adjust: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_MTRR_DEF_TYPE.
    pub mtrr_def_type: u64,
    /// IA32_MTRR_PHYSBASEn and IA32_MTRR_PHYSMASKn, in the order of their numbers.
    pub mtrr_variable: [u64; VARIABLE_MTRRS * 2],
    /// The eleven fixed-range MTRRs, in the order of their numbers.
    pub mtrr_fixed: [u64; 11],
    /// IA32_MCG_STATUS.
    pub mcg_status: u64,
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
    /// IA32_SPEC_CTRL.
    pub spec_ctrl: u64,
    /// AMD's HWCR.
    pub hwcr: u64,
    /// AMD's DE_CFG.
    pub de_cfg: u64,
}

impl Default for Msrs {
    fn default() -> Self {
        Self {
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            tsc_aux: 0,
            tsc_adjust: 0,
            pat: PAT_RESET,
            mtrr_def_type: 0,
            mtrr_variable: [0; VARIABLE_MTRRS * 2],
            mtrr_fixed: [0; 11],
            mcg_status: 0,
            misc_enable: MISC_ENABLE_RESET,
            spec_ctrl: 0,
            hwcr: HWCR_TSC_FREQ_SEL,
            de_cfg: DE_CFG_LFENCE_SERIALIZE,
        }
    }
}

/// The place of a fixed-range MTRR among the eleven.
fn fixed_mtrr(number: u32) -> Option<usize> {
    match number {
        msr::IA32_MTRR_FIX64K_00000 => Some(0),
        msr::IA32_MTRR_FIX16K_80000 => Some(1),
        msr::IA32_MTRR_FIX16K_A0000 => Some(2),
        _ => {
            let n = number.wrapping_sub(msr::IA32_MTRR_FIX4K_C0000);
            (n < 8).then_some(3 + n as usize)
        }
    }
}

fn variable_mtrr(number: u32) -> Option<usize> {
    let n = number.wrapping_sub(msr::IA32_MTRR_PHYSBASE0) as usize;
    (n < VARIABLE_MTRRS * 2).then_some(n)
}

/// Whether `kind` is a memory type that an MTRR (or, with `uc_minus`, PAT) may hold.
fn is_memory_type(kind: u64, uc_minus: bool) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6) || (uc_minus && kind == 7)
}

fn are_memory_types(value: u64, uc_minus: bool) -> bool {
    value.to_le_bytes().iter().all(|kind| is_memory_type(u64::from(*kind), uc_minus))
}

/// AMD's configuration registers that an operating system touches and that do nothing here: they read as zero and take any value, as on KVM.
fn is_inert_on_amd(number: u32) -> bool {
    matches!(
        number,
        number::K7_EVNTSEL0
            ..=number::K7_PERFCTR3
                | number::SYSCFG
                | number::NB_CFG
                | number::PATCH_LOADER
                | number::INT_PENDING_MSG
                | number::MMIO_CONF_BASE
                | number::LS_CFG
                | number::DC_CFG
                | number::BU_CFG2
    )
}

impl Msrs {
    /// The register `number`, if it is one of those that only hold a value.
    fn plain(&mut self, number: u32) -> Option<&mut u64> {
        Some(match number {
            msr::IA32_STAR => &mut self.star,
            msr::IA32_LSTAR => &mut self.lstar,
            msr::IA32_CSTAR => &mut self.cstar,
            msr::IA32_FMASK => &mut self.fmask,
            msr::IA32_KERNEL_GS_BASE => &mut self.kernel_gs_base,
            msr::IA32_SYSENTER_CS => &mut self.sysenter_cs,
            msr::IA32_SYSENTER_ESP => &mut self.sysenter_esp,
            msr::IA32_SYSENTER_EIP => &mut self.sysenter_eip,
            msr::IA32_TSC_AUX => &mut self.tsc_aux,
            msr::IA32_TSC_ADJUST => &mut self.tsc_adjust,
            msr::IA32_PAT => &mut self.pat,
            msr::IA32_MTRR_DEF_TYPE => &mut self.mtrr_def_type,
            msr::IA32_MCG_STATUS => &mut self.mcg_status,
            msr::IA32_MISC_ENABLE => &mut self.misc_enable,
            msr::IA32_SPEC_CTRL => &mut self.spec_ctrl,
            number::HWCR => &mut self.hwcr,
            number::DE_CFG => &mut self.de_cfg,
            _ => {
                if let Some(n) = fixed_mtrr(number) {
                    return self.mtrr_fixed.get_mut(n);
                }
                return self.mtrr_variable.get_mut(variable_mtrr(number)?);
            }
        })
    }

    /// All that is worth saving, `(number, value)` sorted by number.
    pub(crate) fn save(&self) -> Vec<(u32, u64)> {
        let mut copy = self.clone();
        let numbers = msr::saved().chain([number::HWCR, number::DE_CFG]);
        let mut saved: Vec<(u32, u64)> = numbers.filter_map(|n| copy.plain(n).map(|value| (n, *value))).collect();
        saved.sort_unstable();
        saved
    }

    /// Sets a register as a loaded state has it; `false` if the core does not hold it.
    pub(crate) fn restore(&mut self, number: u32, value: u64) -> bool {
        self.plain(number).map(|register| *register = value).is_some()
    }
}

/// Which vendor's registers exist.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Intel,
    Amd,
    Other,
}

impl Core {
    /// As CPUID leaf 0 says; MSRs are rare enough to ask each time.
    fn vendor(&mut self) -> Vendor {
        match self.platform.cpuid(0, 0).ecx {
            0x6c65_746e => Vendor::Intel,
            // "cAMD", and "uine" of HygonGenuine.
            0x444d_4163 | 0x656e_6975 => Vendor::Amd,
            _ => Vendor::Other,
        }
    }

    #[cold]
    fn no_such_msr<T>(&mut self, number: u32, written: Option<u64>) -> Outcome<T> {
        tracing::debug!(msr = format_args!("{number:#x}"), ?written, "access to an MSR that does not exist");
        self.raise_with(exception::GP, 0)
    }

    #[cold]
    fn bad_msr_value<T>(&mut self, number: u32, value: u64) -> Outcome<T> {
        tracing::debug!(
            msr = format_args!("{number:#x}"),
            value = format_args!("{value:#x}"),
            "value that an MSR does not take"
        );
        self.raise_with(exception::GP, 0)
    }

    /// Whether CPUID (leaf 7, EDX, for Intel; leaf 0x80000008, EBX, for AMD) offers the feature of these bits.
    fn speculation_feature(&mut self, leaf7_edx: u32, amd_ebx: u32) -> bool {
        self.platform.cpuid(7, 0).edx & leaf7_edx != 0 || self.platform.cpuid(0x8000_0008, 0).ebx & amd_ebx != 0
    }

    /// IA32_SPEC_CTRL exists (IBRS, STIBP or SSBD).
    fn has_spec_ctrl(&mut self) -> bool {
        self.speculation_feature(1 << 26 | 1 << 27 | 1 << 31, 1 << 14 | 1 << 15 | 1 << 24)
    }

    /// RDMSR.
    ///
    /// # Errors
    /// #GP where there is no such register.
    pub(crate) fn read_msr(&mut self, number: u32) -> Outcome<u64> {
        match number {
            msr::IA32_EFER => return Ok(self.efer),
            msr::IA32_FS_BASE => return Ok(self.segment_bases[seg::FS]),
            msr::IA32_GS_BASE => return Ok(self.segment_bases[seg::GS]),
            msr::IA32_TSC => return Ok(self.platform.tsc()),
            _ => {}
        }
        if let Some(value) = self.msrs.plain(number).copied() {
            return if self.exists(number) { Ok(value) } else { self.no_such_msr(number, None) };
        }
        match self.platform.msr_read(number) {
            Some(Ok(value)) => return Ok(value),
            Some(Err(_)) => return self.raise_with(exception::GP, 0),
            None => {}
        }
        match (number, self.vendor()) {
            (msr::IA32_MTRRCAP, _) => Ok(MTRR_CAP),
            (msr::IA32_MCG_CAP | msr::IA32_DEBUGCTL | number::LBR_FIRST..=number::LBR_LAST, _) => Ok(0),
            // The microcode revisions that KVM shows.
            (msr::IA32_BIOS_SIGN_ID, Vendor::Intel) => Ok(1 << 32),
            (msr::IA32_BIOS_SIGN_ID, _) => Ok(0x0100_0065),
            (msr::IA32_ARCH_CAPABILITIES, _) if self.speculation_feature(1 << 29, 0) => Ok(ARCH_CAPABILITIES),
            // Locked, with nothing enabled.
            (msr::IA32_FEAT_CTL, Vendor::Intel) => Ok(1),
            (
                msr::IA32_PLATFORM_ID | number::PLATFORM_INFO | number::MISC_FEATURES_ENABLES | number::EBL_CR_POWERON,
                Vendor::Intel,
            ) => Ok(0),
            (number, Vendor::Amd) if is_inert_on_amd(number) => Ok(0),
            _ => self.no_such_msr(number, None),
        }
    }

    /// Whether a register that the core holds exists for this vendor and these features.
    fn exists(&mut self, number: u32) -> bool {
        match number {
            msr::IA32_SPEC_CTRL => self.has_spec_ctrl(),
            number::HWCR | number::DE_CFG => self.vendor() == Vendor::Amd,
            msr::IA32_MISC_ENABLE => self.vendor() != Vendor::Amd,
            _ => true,
        }
    }

    /// WRMSR.
    ///
    /// # Errors
    /// #GP where there is no such register or it does not take the value.
    pub(crate) fn write_msr(&mut self, number: u32, value: u64) -> Outcome {
        match number {
            msr::IA32_EFER => return self.write_efer(value),
            msr::IA32_FS_BASE | msr::IA32_GS_BASE => {
                if !is_canonical(value) {
                    return self.bad_msr_value(number, value);
                }
                self.set_segment_base(if number == msr::IA32_FS_BASE { seg::FS } else { seg::GS }, value);
                return Ok(());
            }
            msr::IA32_TSC => {
                let delta = value.wrapping_sub(self.platform.tsc());
                self.msrs.tsc_adjust = self.msrs.tsc_adjust.wrapping_add(delta);
                self.platform.set_tsc(value);
                return Ok(());
            }
            msr::IA32_TSC_ADJUST => {
                let delta = value.wrapping_sub(self.msrs.tsc_adjust);
                let tsc = self.platform.tsc().wrapping_add(delta);
                self.platform.set_tsc(tsc);
                self.msrs.tsc_adjust = value;
                return Ok(());
            }
            _ => {}
        }
        if self.msrs.plain(number).is_some() {
            if !self.exists(number) {
                return self.no_such_msr(number, Some(value));
            }
            let Some(value) = accepted(number, value) else { return self.bad_msr_value(number, value) };
            if let Some(register) = self.msrs.plain(number) {
                *register = value;
            }
            return Ok(());
        }
        match self.platform.msr_write(number, value) {
            Some(Ok(())) => return Ok(()),
            Some(Err(_)) => return self.bad_msr_value(number, value),
            None => {}
        }
        match (number, self.vendor()) {
            // Prediction barriers have nothing to flush, microcode is not loaded.
            (msr::IA32_PRED_CMD, _) if value & !1 == 0 && self.speculation_feature(1 << 26, 1 << 12) => Ok(()),
            (msr::IA32_BIOS_UPDT_TRIG | msr::IA32_BIOS_SIGN_ID | msr::IA32_DEBUGCTL, _) => Ok(()),
            (number::MISC_FEATURES_ENABLES | number::EBL_CR_POWERON, Vendor::Intel) if value == 0 => Ok(()),
            (number, Vendor::Amd) if is_inert_on_amd(number) => Ok(()),
            _ => self.no_such_msr(number, Some(value)),
        }
    }

    fn write_efer(&mut self, value: u64) -> Outcome {
        let mut known = efer::SCE | efer::LME | efer::LMA | efer::NXE;
        if value & EFER_AUTOIBRS != 0 && self.platform.cpuid(0x8000_0021, 0).eax & 1 << 8 != 0 {
            known |= EFER_AUTOIBRS;
        }
        // LMA belongs to the processor: what is written there is ignored.
        let value = (value & !efer::LMA) | (self.efer & efer::LMA);
        let changed = value ^ self.efer;
        if value & !known != 0 || (changed & efer::LME != 0 && self.cr0 & cr0::PG != 0) {
            return self.bad_msr_value(msr::IA32_EFER, value);
        }
        self.efer = value;
        if changed & efer::NXE != 0 {
            self.flush_translations();
        }
        debug_assert!(self.efer & efer::LMA == 0 || self.cr4 & cr4::PAE != 0);
        Ok(())
    }
}

/// What a register that only holds a value takes for `value`; `None` is #GP.
fn accepted(number: u32, value: u64) -> Option<u64> {
    let fits = match number {
        msr::IA32_LSTAR
        | msr::IA32_CSTAR
        | msr::IA32_KERNEL_GS_BASE
        | msr::IA32_SYSENTER_ESP
        | msr::IA32_SYSENTER_EIP => is_canonical(value),
        msr::IA32_FMASK | msr::IA32_TSC_AUX | msr::IA32_SYSENTER_CS => value >> 32 == 0,
        msr::IA32_PAT => are_memory_types(value, true),
        msr::IA32_MTRR_DEF_TYPE => value & !0xcff == 0 && is_memory_type(value & 0xff, false),
        // Bits of a global machine-check status that exist: RIPV, EIPV, MCIP.
        msr::IA32_MCG_STATUS => value & !7 == 0,
        msr::IA32_SPEC_CTRL => value & !SPEC_CTRL_KNOWN == 0,
        number::DE_CFG => value & !DE_CFG_LFENCE_SERIALIZE == 0,
        number::HWCR => {
            // KVM ignores bits 3, 6 and 8 and keeps McStatusWrEn and TscFreqSel.
            let kept = value & !(1 << 3 | 1 << 6 | 1 << 8);
            return (kept & !(1 << 18 | HWCR_TSC_FREQ_SEL) == 0).then_some(kept);
        }
        _ if fixed_mtrr(number).is_some() => are_memory_types(value, false),
        _ => match variable_mtrr(number) {
            Some(n) if n % 2 == 0 => value >> crate::mmu::PHYSICAL_BITS == 0 && is_memory_type(value & 0xff, false),
            Some(_) => value >> crate::mmu::PHYSICAL_BITS == 0,
            None => true,
        },
    };
    fits.then_some(value)
}
