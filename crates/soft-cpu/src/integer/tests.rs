//! What a comparison with the host cannot see: faults that must leave nothing behind, interrupted repetitions, locked forms, the stacks of 16- and 32-bit
//! code, bit numbers that leave their operand.

use iced_x86::{Decoder, DecoderOptions};
use vm_memory::{Bytes, GuestAddress};
use x86::{CpuState, Segment, cr0, exception, gpr, rflags};

use crate::core::{Core, Outcome, Stop, seg};
use crate::run::Cpu;
use crate::testing::long_mode;

/// A writable page in RAM; an absent page follows.
const PAGE: u64 = 0x4000_0000;
const ABSENT: u64 = PAGE + 0x1000;
const READ_ONLY: u64 = PAGE + 0x2000;
/// Mapped, but no RAM.
const DEVICE: u64 = 0x3000_0000;

fn cpu() -> Cpu {
    let mut cpu = long_mode(&[]);
    let memory = cpu.core.ram.memory().clone();
    for (at, entry) in [(0x2008u64, 0x3003u64), (0x3000, 0x4003), (0x4000, 0x20_0003), (0x4010, 0x20_1001)] {
        memory.write_obj(entry, GuestAddress(at)).unwrap();
    }
    cpu.core.gpr[gpr::RSP] = PAGE + 0x800;
    cpu
}

/// A CPU in flat real mode: 16-bit code, paging off.
fn real_mode() -> Cpu {
    let mut cpu = long_mode(&[]);
    let mut state = CpuState::reset(true);
    state.cs = Segment::real_mode(0);
    state.rip = 0x1000;
    cpu.core.load_state(&state);
    assert_eq!(cpu.core.mode.bitness(), 16);
    cpu
}

/// A CPU in 32-bit protected mode, paging off, with flat segments.
fn protected_mode() -> Cpu {
    let mut cpu = long_mode(&[]);
    let mut state = CpuState::reset(true);
    state.cr0 = cr0::PE | cr0::ET;
    state.cs = Segment::from_descriptor(0x08, 0x00cf_9b00_0000_ffff);
    let data = Segment::from_descriptor(0x10, 0x00cf_9300_0000_ffff);
    (state.ds, state.es, state.ss) = (data, data, data);
    state.rip = 0x1000;
    cpu.core.load_state(&state);
    assert_eq!(cpu.core.mode.bitness(), 32);
    cpu
}

/// Executes one instruction as the loop would.
fn execute(core: &mut Core, code: &[u8]) -> Outcome {
    let mut decoder = Decoder::with_ip(core.mode.bitness(), code, core.rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    assert_eq!(instruction.len(), code.len(), "{code:x?}");
    let op = super::lower(&instruction, core.mode).unwrap().op;
    let start = core.rip;
    core.rip = core.rip.wrapping_add(code.len() as u64) & core.mode.ip_mask();
    let outcome = (op.execute)(core, &op);
    if outcome.is_err() {
        core.rip = start;
    }
    outcome
}

fn fault_of(core: &mut Core, code: &[u8]) -> (u8, u32) {
    let before = (core.gpr, core.rip, core.rflags());
    assert_eq!(execute(core, code), Err(Stop::Exception), "{code:x?}");
    assert_eq!((core.gpr, core.rip, core.rflags()), before, "{code:x?} has committed something");
    (core.fault.vector, core.fault.error_code)
}

const WRITE_FAULT: u32 = 3;
const ABSENT_READ: u32 = 0;
const ABSENT_WRITE: u32 = 2;

#[test]
fn read_modify_write_of_a_read_only_page_is_a_write_fault() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    core.gpr[gpr::RBX] = READ_ONLY;
    for code in [
        &[0xff, 0x03][..],         // inc dword [rbx]
        &[0xf0, 0xff, 0x03],       // lock inc dword [rbx]
        &[0xf7, 0x13],             // not dword [rbx]
        &[0xd3, 0x23],             // shl dword [rbx], cl (zero)
        &[0xc1, 0x23, 0x20],       // shl dword [rbx], 32 (masked to zero)
        &[0x87, 0x03],             // xchg [rbx], eax
        &[0x0f, 0xb1, 0x13],       // cmpxchg [rbx], edx
        &[0xf0, 0x0f, 0xb1, 0x13], // lock cmpxchg [rbx], edx
        &[0x0f, 0xc7, 0x0b],       // cmpxchg8b [rbx]
        &[0x48, 0x0f, 0xc7, 0x0b], // cmpxchg16b [rbx]
        &[0x0f, 0xc1, 0x13],       // xadd [rbx], edx
        &[0x0f, 0xab, 0x0b],       // bts [rbx], ecx
        &[0x0f, 0xa4, 0x13, 0x03], // shld [rbx], edx, 3
        &[0x0f, 0x94, 0x03],       // sete [rbx]
    ] {
        assert_eq!(fault_of(core, code), (exception::PF, WRITE_FAULT), "{code:x?}");
        assert_eq!(core.fault.address, READ_ONLY);
    }
}

#[test]
fn a_failed_comparison_still_writes() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    core.gpr[gpr::RBX] = READ_ONLY;
    core.gpr[gpr::RAX] = 1;
    assert_eq!(fault_of(core, &[0x0f, 0xb1, 0x13]), (exception::PF, WRITE_FAULT));
}

#[test]
fn a_push_or_call_that_faults_leaves_the_stack_pointer() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    core.gpr[gpr::RSP] = ABSENT + 8;
    for code in [&[0x50][..], &[0x6a, 0xff], &[0xe8, 0, 0, 0, 0], &[0xff, 0xd0], &[0x9c], &[0xc8, 0x10, 0, 0]] {
        assert_eq!(fault_of(core, code), (exception::PF, ABSENT_WRITE), "{code:x?}");
    }
    for code in [&[0x58][..], &[0xc3], &[0x9d], &[0x8f, 0x00]] {
        assert_eq!(fault_of(core, code), (exception::PF, ABSENT_READ), "{code:x?}");
    }
}

#[test]
fn a_stack_pointer_that_is_not_canonical_is_a_stack_fault() {
    let mut cpu = cpu();
    cpu.core.gpr[gpr::RSP] = 1 << 63;
    assert_eq!(fault_of(&mut cpu.core, &[0x50]), (exception::SS, 0));
}

#[test]
fn a_pop_to_memory_that_faults_leaves_the_stack_pointer() {
    let mut cpu = cpu();
    cpu.core.gpr[gpr::RAX] = READ_ONLY;
    assert_eq!(fault_of(&mut cpu.core, &[0x8f, 0x00]), (exception::PF, WRITE_FAULT));
}

#[test]
fn a_pop_relative_to_the_stack_pointer_uses_the_incremented_one() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    core.write::<u64>(PAGE + 0x800, 77).unwrap();
    // pop qword [rsp+8]
    execute(core, &[0x8f, 0x44, 0x24, 0x08]).unwrap();
    assert_eq!(core.read::<u64>(PAGE + 0x810), Ok(77));
    // pop rsp
    core.gpr[gpr::RSP] = PAGE + 0x800;
    execute(core, &[0x5c]).unwrap();
    assert_eq!(core.gpr[gpr::RSP], 77);
}

#[test]
fn a_conditional_move_not_taken_reads_and_zero_extends() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    core.gpr[gpr::RAX] = u64::MAX;
    core.gpr[gpr::RBX] = ABSENT;
    core.set_rflags(0);
    // cmove eax, [rbx]
    assert_eq!(fault_of(core, &[0x0f, 0x44, 0x03]), (exception::PF, ABSENT_READ));
    core.gpr[gpr::RBX] = PAGE;
    execute(core, &[0x0f, 0x44, 0x03]).unwrap();
    assert_eq!(core.gpr[gpr::RAX], 0xffff_ffff);
}

#[test]
fn a_repeated_move_that_faults_has_committed_what_came_before() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    core.gpr[gpr::RSI] = PAGE;
    core.gpr[gpr::RDI] = ABSENT - 0x10;
    core.gpr[gpr::RCX] = 8;
    core.write::<u64>(PAGE, 0x1122_3344_5566_7788).unwrap();
    // rep movsd
    assert_eq!(execute(core, &[0xf3, 0xa5]), Err(Stop::Exception));
    assert_eq!((core.fault.vector, core.fault.error_code, core.fault.address), (exception::PF, ABSENT_WRITE, ABSENT));
    assert_eq!((core.gpr[gpr::RSI], core.gpr[gpr::RDI], core.gpr[gpr::RCX]), (PAGE + 16, ABSENT, 4));
    assert_eq!(core.read::<u64>(ABSENT - 0x10), Ok(0x1122_3344_5566_7788));
}

#[test]
fn an_element_across_pages_faults_as_a_whole() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    core.gpr[gpr::RDI] = ABSENT - 12;
    core.gpr[gpr::RCX] = 3;
    core.gpr[gpr::RAX] = u64::MAX;
    // rep stosq
    assert_eq!(execute(core, &[0xf3, 0x48, 0xab]), Err(Stop::Exception));
    assert_eq!((core.gpr[gpr::RDI], core.gpr[gpr::RCX]), (ABSENT - 4, 2));
    assert_eq!(core.read::<u32>(ABSENT - 4), Ok(0));
}

#[test]
fn a_long_repetition_lets_interrupts_in_and_goes_on() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    core.gpr[gpr::RDI] = DEVICE;
    core.gpr[gpr::RCX] = 1000;
    let mut again = 0;
    while let Err(stop) = execute(core, &[0xf3, 0xaa]) {
        assert_eq!(stop, Stop::Again);
        assert_eq!(core.gpr[gpr::RDI] + core.gpr[gpr::RCX], DEVICE + 1000);
        again += 1;
    }
    assert!(again > 0);
    assert_eq!((core.gpr[gpr::RDI], core.gpr[gpr::RCX]), (DEVICE + 1000, 0));
}

#[test]
fn a_bulk_move_onto_itself_repeats_what_it_has_stored() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    core.write::<u8>(PAGE, 0x5a).unwrap();
    core.gpr[gpr::RSI] = PAGE;
    core.gpr[gpr::RDI] = PAGE + 1;
    core.gpr[gpr::RCX] = 300;
    execute(core, &[0xf3, 0xa4]).unwrap();
    for at in [1, 150, 300] {
        assert_eq!(core.read::<u8>(PAGE + at), Ok(0x5a));
    }
    assert_eq!(core.read::<u8>(PAGE + 301), Ok(0));
}

#[test]
fn a_backward_move_goes_backward() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    core.write::<u32>(PAGE, 0x0403_0201).unwrap();
    core.gpr[gpr::RSI] = PAGE + 3;
    core.gpr[gpr::RDI] = PAGE + 4;
    core.gpr[gpr::RCX] = 4;
    execute(core, &[0xfd]).unwrap();
    execute(core, &[0xf3, 0xa4]).unwrap();
    assert_eq!(core.read::<u64>(PAGE), Ok(0x04_0302_0101));
    assert_eq!((core.gpr[gpr::RSI], core.gpr[gpr::RDI]), (PAGE - 1, PAGE));
}

#[test]
fn a_bulk_fill_that_starts_over_watched_code_reports_it() {
    let mut cpu = long_mode(&[0xeb, 0xfe]);
    cpu.run(4);
    let core = &mut *cpu.core;
    let (code, offset) = core.ram.code(crate::testing::CODE).map(|(code, offset)| (code.clone(), offset)).unwrap();
    let before = code.generation(offset >> 12);
    core.gpr[gpr::RDI] = crate::testing::CODE - 16;
    core.gpr[gpr::RCX] = 32;
    execute(core, &[0xf3, 0xaa]).unwrap();
    assert_ne!(code.generation(offset >> 12), before);
}

#[test]
fn a_comparison_stops_at_the_first_difference() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    core.write::<u64>(PAGE, 0x0102_0304_0506_0708).unwrap();
    core.write::<u64>(PAGE + 8, 0x0102_0304_ff06_0708).unwrap();
    core.gpr[gpr::RSI] = PAGE;
    core.gpr[gpr::RDI] = PAGE + 8;
    core.gpr[gpr::RCX] = 8;
    // repe cmpsb
    execute(core, &[0xf3, 0xa6]).unwrap();
    assert_eq!((core.gpr[gpr::RCX], core.gpr[gpr::RSI]), (4, PAGE + 4));
    assert!(!core.flags.zf());
    // repne scasb for 1
    core.gpr[gpr::RDI] = PAGE;
    core.gpr[gpr::RAX] = 1;
    core.gpr[gpr::RCX] = 100;
    execute(core, &[0xf2, 0xae]).unwrap();
    assert_eq!((core.gpr[gpr::RDI], core.gpr[gpr::RCX], core.flags.zf()), (PAGE + 8, 92, true));
}

#[test]
fn a_sixteen_bit_string_index_wraps_and_keeps_the_upper_half() {
    let mut cpu = real_mode();
    let core = &mut *cpu.core;
    core.gpr[gpr::RDI] = 0x1234_fffe;
    core.gpr[gpr::RCX] = 0x5678_0004;
    core.gpr[gpr::RAX] = 0xee;
    execute(core, &[0xf3, 0xaa]).unwrap();
    assert_eq!((core.gpr[gpr::RDI], core.gpr[gpr::RCX]), (0x1234_0002, 0x5678_0000));
    assert_eq!((core.read::<u16>(0xfffe), core.read::<u16>(0)), (Ok(0xeeee), Ok(0xeeee)));
}

#[test]
fn a_bit_number_in_a_register_reaches_beyond_the_operand() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    core.gpr[gpr::RBX] = PAGE + 0x100;
    for (number, at, bit) in [(-1i64, 0xfc, 1u32 << 31), (33, 0x104, 2), (-33, 0xf8, 1 << 31), (0, 0x100, 1)] {
        core.gpr[gpr::RCX] = number as u64;
        // lock bts [rbx], ecx; bt [rbx], ecx
        execute(core, &[0xf0, 0x0f, 0xab, 0x0b]).unwrap();
        assert!(!core.flags.cf());
        assert_eq!(core.read::<u32>(PAGE + at), Ok(bit), "{number}");
        execute(core, &[0x0f, 0xa3, 0x0b]).unwrap();
        assert!(core.flags.cf());
    }
    // bt dword [rbx], 33 is bit 1
    execute(core, &[0x0f, 0xba, 0x23, 33]).unwrap();
    assert!(!core.flags.cf());
}

#[test]
fn locked_forms_compute_what_the_plain_ones_do() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    core.gpr[gpr::RBX] = PAGE;
    let forms: [(&[u8], u64); 6] = [
        (&[0xff, 0x03], 1),                 // inc
        (&[0x83, 0x13, 0x05], 6),           // adc 5
        (&[0x0f, 0xc1, 0x13], 16),          // xadd edx
        (&[0xf7, 0x1b], 0xffff_fff0),       // neg
        (&[0x0f, 0xbb, 0x0b], 0xffff_fff1), // btc ecx
        (&[0xff, 0x0b], 0xffff_fff0),       // dec
    ];
    for locked in [false, true] {
        core.set_rflags(0);
        core.gpr[gpr::RDX] = 10;
        core.gpr[gpr::RCX] = 0;
        core.write::<u64>(PAGE, 0).unwrap();
        for (code, expected) in forms {
            let code = if locked { [&[0xf0], code].concat() } else { code.to_vec() };
            execute(core, &code).unwrap();
            assert_eq!(core.read::<u64>(PAGE), Ok(expected), "{code:x?}");
        }
        assert_eq!(core.gpr[gpr::RDX], 6);
        assert_eq!(core.flags.bits(), rflags::SF | rflags::PF);
    }
}

#[test]
fn cmpxchg16b_wants_alignment_and_exchanges_sixteen_bytes() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    core.gpr[gpr::RDI] = PAGE + 8;
    assert_eq!(fault_of(core, &[0xf0, 0x48, 0x0f, 0xc7, 0x0f]), (exception::GP, 0));
    core.gpr[gpr::RDI] = PAGE + 16;
    (core.gpr[gpr::RBX], core.gpr[gpr::RCX]) = (0x1111, 0x2222);
    execute(core, &[0xf0, 0x48, 0x0f, 0xc7, 0x0f]).unwrap();
    assert!(core.flags.zf());
    assert_eq!((core.read::<u64>(PAGE + 16), core.read::<u64>(PAGE + 24)), (Ok(0x1111), Ok(0x2222)));
    execute(core, &[0xf0, 0x48, 0x0f, 0xc7, 0x0f]).unwrap();
    assert_eq!((core.gpr[gpr::RAX], core.gpr[gpr::RDX], core.flags.zf()), (0x1111, 0x2222, false));
}

#[test]
fn an_indirect_branch_to_a_non_canonical_target_faults_at_the_branch() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    core.gpr[gpr::RAX] = 0x8000_0000_0000;
    core.write::<u64>(PAGE + 0x800, 0x8000_0000_0000).unwrap();
    for code in [&[0xff, 0xe0][..], &[0xff, 0xd0], &[0xc3], &[0xc2, 8, 0]] {
        assert_eq!(fault_of(core, code), (exception::GP, 0), "{code:x?}");
    }
}

#[test]
fn a_return_takes_the_stack_as_it_is() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    let rip = core.rip;
    // call +0x100
    execute(core, &[0xe8, 0, 1, 0, 0]).unwrap();
    assert_eq!((core.rip, core.read::<u64>(PAGE + 0x7f8)), (rip + 0x105, Ok(rip + 5)));
    core.write::<u64>(PAGE + 0x7f8, 0x1234).unwrap();
    // ret 16
    execute(core, &[0xc2, 16, 0]).unwrap();
    assert_eq!((core.rip, core.gpr[gpr::RSP]), (0x1234, PAGE + 0x810));
}

#[test]
fn a_sixteen_bit_stack_pointer_keeps_the_upper_half() {
    let mut cpu = real_mode();
    let core = &mut *cpu.core;
    core.gpr[gpr::RSP] = 0xabcd_0000;
    core.gpr[gpr::RAX] = 0x1234;
    execute(core, &[0x50]).unwrap();
    assert_eq!((core.gpr[gpr::RSP], core.read::<u16>(0xfffe)), (0xabcd_fffe, Ok(0x1234)));
    // pop ebx (32-bit operand) crosses the limit
    assert_eq!(fault_of(core, &[0x66, 0x5b]), (exception::SS, 0));
    execute(core, &[0x5b]).unwrap();
    assert_eq!((core.gpr[gpr::RSP], core.gpr[gpr::RBX]), (0xabcd_0000, 0x1234));
}

#[test]
fn all_registers_are_pushed_and_popped_but_the_stack_pointer() {
    let mut cpu = protected_mode();
    let core = &mut *cpu.core;
    for register in 0..8 {
        core.gpr[register] = 0x100 + register as u64;
    }
    core.gpr[gpr::RSP] = 0x8000;
    execute(core, &[0x60]).unwrap();
    assert_eq!(
        (core.gpr[gpr::RSP], core.read::<u32>(0x7ffc), core.read::<u32>(0x7fec)),
        (0x7fe0, Ok(0x100), Ok(0x8000))
    );
    core.gpr[..4].fill(0);
    core.write::<u32>(0x7fec, 7).unwrap();
    execute(core, &[0x61]).unwrap();
    assert_eq!((core.gpr[gpr::RSP], core.gpr[gpr::RBX], core.gpr[gpr::RDI]), (0x8000, 0x103, 0x107));
}

#[test]
fn a_frame_is_entered_and_left() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    core.gpr[gpr::RBP] = 0x99;
    // enter 0x20, 0
    execute(core, &[0xc8, 0x20, 0, 0]).unwrap();
    assert_eq!((core.gpr[gpr::RBP], core.gpr[gpr::RSP]), (PAGE + 0x7f8, PAGE + 0x7d8));
    execute(core, &[0xc9]).unwrap();
    assert_eq!((core.gpr[gpr::RBP], core.gpr[gpr::RSP]), (0x99, PAGE + 0x800));
}

#[test]
fn user_code_cannot_pop_the_interrupt_flag_or_iopl() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    core.set_rflags(rflags::IF);
    core.write::<u64>(PAGE + 0x800, rflags::IOPL | rflags::VM | rflags::RF | rflags::CF | rflags::AC).unwrap();
    core.cpl = 3;
    // The page is a supervisor's, but what was translated for it stays usable.
    execute(core, &[0x9d]).unwrap();
    assert_eq!(core.rflags(), rflags::IF | rflags::CF | rflags::AC | rflags::RESERVED_ONE);
}

#[test]
fn pushed_flags_are_without_vm_and_rf() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    core.set_rflags(rflags::RF | rflags::IF | rflags::ZF);
    execute(core, &[0x9c]).unwrap();
    assert_eq!(core.read::<u64>(PAGE + 0x7f8), Ok(rflags::IF | rflags::ZF | rflags::RESERVED_ONE));
}

#[test]
fn division_by_zero_and_overflow_are_divide_errors() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    assert_eq!(fault_of(core, &[0xf7, 0xf1]).0, exception::DE); // div ecx
    core.gpr[gpr::RDX] = 5;
    core.gpr[gpr::RCX] = 5;
    assert_eq!(fault_of(core, &[0x48, 0xf7, 0xf1]).0, exception::DE); // div rcx
    (core.gpr[gpr::RDX], core.gpr[gpr::RAX], core.gpr[gpr::RCX]) = (u64::MAX, 1 << 63, u64::MAX);
    assert_eq!(fault_of(core, &[0x48, 0xf7, 0xf9]).0, exception::DE); // idiv rcx: most negative / -1
    (core.gpr[gpr::RDX], core.gpr[gpr::RAX], core.gpr[gpr::RCX]) = (1 << 63, 0, u64::MAX);
    assert_eq!(fault_of(core, &[0x48, 0xf7, 0xf9]).0, exception::DE);
    (core.gpr[gpr::RDX], core.gpr[gpr::RAX], core.gpr[gpr::RCX]) = (u64::MAX, -7i64 as u64, 2);
    execute(core, &[0x48, 0xf7, 0xf9]).unwrap();
    assert_eq!((core.gpr[gpr::RAX] as i64, core.gpr[gpr::RDX] as i64), (-3, -1));
}

#[test]
fn a_loop_counts_in_its_address_size() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    core.gpr[gpr::RCX] = 0xffff_ffff_0000_0002;
    let rip = core.rip;
    // addr32 loop -3: to itself
    execute(core, &[0x67, 0xe2, 0xfd]).unwrap();
    assert_eq!((core.rip, core.gpr[gpr::RCX]), (rip, 1));
    execute(core, &[0x67, 0xe2, 0xfd]).unwrap();
    assert_eq!((core.rip, core.gpr[gpr::RCX]), (rip + 3, 0));
    // jrcxz +5
    execute(core, &[0xe3, 5]).unwrap();
    assert_eq!(core.rip, rip + 10);
}

#[test]
fn sixteen_bit_code_branches_within_64_kib() {
    let mut cpu = real_mode();
    cpu.core.rip = 0xfff0;
    execute(&mut cpu.core, &[0xeb, 0x20]).unwrap();
    assert_eq!(cpu.core.rip, 0x12);
}

#[test]
fn segment_bases_apply_to_string_sources_only_as_overridden() {
    let mut cpu = cpu();
    let core = &mut *cpu.core;
    core.segments[seg::GS].base = PAGE;
    core.update_mode();
    core.write::<u8>(PAGE + 4, 0x42).unwrap();
    core.gpr[gpr::RSI] = 4;
    core.gpr[gpr::RDI] = PAGE + 0x20;
    // gs movsb
    execute(core, &[0x65, 0xa4]).unwrap();
    assert_eq!(core.read::<u8>(PAGE + 0x20), Ok(0x42));
    // mov al, gs:[moffs 4]
    execute(core, &[0x65, 0xa0, 4, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(core.gpr[gpr::RAX], 0x42);
}

#[test]
fn decimal_adjustments_follow_the_manual() {
    let mut cpu = protected_mode();
    let core = &mut *cpu.core;
    core.gpr[gpr::RAX] = 0xae;
    core.set_rflags(0);
    execute(core, &[0x27]).unwrap(); // daa
    assert_eq!((core.gpr[gpr::RAX], core.flags.cf(), core.flags.af()), (0x14, true, true));
    core.gpr[gpr::RAX] = 63;
    execute(core, &[0xd4, 10]).unwrap(); // aam
    assert_eq!(core.gpr[gpr::RAX], 0x603);
    execute(core, &[0xd5, 10]).unwrap(); // aad
    assert_eq!(core.gpr[gpr::RAX], 63);
    assert_eq!(fault_of(core, &[0xd4, 0]).0, exception::DE);
}

#[test]
fn a_page_of_code_that_is_stored_to_again_and_again_becomes_data() {
    let mut cpu = long_mode(&[0xeb, 0xfe]);
    cpu.run(4);
    let core = &mut *cpu.core;
    let (code, offset) = core.ram.code(crate::testing::CODE).map(|(code, offset)| (code.clone(), offset)).unwrap();
    let decoded = core.counters.decoded;
    core.gpr[gpr::RDI] = crate::testing::CODE + 0x800;
    core.gpr[gpr::RCX] = 200;
    execute(core, &[0xf3, 0xaa]).unwrap();
    assert!(!code.has_code(offset >> 12));
    core.rip = crate::testing::CODE;
    // Executed again, the unchanged code is watched again and needs no decoding.
    cpu.run(4);
    assert!(code.is_watched(offset, 2));
    assert_eq!(cpu.core.counters.decoded, decoded);
}
