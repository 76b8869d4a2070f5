//! Far JMP, CALL and RET, call gates included, and IRET (SDM vol. 2; vol. 3, 6.8).
//!
//! Missing: transfers through task gates and TSS descriptors, and IRET with RFLAGS.NT outside IA-32e mode (hardware tasks); they raise #GP.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use x86::paging::is_canonical;
use x86::{Segment, exception, rflags};

use super::descriptor::{is_null, selector_error};
use super::stack::Stack;
use crate::core::{Core, DecodeMode, Outcome, seg};
use crate::decode::{Lowered, is_memory, memory};
use crate::op::Op;
use crate::tlb::Rights;

/// System descriptor type: 16-bit call gate.
const TYPE_CALL_GATE16: u16 = 4;

impl Core {
    /// #GP(0) unless `rip` is a place where code in `cs` can go on.
    fn check_target(&mut self, cs: &Segment, rip: u64) -> Outcome {
        let reachable =
            if self.is_long() && cs.has(Segment::L) { is_canonical(rip) } else { rip <= u64::from(cs.limit) };
        if reachable { Ok(()) } else { self.raise_with(exception::GP, 0) }
    }

    /// #NP unless present, #GP if both L and D are set in IA-32e mode.
    fn check_code_segment(&mut self, cs: &Segment) -> Outcome {
        if self.is_long() && cs.has(Segment::L | Segment::DB) {
            return self.raise_with(exception::GP, selector_error(cs.selector));
        }
        if !cs.has(Segment::PRESENT) {
            return self.raise_with(exception::NP, selector_error(cs.selector));
        }
        Ok(())
    }

    /// Puts `cs` with the current privilege level in force.
    fn enter_code_segment(&mut self, cs: Segment, rip: u64) {
        self.segments[seg::CS] = Segment { selector: (cs.selector & !3) | u16::from(self.cpl), ..cs };
        self.rip = rip;
        self.update_code_mode();
    }

    /// JMP or CALL to `selector:offset` with operands of `size` bytes.
    fn far_transfer(&mut self, selector: u16, offset: u64, size: u8, call: bool) -> Outcome {
        if self.mode.has(DecodeMode::REAL) {
            if offset > u64::from(self.segments[seg::CS].limit) {
                return self.raise_with(exception::GP, 0);
            }
            if call {
                self.push_return_address(size)?;
            }
            self.load_real_code_segment(selector);
            self.rip = offset;
            self.update_code_mode();
            return Ok(());
        }
        if is_null(selector) {
            return self.raise_with(exception::GP, 0);
        }
        let (mut cs, address) = self.fetch_descriptor(selector, exception::GP, 0)?;
        if !cs.has(Segment::S) {
            return self.through_call_gate(&cs, address, call);
        }
        let conforming = cs.has(Segment::CONFORMING_OR_EXPAND_DOWN);
        let rpl = (selector & 3) as u8;
        let allowed = if conforming { cs.dpl() <= self.cpl } else { rpl <= self.cpl && cs.dpl() == self.cpl };
        if !cs.has(Segment::CODE) || !allowed {
            return self.raise_with(exception::GP, selector_error(selector));
        }
        self.check_code_segment(&cs)?;
        self.check_target(&cs, offset)?;
        self.mark_accessed(&mut cs, address)?;
        if call {
            self.push_return_address(size)?;
        }
        self.enter_code_segment(cs, offset);
        Ok(())
    }

    fn push_return_address(&mut self, size: u8) -> Outcome {
        let mut stack = Stack::current(self);
        stack.push(self, size, u64::from(self.segments[seg::CS].selector))?;
        stack.push(self, size, self.rip)?;
        stack.commit(self);
        Ok(())
    }

    fn through_call_gate(&mut self, gate: &Segment, address: u64, call: bool) -> Outcome {
        let error = selector_error(gate.selector);
        let long = self.is_long();
        let known = gate.kind() == Segment::TYPE_CALL_GATE || (!long && gate.kind() == TYPE_CALL_GATE16);
        if !known || gate.dpl() < self.cpl || gate.dpl() < (gate.selector & 3) as u8 {
            return self.raise_with(exception::GP, error);
        }
        if !gate.has(Segment::PRESENT) {
            return self.raise_with(exception::NP, error);
        }
        let raw: u64 = self.read_system(address)?;
        let mut target = raw & 0xffff;
        let mut size = 2;
        if gate.kind() == Segment::TYPE_CALL_GATE {
            target |= raw >> 32 & 0xffff_0000;
            size = 4;
        }
        if long {
            let Some(address) = self.descriptor_address(gate.selector, 16) else {
                return self.raise_with(exception::GP, error);
            };
            let high: u64 = self.read_system(address.wrapping_add(8))?;
            if high >> 40 & 0x1f != 0 {
                return self.raise_with(exception::GP, error);
            }
            target |= high << 32;
            size = 8;
        }
        let selector = (raw >> 16) as u16;
        if is_null(selector) {
            return self.raise_with(exception::GP, 0);
        }
        let (mut cs, cs_address) = self.fetch_descriptor(selector, exception::GP, 0)?;
        let conforming = cs.has(Segment::CONFORMING_OR_EXPAND_DOWN);
        let allowed = if call || conforming { cs.dpl() <= self.cpl } else { cs.dpl() == self.cpl };
        if !cs.has(Segment::S | Segment::CODE) || !allowed || (long && !cs.has(Segment::L)) {
            return self.raise_with(exception::GP, selector_error(selector));
        }
        self.check_code_segment(&cs)?;
        self.check_target(&cs, target)?;
        self.mark_accessed(&mut cs, cs_address)?;
        if call && !conforming && cs.dpl() < self.cpl {
            return self.call_inner(cs, target, size, (raw >> 32 & 0x1f) as usize);
        }
        if call {
            self.push_return_address(size)?;
        }
        self.enter_code_segment(cs, target);
        Ok(())
    }

    /// CALL to a more privileged level: a new stack from the TSS.
    fn call_inner(&mut self, cs: Segment, target: u64, size: u8, parameters: usize) -> Outcome {
        let cpl = cs.dpl();
        let old_ss = self.segments[seg::SS].selector;
        let (ss, mut stack) = if self.is_long() {
            let top = self.tss_word(4 + u64::from(cpl) * 8, 0)?;
            if !is_canonical(top) {
                return self.raise_with(exception::SS, 0);
            }
            (Self::null_stack_segment(u16::from(cpl), cpl), Stack::flat(top, Rights::Supervisor))
        } else {
            let (ss, sp) = self.legacy_tss_stack(cpl, 0)?;
            (ss, Stack::in_segment(ss, sp, Rights::Supervisor, selector_error(ss.selector)))
        };
        stack.push(self, size, u64::from(old_ss))?;
        stack.push(self, size, self.gpr[x86::gpr::RSP])?;
        if !self.is_long() {
            let mut old = Stack::current(self);
            let mut copied = [0; 31];
            for value in copied.iter_mut().take(parameters) {
                *value = old.pop(self, size)?;
            }
            for value in copied[..parameters.min(31)].iter().rev() {
                stack.push(self, size, *value)?;
            }
        }
        stack.push(self, size, u64::from(self.segments[seg::CS].selector))?;
        stack.push(self, size, self.rip)?;
        self.segments[seg::SS] = ss;
        self.cpl = cpl;
        stack.commit(self);
        self.enter_code_segment(cs, target);
        Ok(())
    }

    /// Checks the CS that RET or IRET has popped.
    fn fetch_return_code_segment(&mut self, selector: u16) -> Outcome<Segment> {
        if is_null(selector) {
            return self.raise_with(exception::GP, 0);
        }
        let (mut cs, address) = self.fetch_descriptor(selector, exception::GP, 0)?;
        let rpl = (selector & 3) as u8;
        let conforming = cs.has(Segment::CONFORMING_OR_EXPAND_DOWN);
        let allowed = if conforming { cs.dpl() <= rpl } else { cs.dpl() == rpl };
        if !cs.has(Segment::S | Segment::CODE) || rpl < self.cpl || !allowed {
            return self.raise_with(exception::GP, selector_error(selector));
        }
        self.check_code_segment(&cs)?;
        self.mark_accessed(&mut cs, address)?;
        Ok(cs)
    }

    /// Checks the SS that RET or IRET has popped for the level of `cs`.
    fn fetch_return_stack_segment(&mut self, selector: u16, cs: &Segment) -> Outcome<Segment> {
        let cpl = (cs.selector & 3) as u8;
        if is_null(selector) && self.is_long() && cs.has(Segment::L) && cpl != 3 && (selector & 3) as u8 == cpl {
            return Ok(Self::null_stack_segment(selector, cpl));
        }
        self.fetch_stack_segment(selector, cpl, exception::GP, 0)
    }

    /// Commits a return to the level and place of `cs`, with the stack `outer` if it was popped too.
    fn return_to(&mut self, cs: Segment, rip: u64, stack: &Stack, outer: Option<(Segment, u64)>) {
        let old_cpl = self.cpl;
        self.cpl = (cs.selector & 3) as u8;
        match outer {
            None => stack.commit(self),
            Some((ss, sp)) => {
                self.segments[seg::SS] = ss;
                let rsp = &mut self.gpr[x86::gpr::RSP];
                *rsp = if self.efer & x86::efer::LMA != 0 && cs.has(Segment::L) {
                    sp
                } else if ss.has(Segment::DB) {
                    sp & 0xffff_ffff
                } else {
                    (*rsp & !0xffff) | (sp & 0xffff)
                };
            }
        }
        self.segments[seg::CS] = cs;
        self.rip = rip;
        if self.cpl != old_cpl {
            self.drop_inner_segments();
        }
        self.update_code_mode();
    }

    fn far_return(&mut self, size: u8, release: u64) -> Outcome {
        let mut stack = Stack::current(self);
        let rip = stack.pop(self, size)?;
        let selector = stack.pop(self, size)? as u16;
        if self.mode.has(DecodeMode::REAL) {
            if rip > u64::from(self.segments[seg::CS].limit) {
                return self.raise_with(exception::GP, 0);
            }
            stack.skip(release);
            stack.commit(self);
            self.load_real_code_segment(selector);
            self.rip = rip;
            self.update_code_mode();
            return Ok(());
        }
        let cs = self.fetch_return_code_segment(selector)?;
        stack.skip(release);
        let outer = if (selector & 3) as u8 > self.cpl {
            let sp = stack.pop(self, size)?;
            let ss = stack.pop(self, size)? as u16;
            Some((self.fetch_return_stack_segment(ss, &cs)?, sp.wrapping_add(release)))
        } else {
            None
        };
        self.check_target(&cs, rip)?;
        self.return_to(cs, rip, &stack, outer);
        Ok(())
    }

    /// The flags after an IRET of `size` bytes that popped `popped`. RF is dropped: see the head of `deliver.rs`.
    fn iret_flags(&mut self, popped: u64, size: u8) {
        let old = self.system_flags;
        let iopl = (old >> 12 & 3) as u8;
        let mut mask = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT;
        if size != 2 {
            mask |= rflags::AC | rflags::ID;
        }
        if self.cpl <= iopl {
            mask |= rflags::IF;
        }
        if self.cpl == 0 {
            mask |= rflags::IOPL;
            if size != 2 {
                mask |= rflags::VIF | rflags::VIP;
            }
        }
        self.set_rflags((old & !mask) | (popped & mask));
    }

    fn interrupt_return(&mut self, size: u8) -> Outcome {
        if self.mode.has(DecodeMode::REAL) {
            return self.interrupt_return_real(size);
        }
        if self.system_flags & rflags::NT != 0 {
            return self.raise_with(exception::GP, 0);
        }
        let mut stack = Stack::current(self);
        let rip = stack.pop(self, size)?;
        let selector = stack.pop(self, size)? as u16;
        let flags = stack.pop(self, size)?;
        if flags & rflags::VM != 0 && self.cpl == 0 && size != 2 && !self.is_long() {
            return self.return_to_v86(stack, rip, selector, flags);
        }
        let cs = self.fetch_return_code_segment(selector)?;
        let outer = if self.mode.has(DecodeMode::CODE64) || (selector & 3) as u8 > self.cpl {
            let sp = stack.pop(self, size)?;
            let ss = stack.pop(self, size)? as u16;
            Some((self.fetch_return_stack_segment(ss, &cs)?, sp))
        } else {
            None
        };
        self.check_target(&cs, rip)?;
        self.iret_flags(flags, size);
        self.return_to(cs, rip, &stack, outer);
        self.nmi_blocked = false;
        Ok(())
    }

    fn interrupt_return_real(&mut self, size: u8) -> Outcome {
        if self.is_v86() && self.system_flags & rflags::IOPL != rflags::IOPL {
            return self.raise_with(exception::GP, 0);
        }
        let mut stack = Stack::current(self);
        let rip = stack.pop(self, size)?;
        let selector = stack.pop(self, size)? as u16;
        let flags = stack.pop(self, size)?;
        if rip > u64::from(self.segments[seg::CS].limit) {
            return self.raise_with(exception::GP, 0);
        }
        stack.commit(self);
        self.load_real_code_segment(selector);
        self.rip = rip;
        self.iret_flags(flags, size);
        self.nmi_blocked = false;
        self.update_code_mode();
        Ok(())
    }

    /// IRETD from CPL 0 with VM set in the popped flags.
    fn return_to_v86(&mut self, mut stack: Stack, rip: u64, cs: u16, flags: u64) -> Outcome {
        let sp = stack.pop(self, 4)?;
        let mut selectors = [0; 5];
        for selector in &mut selectors {
            *selector = stack.pop(self, 4)? as u16;
        }
        if rip > 0xffff {
            return self.raise_with(exception::GP, 0);
        }
        let v86 =
            |selector: u16, attributes| Segment { selector, base: u64::from(selector) << 4, limit: 0xffff, attributes };
        self.segments[seg::CS] = v86(cs, 0xfb);
        for (number, selector) in [seg::SS, seg::ES, seg::DS, seg::FS, seg::GS].into_iter().zip(selectors) {
            self.segments[number] = v86(selector, 0xf3);
        }
        self.set_rflags(flags & !rflags::RF);
        self.gpr[x86::gpr::RSP] = sp;
        self.rip = rip;
        self.cpl = 3;
        self.nmi_blocked = false;
        self.update_mode();
        Ok(())
    }
}

fn far_direct(core: &mut Core, op: &Op) -> Outcome {
    core.far_transfer(op.extra as u16, op.immediate, op.aux & 15, op.aux & 16 != 0)
}

fn far_indirect(core: &mut Core, op: &Op) -> Outcome {
    let size = op.aux & 15;
    let linear = core.linear_address(&op.mem, usize::from(size) + 2, false)?;
    let offset = match size {
        2 => u64::from(core.read::<u16>(linear)?),
        4 => u64::from(core.read::<u32>(linear)?),
        _ => core.read(linear)?,
    };
    let selector = core.read::<u16>(linear.wrapping_add(u64::from(size)))?;
    core.far_transfer(selector, offset, size, op.aux & 16 != 0)
}

fn retf(core: &mut Core, op: &Op) -> Outcome {
    core.far_return(op.aux, op.immediate)
}

fn iret(core: &mut Core, op: &Op) -> Outcome {
    core.interrupt_return(op.aux)
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let lowered = match i.mnemonic() {
        Mnemonic::Jmp | Mnemonic::Call => {
            let call = if i.mnemonic() == Mnemonic::Call { 16 } else { 0 };
            match i.op0_kind() {
                OpKind::FarBranch16 => Lowered::new(far_direct)
                    .extra(u32::from(i.far_branch_selector()))
                    .immediate(u64::from(i.far_branch16()))
                    .aux(2 | call),
                OpKind::FarBranch32 => Lowered::new(far_direct)
                    .extra(u32::from(i.far_branch_selector()))
                    .immediate(u64::from(i.far_branch32()))
                    .aux(4 | call),
                OpKind::Memory => {
                    let size = match i.code() {
                        Code::Jmp_m1616 | Code::Call_m1616 => 2,
                        Code::Jmp_m1632 | Code::Call_m1632 => 4,
                        Code::Jmp_m1664 | Code::Call_m1664 => 8,
                        _ => return None,
                    };
                    Lowered::new(far_indirect).mem(memory(i, mode)).aux(size | call)
                }
                _ => return None,
            }
        }
        Mnemonic::Retf => {
            let size = match i.code() {
                Code::Retfw | Code::Retfw_imm16 => 2,
                Code::Retfd | Code::Retfd_imm16 => 4,
                _ => 8,
            };
            let release = if i.op_count() == 1 { i.immediate(0) } else { 0 };
            Lowered::new(retf).aux(size).immediate(release)
        }
        Mnemonic::Iret => Lowered::new(iret).aux(2),
        Mnemonic::Iretd => Lowered::new(iret).aux(4),
        Mnemonic::Iretq => Lowered::new(iret).aux(8),
        _ => return None,
    };
    debug_assert!(is_memory(i, 0) || lowered.op.mem == crate::op::Mem::NONE);
    Some(lowered.ends_block())
}
