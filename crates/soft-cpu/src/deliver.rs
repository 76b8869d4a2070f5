//! Exceptions and interrupts on their way into the guest (SDM vol. 3, chapter 7), and where code is fetched from.
//!
//! Modelled: the interrupt vector table of real mode, interrupt and trap gates of 16, 32 and 64 bits with stack switches through every form of TSS,
//! the interrupt stack table, entry from virtual-8086 mode, double and triple faults, single step.
//!
//! Missing: task gates and hardware task switches (#GP with the gate's error code); instruction and data breakpoints (DR0 to DR3 hold values and never match).
//! RFLAGS.RF is therefore never kept: nothing could see it but the images that faults push, where it is set.

use x86::{InterruptShadow, Segment, exception, rflags};

use crate::core::{Core, DecodeMode, Fault, Outcome, Stop, seg};
use crate::system::descriptor::{is_null, selector_error};
use crate::system::stack::Stack;
use crate::tlb::Rights;

/// Where an event comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// A fault: RIP is the instruction's, and the pushed image has RF set.
    Fault,
    /// An interrupt, an NMI, a trap or INT1: nothing about the gate's privilege is checked.
    External,
    /// INT n, INT3 or INTO: the gate's DPL counts, and faults on the way have EXT clear.
    Software,
}

/// One event to deliver.
#[derive(Clone, Copy)]
struct Event {
    vector: u8,
    source: Source,
    error_code: Option<u32>,
}

impl Event {
    /// The EXT bit of error codes that delivery itself raises (SDM vol. 3, 7.13).
    fn ext(self) -> u32 {
        u32::from(self.source != Source::Software)
    }

    /// The error code of a fault that is about the event's own gate.
    fn gate_error(self) -> u32 {
        u32::from(self.vector) * 8 + 2 + self.ext()
    }
}

/// Whether an exception is "contributory" (SDM vol. 3, table 7-4).
fn is_contributory(vector: u8) -> bool {
    matches!(vector, exception::DE | exception::TS | exception::NP | exception::SS | exception::GP)
}

impl Core {
    /// Whose rights instruction fetches have.
    #[inline(always)]
    pub fn fetch_rights(&self) -> Rights {
        if self.cpl == 3 { Rights::User } else { Rights::Supervisor }
    }

    /// The linear address of the next instruction.
    ///
    /// # Errors
    /// #GP past the code segment's limit (outside 64-bit code).
    #[inline(always)]
    pub fn fetch_linear(&mut self) -> Outcome<u64> {
        if self.mode.has(DecodeMode::CODE64) {
            return Ok(self.rip);
        }
        if self.rip > u64::from(self.segments[seg::CS].limit) {
            return self.raise_with(exception::GP, 0);
        }
        Ok(self.segments[seg::CS].base.wrapping_add(self.rip) & 0xffff_ffff)
    }

    /// Delivers an exception (or NMI); errors that delivery itself meets become a double and then a triple fault (SDM vol. 3, table 7-5).
    ///
    /// # Errors
    /// [`Stop::Shutdown`] on a triple fault.
    pub fn deliver_exception(&mut self, fault: Fault) -> Outcome {
        tracing::trace!(
            vector = fault.vector,
            error_code = format_args!("{:#x}", fault.error_code),
            address = format_args!("{:#x}", fault.address),
            rip = format_args!("{:#x}", self.rip),
            "exception"
        );
        let source = match fault.vector {
            exception::NMI | exception::DB | exception::MC => Source::External,
            _ => Source::Fault,
        };
        self.deliver_with_faults(fault, source)
    }

    /// Delivers an external interrupt.
    ///
    /// # Errors
    /// [`Stop::Shutdown`] on a triple fault.
    pub fn deliver_interrupt(&mut self, vector: u8) -> Outcome {
        let event = Event { vector, source: Source::External, error_code: None };
        match self.deliver(event) {
            Err(Stop::Exception) => self.deliver_exception(self.fault),
            other => other,
        }
    }

    /// #DB after an instruction that ran with RFLAGS.TF set.
    ///
    /// # Errors
    /// [`Stop::Shutdown`] on a triple fault.
    pub fn single_step_trap(&mut self) -> Outcome {
        if self.shadow == InterruptShadow::MovSs {
            return Ok(());
        }
        self.dr6 |= x86::dr6::BS;
        self.deliver_with_faults(Fault { vector: exception::DB, ..Fault::default() }, Source::External)
    }

    /// INT n, INT3, INTO (`Source::Software`) and INT1 (`Source::External`): [`Core::rip`] is that of the next instruction already.
    ///
    /// # Errors
    /// The faults of delivery, to be raised at the instruction itself.
    pub(crate) fn software_interrupt(&mut self, vector: u8, source: Source) -> Outcome {
        let stepping = self.system_flags & rflags::TF != 0;
        self.deliver(Event { vector, source, error_code: None })?;
        if stepping {
            // Entering a handler clears TF, and the trap of the INT itself goes with it (SDM vol. 3, 18.3.1.4).
            self.shadow = InterruptShadow::MovSs;
        }
        Ok(())
    }

    fn deliver_with_faults(&mut self, first: Fault, source: Source) -> Outcome {
        let mut fault = first;
        let mut source = source;
        loop {
            if fault.vector == exception::PF {
                self.cr2 = fault.address;
            }
            let error_code = exception::has_error_code(fault.vector).then_some(fault.error_code);
            match self.deliver(Event { vector: fault.vector, source, error_code }) {
                Err(Stop::Exception) => {}
                other => return other,
            }
            let second = self.fault;
            if second.vector == exception::PF {
                self.cr2 = second.address;
            }
            let clash = is_contributory(second.vector) || second.vector == exception::PF;
            let double = match fault.vector {
                exception::DF if clash => {
                    tracing::debug!(rip = format_args!("{:#x}", self.rip), ?second, "triple fault");
                    return Err(Stop::Shutdown);
                }
                exception::PF => clash,
                vector if is_contributory(vector) => is_contributory(second.vector),
                _ => false,
            };
            fault = if double { Fault { vector: exception::DF, ..Fault::default() } } else { second };
            source = Source::Fault;
        }
    }

    /// Delivers one event; on an error nothing has changed but memory below the stack pointer.
    fn deliver(&mut self, event: Event) -> Outcome {
        self.counters.events += 1;
        self.end_block();
        if self.is_long() {
            self.deliver_long(event)?;
        } else if self.cr0 & x86::cr0::PE == 0 {
            self.deliver_real(event)?;
        } else {
            self.deliver_legacy(event)?;
        }
        // A single-step trap may come after HLT, and a fault before a shadow has passed.
        self.halted = false;
        self.shadow = InterruptShadow::None;
        if event.vector == exception::DB {
            self.dr7 &= !x86::dr7::GD;
        }
        Ok(())
    }

    /// RFLAGS as an event pushes them.
    fn pushed_flags(&self, event: Event) -> u64 {
        let rf = if event.source == Source::Fault && event.vector != exception::DF { rflags::RF } else { 0 };
        self.rflags() | rf
    }

    /// The flags with which a handler starts: all gates clear TF, NT, RF and VM, interrupt gates IF as well.
    fn enter_handler_flags(&mut self, trap_gate: bool) {
        self.system_flags &= !(rflags::TF | rflags::NT | rflags::RF | rflags::VM);
        if !trap_gate {
            self.system_flags &= !rflags::IF;
        }
    }

    /// IA-32e mode (SDM vol. 3, 7.14).
    fn deliver_long(&mut self, event: Event) -> Outcome {
        let ext = event.ext();
        let offset = u64::from(event.vector) * 16;
        if offset + 15 > u64::from(self.idtr.limit) {
            return self.raise_with(exception::GP, event.gate_error());
        }
        let low: u64 = self.read_system(self.idtr.base.wrapping_add(offset))?;
        let high: u64 = self.read_system(self.idtr.base.wrapping_add(offset + 8))?;
        let kind = (low >> 40 & 0x1f) as u16;
        let software_forbidden = event.source == Source::Software && ((low >> 45 & 3) as u8) < self.cpl;
        if !matches!(kind, Segment::TYPE_INTERRUPT_GATE | Segment::TYPE_TRAP_GATE) || software_forbidden {
            return self.raise_with(exception::GP, event.gate_error());
        }
        if low >> 47 & 1 == 0 {
            return self.raise_with(exception::NP, event.gate_error());
        }
        let target = (low & 0xffff) | (low >> 32 & 0xffff_0000) | high << 32;
        let (cs, new_cpl) = self.handler_code_segment((low >> 16) as u16, ext)?;
        if !cs.has(Segment::L) || cs.has(Segment::DB) {
            return self.raise_with(exception::GP, selector_error(cs.selector) | ext);
        }
        if !x86::paging::is_canonical(target) {
            return self.raise_with(exception::GP, ext);
        }
        let ist = low >> 32 & 7;
        let top = if ist != 0 {
            self.tss_word(28 + ist * 8, ext)?
        } else if new_cpl < self.cpl {
            self.tss_word(4 + u64::from(new_cpl) * 8, ext)?
        } else {
            self.gpr[x86::gpr::RSP]
        };
        if !x86::paging::is_canonical(top) {
            return self.raise_with(exception::SS, ext);
        }
        let rights = if new_cpl == 3 { Rights::User } else { Rights::Supervisor };
        let mut stack = Stack::flat(top & !0xf, rights);
        let (ss, old_cs) = (self.segments[seg::SS].selector, self.segments[seg::CS].selector);
        stack.push(self, 8, u64::from(ss))?;
        stack.push(self, 8, self.gpr[x86::gpr::RSP])?;
        stack.push(self, 8, self.pushed_flags(event))?;
        stack.push(self, 8, u64::from(old_cs))?;
        stack.push(self, 8, self.rip)?;
        if let Some(code) = event.error_code {
            stack.push(self, 8, u64::from(code))?;
        }
        self.gpr[x86::gpr::RSP] = stack.sp;
        self.segments[seg::CS] = Segment { selector: (cs.selector & !3) | u16::from(new_cpl), ..cs };
        if new_cpl != self.cpl {
            self.segments[seg::SS] = Self::null_stack_segment(u16::from(new_cpl), new_cpl);
            self.cpl = new_cpl;
        }
        self.rip = target;
        self.enter_handler_flags(kind == Segment::TYPE_TRAP_GATE);
        self.update_code_mode();
        Ok(())
    }

    /// The code segment of a gate and the privilege level it leads to.
    fn handler_code_segment(&mut self, selector: u16, ext: u32) -> Outcome<(Segment, u8)> {
        if is_null(selector) {
            return self.raise_with(exception::GP, ext);
        }
        let (mut cs, address) = self.fetch_descriptor(selector, exception::GP, ext)?;
        if !cs.has(Segment::S | Segment::CODE) || cs.dpl() > self.cpl {
            return self.raise_with(exception::GP, selector_error(selector) | ext);
        }
        if !cs.has(Segment::PRESENT) {
            return self.raise_with(exception::NP, selector_error(selector) | ext);
        }
        self.mark_accessed(&mut cs, address)?;
        let new_cpl = if cs.has(Segment::CONFORMING_OR_EXPAND_DOWN) { self.cpl } else { cs.dpl() };
        Ok((cs, new_cpl))
    }

    /// A 64-bit word of the 64-bit TSS.
    pub(crate) fn tss_word(&mut self, offset: u64, ext: u32) -> Outcome<u64> {
        if offset + 7 > u64::from(self.tr.limit) {
            return self.raise_with(exception::TS, selector_error(self.tr.selector) | ext);
        }
        self.read_system(self.tr.base.wrapping_add(offset))
    }

    /// Stack segment and pointer for privilege level `cpl` from a 16- or 32-bit TSS.
    pub(crate) fn legacy_tss_stack(&mut self, cpl: u8, ext: u32) -> Outcome<(Segment, u64)> {
        let wide = self.tr.kind() & 8 != 0;
        let (offset, size) = if wide { (4 + u64::from(cpl) * 8, 8) } else { (2 + u64::from(cpl) * 4, 4) };
        if offset + size - 1 > u64::from(self.tr.limit) {
            return self.raise_with(exception::TS, selector_error(self.tr.selector) | ext);
        }
        let at = self.tr.base.wrapping_add(offset) & 0xffff_ffff;
        let (sp, selector) = if wide {
            (u64::from(self.read_system::<u32>(at)?), self.read_system::<u16>(at.wrapping_add(4) & 0xffff_ffff)?)
        } else {
            (u64::from(self.read_system::<u16>(at)?), self.read_system::<u16>(at.wrapping_add(2) & 0xffff_ffff)?)
        };
        let ss = self.fetch_stack_segment(selector, cpl, exception::TS, ext)?;
        Ok((ss, sp))
    }

    /// Protected and virtual-8086 mode outside IA-32e mode (SDM vol. 3, 7.12).
    fn deliver_legacy(&mut self, event: Event) -> Outcome {
        let ext = event.ext();
        let offset = u64::from(event.vector) * 8;
        if offset + 7 > u64::from(self.idtr.limit) {
            return self.raise_with(exception::GP, event.gate_error());
        }
        let gate: u64 = self.read_system(self.idtr.base.wrapping_add(offset) & 0xffff_ffff)?;
        let kind = (gate >> 40 & 0x1f) as u16;
        let software_forbidden = event.source == Source::Software && ((gate >> 45 & 3) as u8) < self.cpl;
        // 6 and 7 are the 16-bit gates, 14 and 15 the 32-bit ones.
        if !matches!(kind & !8, 6 | 7) || software_forbidden {
            return self.raise_with(exception::GP, event.gate_error());
        }
        if gate >> 47 & 1 == 0 {
            return self.raise_with(exception::NP, event.gate_error());
        }
        let wide = kind & 8 != 0;
        let size = if wide { 4 } else { 2 };
        let target = (gate & 0xffff) | if wide { gate >> 32 & 0xffff_0000 } else { 0 };
        let (cs, new_cpl) = self.handler_code_segment((gate >> 16) as u16, ext)?;
        let from_v86 = self.is_v86();
        if from_v86 && new_cpl != 0 {
            return self.raise_with(exception::GP, selector_error(cs.selector) | ext);
        }
        if target > u64::from(cs.limit) {
            return self.raise_with(exception::GP, ext);
        }
        let flags = self.pushed_flags(event);
        let rights = if new_cpl == 3 { Rights::User } else { Rights::Supervisor };
        let mut new_ss = None;
        let mut stack = if new_cpl < self.cpl {
            let (ss, sp) = self.legacy_tss_stack(new_cpl, ext)?;
            new_ss = Some(ss);
            Stack::in_segment(ss, sp, rights, selector_error(ss.selector) | ext)
        } else {
            Stack::current(self)
        };
        // The new stack's limit is checked as a protected-mode segment even when the old mode was virtual-8086.
        let old_mode = self.mode;
        self.mode = DecodeMode(self.mode.0 & !DecodeMode::REAL);
        let pushed = self.push_legacy_frame(&mut stack, size, flags, event.error_code, from_v86, new_ss.is_some());
        self.mode = old_mode;
        pushed?;
        self.segments[seg::CS] = Segment { selector: (cs.selector & !3) | u16::from(new_cpl), ..cs };
        if let Some(ss) = new_ss {
            self.segments[seg::SS] = ss;
            self.cpl = new_cpl;
        }
        if from_v86 {
            for number in [seg::ES, seg::DS, seg::FS, seg::GS] {
                self.segments[number] = Segment::default();
            }
        }
        stack.commit(self);
        self.rip = target;
        self.enter_handler_flags(kind & 1 != 0);
        self.update_mode();
        Ok(())
    }

    fn push_legacy_frame(
        &mut self,
        stack: &mut Stack,
        size: u8,
        flags: u64,
        error_code: Option<u32>,
        from_v86: bool,
        switched: bool,
    ) -> Outcome {
        if from_v86 {
            for number in [seg::GS, seg::FS, seg::DS, seg::ES] {
                stack.push(self, size, u64::from(self.segments[number].selector))?;
            }
        }
        if switched {
            stack.push(self, size, u64::from(self.segments[seg::SS].selector))?;
            stack.push(self, size, self.gpr[x86::gpr::RSP])?;
        }
        stack.push(self, size, flags)?;
        stack.push(self, size, u64::from(self.segments[seg::CS].selector))?;
        stack.push(self, size, self.rip)?;
        match error_code {
            Some(code) => stack.push(self, size, u64::from(code)),
            None => Ok(()),
        }
    }

    /// Real mode: the interrupt vector table (SDM vol. 3, 21.1.4). No error codes are pushed.
    fn deliver_real(&mut self, event: Event) -> Outcome {
        let offset = u64::from(event.vector) * 4;
        if offset + 3 > u64::from(self.idtr.limit) {
            return self.raise_with(exception::GP, event.gate_error());
        }
        let entry: u32 = self.read_system(self.idtr.base.wrapping_add(offset) & 0xffff_ffff)?;
        let mut stack = Stack::current(self);
        stack.push(self, 2, self.rflags())?;
        stack.push(self, 2, u64::from(self.segments[seg::CS].selector))?;
        stack.push(self, 2, self.rip)?;
        stack.commit(self);
        self.load_real_code_segment((entry >> 16) as u16);
        self.rip = u64::from(entry & 0xffff);
        self.system_flags &= !(rflags::IF | rflags::TF | rflags::AC | rflags::RF);
        self.update_code_mode();
        Ok(())
    }

    /// CS in real and virtual-8086 mode.
    pub(crate) fn load_real_code_segment(&mut self, selector: u16) {
        let mut cs = Segment { selector, base: u64::from(selector) << 4, ..self.segments[seg::CS] };
        if self.is_v86() {
            (cs.limit, cs.attributes) = (0xffff, 0xfb);
        }
        self.segments[seg::CS] = cs;
    }
}
