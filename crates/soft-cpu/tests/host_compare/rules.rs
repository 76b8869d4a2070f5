//! What is not executed, what is not offered, and which results the manuals leave undefined: each with its reason.

use std::ops::Range;

use iced_x86::{Code, CodeSize, CpuidFeature, FlowControl, Instruction, Mnemonic, OpKind, Register};
use x86::rflags::{AF, CF, OF, PF, SF, ZF};
use x86::{XSAVE_SIZE, exception};

use super::case::Trap;

/// Why an instruction is not compared at all.
pub(crate) fn skip_reason(i: &Instruction, bytes: &[u8], bitness: u32) -> Option<&'static str> {
    use Mnemonic::*;
    let relative = matches!(i.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    if bitness == 64 && has_operand_size_prefix(bytes) && (relative || matches!(i.mnemonic(), Jmp | Call | Ret)) {
        return Some("near branches with prefix 66: Intel ignores it, AMD branches within 64 KiB");
    }
    Some(match i.mnemonic() {
        Syscall | Sysenter | Sysexit | Sysret | Sysexitq | Sysretq => "enters or leaves the host's kernel",
        Int | Int1 | Int3 | Into => "goes through the host kernel's interrupt table",
        Vmcall | Vmmcall | Vmgexit => "calls the host's hypervisor",
        Rdtsc | Rdtscp | Rdpmc | Rdrand | Rdseed | Rdpid | Rdpru => "gives another value each time",
        Cpuid | Xgetbv => "gives what the machine offers, which differs",
        Xsaveopt | Xsaveopt64 | Xsaves | Xsaves64 | Xrstor | Xrstor64 | Xrstors | Xrstors64 => {
            "depends on what was restored before, or on a header that is hardly ever valid by chance"
        }
        Iret | Iretd | Iretq | Retf => "loads selectors of the host's tables",
        Lar | Lsl | Verr | Verw => "looks at the host's descriptor tables",
        Lds | Les | Lfs | Lgs | Lss => "loads selectors of the host's tables",
        Sgdt | Sidt | Sldt | Str | Smsw => "Linux answers for the CPU under UMIP",
        Wrfsbase | Wrgsbase => "would take the test's own thread area away",
        Mov | Pop if i.op0_kind() == OpKind::Register && i.op0_register().is_segment_register() => {
            "loads selectors of the host's tables"
        }
        Monitor | Monitorx | Mwait | Mwaitx | Umonitor | Umwait | Tpause => "waits",
        Wrpkru | Rdpkru => "protection keys are the host's",
        Clui | Stui | Testui | Senduipi | Uiret => "user interrupts: not offered; under some hypervisors #GP, not #UD",
        Xbegin | Xend | Xabort | Xtest => "transactions are the host's",
        Ptwrite | Seamcall | Getsec | Encls | Enclu | Enclv => "belongs to the host",
        Clzero => "not offered; AMD only",
        Reservednop
            if matches!(
                i.code(),
                Code::Reservednop_rm16_r16_0F0D | Code::Reservednop_rm32_r32_0F0D | Code::Reservednop_rm64_r64_0F0D
            ) =>
        {
            "a prefetch of a register: Intel does nothing, AMD raises #UD"
        }
        Loope | Loopne if i.has_rep_prefix() || i.has_repne_prefix() => {
            "LOOPE and LOOPNE with a REP prefix: for AMD it is the prefix that says which"
        }
        Movsxd if i.op0_register().size() == 2 => "MOVSXD of 16 bits: Intel loads two bytes, AMD four",
        Cvtpi2ps if i.op1_kind() == OpKind::Memory => {
            "CVTPI2PS from memory: for Intel it is an MMX instruction, for AMD it leaves the x87 state alone"
        }
        Pause if has_rex_b(bytes) => "F3 90 with REX.B: PAUSE for Intel, XCHG for AMD",
        Rdfsbase | Rdgsbase if bitness == 32 => "64-bit only",
        _ if matches!(i.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32) => {
            "loads selectors of the host's tables"
        }
        Jmp | Call if is_far_indirect(i) => "loads selectors of the host's tables",
        _ => return None,
    })
}

/// Whether `byte` is a legacy prefix, or a REX prefix of 64-bit code.
fn is_prefix(byte: u8) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
}

/// Whether prefix 66 stands before the opcode.
fn has_operand_size_prefix(bytes: &[u8]) -> bool {
    bytes.iter().take_while(|b| is_prefix(**b)).any(|b| *b == 0x66)
}

/// Whether there is a REX prefix, for 64-bit code, with bit B set.
fn has_rex_b(bytes: &[u8]) -> bool {
    bytes.iter().find(|b| matches!(b, 0x40..=0x4f | 0x90)).is_some_and(|b| b & 0xf1 == 0x41)
}

fn is_far_indirect(i: &Instruction) -> bool {
    i.code().is_jmp_far_indirect() || i.code().is_call_far_indirect()
}

/// Features that the host may have and our CPU does not offer: #UD there is right.
pub(crate) fn not_offered(i: &Instruction) -> bool {
    i.cpuid_features().iter().any(|f| {
        matches!(
            f,
            CpuidFeature::CLZERO
                | CpuidFeature::MONITORX
                | CpuidFeature::RDPRU
                | CpuidFeature::MCOMMIT
                | CpuidFeature::PKU
                | CpuidFeature::SVM
                | CpuidFeature::SKINIT
                | CpuidFeature::SKINIT_or_SVM
                | CpuidFeature::SEV_ES
                | CpuidFeature::SEV_SNP
                | CpuidFeature::INVLPGB
                | CpuidFeature::AVX512F
                | CpuidFeature::AVX512BW
                | CpuidFeature::AVX512DQ
                | CpuidFeature::VMX
                | CpuidFeature::CET_SS
                | CpuidFeature::WAITPKG
        )
    })
}

/// Whether bytes that the decoder calls invalid may be one of AVX-512's VEX-encoded mask instructions, of which processors ignore
/// bits that must be set.
pub(crate) fn may_be_mask_instruction(bytes: &[u8]) -> bool {
    let Some(at) = bytes.iter().position(|b| matches!(b, 0xc4 | 0xc5)) else { return false };
    let opcode = bytes.get(at + if bytes[at] == 0xc5 { 2 } else { 3 });
    matches!(opcode, Some(0x30..=0x33 | 0x41..=0x4b | 0x90..=0x93 | 0x98 | 0x99))
}

/// Whether bytes that the decoder calls invalid are a system instruction with a prefix that it cannot have: AMD looks at privilege and operands
/// before LOCK, and takes VMCALL with any prefix to the hypervisor.
pub(crate) fn is_odd_system_instruction(bytes: &[u8]) -> bool {
    let count = bytes.iter().take_while(|b| is_prefix(**b)).count();
    let (prefixes, opcode) = bytes.split_at(count);
    match opcode {
        [0x0f, 0x01, 0xc0..=0xff, ..] => count != 0,
        [0x0f, 0x00 | 0x01 | 0x20..=0x23, ..] => prefixes.contains(&0xf0),
        _ => false,
    }
}

/// Instructions that our CPU has whether or not the host has them.
pub(crate) fn offered_without_the_host(i: &Instruction) -> bool {
    // Linux serializes with it where it is there, which is cheaper for us than an IRET.
    i.mnemonic() == Mnemonic::Serialize
}

/// Whether an instruction can stand in a sequence: nothing it leaves behind may be undefined, and it neither branches nor needs registers that point
/// somewhere.
pub(crate) fn fits_a_sequence(i: &Instruction) -> bool {
    use Mnemonic::*;
    let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) && !i.is_ip_rel_memory_operand();
    // What loads control words could unmask exceptions; what stores the x87 state stores selectors, which we do not keep.
    let state = matches!(
        i.mnemonic(),
        Popf | Popfd
            | Popfq
            | Ldmxcsr
            | Vldmxcsr
            | Fldcw
            | Fldenv
            | Frstor
            | Fnstenv
            | Fnsave
            | Fxrstor
            | Fxrstor64
            | Fxsave
            | Fxsave64
            | Xsave
            | Xsave64
            | Xsavec
            | Xsavec64
            | Fcomi
            | Fcomip
            | Fucomi
            | Fucomip
    );
    let invalid = not_offered(i)
        || offered_without_the_host(i)
        || matches!(i.mnemonic(), Popa | Popad | Maskmovq | Maskmovdqu | Vmaskmovdqu);
    i.flow_control() == FlowControl::Next
        && i.rflags_undefined() == 0
        && !i.has_rep_prefix()
        && !i.has_repne_prefix()
        && !(memory || state || invalid || i.is_string_instruction())
}

/// Whether both traps, which differ, are right: the manuals do not say which of several accesses comes first, or what address of one is reported.
pub(crate) fn may_fault_elsewhere(i: Option<&Instruction>, host: &Trap, ours: &Trap) -> bool {
    use Mnemonic::*;
    let page_fault = u32::from(exception::PF);
    let access = |trap: &Trap| matches!(trap.vector as u8, exception::PF | exception::GP | exception::SS);
    let fetch = |trap: &Trap| trap.vector == page_fault && trap.error & 1 << 4 != 0;
    let invalid = |trap: &Trap| trap.vector == u32::from(exception::UD);
    if fetch(host) && invalid(ours) || invalid(host) && fetch(ours) {
        // How much of an invalid instruction is fetched before it is found to be invalid.
        return true;
    }
    let Some(i) = i else { return false };
    let beyond_or_misaligned = |a: &Trap, b: &Trap| {
        a.vector == u32::from(exception::GP) && b.vector == u32::from(exception::SS) && i.memory_size().size() >= 16
    };
    if i.code_size() == CodeSize::Code32 && (beyond_or_misaligned(host, ours) || beyond_or_misaligned(ours, host)) {
        // Beyond the stack segment's limit, and misaligned besides.
        return true;
    }
    if i.code_size() == CodeSize::Code32
        && access(host)
        && access(ours)
        && host.address.max(ours.address) >> 12 == 0xf_ffff
    {
        // Across the limit of 4 GiB: an operand that is loaded in two parts may meet the page fault of the first one before the limit.
        return true;
    }
    match i.mnemonic() {
        // Two operands in memory.
        Cmpsb | Cmpsw | Cmpsd | Cmpsq => access(host) && access(ours),
        // Whether bytes that the mask leaves out can fault, and which byte is reported.
        Maskmovq | Maskmovdqu | Vmaskmovdqu => access(host),
        // Which of the many words is found out first.
        Fxsave | Fxsave64 | Fxrstor | Fxrstor64 | Fnsave | Frstor | Fnstenv | Fldenv | Xsave | Xsave64 | Xsavec
        | Xsavec64 => {
            let near = host.address.abs_diff(ours.address) < XSAVE_SIZE as u64;
            access(host) && access(ours) && (host.vector != ours.vector || near)
        }
        // AMD's bit 17 by chance, where the operand crosses out of what is written beforehand.
        Ldmxcsr | Vldmxcsr => *host == Trap::NONE && ours.vector == u32::from(exception::GP),
        // It ignores FTZ, which is how an exact tiny result is found out; see `soft_cpu::simd`.
        Vcvtps2ph => host.vector == u32::from(exception::XM) && *ours == Trap::NONE,
        _ => false,
    }
}

/// Offsets from the memory operand of bytes that are not compared.
pub(crate) fn undefined_bytes(i: &Instruction) -> Range<u64> {
    use Mnemonic::*;
    match i.mnemonic() {
        // MXCSR_MASK: AMD's misaligned mode is not offered.
        Fxsave | Fxsave64 | Xsave | Xsave64 | Xsavec | Xsavec64 => 28..32,
        _ => 0..0,
    }
}

/// Exception flags of MXCSR that are not compared after `trap`.
pub(crate) fn undefined_mxcsr(i: &Instruction, mxcsr: u32, trap: &Trap) -> u32 {
    use Mnemonic::*;
    if trap.vector == u32::from(exception::XM) && matches!(i.mnemonic(), Dpps | Dppd | Vdpps | Vdppd) {
        // They multiply, then add: an unmasked exception of the products keeps the sums from raising theirs.
        return 0x3f;
    }
    // With overflow or underflow unmasked it is not the result that is rounded, but one whose exponent is unbounded: we do not know if it is exact.
    const OM_UM: u32 = 3 << 10;
    const UE_PE: u32 = 3 << 4;
    if trap.vector == u32::from(exception::XM) && mxcsr & OM_UM != OM_UM { UE_PE } else { 0 }
}

/// Whether registers other than the stack pointer are not compared after a fault.
pub(crate) fn undefined_registers_after_fault(i: &Instruction) -> bool {
    // AMD has popped some of them by then; the instruction can be started again all the same.
    matches!(i.mnemonic(), Mnemonic::Popa | Mnemonic::Popad)
}

/// Whether the x87 state is not to be compared after `trap`.
pub(crate) fn undefined_x87_state(i: &Instruction, trap: &Trap) -> bool {
    use Mnemonic::*;
    // Whether the registers turn into MMX ones before or after the conversion raises #XM.
    let converts = matches!(i.mnemonic(), Cvtpd2pi | Cvttpd2pi | Cvtps2pi | Cvttps2pi | Cvtpi2ps | Cvtpi2pd);
    converts && trap.vector == u32::from(exception::XM)
}

/// Status flags that the manuals leave undefined for this instruction, as far as the operands in `gpr` decide it.
pub(crate) fn undefined_flags(i: &Instruction, gpr: &[u64; 16]) -> u64 {
    use Mnemonic::*;
    match i.mnemonic() {
        // Logic: AF is undefined (SDM vol. 2).
        And | Or | Xor | Test => AF,
        // BMI: AF and PF are undefined, with BEXTR SF too.
        Andn | Blsi | Blsmsk | Blsr | Bzhi => AF | PF,
        Bextr => AF | PF | SF,
        // Only ZF (BSF, BSR), or ZF and CF (LZCNT, TZCNT), are defined.
        Bsf | Bsr => CF | OF | SF | AF | PF,
        Lzcnt | Tzcnt => OF | SF | AF | PF,
        // CF is defined, ZF is left alone.
        Bt | Btc | Btr | Bts => OF | SF | AF | PF,
        Div | Idiv => CF | OF | SF | ZF | AF | PF,
        Mul | Imul => SF | ZF | AF | PF,
        // OF is defined for a count of 1, CF up to the operand's width; AF never, unless the count is zero.
        Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr => {
            let bits = operand_bits(i);
            let shift = matches!(i.mnemonic(), Shl | Sal | Shr | Sar);
            match shift_count(i, 1, bits, gpr) {
                0 => 0,
                1 if shift => AF,
                1 => 0,
                n if shift && n > bits => AF | OF | CF,
                _ if shift => AF | OF,
                _ => OF,
            }
        }
        Shld | Shrd => {
            let bits = operand_bits(i);
            match shift_count(i, 2, bits, gpr) {
                0 => 0,
                1 => AF,
                n if n > bits => CF | OF | SF | ZF | AF | PF,
                _ => AF | OF,
            }
        }
        // With an unmasked exception: Intel leaves the flags alone, AMD sets them.
        Fcomi | Fcomip | Fucomi | Fucomip => ZF | PF | CF,
        Aaa | Aas => OF | SF | ZF | PF,
        Aad | Aam => OF | AF | CF,
        Daa | Das => OF,
        _ => 0,
    }
}

/// Whether the manuals leave the destination itself undefined.
pub(crate) fn undefined_result(i: &Instruction, gpr: &[u64; 16]) -> bool {
    use Mnemonic::*;
    match i.mnemonic() {
        // A 16-bit operand shifted by more than its width.
        Shld | Shrd => shift_count(i, 2, operand_bits(i), gpr) > operand_bits(i),
        _ => false,
    }
}

fn operand_bits(i: &Instruction) -> u32 {
    let bytes = if i.op0_kind() == OpKind::Register { i.op0_register().size() } else { i.memory_size().size() };
    bytes as u32 * 8
}

/// The masked count of a shift whose count is operand `n`.
fn shift_count(i: &Instruction, n: u32, bits: u32, gpr: &[u64; 16]) -> u32 {
    let count = if i.op_kind(n) == OpKind::Register && i.op_register(n) == Register::CL {
        gpr[1] as u32
    } else {
        i.immediate(n) as u32
    };
    count & if bits == 64 { 63 } else { 31 }
}
