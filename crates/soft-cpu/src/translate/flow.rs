//! Where control goes at a block's end: links, the table of jumps, calls and returns.
//!
//! A call is a call on the host too, so that the host predicts returns. What it pushes is the address of a *landing* behind it, which compares the guest's return
//! address with the one it stands for and goes on in the block there; if they differ, the return looks for its code like any other computed jump. The host's
//! stack holds nothing that the guest needs: whoever leaves generated code drops what was pushed, and a return that finds nothing lands in a piece that
//! always says "another one". A slice of instructions bounds how deep it gets.
//!
//! In code that stands at no fixed place ([`Place::InPage`]) the caller's page lies on the host's stack above the landing's address.

use std::mem::offset_of;

use super::classify::ALL;
use super::emit::{Form, Jump, Rm, host};
use super::flags::Flags;
use super::generate::{Generator, Place, core_field, field, slot};
use super::reuse::Access;
use crate::block::MAX_INSTRUCTION_LEN;
use crate::core::{Core, GPR_PAGE};
use crate::op::Op;

const RIP: usize = offset_of!(Core, rip);

/// A jump that can be aimed at another block later.
pub(super) struct PendingLink {
    /// Position of the displacement.
    pub(super) at: usize,
    /// Instruction pointer of the block.
    pub(super) target: u64,
    /// The flags are in the host's.
    pub(super) host_flags: bool,
}

/// The same in finished code.
pub(super) struct Link {
    /// Address of the displacement.
    pub(super) at: u64,
    pub(super) target: u64,
    pub(super) host_flags: bool,
}

/// A jump out of the middle of a trace, with the flags in the host's.
pub(super) struct SideExit {
    jump: Jump,
    target: u64,
    /// Instructions of the trace that are not executed then, and operands of theirs that were counted.
    left: i32,
    accesses: u32,
}

/// A jump to another page.
pub(super) struct Far {
    pub(super) jump: Jump,
    pub(super) target: u64,
    /// The flags are in the host's.
    pub(super) host_flags: bool,
}

/// A return: what it does if it does not land where it should.
pub(super) struct Return {
    /// The address of this piece of code is wanted here.
    at: Jump,
    /// Number of the call of its handler.
    slow: usize,
    dropped: i32,
}

impl Generator<'_> {
    /// Where the instruction after `op` stands.
    pub(super) fn after(&self, op: &Op) -> u64 {
        self.place.rip().wrapping_add(u64::from(op.offset) + u64::from(op.len))
    }

    /// Whether a link may go to `target`. At the very end of the page may be an instruction that goes on in the next, wherever that is mapped.
    fn may_link(&self, target: u64) -> bool {
        const LAST: u64 = 4096 - MAX_INSTRUCTION_LEN as u64;
        target >> 12 == self.place.rip() >> 12 && target & 0xfff <= LAST
    }

    /// Jumps to `target` if `condition` holds, otherwise to what follows `op`.
    pub(super) fn branch(&mut self, condition: u8, target: u64, op: &Op) {
        let taken = self.e.jump_if(condition);
        self.aim_at(taken, target, true);
        self.go_to(self.after(op));
    }

    /// Jumps to `target`, out of the trace, if `condition` holds.
    pub(super) fn leave_trace(&mut self, condition: u8, target: u64, accesses: u32) {
        self.want_flags(ALL);
        let jump = self.e.jump_if(condition);
        self.exits.push(SideExit { jump, target, left: self.rest as i32, accesses });
    }

    /// What [`Self::leave_trace`] put out of line. `alone`: nothing is left of the slice.
    fn exits_out_of_line(&mut self, alone: bool) {
        for SideExit { jump, target, left, accesses } in std::mem::take(&mut self.exits) {
            self.e.aim_here(jump);
            // The flags stay as they are.
            if accesses != 0 {
                self.e.load(host::B, core_field(field::ACCESSES));
                self.e.lea(host::B, Rm::Disp(host::B, -(accesses as i32)));
                self.e.store(core_field(field::ACCESSES), host::B);
            }
            if alone {
                for (at, value) in [(field::SLICE, 0), (field::UNUSED, left)] {
                    self.e.modrm(Form::short(0xc7), 0, core_field(at));
                    self.e.bytes(&value.to_le_bytes());
                }
            } else {
                self.e.modrm(Form::short(0x8b), host::B, core_field(field::SLICE));
                self.e.modrm(Form::short(0x8d), host::B, Rm::Disp(host::B, left));
                self.e.modrm(Form::short(0x89), host::B, core_field(field::SLICE));
            }
            let jump = self.e.jump();
            self.aim_at(jump, target, true);
        }
    }

    /// Sends `jump` to `target`.
    fn aim_at(&mut self, jump: Jump, target: u64, host_flags: bool) {
        if self.may_link(target) {
            self.links.push(PendingLink { at: jump.0, target, host_flags });
        } else {
            self.far.push(Far { jump, target, host_flags });
        }
    }

    /// Goes on at `target`.
    pub(super) fn go_to(&mut self, target: u64) {
        if self.may_link(target) {
            let jump = self.e.jump();
            self.aim_at(jump, target, self.flags != Flags::Memory);
        } else {
            self.keep_flags(ALL);
            self.jump_far(target);
        }
    }

    /// Through the table of jumps; flags in memory.
    fn jump_far(&mut self, target: u64) {
        self.address(host::A, target);
        let unknown = self.find_code();
        self.enter_found();
        self.e.aim_here(unknown);
        self.leave_to(target, 0);
    }

    /// Looks for the code of the instruction pointer in the first scratch register; the jump is taken if there is none.
    pub(super) fn find_code(&mut self) -> Jump {
        let e = &mut self.e;
        e.mov(host::B, host::A);
        e.modrm(Form::long(0xc1), 5, Rm::Reg(host::B));
        e.bytes(&[12]);
        e.modrm(Form::short(0x33), host::B, Rm::Reg(host::A));
        e.modrm(Form::short(0x81), 4, Rm::Reg(host::B));
        e.bytes(&(super::jumps::JUMP_ENTRIES as u32 - 1).to_le_bytes());
        e.modrm(Form::short(0xc1), 4, Rm::Reg(host::B));
        e.bytes(&[4]);
        e.modrm(Form::long(0x03), host::B, core_field(field::JUMP_TABLE));
        e.modrm(Form::long(0x3b), host::A, Rm::At(host::B));
        e.jump_if(5)
    }

    /// The page of the instruction pointer in the first scratch register is where execution goes on.
    fn set_page(&mut self) {
        if matches!(self.place, Place::InPage(_)) {
            self.e.modrm(Form::long(0x81), 4, Rm::Reg(host::A));
            self.e.bytes(&(-4096_i32).to_le_bytes());
            self.e.store(slot(GPR_PAGE), host::A);
        }
    }

    /// Goes to the code that was found for the instruction pointer in the first scratch register.
    pub(super) fn enter_found(&mut self) {
        self.set_page();
        self.e.modrm(Form::short(0xff), 4, Rm::Disp(host::B, 8));
    }

    /// A jump to the address in the first scratch register; `slow` are jumps to its handler. Flags in memory.
    pub(super) fn jump_computed(&mut self, mut slow: Vec<Jump>, op: &Op, n: usize) {
        slow.push(self.find_code());
        self.enter_found();
        self.slow_end(slow, op, n);
    }

    /// A call of `target`, whose return address is stored already. Flags in memory.
    pub(super) fn call(&mut self, target: u64, op: &Op) {
        if !self.has_landing(op) {
            return self.go_to(target);
        }
        self.push_page();
        let call = self.e.call();
        self.aim_at(call, target, false);
        self.landing(op);
    }

    /// The call `op` to the address in the first scratch register; `slow` are jumps to its handler. Flags in memory.
    pub(super) fn call_computed(&mut self, mut slow: Vec<Jump>, op: &Op, n: usize) {
        slow.push(self.find_code());
        self.e.load(host::B, Rm::Disp(host::B, 8));
        self.e.store(core_field(field::TARGET), host::A);
        self.e.store(core_field(field::TARGET_CODE), host::B);
        let Access { mem, size, write } = Access::pushed(self.width);
        slow.extend(self.find(&mem, size, write));
        self.push_return_address(Rm::At(host::A), op);
        let landing = self.has_landing(op);
        if landing {
            self.push_page();
        }
        if matches!(self.place, Place::InPage(_)) {
            self.e.load(host::A, core_field(field::TARGET));
            self.set_page();
        }
        self.e.modrm(Form::short(0xff), if landing { 2 } else { 4 }, core_field(field::TARGET_CODE));
        if landing {
            self.landing(op);
        }
        self.slow_end(slow, op, n);
    }

    /// Stores the address after the call `op` at `at`, and moves the stack pointer.
    pub(super) fn push_return_address(&mut self, at: Rm, op: &Op) {
        let after = self.after(op);
        match (self.place, i32::try_from(after as i64)) {
            (Place::At(_), Ok(small)) => self.store_constant(at, small),
            _ => {
                self.address(host::B, after);
                self.width.store(&mut self.e, at, host::B);
            }
        }
        self.move_stack(-1, 0);
    }

    /// Whether there can be a landing after the call `op`: its address has to fit into an immediate.
    fn has_landing(&self, op: &Op) -> bool {
        i32::try_from(self.after(op) as i64).is_ok()
    }

    fn push_page(&mut self) {
        if matches!(self.place, Place::InPage(_)) {
            // PUSH
            self.e.modrm(Form::short(0xff), 6, slot(GPR_PAGE));
        }
    }

    /// Where returns from the call `op` land, with the guest's return address in the first scratch register, what to do if it is another one in the second, and
    /// flags in memory.
    fn landing(&mut self, op: &Op) {
        let after = self.after(op);
        if matches!(self.place, Place::InPage(_)) {
            // SUB
            self.e.modrm(self.width.form(0x2b), host::A, Rm::At(host::RSP));
        }
        // CMP
        self.e.modrm(self.width.form(0x81), 7, Rm::Reg(host::A));
        self.e.bytes(&(after as i32).to_le_bytes());
        let another = self.e.jump_if(5);
        self.landings.push(another);
        if matches!(self.place, Place::InPage(_)) {
            // POP
            self.e.modrm(Form::short(0x8f), 0, slot(GPR_PAGE));
        }
        self.move_stack(1, 0);
        self.flags = Flags::Memory;
        self.go_to(after);
    }

    /// RET, which drops so many bytes besides the address. Flags in memory.
    pub(super) fn return_near(&mut self, dropped: i32, op: &Op, n: usize) {
        let distance = self.locate(Access::popped(self.width, x86::gpr::RSP), 1, op, n);
        let slow = self.slow.len() - 1;
        self.width.load(&mut self.e, host::A, Rm::Disp(host::A, distance));
        let at = if dropped == 0 {
            let at = self.e.lea_here(host::B);
            self.e.bytes(&[0xc3]);
            at
        } else {
            self.e.jump()
        };
        self.returns.push(Return { at, slow, dropped });
    }

    /// Returns to the loop with `link` as what it may aim; flags in memory, the instruction pointer stored.
    pub(super) fn leave(&mut self, link: u32) {
        self.e.constant(host::B, u64::from(link));
        self.e.jump_to(self.stubs.leave_memory);
    }

    pub(super) fn leave_to(&mut self, target: u64, link: u32) {
        self.address(host::A, target);
        self.e.store(core_field(RIP), host::A);
        self.leave(link);
    }

    /// Before an instruction of the block: returns to the loop, which is to interpret it; flags in memory.
    pub(super) fn give_up(&mut self, n: usize, rip: u64) {
        self.e.modrm(Form::short(0x81), 0, core_field(field::SLICE));
        self.e.bytes(&((self.count - n) as i32).to_le_bytes());
        self.e.modrm(Form::short(0xc6), 0, core_field(field::INTERPRET));
        self.e.bytes(&[1]);
        self.leave_to(rip, 0);
    }

    /// What lies out of the way: after the block's last instruction. `used_up` is taken if the slice is too short for its `count` instructions.
    pub(super) fn out_of_line(&mut self, used_up: Jump, count: u8, first_link: u32, alone: bool) {
        for Return { at, slow, dropped } in std::mem::take(&mut self.returns) {
            self.e.aim_here(at);
            let unknown = self.find_code();
            self.slow[slow].jumps.push(unknown);
            self.move_stack(1, dropped);
            self.enter_found();
        }
        self.retry_out_of_line();
        self.slow_out_of_line();
        self.load_out_of_line();
        self.exits_out_of_line(alone);
        for Far { jump, target, host_flags } in std::mem::take(&mut self.far) {
            self.e.aim_here(jump);
            if host_flags {
                self.save_flags();
            }
            self.jump_far(target);
        }
        for another in std::mem::take(&mut self.landings) {
            self.e.aim_here(another);
            if matches!(self.place, Place::InPage(_)) {
                // ADD
                self.e.modrm(self.width.form(0x03), host::A, Rm::At(host::RSP));
                self.e.lea(host::RSP, Rm::Disp(host::RSP, 8));
            }
            self.e.modrm(Form::short(0xff), 4, Rm::Reg(host::B));
        }
        for n in 0..self.links.len() {
            let PendingLink { at, target, host_flags } = self.links[n];
            self.e.aim_here(Jump(at));
            self.address(host::A, target);
            self.e.store(core_field(RIP), host::A);
            self.e.constant(host::B, u64::from(first_link + n as u32 + 1));
            self.e.jump_to(if host_flags { self.stubs.leave_host } else { self.stubs.leave_memory });
        }
        self.e.aim_here(used_up);
        self.e.modrm(Form::short(0x83), 0, core_field(field::SLICE));
        self.e.bytes(&[count]);
        self.leave_to(self.place.rip(), 0);
    }
}
