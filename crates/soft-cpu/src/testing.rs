//! A CPU over a little RAM and an empty world, for unit tests.

use guest_memory::allocate;
use vm_memory::{Bytes, GuestAddress};
use x86::cpuid::CpuidResult;
use x86::{CpuState, Segment, cr0, cr4, efer};

use crate::core::{Core, seg};
use crate::platform::{GeneralProtection, Platform};
use crate::ram::Ram;
use crate::run::{Cpu, Exit};
use crate::smp::CpuLink;

/// A world with nothing in it: ports and MMIO read as ones.
pub(crate) struct Nothing;

impl Platform for Nothing {
    fn port_read(&mut self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&mut self, _: u16, _: &[u8]) {}
    fn mmio_read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&mut self, _: u64, _: &[u8]) {}
    fn msr_read(&mut self, _: u32) -> Option<Result<u64, GeneralProtection>> {
        None
    }
    fn msr_write(&mut self, _: u32, _: u64) -> Option<Result<(), GeneralProtection>> {
        None
    }
    fn cr8(&mut self) -> u64 {
        0
    }
    fn set_cr8(&mut self, _: u64) {}
    fn tsc(&mut self) -> u64 {
        0
    }
    fn set_tsc(&mut self, _: u64) {}
    fn cpuid(&mut self, _: u32, _: u32) -> CpuidResult {
        CpuidResult::default()
    }
    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        None
    }
    fn pause(&mut self) {}
    fn hypercall(&mut self, _: u64, _: [u64; 4]) -> Option<u64> {
        None
    }
}

/// Where [`long_mode`] puts the code.
pub(crate) const CODE: u64 = 0x10_0000;

/// 4 MiB of RAM identity-mapped with one 1 GiB page, CPL 0, 64-bit code at [`CODE`], stack below it.
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
    Cpu::new(core)
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
