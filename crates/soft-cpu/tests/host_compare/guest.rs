//! Our side: the same cases in the software CPU, in user mode over page tables that give it the child's addresses.

use guest_memory::{GuestMemory, allocate};
use soft_cpu::core::{Core, Stop, seg};
use soft_cpu::platform::Nothing;
use soft_cpu::ram::Ram;
use soft_cpu::run::{Cpu, Exit, TranslatorMode};
use soft_cpu::smp::CpuLink;
use vm_memory::{Bytes, GuestAddress};
use x86::{CpuState, Segment, cr0, cr4, efer, exception, paging};

use super::case::*;

/// Guest-physical addresses: page tables from 0x1000, then the areas.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;
const CODE_FRAMES: u64 = 0x1_0000;
const DATA_FRAMES: u64 = 0x2_0000;
const STACK_FRAMES: u64 = 0x3_0000;
const RAM_SIZE: usize = 0x4_0000;

/// How often an instruction that wants to be executed again is.
const MOST_REPEATS: u32 = 1000;
/// More instructions than a sequence can have.
const SEQUENCE_BUDGET: u64 = 1000;

/// A software CPU for 64-bit or for 32-bit code.
pub(crate) struct Guest {
    cpu: Cpu,
    memory: GuestMemory,
}

impl Guest {
    /// A CPU in user mode with everything enabled that an operating system enables.
    pub(crate) fn new(compatibility: bool) -> Self {
        let memory = allocate(&[(0, RAM_SIZE)]).expect("a little memory");
        let word = |value: u64, at: u64| memory.write_obj(value, GuestAddress(at)).expect("within RAM");
        let user = paging::P | paging::RW | paging::US;
        word(PDPT | user, PML4);
        word(PD | user, PDPT + (CODE >> 30) % 512 * 8);
        word(PT | user, PD + (CODE >> 21) % 512 * 8);
        for (area, frames, pages, flags) in [
            (CODE, CODE_FRAMES, 2, paging::P | paging::US),
            (DATA, DATA_FRAMES, 2, user | paging::NX),
            (READ_ONLY, DATA_FRAMES + DATA_SIZE as u64, 1, paging::P | paging::US | paging::NX),
            (STACK, STACK_FRAMES, 2, user | paging::NX),
        ] {
            for page in 0..pages {
                word((frames + page * 4096) | flags, PT + ((area >> 12) + page) % 512 * 8);
            }
        }
        memory.write_slice(&[FILLER; CODE_SIZE], GuestAddress(CODE_FRAMES)).expect("within RAM");

        let mut core = Core::new(Ram::new(&memory), Box::new(Nothing), CpuLink::alone());
        let mut state = CpuState::reset(true);
        state.cr0 = cr0::PE | cr0::MP | cr0::PG | cr0::WP | cr0::NE | cr0::ET;
        state.cr3 = PML4;
        state.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::FSGSBASE | cr4::UMIP;
        state.xcr0 = 7;
        state.efer = efer::LME | efer::LMA | efer::SCE | efer::NXE;
        let data = Segment::from_descriptor(SS, 0x00cf_f300_0000_ffff);
        (state.cs, state.ds, state.es) = if compatibility {
            (Segment::from_descriptor(CS32, 0x00cf_fb00_0000_ffff), data, data)
        } else {
            (Segment::from_descriptor(CS64, 0x00af_fb00_0000_ffff), data, data)
        };
        state.ss = data;
        (state.fs, state.gs) = (Segment::default(), Segment::default());
        if !compatibility {
            (state.fs.base, state.gs.base) = (FS_BASE, GS_BASE);
        }
        // No I/O permission map: IN and OUT are refused, as by Linux.
        state.tr.limit = 0;
        state.idtr.limit = 0;
        core.load_state(&state);
        let mut cpu = Cpu::new(core);
        // Set to run every case by the translator as well.
        if std::env::var_os("VMM_COMPARE_TRANSLATE").is_some() {
            cpu.set_translator(TranslatorMode::On { threshold: 1, precise: true });
        }
        Self { cpu, memory }
    }

    /// Makes `memory` what each case from now on starts from.
    pub(crate) fn set_memory(&mut self, memory: &Memory) {
        self.put_writable(memory);
        let read_only = GuestAddress(DATA_FRAMES + DATA_SIZE as u64);
        self.memory.write_slice(&memory.read_only, read_only).expect("within RAM");
    }

    fn put_writable(&self, memory: &Memory) {
        let (data, stack) = memory.writable.split_at(DATA_SIZE);
        self.memory.write_slice(data, GuestAddress(DATA_FRAMES)).expect("within RAM");
        self.memory.write_slice(stack, GuestAddress(STACK_FRAMES)).expect("within RAM");
    }

    /// Executes one instruction.
    fn step(&mut self) -> Trap {
        let mut result = self.cpu.step_translated();
        let mut repeats = 0;
        while result == Err(Stop::Again) && repeats < MOST_REPEATS {
            result = self.cpu.step_translated();
            repeats += 1;
        }
        let fault = self.cpu.core.fault;
        match result {
            Ok(()) => Trap::NONE,
            Err(_) => Trap {
                vector: u32::from(fault.vector),
                error: fault.error_code,
                address: if fault.vector == exception::PF { fault.address } else { 0 },
            },
        }
    }

    /// Runs until an exception, INT3's included. There is no interrupt table, so it cannot be delivered, and the CPU stops where it was raised.
    fn run_to_exception(&mut self) -> Trap {
        match self.cpu.run(SEQUENCE_BUDGET) {
            Exit::Shutdown => Trap::NONE,
            _ => Trap { vector: Trap::NO_END, ..Trap::NONE },
        }
    }

    /// Runs one case over `memory`, which was given to [`Guest::set_memory`] before.
    pub(crate) fn run(&mut self, memory: &Memory, case: &Case) -> Effect {
        let (at, code) = case.code();
        let code_at = GuestAddress(CODE_FRAMES + at as u64);
        self.memory.write_slice(code, code_at).expect("within RAM");
        let (address, value) = case.patch;
        if let Some(offset) = Memory::offset_of(address, 8) {
            let frame = if offset < DATA_SIZE {
                DATA_FRAMES + offset as u64
            } else {
                STACK_FRAMES + (offset - DATA_SIZE) as u64
            };
            self.memory.write_obj(value, GuestAddress(frame)).expect("within RAM");
        }

        let core = &mut *self.cpu.core;
        core.gpr[..16].copy_from_slice(&case.registers.gpr);
        core.rip = case.registers.rip;
        core.set_rflags(case.registers.rflags);
        core.fpu.load_image(&case.registers.fpu);
        let trap = if case.sequence { self.run_to_exception() } else { self.step() };

        let core = &mut *self.cpu.core;
        let mut registers = Registers { gpr: [0; 16], rip: core.rip, rflags: core.rflags(), fpu: core.fpu.image };
        registers.gpr.copy_from_slice(&core.gpr[..16]);
        assert_eq!(core.gpr[16], 0, "the register that is always zero");
        // Segment registers are not compared, so nothing may leave them changed.
        debug_assert_eq!(core.segment_bases[seg::FLAT], 0);

        let mut effect = Effect { trap, registers, memory: [0; MEMORY_SIZE], memory_changed: false };
        let (data, stack) = effect.memory.split_at_mut(DATA_SIZE);
        self.memory.read_slice(data, GuestAddress(DATA_FRAMES)).expect("within RAM");
        self.memory.read_slice(stack, GuestAddress(STACK_FRAMES)).expect("within RAM");
        effect.memory_changed = effect.memory != memory.writable;
        if effect.memory_changed {
            self.put_writable(memory);
        }
        let filler = [FILLER; MAX_CODE];
        self.memory.write_slice(&filler[..code.len()], code_at).expect("within RAM");
        effect
    }
}
