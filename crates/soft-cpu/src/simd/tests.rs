//! What the comparison with the host cannot show: what the control registers allow, the save areas, the pointers, and the cache of thunks.

use vm_memory::{Bytes, GuestAddress};
use x86::{Segment, cr0, cr4, exception};

use crate::core::{Fault, GPR_PAGE, seg};
use crate::fpu::{FCW_DEFAULT, MXCSR_DEFAULT, offset};
use crate::run::Cpu;
use crate::testing::{CODE, long_mode};

const DATA: u64 = 0x20_0000;

const ADDPS: &[u8] = &[0x0f, 0x58, 0xc1];
const VADDPS: &[u8] = &[0xc5, 0xf0, 0x58, 0xc1];
const PADDB_MM: &[u8] = &[0x0f, 0xfc, 0xc1];
const FADD: &[u8] = &[0xd8, 0xc1];

/// Executes the first instruction of `code` with RBX pointing at [`DATA`].
fn step(cpu: &mut Cpu, code: &[u8]) -> Option<Fault> {
    cpu.core.ram.memory().write_slice(code, GuestAddress(CODE)).unwrap();
    cpu.core.ram.memory().write_slice(&[0xf4], GuestAddress(CODE + code.len() as u64)).unwrap();
    let core = &mut *cpu.core;
    core.gpr[x86::gpr::RBX] = DATA;
    core.rip = CODE;
    core.update_mode();
    core.gpr[usize::from(GPR_PAGE)] = CODE;
    let block = cpu.blocks.lookup(core).unwrap();
    core.rip = block.end(core.rip);
    let op = &block.ops[0];
    (op.execute)(core, op).err().map(|_| core.fault)
}

fn vector_of(code: &[u8], prepare: impl Fn(&mut Cpu)) -> Option<u8> {
    let mut cpu = long_mode(&[]);
    prepare(&mut cpu);
    step(&mut cpu, code).map(|fault| fault.vector)
}

fn read<const N: usize>(cpu: &Cpu, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    cpu.core.ram.memory().read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

fn write(cpu: &Cpu, at: u64, bytes: &[u8]) {
    cpu.core.ram.memory().write_slice(bytes, GuestAddress(at)).unwrap();
}

#[test]
fn a_switched_task_makes_every_family_unavailable() {
    for code in [ADDPS, VADDPS, PADDB_MM, FADD] {
        assert_eq!(vector_of(code, |cpu| cpu.core.cr0 |= cr0::TS), Some(exception::NM), "{code:x?}");
    }
}

#[test]
fn emulation_makes_x87_unavailable_and_sse_invalid() {
    let emulate = |cpu: &mut Cpu| cpu.core.cr0 |= cr0::EM | cr0::TS;
    assert_eq!(vector_of(FADD, emulate), Some(exception::NM));
    assert_eq!(vector_of(PADDB_MM, emulate), Some(exception::UD));
    assert_eq!(vector_of(ADDPS, emulate), Some(exception::UD));
}

#[test]
fn without_osfxsr_sse_is_invalid_and_mmx_is_not() {
    let disable = |cpu: &mut Cpu| cpu.core.cr4 &= !cr4::OSFXSR;
    assert_eq!(vector_of(ADDPS, disable), Some(exception::UD));
    assert_eq!(vector_of(PADDB_MM, disable), None);
}

#[test]
fn avx_needs_osxsave_and_its_component() {
    assert_eq!(vector_of(VADDPS, |_| ()), None);
    assert_eq!(vector_of(VADDPS, |cpu| cpu.core.cr4 &= !cr4::OSXSAVE), Some(exception::UD));
    assert_eq!(vector_of(VADDPS, |cpu| cpu.core.xcr0 = 3), Some(exception::UD));
    // TS does not make it available, so it comes second.
    let both = |cpu: &mut Cpu| {
        cpu.core.xcr0 = 3;
        cpu.core.cr0 |= cr0::TS;
    };
    assert_eq!(vector_of(VADDPS, both), Some(exception::UD));
}

#[test]
fn fwait_heeds_ts_only_with_mp() {
    assert_eq!(vector_of(&[0x9b], |cpu| cpu.core.cr0 |= cr0::TS), None);
    assert_eq!(vector_of(&[0x9b], |cpu| cpu.core.cr0 |= cr0::TS | cr0::MP), Some(exception::NM));
}

#[test]
fn evex_is_an_invalid_opcode() {
    // vaddps zmm0, zmm1, zmm2
    assert_eq!(vector_of(&[0x62, 0xf1, 0x74, 0x48, 0x58, 0xc2], |_| ()), Some(exception::UD));
}

#[test]
fn an_unmasked_division_by_zero_commits_nothing() {
    // divss xmm0, xmm1
    let mut cpu = long_mode(&[]);
    cpu.core.fpu.set_xmm(0, 0x3f80_0000);
    cpu.core.fpu.set_mxcsr(MXCSR_DEFAULT & !(4 << 7));
    assert_eq!(step(&mut cpu, &[0xf3, 0x0f, 0x5e, 0xc1]).unwrap().vector, exception::XM);
    assert_eq!(cpu.core.fpu.xmm(0), 0x3f80_0000);
    assert_eq!(cpu.core.fpu.mxcsr() & 0x3f, 4);
    cpu.core.cr4 &= !cr4::OSXMMEXCPT;
    assert_eq!(step(&mut cpu, &[0xf3, 0x0f, 0x5e, 0xc1]).unwrap().vector, exception::UD);
}

#[test]
fn an_unmasked_x87_exception_is_raised_by_the_next_waiting_instruction() {
    let mut cpu = long_mode(&[]);
    cpu.core.fpu.set_fcw(FCW_DEFAULT & !1);
    // fsqrt of an empty register, then fnstsw ax, then fwait
    assert_eq!(step(&mut cpu, &[0xd9, 0xfa]), None);
    assert_eq!(step(&mut cpu, &[0xdf, 0xe0]), None);
    assert_eq!(cpu.core.gpr[0] & 0x80c1, 0x80c1);
    assert_eq!(step(&mut cpu, &[0x9b]).unwrap().vector, exception::MF);
    // fnclex; fwait
    assert_eq!(step(&mut cpu, &[0xdb, 0xe2]), None);
    assert_eq!(step(&mut cpu, &[0x9b]), None);
}

#[test]
fn x87_pointers_are_the_guests() {
    let mut cpu = long_mode(&[]);
    // fld dword [rbx]
    assert_eq!(step(&mut cpu, &[0xd9, 0x03]), None);
    assert_eq!(cpu.core.fpu.pointer(offset::FIP), CODE);
    assert_eq!(cpu.core.fpu.pointer(offset::FDP), DATA);
    assert_eq!(cpu.core.fpu.fop(), 0x103);
}

#[test]
fn the_environment_is_stored_with_full_tags_and_masks_everything() {
    let mut cpu = long_mode(&[]);
    cpu.core.fpu.set_fcw(0x0340);
    // fld1; fldz; fnstenv [rbx]
    assert_eq!(step(&mut cpu, &[0xd9, 0xe8]), None);
    assert_eq!(step(&mut cpu, &[0xd9, 0xee]), None);
    assert_eq!(step(&mut cpu, &[0xd9, 0x33]), None);
    let image: [u8; 28] = read(&cpu, DATA);
    let word = |at: usize| u32::from_le_bytes([image[at], image[at + 1], image[at + 2], image[at + 3]]);
    assert_eq!((word(0), word(4)), (0xffff_0340, 0xffff_3000));
    // Register 7 holds 1.0, register 6 zero, the others are empty.
    assert_eq!(word(8), 0xffff_1fff);
    assert_eq!(word(12), CODE as u32);
    assert_eq!(cpu.core.fpu.fcw(), 0x037f);
}

#[test]
fn saved_x87_state_comes_back() {
    let mut cpu = long_mode(&[]);
    assert_eq!(step(&mut cpu, &[0xd9, 0xeb]), None); // fldpi
    let before = cpu.core.fpu.clone();
    assert_eq!(step(&mut cpu, &[0xdd, 0x33]), None); // fnsave [rbx]
    assert_eq!(cpu.core.fpu.image[offset::FTW], 0);
    assert_eq!(step(&mut cpu, &[0xdd, 0x23]), None); // frstor [rbx]
    assert_eq!(cpu.core.fpu.st(0), before.st(0));
    assert_eq!((cpu.core.fpu.fsw(), cpu.core.fpu.image[offset::FTW]), (before.fsw(), before.image[offset::FTW]));
}

#[test]
fn fxsave_leaves_the_programs_bytes_alone_and_fxrstor_checks_mxcsr() {
    let mut cpu = long_mode(&[]);
    write(&cpu, DATA, &[0xaa; 512]);
    cpu.core.fpu.set_xmm(15, 7);
    assert_eq!(step(&mut cpu, &[0x48, 0x0f, 0xae, 0x03]), None); // fxsave64 [rbx]
    let area: [u8; 512] = read(&cpu, DATA);
    assert_eq!((area[400], area[416], area[511]), (7, 0xaa, 0xaa));
    assert_eq!(area[28..32], [0xff, 0xff, 0, 0]);
    cpu.core.fpu.set_xmm(15, 0);
    assert_eq!(step(&mut cpu, &[0x48, 0x0f, 0xae, 0x0b]), None); // fxrstor64 [rbx]
    assert_eq!(cpu.core.fpu.xmm(15), 7);
    write(&cpu, DATA + 26, &[1]);
    assert_eq!(step(&mut cpu, &[0x48, 0x0f, 0xae, 0x0b]).unwrap().vector, exception::GP);
}

/// XSAVE and its kin at [`DATA`], with RFBM in EDX:EAX.
fn xsave(cpu: &mut Cpu, code: &[u8], components: u64) -> Option<Fault> {
    cpu.core.gpr[x86::gpr::RAX] = components;
    cpu.core.gpr[x86::gpr::RDX] = 0;
    step(cpu, code)
}

const XSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x23];
const XRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x2b];
const XSAVEC64: &[u8] = &[0x48, 0x0f, 0xc7, 0x23];

fn header(cpu: &Cpu) -> [u64; 2] {
    let bytes: [u8; 16] = read(cpu, DATA + 512);
    [0, 8].map(|at| u64::from_le_bytes(std::array::from_fn(|n| bytes[at + n])))
}

#[test]
fn xsave_and_xrstor_carry_every_component() {
    for save in [XSAVE64, XSAVEC64] {
        let mut cpu = long_mode(&[]);
        cpu.core.fpu.set_xmm(3, 0x33);
        cpu.core.fpu.set_ymm_high(4, 0x44);
        cpu.core.fpu.set_mxcsr(0x1f81);
        assert_eq!(step(&mut cpu, &[0xd9, 0xe8]), None); // fld1
        let before = cpu.core.fpu.clone();
        assert_eq!(xsave(&mut cpu, save, u64::MAX), None);
        assert_eq!(header(&cpu)[0], 7);
        *cpu.core.fpu = crate::fpu::FpuState::default();
        assert_eq!(xsave(&mut cpu, XRSTOR64, u64::MAX), None);
        for range in [0..offset::MXCSR_MASK, offset::ST..offset::XMM + 256] {
            assert!(before.image[range.clone()] == cpu.core.fpu.image[range]);
        }
        assert_eq!(cpu.core.fpu.ymm_high(4), 0x44);
    }
}

#[test]
fn components_in_their_initial_state_are_marked_and_restored_as_such() {
    let mut cpu = long_mode(&[]);
    cpu.core.fpu.init_x87();
    write(&cpu, DATA, &[0; 832]);
    cpu.core.fpu.set_xmm(0, 1);
    assert_eq!(xsave(&mut cpu, XSAVEC64, 7), None);
    assert_eq!(header(&cpu), [2, 1 << 63 | 7]);
    cpu.core.fpu.set_ymm_high(9, 5);
    cpu.core.fpu.set_fcw(0x0340);
    assert_eq!(xsave(&mut cpu, XRSTOR64, 7), None);
    assert_eq!((cpu.core.fpu.xmm(0), cpu.core.fpu.ymm_high(9), cpu.core.fpu.fcw()), (1, 0, FCW_DEFAULT));
}

#[test]
fn xsave_keeps_what_was_not_asked_for() {
    let mut cpu = long_mode(&[]);
    write(&cpu, DATA, &[0; 832]);
    write(&cpu, DATA + 576, &[0xbb; 256]);
    write(&cpu, DATA + 512, &[4]);
    cpu.core.fpu.set_xmm(0, 1);
    assert_eq!(xsave(&mut cpu, XSAVE64, 2), None);
    assert_eq!(header(&cpu), [6, 0]);
    assert_eq!(read::<1>(&cpu, DATA + 576), [0xbb]);
}

#[test]
fn xrstor_refuses_headers_that_are_not_valid() {
    for (at, value) in [(512, 8), (520, 1), (527, 0x40), (528, 1)] {
        let mut cpu = long_mode(&[]);
        write(&cpu, DATA, &[0; 832]);
        write(&cpu, DATA + at, &[value]);
        assert_eq!(xsave(&mut cpu, XRSTOR64, 7).unwrap().vector, exception::GP, "byte {at}");
    }
}

#[test]
fn the_xsave_family_wants_its_boundary_and_its_enable_bit() {
    let mut cpu = long_mode(&[]);
    // xsave64 [rbx+16]
    assert_eq!(xsave(&mut cpu, &[0x48, 0x0f, 0xae, 0x63, 0x10], 7).unwrap().vector, exception::GP);
    cpu.core.cr4 &= !cr4::OSXSAVE;
    assert_eq!(xsave(&mut cpu, XSAVE64, 7).unwrap().vector, exception::UD);
}

#[test]
fn ldmxcsr_refuses_reserved_bits() {
    let mut cpu = long_mode(&[]);
    write(&cpu, DATA, &0x1_0000u32.to_le_bytes());
    assert_eq!(step(&mut cpu, &[0x0f, 0xae, 0x13]).unwrap().vector, exception::GP);
    write(&cpu, DATA, &0x3f80u32.to_le_bytes());
    assert_eq!(step(&mut cpu, &[0x0f, 0xae, 0x13]), None);
    assert_eq!(cpu.core.fpu.mxcsr(), 0x3f80);
}

#[test]
fn a_misaligned_operand_faults_before_its_page_is_looked_at() {
    // paddd xmm0, [rbx+8]; movaps [rbx+8], xmm0
    for code in [&[0x66, 0x0f, 0xfe, 0x43, 0x08][..], &[0x0f, 0x29, 0x43, 0x08]] {
        assert_eq!(vector_of(code, |_| ()), Some(exception::GP));
    }
    // vpaddd xmm0, xmm0, [rbx+8]
    assert_eq!(vector_of(&[0xc5, 0xf9, 0xfe, 0x43, 0x08], |_| ()), None);
}

#[test]
fn thirty_two_bit_code_runs_the_same_thunks() {
    let mut cpu = long_mode(&[]);
    cpu.core.segments[seg::CS] = Segment::from_descriptor(0x10, 0x00cf_9b00_0000_ffff);
    write(&cpu, DATA, &[1; 16]);
    // paddb xmm1, [ebx]; movd eax, xmm1
    assert_eq!(step(&mut cpu, &[0x66, 0x0f, 0xfc, 0x0b]), None);
    assert_eq!(step(&mut cpu, &[0x66, 0x0f, 0x7e, 0xc8]), None);
    assert_eq!(cpu.core.gpr[0], 0x0101_0101);
}

#[test]
fn a_full_cache_is_cleared_and_filled_again() {
    let mut cpu = long_mode(&[]);
    // Every immediate and register pair of pshufd is a thunk of its own: more than fit.
    cpu.core.fpu.set_xmm(1, 0x0000_0004_0000_0003_0000_0002_0000_0001);
    for registers in 0..=0x3fu8 {
        for prefix in [0x40, 0x41, 0x44, 0x45] {
            for immediate in 0..=255u8 {
                let code = [0x66, prefix, 0x0f, 0x70, 0xc0 | registers, immediate];
                assert_eq!(step(&mut cpu, &code), None);
            }
        }
    }
    cpu.core.fpu.set_xmm(1, 0x0000_0004_0000_0003_0000_0002_0000_0001);
    assert_eq!(step(&mut cpu, &[0x66, 0x0f, 0x70, 0xc1, 0x1b]), None);
    assert_eq!(cpu.core.fpu.xmm(0), 0x0000_0001_0000_0002_0000_0003_0000_0004);
}
