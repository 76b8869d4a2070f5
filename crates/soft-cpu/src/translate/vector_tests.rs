//! Vector instructions in generated code beside what finds the registers in memory: handlers, faults, save areas, unmasked exceptions. Each program ends in the
//! same state whether it is translated or interpreted. (The instructions themselves are compared with the host's.)

use vm_memory::{Bytes, GuestAddress};
use x86::{XSAVE_SIZE, gpr, rflags};

use crate::core::Fault;
use crate::fpu::{FCW_DEFAULT, MXCSR_DEFAULT, offset};
use crate::run::{Cpu, Exit, TranslatorMode};
use crate::testing::long_mode;

pub(super) const DATA: u64 = 0x20_0000;
const DATA_SIZE: usize = 0x4000;

/// Where a program ended.
#[derive(Debug, PartialEq)]
pub(super) struct End {
    pub(super) exit: Exit,
    fault: Fault,
    pub(super) rip: u64,
    rflags: u64,
    pub(super) gprs: [u64; 16],
    fpu: [u8; XSAVE_SIZE],
    pub(super) data: Vec<u8>,
    instructions: u64,
}

fn run(code: &[u8], mode: TranslatorMode, prepare: &impl Fn(&mut Cpu)) -> End {
    let mut cpu = long_mode(code);
    cpu.set_translator(mode);
    for n in 0..16 {
        let value = u128::from(n + 1) * 0x0123_4567_3f80_1234_0000_0001_3f8a_bcde;
        cpu.core.fpu.set_xmm(n, value);
        cpu.core.fpu.set_ymm_high(n, !value);
    }
    cpu.core.gpr[gpr::RBX] = DATA;
    // RESET leaves x87 exceptions unmasked.
    cpu.core.fpu.set_fcw(FCW_DEFAULT);
    prepare(&mut cpu);
    let exit = cpu.run(100_000);
    if matches!(mode, TranslatorMode::On { threshold: 1, .. }) {
        assert!(cpu.translator_statistics().translated > 0, "nothing was translated");
    }
    let mut data = vec![0; DATA_SIZE];
    let core = &cpu.core;
    core.ram.memory().read_slice(&mut data, GuestAddress(DATA)).unwrap();
    let mut gprs = [0; 16];
    gprs.copy_from_slice(&core.gpr[..16]);
    let mut fpu = core.fpu.image;
    // Generated code does not follow the x87 pointers.
    fpu[offset::FOP..offset::MXCSR].fill(0);
    fpu[offset::MXCSR_MASK..offset::ST].fill(0);
    let (fault, rip, rflags) = (core.fault, core.rip, core.rflags());
    End { exit, fault, rip, rflags, gprs, fpu, data, instructions: core.counters.instructions }
}

/// The end of `code`, which is the same both ways.
pub(super) fn both_ways(code: &[u8], prepare: impl Fn(&mut Cpu)) -> End {
    let mut interpreted = run(code, TranslatorMode::Off, &prepare);
    let theirs = std::mem::take(&mut interpreted.data);
    // At their first execution blocks are translated one by one, later in traces.
    for (threshold, precise) in [(1, true), (3, true), (1, false), (3, false)] {
        let mut translated = run(code, TranslatorMode::On { threshold, precise }, &prepare);
        if !precise && translated.exit == Exit::Shutdown {
            // At a fault, flags that nothing would have read may be anything.
            translated.rflags = interpreted.rflags;
        }
        let ours = std::mem::take(&mut translated.data);
        let difference = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs);
        assert_eq!(difference, None, "the first byte of the data that differs");
        assert_eq!(translated, interpreted);
    }
    End { data: theirs, ..interpreted }
}

fn put(cpu: &Cpu, at: u64, value: u32) {
    cpu.core.ram.memory().write_obj(value, GuestAddress(at)).unwrap();
}

fn put_pattern(cpu: &mut Cpu) {
    let pattern: Vec<u8> = (0..DATA_SIZE as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    cpu.core.ram.memory().write_slice(&pattern, GuestAddress(DATA)).unwrap();
}

/// Whether the host lacks what a program needs, which is then skipped.
fn lacks_avx2_and_bmi2() -> bool {
    let lacks = !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2"));
    if lacks {
        println!("skipped: the host has no AVX2 or no BMI2");
    }
    lacks
}

#[test]
fn handlers_and_slow_operands_between_vector_instructions_find_and_leave_the_registers() {
    // mov ecx, 60; l: paddq xmm0, xmm1; vpaddd ymm2, ymm2, ymm3; movups [rbx + 0xff8], xmm0 (across pages); vmovdqu ymm4, [rbx + 0xff1]; fld1; fstp st(0);
    // pxor xmm5, xmm4; vpmuludq ymm6, ymm2, [rbx + rcx * 8]; cvtsi2sd xmm7, rcx; sqrtsd xmm7, xmm7; movq r9, xmm7; movq r10, xmm0; andn r11, r10, r9;
    // mulx r15, r14, r11; pinsrw xmm8, r15d, 3; pmovmskb r10d, xmm8; pextrq [rbx + 16], xmm6, 1; ucomisd xmm7, xmm8; adc r10, r9; loop l; hlt
    let code = [
        0xb9, 0x3c, 0, 0, 0, 0x66, 0x0f, 0xd4, 0xc1, 0xc5, 0xed, 0xfe, 0xd3, 0x0f, 0x11, 0x83, 0xf8, 0x0f, 0, 0, 0xc5,
        0xfe, 0x6f, 0xa3, 0xf1, 0x0f, 0, 0, 0xd9, 0xe8, 0xdd, 0xd8, 0x66, 0x0f, 0xef, 0xec, 0xc5, 0xed, 0xf4, 0x34,
        0xcb, 0xf2, 0x48, 0x0f, 0x2a, 0xf9, 0xf2, 0x0f, 0x51, 0xff, 0x66, 0x49, 0x0f, 0x7e, 0xf9, 0x66, 0x49, 0x0f,
        0x7e, 0xc2, 0xc4, 0x42, 0xa8, 0xf2, 0xd9, 0xc4, 0x42, 0x8b, 0xf6, 0xfb, 0x66, 0x45, 0x0f, 0xc4, 0xc7, 3, 0x66,
        0x45, 0x0f, 0xd7, 0xd0, 0x66, 0x48, 0x0f, 0x3a, 0x16, 0x73, 0x10, 1, 0x66, 0x41, 0x0f, 0x2e, 0xf8, 0x4d, 0x11,
        0xca, 0xe2, 0xa2, 0xf4,
    ];
    if lacks_avx2_and_bmi2() {
        return;
    }
    let end = both_ways(&code, |cpu| cpu.core.gpr[gpr::RDX] = 0x9876_5432_1012_3456);
    assert_eq!(end.exit, Exit::Halted);
    assert_eq!(end.fpu[offset::MXCSR] & 0x20, 0x20, "the roots were inexact");
}

/// mov ecx, 20; l: addss xmm0, xmm1; ldmxcsr [rbx]; mulss xmm0, xmm2; stmxcsr [rbx + 8]; ldmxcsr [rbx + 4]; divss xmm0, xmm3; dec ecx; jnz l;
/// stmxcsr [rbx + 12]; hlt
const MXCSR_PROGRAM: [u8; 37] = [
    0xb9, 0x14, 0, 0, 0, 0xf3, 0x0f, 0x58, 0xc1, 0x0f, 0xae, 0x13, 0xf3, 0x0f, 0x59, 0xc2, 0x0f, 0xae, 0x5b, 8, 0x0f,
    0xae, 0x53, 4, 0xf3, 0x0f, 0x5e, 0xc3, 0xff, 0xc9, 0x75, 0xe5, 0x0f, 0xae, 0x5b, 0x0c, 0xf4,
];

#[test]
fn rounding_that_changes_between_vector_instructions_is_obeyed() {
    let end = both_ways(&MXCSR_PROGRAM, |cpu| {
        put(cpu, DATA, MXCSR_DEFAULT | 0x2000);
        put(cpu, DATA + 4, MXCSR_DEFAULT | 0x4000);
    });
    assert_eq!(end.exit, Exit::Halted);
}

#[test]
fn code_with_an_unmasked_exception_that_does_not_come_goes_on() {
    // Division by zero is unmasked in between.
    let end = both_ways(&MXCSR_PROGRAM, |cpu| {
        put(cpu, DATA, MXCSR_DEFAULT & !0x200);
        put(cpu, DATA + 4, MXCSR_DEFAULT);
    });
    assert_eq!(end.exit, Exit::Halted);
}

#[test]
fn an_unmasked_division_by_zero_raises_its_exception() {
    let end = both_ways(&MXCSR_PROGRAM, |cpu| {
        put(cpu, DATA, MXCSR_DEFAULT);
        put(cpu, DATA + 4, MXCSR_DEFAULT & !0x200);
        cpu.core.fpu.set_xmm(3, 0);
    });
    // There is no interrupt table.
    assert_eq!(end.exit, Exit::Shutdown);
    assert_eq!(end.fpu[offset::MXCSR] & 0x04, 0x04);
}

#[test]
fn save_areas_beside_vector_instructions_see_the_registers_of_the_moment() {
    // mov ecx, 20; l: paddd xmm0, xmm1; fxsave [rbx]; vpaddd ymm2, ymm2, ymm0; mov eax, 7; xor edx, edx; xsave [rbx + 0x200]; paddd xmm1, xmm2; fxrstor [rbx];
    // paddd xmm1, xmm0; vzeroupper; vpaddd ymm3, ymm3, ymm1; xrstor [rbx + 0x200]; dec ecx; jnz l; hlt
    let code = [
        0xb9, 0x14, 0, 0, 0, 0x66, 0x0f, 0xfe, 0xc1, 0x0f, 0xae, 3, 0xc5, 0xed, 0xfe, 0xd0, 0xb8, 7, 0, 0, 0, 0x31,
        0xd2, 0x0f, 0xae, 0xa3, 0, 2, 0, 0, 0x66, 0x0f, 0xfe, 0xca, 0x0f, 0xae, 0x0b, 0x66, 0x0f, 0xfe, 0xc8, 0xc5,
        0xf8, 0x77, 0xc5, 0xe5, 0xfe, 0xd9, 0x0f, 0xae, 0xab, 0, 2, 0, 0, 0xff, 0xc9, 0x75, 0xca, 0xf4,
    ];
    if lacks_avx2_and_bmi2() {
        return;
    }
    assert_eq!(both_ways(&code, |_| ()).exit, Exit::Halted);
}

/// mov ecx, 20; l: paddd xmm0, xmm1; vpaddd ymm2, ymm2, ymm0; add rbx, rdx; paddd xmm0, [rbx]; dec ecx; jnz l; hlt
const OPERAND_PROGRAM: [u8; 25] = [
    0xb9, 0x14, 0, 0, 0, 0x66, 0x0f, 0xfe, 0xc1, 0xc5, 0xed, 0xfe, 0xd0, 0x48, 1, 0xd3, 0x66, 0x0f, 0xfe, 3, 0xff,
    0xc9, 0x75, 0xed, 0xf4,
];

#[test]
fn a_misaligned_operand_faults_and_changes_nothing() {
    if lacks_avx2_and_bmi2() {
        return;
    }
    let end = both_ways(&OPERAND_PROGRAM, |cpu| {
        cpu.core.gpr[gpr::RBX] = DATA + 9;
        cpu.core.gpr[gpr::RDX] = u64::MAX;
    });
    assert_eq!(end.exit, Exit::Shutdown);
    assert_eq!((end.gprs[gpr::RCX], end.gprs[gpr::RBX]), (20, DATA + 8));
    let end = both_ways(&OPERAND_PROGRAM, |cpu| cpu.core.gpr[gpr::RDX] = 16);
    assert_eq!(end.exit, Exit::Halted);
}

#[test]
fn a_page_fault_in_the_middle_of_vector_code_keeps_the_registers_before_it() {
    if lacks_avx2_and_bmi2() {
        return;
    }
    // A gigabyte is mapped.
    let end = both_ways(&OPERAND_PROGRAM, |cpu| {
        cpu.core.gpr[gpr::RBX] = 0x8000;
        cpu.core.gpr[gpr::RDX] = 0x1000_0000;
    });
    assert_eq!(end.exit, Exit::Shutdown);
    assert_eq!(end.gprs[gpr::RBX], 0x4000_8000);
}

#[test]
fn flags_of_integer_code_survive_the_loading_of_vector_registers() {
    // stc; pause; l: movaps xmm0, xmm1; adc rax, rdx; movups [rbx], xmm0; adc rax, rdx; dec ecx; jnz l; hlt
    let code = [
        0xf9, 0xf3, 0x90, 0x0f, 0x28, 0xc1, 0x48, 0x11, 0xd0, 0x0f, 0x11, 3, 0x48, 0x11, 0xd0, 0xff, 0xc9, 0x75, 0xf0,
        0xf4,
    ];
    let end = both_ways(&code, |cpu| {
        cpu.core.gpr[gpr::RCX] = 9;
        cpu.core.gpr[gpr::RDX] = u64::MAX;
    });
    assert_eq!(end.exit, Exit::Halted);
    assert_eq!(end.rflags & rflags::ZF, rflags::ZF);
}

/// mov ecx, 30; l: fild qword [rbx + rcx * 8]; fld tbyte [rbx + 0xffa] (across pages); fadd st, st(1); fstp qword [rbx + 0x20]; fsqrt; paddd xmm0, xmm1;
/// fst dword [rbx + 0xffe]; fcomi st, st(1); fnstsw ax; fnstcw [rbx + 0x80]; adc rdx, rax; fldpi; fmulp; fistp qword [rbx + 0x30]; fldcw [rbx + 0x80];
/// movq mm1, [rbx + 0x20]; paddb mm2, mm1; movq [rbx + 0x28], mm2; movq2dq xmm3, mm2; cvtpi2pd xmm4, mm1; emms; vaddpd ymm5, ymm4, ymm3; dec ecx; jnz l;
/// hlt
const X87_PROGRAM: [u8; 87] = [
    0xb9, 0x1e, 0, 0, 0, 0xdf, 0x2c, 0xcb, 0xdb, 0xab, 0xfa, 0x0f, 0, 0, 0xd8, 0xc1, 0xdd, 0x5b, 0x20, 0xd9, 0xfa,
    0x66, 0x0f, 0xfe, 0xc1, 0xd9, 0x93, 0xfe, 0x0f, 0, 0, 0xdb, 0xf1, 0xdf, 0xe0, 0xd9, 0xbb, 0x80, 0, 0, 0, 0x48,
    0x11, 0xc2, 0xd9, 0xeb, 0xde, 0xc9, 0xdf, 0x7b, 0x30, 0xd9, 0xab, 0x80, 0, 0, 0, 0x0f, 0x6f, 0x4b, 0x20, 0x0f,
    0xfc, 0xd1, 0x0f, 0x7f, 0x53, 0x28, 0xf3, 0x0f, 0xd6, 0xda, 0x66, 0x0f, 0x2a, 0xe1, 0x0f, 0x77, 0xc5, 0xdd, 0x58,
    0xeb, 0xff, 0xc9, 0x75, 0xaf, 0xf4,
];

#[test]
fn x87_and_mmx_code_beside_vector_code_and_handlers_finds_and_leaves_the_registers() {
    if lacks_avx2_and_bmi2() {
        return;
    }
    let end = both_ways(&X87_PROGRAM, put_pattern);
    assert_eq!(end.exit, Exit::Halted);
}

#[test]
fn x87_code_with_an_unmasked_exception_raises_it_where_it_should() {
    if lacks_avx2_and_bmi2() {
        return;
    }
    // Invalid operations: the root of a negative number, an empty stack.
    let end = both_ways(&X87_PROGRAM, |cpu| {
        put_pattern(cpu);
        cpu.core.fpu.set_fcw(FCW_DEFAULT & !1);
    });
    assert_eq!(end.exit, Exit::Shutdown);
    // Denormal operands, of which there is none at first.
    both_ways(&X87_PROGRAM, |cpu| {
        put_pattern(cpu);
        cpu.core.fpu.set_fcw(FCW_DEFAULT & !2);
    });
}

#[test]
fn vector_code_whose_upper_halves_are_all_zero_keeps_them_so() {
    if lacks_avx2_and_bmi2() {
        return;
    }
    let end = both_ways(&MXCSR_PROGRAM, |cpu| {
        (0..16).for_each(|n| cpu.core.fpu.set_ymm_high(n, 0));
        put(cpu, DATA, MXCSR_DEFAULT);
        put(cpu, DATA + 4, MXCSR_DEFAULT);
    });
    assert_eq!(end.exit, Exit::Halted);
    assert!(end.fpu[offset::YMM_HIGH..].iter().all(|byte| *byte == 0));
}
