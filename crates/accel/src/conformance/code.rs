//! The assembler of the conformance guests, with the few phrases that they share.

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, CodeLabel, al, ax, byte_ptr, dword_ptr, dx, eax, ecx, edx, ptr, qword_ptr, rax, rcx, rdx, word_ptr,
};

use super::{CODE, IDT, board};

/// A guest being written; dereferences to the assembler.
pub struct Guest {
    assembler: CodeAssembler,
}

impl std::ops::Deref for Guest {
    type Target = CodeAssembler;
    fn deref(&self) -> &CodeAssembler {
        &self.assembler
    }
}

impl std::ops::DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut CodeAssembler {
        &mut self.assembler
    }
}

/// Assembles a guest for its place in memory.
pub(super) fn assemble(build: fn(&mut Guest) -> Result<(), IcedError>) -> Result<Vec<u8>, IcedError> {
    let mut guest = Guest { assembler: CodeAssembler::new(64)? };
    build(&mut guest)?;
    guest.assembler.assemble(CODE)
}

impl Guest {
    /// Reports a constant byte. Clobbers AL.
    pub(super) fn report(&mut self, byte: u8) -> Result<(), IcedError> {
        self.mov(al, u32::from(byte))?;
        self.report_al()
    }

    /// Reports AL. Keeps everything.
    pub(super) fn report_al(&mut self) -> Result<(), IcedError> {
        self.out(i32::from(board::REPORT), al)
    }

    /// Ends the guest.
    pub(super) fn end(&mut self) -> Result<(), IcedError> {
        self.out(i32::from(board::END), al)?;
        let mut stay = self.create_label();
        self.set_label(&mut stay)?;
        self.cli()?;
        self.hlt()?;
        self.jmp(stay)
    }

    /// Points an interrupt gate (DPL 0, present, IF cleared) at `handler`. Clobbers RAX.
    pub(super) fn set_gate(&mut self, vector: u8, handler: CodeLabel) -> Result<(), IcedError> {
        let gate = IDT + u64::from(vector) * 16;
        self.lea(rax, ptr(handler))?;
        self.mov(word_ptr(gate), ax)?;
        self.mov(dword_ptr(gate + 2), 0x0008)?;
        self.mov(byte_ptr(gate + 5), 0x8e_i32)?;
        self.shr(rax, 16)?;
        self.mov(word_ptr(gate + 6), ax)?;
        self.shr(rax, 16)?;
        self.mov(dword_ptr(gate + 8), eax)?;
        self.mov(dword_ptr(gate + 12), 0)
    }

    /// Writes a register of the local APIC's page. Clobbers RAX.
    pub(super) fn apic_write(&mut self, offset: u32, value: u32) -> Result<(), IcedError> {
        self.mov(eax, 0xfee0_0000u32 + offset)?;
        self.mov(dword_ptr(rax), value as i32)
    }

    /// Switches the local APIC on (spurious vector 0xff). Clobbers RAX.
    pub(super) fn apic_on(&mut self) -> Result<(), IcedError> {
        self.apic_write(0xf0, 0x1ff)
    }

    /// End of interrupt. Clobbers RAX.
    pub(super) fn apic_eoi(&mut self) -> Result<(), IcedError> {
        self.apic_write(0xb0, 0)
    }

    /// Makes the board send an MSI with this data. Clobbers RAX and RDX.
    pub(super) fn send_msi(&mut self, data: u32) -> Result<(), IcedError> {
        self.mov(edx, u32::from(board::SEND_MSI))?;
        self.mov(eax, data)?;
        self.out(dx, eax)
    }

    /// RDMSR of `number` into RAX. Clobbers RCX and RDX.
    pub(super) fn read_msr(&mut self, number: u32) -> Result<(), IcedError> {
        self.mov(ecx, number)?;
        self.rdmsr()?;
        self.shl(rdx, 32)?;
        self.or(rax, rdx)
    }

    /// WRMSR of `value`. Clobbers RAX, RCX and RDX.
    pub(super) fn write_msr(&mut self, number: u32, value: u64) -> Result<(), IcedError> {
        self.mov(ecx, number)?;
        self.mov(eax, value as u32)?;
        self.mov(edx, (value >> 32) as u32)?;
        self.wrmsr()
    }

    /// WRMSR of the value in RAX. Clobbers RCX and RDX.
    pub(super) fn wrmsr_of_rax(&mut self, number: u32) -> Result<(), IcedError> {
        self.mov(ecx, number)?;
        self.mov(rdx, rax)?;
        self.shr(rdx, 32)?;
        self.wrmsr()
    }

    /// Lets time pass, for a KVM that emulates: it looks for interrupts only every few hundred instructions. Clobbers RCX.
    pub(super) fn linger(&mut self) -> Result<(), IcedError> {
        let mut again = self.create_label();
        self.mov(ecx, 20_000)?;
        self.set_label(&mut again)?;
        self.sub(ecx, 1)?;
        self.jne(again)
    }

    /// Spins until the quadword at `address` is not zero. Clobbers RCX.
    pub(super) fn wait_for(&mut self, address: u64) -> Result<(), IcedError> {
        let mut again = self.create_label();
        self.set_label(&mut again)?;
        self.pause()?;
        self.mov(rcx, qword_ptr(address))?;
        self.test(rcx, rcx)?;
        self.je(again)
    }
}
