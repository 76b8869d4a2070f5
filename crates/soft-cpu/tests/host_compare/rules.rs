//! What is not executed, what is not offered, and which results the manuals leave undefined: each with its reason.

use iced_x86::{CpuidFeature, Instruction, Mnemonic, OpKind, Register};
use x86::rflags::{AF, CF, OF, PF, SF, ZF};

/// Why an instruction is not compared at all.
pub(crate) fn skip_reason(i: &Instruction, bitness: u32) -> Option<&'static str> {
    use Mnemonic::*;
    Some(match i.mnemonic() {
        Syscall | Sysenter | Sysexit | Sysret | Sysexitq | Sysretq => "enters or leaves the host's kernel",
        Int | Int1 | Int3 | Into => "goes through the host kernel's interrupt table",
        Vmcall | Vmmcall | Vmgexit => "calls the host's hypervisor",
        Rdtsc | Rdtscp | Rdpmc | Rdrand | Rdseed | Rdpid | Rdpru => "gives another value each time",
        Cpuid | Xgetbv => "gives what the machine offers, which differs",
        Xsave | Xsave64 | Xsavec | Xsavec64 | Xsaveopt | Xsaveopt64 | Xsaves | Xsaves64 | Xrstor | Xrstor64
        | Xrstors | Xrstors64 => "the host has more components, and its image another layout",
        Fxsave | Fxsave64 | Fxrstor | Fxrstor64 | Fnsave | Fsave | Fnstenv | Fstenv => {
            "stores x87 pointers, which a signal frame does not keep on AMD"
        }
        Frstor | Fldenv => "loads x87 pointers, which a signal frame does not keep on AMD",
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
        Xbegin | Xend | Xabort | Xtest => "transactions are the host's",
        Ptwrite | Seamcall | Getsec | Encls | Enclu | Enclv => "belongs to the host",
        Clzero => "not offered; AMD only",
        Rdfsbase | Rdgsbase if bitness == 32 => "64-bit only",
        _ if matches!(i.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32) => {
            "loads selectors of the host's tables"
        }
        Jmp | Call if is_far_indirect(i) => "loads selectors of the host's tables",
        _ => return None,
    })
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
                | CpuidFeature::VMX
                | CpuidFeature::CET_SS
                | CpuidFeature::WAITPKG
        )
    })
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
