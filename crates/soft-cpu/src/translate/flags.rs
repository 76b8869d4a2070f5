//! Where the guest's status flags are: the host's own for as long as somebody will read them, and in memory while an operand is looked up.

use iced_x86::RflagsBits;

use super::classify::Classified;
use super::emit::{Emitter, Form, Rm, host};
use super::generate::{Generator, core_field, field};

/// CF, as the decoder names it: the flag that additions in several words hand on past operands in memory.
const CARRY: u32 = RflagsBits::CF;

/// Where the flags are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flags {
    Memory,
    Host,
    Both,
}

impl Generator<'_> {
    /// Stores the host's flags, leaving them changed.
    pub(super) fn save_flags(&mut self) {
        save_flags(&mut self.e, host::B);
    }

    /// Loads the host's flags from memory.
    pub(super) fn restore_flags(&mut self) {
        self.e.mov(host::B, host::RAX);
        // MOVZX EAX, word; ADD AL, 0x7F makes OF; SAHF the rest.
        self.e.modrm(Form { two_byte: true, ..Form::short(0xb7) }, host::RAX, core_field(field::FLAGS));
        self.e.bytes(&[0x04, 0x7f, 0x9e]);
        self.e.mov(host::RAX, host::B);
    }

    /// Before host flags are clobbered: keeps those that are `live`. The others in memory may be anything then.
    pub(super) fn keep_flags(&mut self, live: u32) {
        if self.flags == Flags::Host {
            match live {
                0 => {}
                // SETC of the byte that LAHF would give.
                CARRY => self.e.modrm(Form { two_byte: true, ..Form::short(0x92) }, 0, core_field(field::FLAGS + 1)),
                _ => self.save_flags(),
            }
        }
        self.flags = Flags::Memory;
    }

    /// Sees to it that these flags, at least, are the host's.
    pub(super) fn want_flags(&mut self, wanted: u32) {
        if self.flags != Flags::Memory {
            return;
        }
        match wanted {
            0 => {}
            CARRY => {
                // MOVZX of the byte that was stored alone or with the others; SHR by 1.
                self.e.modrm(Form { two_byte: true, ..Form::short(0xb6) }, host::B, core_field(field::FLAGS + 1));
                self.e.modrm(Form::short(0xd1), 5, Rm::Reg(host::B));
            }
            _ => {
                self.restore_flags();
                self.flags = Flags::Both;
            }
        }
    }

    /// Sees to it that the flags an instruction reads, or leaves to others, are the host's.
    pub(super) fn flags_before(&mut self, c: &Classified<'_>) {
        let left = if c.touches { c.live_after & !c.kill } else { 0 };
        self.want_flags(c.read | left);
    }
}

/// Stores the host's flags; RAX is kept in `scratch` meanwhile.
pub(super) fn save_flags(e: &mut Emitter, scratch: u8) {
    e.mov(scratch, host::RAX);
    // LAHF; SETO AL.
    e.bytes(&[0x9f, 0x0f, 0x90, 0xc0]);
    e.modrm(Form { prefix: 0x66, ..Form::short(0x89) }, host::RAX, core_field(field::FLAGS));
    e.mov(host::RAX, scratch);
}
