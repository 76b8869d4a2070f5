//! DIV and IDIV of 32 and 64 bits.
//!
//! The host's instruction runs only where it surely raises nothing: on the host a divide error would end the program. What might raise one goes to the handler:
//! for DIV exactly what does, for IDIV every dividend that is not a sign-extended single one, and the divisors 0 and -1.

use super::classify::Classified;
use super::emit::{Form, Jump, Rm, host};
use super::flags::Flags;
use super::generate::Generator;
use super::parse::Parts;
use super::reuse;
use crate::op::Op;

const RDX: u8 = 2;

impl Generator<'_> {
    pub(super) fn divide(&mut self, c: &Classified<'_>, parts: &Parts<'_>, op: &Op, n: usize) {
        let wide = parts.rex & 8 != 0;
        let signed = parts.reg & 7 == 7;
        self.keep_flags(c.live_before);
        // The divisor is read once, into a register: between a check and the division another CPU could change it in memory.
        let divisor = if let Some(access) = reuse::access(c, op, self.width) {
            let distance = self.locate(access, 1, op, n);
            self.e.modrm(Form { wide, ..Form::short(0x8b) }, host::A, Rm::Disp(host::A, distance));
            host::A
        } else {
            self.slow_end(Vec::new(), op, n);
            self.value(parts.rm, host::A)
        };
        let mut slow = Vec::with_capacity(2);
        if signed {
            self.check_signed(divisor, wide, &mut slow);
        } else {
            // CMP: the quotient fits if and only if the dividend's high half is below the divisor; so zero is caught too.
            self.e.modrm(Form { wide, ..Form::short(0x3b) }, RDX, Rm::Reg(divisor));
            slow.push(self.e.jump_if(3));
        }
        self.e.modrm(Form { wide, ..Form::short(0xf7) }, parts.reg & 7, Rm::Reg(divisor));
        self.flags = Flags::Host;
        if let Some(last) = self.slow.last_mut() {
            last.jumps.append(&mut slow);
            last.restore = c.live_after != 0;
            last.loaded = self.loaded;
        }
        self.slow_back();
    }

    /// Jumps away unless the dividend is RAX sign-extended and the divisor neither 0 nor -1.
    fn check_signed(&mut self, divisor: u8, wide: bool, slow: &mut Vec<Jump>) {
        let form = |opcode| Form { wide, ..Form::short(opcode) };
        // MOV, SAR, CMP
        self.e.modrm(form(0x8b), host::B, Rm::Reg(host::RAX));
        self.e.modrm(form(0xc1), 7, Rm::Reg(host::B));
        self.e.bytes(&[if wide { 63 } else { 31 }]);
        self.e.modrm(form(0x3b), host::B, Rm::Reg(RDX));
        slow.push(self.e.jump_if(5));
        // LEA, CMP with 1: 0 and 1 are what -1 and 0 have become.
        self.e.modrm(form(0x8d), host::B, Rm::Disp(divisor, 1));
        self.e.modrm(form(0x83), 7, Rm::Reg(host::B));
        self.e.bytes(&[1]);
        slow.push(self.e.jump_if(6));
    }
}
