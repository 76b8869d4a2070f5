//! Between the interpreter's state and the plain-data [`CpuState`].

use x86::{Activity, CpuState, cr0, cr4, efer};

use crate::core::{Core, seg};
use crate::ram::Ram;

/// The PDPTEs that PAE paging outside IA-32e mode would have loaded with CR3.
fn state_pdptes(ram: &Ram, state: &CpuState) -> [u64; 4] {
    let pae = state.cr0 & cr0::PG != 0 && state.cr4 & cr4::PAE != 0 && state.efer & efer::LMA == 0;
    std::array::from_fn(|n| if pae { ram.load((state.cr3 & 0xffff_ffe0) + n as u64 * 8).unwrap_or(0) } else { 0 })
}

impl Core {
    /// Loads everything but what the platform holds (TSC, APIC base, CR8) and the activity beyond HLT.
    pub fn load_state(&mut self, state: &CpuState) {
        self.gpr[..16].copy_from_slice(&state.gprs);
        self.rip = state.rip;
        self.segments = [state.es, state.cs, state.ss, state.ds, state.fs, state.gs];
        (self.ldtr, self.tr, self.gdtr, self.idtr) = (state.ldtr, state.tr, state.gdtr, state.idtr);
        (self.cr0, self.cr2, self.cr3, self.cr4) = (state.cr0, state.cr2, state.cr3, state.cr4);
        (self.efer, self.xcr0) = (state.efer, state.xcr0);
        (self.dr, self.dr6, self.dr7) = (state.dr, state.dr6, state.dr7);
        self.cpl = if self.cr0 & x86::cr0::PE == 0 { 0 } else { (state.ss.attributes >> 5 & 3) as u8 };
        self.set_rflags(state.rflags);
        if self.is_v86() {
            self.cpl = 3;
        }
        self.fpu.load_image(&state.xsave);
        self.shadow = state.interrupt_shadow;
        self.nmi_blocked = state.nmi_blocked;
        self.acknowledged_interrupt = state.acknowledged_interrupt;
        self.halted = state.activity == Activity::Halted;
        self.pdptes = state_pdptes(&self.ram, state);
        for (number, value) in &state.msrs {
            if !self.msrs.restore(*number, *value) {
                tracing::debug!(msr = format_args!("{number:#x}"), "the core does not hold this MSR of a loaded state");
            }
        }
        self.update_mode();
        self.flush_translations();
    }

    /// Saves the same; the platform's owner fills in the rest.
    pub fn save_state(&self) -> CpuState {
        let mut state = CpuState::reset(true);
        state.gprs.copy_from_slice(&self.gpr[..16]);
        state.rip = self.rip;
        state.rflags = self.rflags();
        [state.es, state.cs, state.ss, state.ds, state.fs, state.gs] = self.segments;
        // The bases that WRFSBASE and MSRs change are kept here.
        state.fs.base = self.segment_bases[seg::FS];
        state.gs.base = self.segment_bases[seg::GS];
        (state.ldtr, state.tr, state.gdtr, state.idtr) = (self.ldtr, self.tr, self.gdtr, self.idtr);
        (state.cr0, state.cr2, state.cr3, state.cr4) = (self.cr0, self.cr2, self.cr3, self.cr4);
        (state.efer, state.xcr0) = (self.efer, self.xcr0);
        (state.dr, state.dr6, state.dr7) = (self.dr, self.dr6, self.dr7);
        state.msrs = self.msrs.save();
        state.xsave = self.fpu.save_image();
        state.activity = if self.halted { Activity::Halted } else { Activity::Running };
        state.interrupt_shadow = self.shadow;
        state.nmi_blocked = self.nmi_blocked;
        state.acknowledged_interrupt = self.acknowledged_interrupt;
        state
    }
}
