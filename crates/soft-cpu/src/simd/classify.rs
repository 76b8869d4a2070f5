//! What kind of instruction it is: which processor features it needs and whether the host has them, what must be enabled for it to
//! run, whether it can raise floating-point exceptions, and how its memory operand must be aligned.

use std::arch::is_x86_feature_detected;

use iced_x86::{CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind};
use x86::{cr0, exception};

use crate::core::{Core, DecodeMode};

/// Which enable bits an instruction needs (SDM vol. 3, table 16-1 and 14.1; vol. 2, 2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Class {
    /// x87: CR0.EM and TS clear, else #NM.
    X87,
    /// Only MMX registers: CR0.EM clear, else #UD; TS clear, else #NM.
    Mmx,
    /// XMM registers, legacy encoding: as MMX, and CR4.OSFXSR.
    Sse,
    /// VEX encoding: CR4.OSXSAVE, XCR0, protected mode.
    Avx,
}

impl Class {
    /// The class of an instruction that thunks or this family's handlers cover; `None` for all others and for what the host lacks.
    pub(crate) fn of(i: &Instruction) -> Option<Self> {
        if !matches!(i.encoding(), EncodingKind::Legacy | EncodingKind::VEX) {
            return None;
        }
        let features = i.cpuid_features();
        if features.is_empty() || !features.iter().all(|f| host_has(*f)) {
            return None;
        }
        let x87 = |f: &CpuidFeature| matches!(f, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387);
        Some(if i.encoding() == EncodingKind::VEX {
            Self::Avx
        } else if features.iter().any(x87) || features == [CpuidFeature::INTEL8086] {
            Self::X87
        } else if (uses_mmx(i) && !uses_xmm(i)) || i.mnemonic() == Mnemonic::Emms {
            Self::Mmx
        } else {
            Self::Sse
        })
    }

    /// The class by its number.
    pub(super) fn from_number(number: u8) -> Self {
        match number {
            0 => Self::X87,
            1 => Self::Mmx,
            2 => Self::Sse,
            _ => Self::Avx,
        }
    }

    /// Whether instructions of this class run in `mode`.
    pub(crate) fn runs_in(self, mode: DecodeMode) -> bool {
        match self {
            Self::X87 | Self::Mmx => mode.has(DecodeMode::X87),
            Self::Sse => mode.has(DecodeMode::SSE),
            Self::Avx => mode.has(DecodeMode::AVX) && !mode.has(DecodeMode::REAL),
        }
    }

    /// The exception instead, where they do not.
    pub(super) fn exception(self, core: &Core) -> u8 {
        let emulated = core.cr0 & cr0::EM != 0;
        let not_enabled = match self {
            Self::X87 => return exception::NM,
            Self::Mmx => emulated,
            Self::Sse => emulated || core.cr4 & x86::cr4::OSFXSR == 0,
            Self::Avx => core.mode.has(DecodeMode::REAL) || core.cr4 & x86::cr4::OSXSAVE == 0 || core.xcr0 & 6 != 6,
        };
        if !not_enabled && core.cr0 & cr0::TS != 0 { exception::NM } else { exception::UD }
    }
}

/// Whether an instruction that needs `feature` can run: thunks cover it, and the host has it.
fn host_has(feature: CpuidFeature) -> bool {
    match feature {
        CpuidFeature::INTEL8086
        | CpuidFeature::INTEL386
        | CpuidFeature::X64
        | CpuidFeature::FPU
        | CpuidFeature::FPU287
        | CpuidFeature::FPU387
        | CpuidFeature::CMOV
        | CpuidFeature::MMX
        | CpuidFeature::FXSR
        | CpuidFeature::SSE
        | CpuidFeature::SSE2
        | CpuidFeature::XSAVE
        | CpuidFeature::XSAVEOPT
        | CpuidFeature::XSAVEC => true,
        CpuidFeature::SSE3 => is_x86_feature_detected!("sse3"),
        CpuidFeature::SSSE3 => is_x86_feature_detected!("ssse3"),
        CpuidFeature::SSE4_1 => is_x86_feature_detected!("sse4.1"),
        CpuidFeature::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        CpuidFeature::SSE4A => is_x86_feature_detected!("sse4a"),
        CpuidFeature::AES => is_x86_feature_detected!("aes"),
        CpuidFeature::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        CpuidFeature::SHA => is_x86_feature_detected!("sha"),
        CpuidFeature::GFNI => is_x86_feature_detected!("gfni"),
        CpuidFeature::AVX => is_x86_feature_detected!("avx"),
        CpuidFeature::AVX2 => is_x86_feature_detected!("avx2"),
        CpuidFeature::FMA => is_x86_feature_detected!("fma"),
        CpuidFeature::F16C => is_x86_feature_detected!("f16c"),
        CpuidFeature::VAES => is_x86_feature_detected!("vaes"),
        CpuidFeature::VPCLMULQDQ => is_x86_feature_detected!("vpclmulqdq"),
        _ => false,
    }
}

fn any_register(i: &Instruction, wanted: fn(iced_x86::Register) -> bool) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && wanted(i.op_register(n)))
}

/// Whether it names an MMX register.
pub(super) fn uses_mmx(i: &Instruction) -> bool {
    any_register(i, |r| r.is_mm())
}

fn uses_xmm(i: &Instruction) -> bool {
    any_register(i, |r| r.is_vector_register())
}

/// Whether it works on the x87 registers, under that or their MMX name.
pub(crate) fn uses_x87_registers(i: &Instruction) -> bool {
    uses_mmx(i)
        || matches!(i.mnemonic(), Mnemonic::Cvtpi2ps | Mnemonic::Emms)
        || i.cpuid_features()
            .iter()
            .any(|f| matches!(f, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387))
}

/// The boundary that a memory operand must lie on, in bytes; 1 for any. Legacy instructions want their 16-byte operands aligned, with the
/// exceptions here; VEX ones do not, but for the moves that say so (SDM vol. 1, 14.9).
pub(crate) fn alignment(i: &Instruction) -> usize {
    let size = i.memory_size().size();
    let unaligned = match i.encoding() {
        EncodingKind::VEX => !matches!(
            i.mnemonic(),
            Mnemonic::Vmovaps
                | Mnemonic::Vmovapd
                | Mnemonic::Vmovdqa
                | Mnemonic::Vmovntps
                | Mnemonic::Vmovntpd
                | Mnemonic::Vmovntdq
                | Mnemonic::Vmovntdqa
        ),
        _ => matches!(
            i.mnemonic(),
            Mnemonic::Movups
                | Mnemonic::Movupd
                | Mnemonic::Movdqu
                | Mnemonic::Lddqu
                | Mnemonic::Pcmpestri
                | Mnemonic::Pcmpestri64
                | Mnemonic::Pcmpestrm
                | Mnemonic::Pcmpestrm64
                | Mnemonic::Pcmpistri
                | Mnemonic::Pcmpistrm
                // By the manuals these check, but no processor that this was compared with (AMD's) does.
                | Mnemonic::Sha1msg1
                | Mnemonic::Sha1msg2
                | Mnemonic::Sha1nexte
                | Mnemonic::Sha1rnds4
                | Mnemonic::Sha256msg1
                | Mnemonic::Sha256msg2
                | Mnemonic::Sha256rnds2
        ),
    };
    if unaligned || size < 16 { 1 } else { size }
}

/// Whether an instruction obeys MXCSR and may set its exception flags (SDM vol. 1, appendix E.4 and the instruction pages).
pub(super) fn raises_simd_exceptions(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Addps
            | Addpd
            | Addss
            | Addsd
            | Subps
            | Subpd
            | Subss
            | Subsd
            | Mulps
            | Mulpd
            | Mulss
            | Mulsd
            | Divps
            | Divpd
            | Divss
            | Divsd
            | Sqrtps
            | Sqrtpd
            | Sqrtss
            | Sqrtsd
            | Minps
            | Minpd
            | Minss
            | Minsd
            | Maxps
            | Maxpd
            | Maxss
            | Maxsd
            | Cmpps
            | Cmppd
            | Cmpss
            | Cmpsd
            | Comiss
            | Comisd
            | Ucomiss
            | Ucomisd
            | Addsubps
            | Addsubpd
            | Haddps
            | Haddpd
            | Hsubps
            | Hsubpd
            | Roundps
            | Roundpd
            | Dpps
            | Dppd
            | Roundss
            | Roundsd
            | Cvtdq2ps
            | Cvtpd2dq
            | Cvtpd2pi
            | Cvtpd2ps
            | Cvtpi2ps
            | Cvtpi2pd
            | Cvtps2dq
            | Cvtps2pd
            | Cvtps2pi
            | Cvtsd2si
            | Cvtsd2ss
            | Cvtsi2sd
            | Cvtsi2ss
            | Cvtss2sd
            | Cvtss2si
            | Cvttpd2dq
            | Cvttpd2pi
            | Cvttps2dq
            | Cvttps2pi
            | Cvttsd2si
            | Cvttss2si
            | Vaddps
            | Vaddpd
            | Vaddss
            | Vaddsd
            | Vsubps
            | Vsubpd
            | Vsubss
            | Vsubsd
            | Vmulps
            | Vmulpd
            | Vmulss
            | Vmulsd
            | Vdivps
            | Vdivpd
            | Vdivss
            | Vdivsd
            | Vsqrtps
            | Vsqrtpd
            | Vsqrtss
            | Vsqrtsd
            | Vminps
            | Vminpd
            | Vminss
            | Vminsd
            | Vmaxps
            | Vmaxpd
            | Vmaxss
            | Vmaxsd
            | Vcmpps
            | Vcmppd
            | Vcmpss
            | Vcmpsd
            | Vcomiss
            | Vcomisd
            | Vucomiss
            | Vucomisd
            | Vaddsubps
            | Vaddsubpd
            | Vhaddps
            | Vhaddpd
            | Vhsubps
            | Vhsubpd
            | Vroundps
            | Vroundpd
            | Vdpps
            | Vdppd
            | Vroundss
            | Vroundsd
            | Vcvtdq2ps
            | Vcvtpd2dq
            | Vcvtpd2ps
            | Vcvtps2dq
            | Vcvtps2pd
            | Vcvtsd2si
            | Vcvtsd2ss
            | Vcvtsi2sd
            | Vcvtsi2ss
            | Vcvtss2sd
            | Vcvtss2si
            | Vcvttpd2dq
            | Vcvttps2dq
            | Vcvttsd2si
            | Vcvttss2si
            | Vcvtph2ps
            | Vcvtps2ph
            | Vfmadd132ps
            | Vfmadd132pd
            | Vfmadd132ss
            | Vfmadd132sd
            | Vfmadd213ps
            | Vfmadd213pd
            | Vfmadd213ss
            | Vfmadd213sd
            | Vfmadd231ps
            | Vfmadd231pd
            | Vfmadd231ss
            | Vfmadd231sd
            | Vfmsub132ps
            | Vfmsub132pd
            | Vfmsub132ss
            | Vfmsub132sd
            | Vfmsub213ps
            | Vfmsub213pd
            | Vfmsub213ss
            | Vfmsub213sd
            | Vfmsub231ps
            | Vfmsub231pd
            | Vfmsub231ss
            | Vfmsub231sd
            | Vfnmadd132ps
            | Vfnmadd132pd
            | Vfnmadd132ss
            | Vfnmadd132sd
            | Vfnmadd213ps
            | Vfnmadd213pd
            | Vfnmadd213ss
            | Vfnmadd213sd
            | Vfnmadd231ps
            | Vfnmadd231pd
            | Vfnmadd231ss
            | Vfnmadd231sd
            | Vfnmsub132ps
            | Vfnmsub132pd
            | Vfnmsub132ss
            | Vfnmsub132sd
            | Vfnmsub213ps
            | Vfnmsub213pd
            | Vfnmsub213ss
            | Vfnmsub213sd
            | Vfnmsub231ps
            | Vfnmsub231pd
            | Vfnmsub231ss
            | Vfnmsub231sd
            | Vfmaddsub132ps
            | Vfmaddsub132pd
            | Vfmaddsub213ps
            | Vfmaddsub213pd
            | Vfmaddsub231ps
            | Vfmaddsub231pd
            | Vfmsubadd132ps
            | Vfmsubadd132pd
            | Vfmsubadd213ps
            | Vfmsubadd213pd
            | Vfmsubadd231ps
            | Vfmsubadd231pd
    )
}
