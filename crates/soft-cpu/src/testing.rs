//! A CPU over a little RAM and an empty world, for unit tests.

use guest_memory::allocate;
use vm_memory::{Bytes, GuestAddress};
use x86::{CpuState, Segment, cr0, cr4, efer};

use crate::core::{Core, seg};
use crate::platform::Nothing;
use crate::ram::Ram;
use crate::run::{Cpu, Exit, TranslatorMode};
use crate::smp::CpuLink;

/// Where [`long_mode`] puts the code.
pub(crate) const CODE: u64 = 0x10_0000;

/// 4 MiB of RAM identity-mapped with one 1 GiB page, CPL 0, 64-bit code at [`CODE`], stack below it. Programs are interpreted, or, with the environment's
/// `VMM_COMPARE_TRANSLATE`, translated from their first execution on.
pub(crate) fn long_mode(code: &[u8]) -> Cpu {
    let memory = allocate(&[(0, 4 << 20)]).unwrap();
    memory.write_slice(code, GuestAddress(CODE)).unwrap();
    memory.write_obj(0x2003u64, GuestAddress(0x1000)).unwrap();
    memory.write_obj(0x83u64, GuestAddress(0x2000)).unwrap();
    let mut core = Core::new(Ram::new(&memory), Box::new(Nothing), CpuLink::alone());
    let mut state = CpuState::reset(true);
    state.cr0 = cr0::PE | cr0::PG | cr0::WP | cr0::NE | cr0::ET;
    state.cr3 = 0x1000;
    state.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
    state.xcr0 = 7;
    state.efer = efer::LME | efer::LMA | efer::SCE | efer::NXE;
    state.cs = Segment::from_descriptor(0x10, 0x00af_9b00_0000_ffff);
    let data = Segment::from_descriptor(0x18, 0x00cf_9300_0000_ffff);
    (state.ds, state.es, state.ss) = (data, data, data);
    state.rip = CODE;
    state.gprs[x86::gpr::RSP] = CODE;
    core.load_state(&state);
    assert_eq!(core.segment_bases[seg::FLAT], 0);
    let mut cpu = Cpu::new(core);
    if std::env::var_os("VMM_COMPARE_TRANSLATE").is_some() {
        cpu.set_translator(TranslatorMode::On { threshold: 1, precise: true });
    }
    cpu
}

#[test]
fn a_counting_loop_runs_to_its_end() {
    // mov ecx, 1000; xor eax, eax; l: add eax, ecx; sub ecx, 1; jne l; jmp $
    let mut cpu = long_mode(&[0xb9, 0xe8, 3, 0, 0, 0x31, 0xc0, 0x01, 0xc8, 0x83, 0xe9, 1, 0x75, 0xf9, 0xeb, 0xfe]);
    assert_eq!(cpu.run(4000), Exit::Budget);
    assert_eq!(cpu.core.gpr[0], 500_500);
}

#[test]
fn code_that_rewrites_itself_is_seen_at_once() {
    // mov byte [rip+1], 7 (over the next instruction's immediate); mov eax, 1; jmp $
    let mut cpu = long_mode(&[0xc6, 0x05, 1, 0, 0, 0, 7, 0xb8, 1, 0, 0, 0, 0xeb, 0xfe]);
    assert_eq!(cpu.run(10), Exit::Budget);
    assert_eq!(cpu.core.gpr[0], 7);
}
