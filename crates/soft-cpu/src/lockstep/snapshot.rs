//! What an instruction can change in a CPU, besides memory.

use x86::{DescriptorTable, InterruptShadow, Segment, rflags};

use crate::core::{Core, DecodeMode, Fault};
use crate::flags::LazyFlags;
use crate::fpu::{FpuState, offset};
use crate::mem::CODE_STORE_COUNTERS;
use crate::msr::Msrs;
use crate::statistics::Counters;

/// A copy of it.
#[derive(Clone)]
pub(super) struct Snapshot {
    pub(super) gpr: [u64; 32],
    pub(super) rip: u64,
    pub(super) flags: LazyFlags,
    system_flags: u64,
    segment_bases: [u64; 8],
    mode: DecodeMode,
    segments: [Segment; 6],
    ldtr: Segment,
    tr: Segment,
    gdtr: DescriptorTable,
    idtr: DescriptorTable,
    control: [u64; 6],
    debug: [u64; 6],
    cpl: u8,
    shadow: InterruptShadow,
    nmi_blocked: bool,
    halted: bool,
    pdptes: [u64; 4],
    fpu: Box<FpuState>,
    msrs: Msrs,
    pub(super) fault: Fault,
    pub(super) counters: Counters,
    code_stores: [(u64, u32); CODE_STORE_COUNTERS],
}

/// The general registers.
const GENERAL: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

/// Where the image has x87's control, status and tags, MXCSR, and the x87 registers.
const X87: [std::ops::Range<usize>; 3] =
    [offset::FCW..offset::FOP, offset::MXCSR..offset::MXCSR_MASK, offset::ST..offset::XMM];

impl Snapshot {
    pub(super) fn take(core: &Core) -> Self {
        // Named one by one, so that what is added to the state is not forgotten here.
        let Core {
            gpr,
            rip,
            flags,
            system_flags,
            segment_bases,
            rights: _,
            block_end: _,
            tlb: _,
            native: _,
            mode,
            segments,
            ldtr,
            tr,
            gdtr,
            idtr,
            cr0,
            cr2,
            cr3,
            cr4,
            efer,
            xcr0,
            dr,
            dr6,
            dr7,
            cpl,
            shadow,
            nmi_blocked,
            // Delivered before the first block of a run.
            acknowledged_interrupt: _,
            halted,
            pdptes,
            fpu,
            msrs,
            fault,
            ram: _,
            platform: _,
            link: _,
            layer: _,
            counters,
            code_stores,
            fetch: _,
            jumps: _,
            forgot_translations: _,
            stores: _,
        } = core;
        Self {
            gpr: *gpr,
            rip: *rip,
            flags: *flags,
            system_flags: *system_flags,
            segment_bases: *segment_bases,
            mode: *mode,
            segments: *segments,
            ldtr: *ldtr,
            tr: *tr,
            gdtr: *gdtr,
            idtr: *idtr,
            control: [*cr0, *cr2, *cr3, *cr4, *efer, *xcr0],
            debug: [dr[0], dr[1], dr[2], dr[3], *dr6, *dr7],
            cpl: *cpl,
            shadow: *shadow,
            nmi_blocked: *nmi_blocked,
            halted: *halted,
            pdptes: *pdptes,
            fpu: fpu.clone(),
            msrs: msrs.clone(),
            fault: *fault,
            counters: *counters,
            code_stores: *code_stores,
        }
    }

    pub(super) fn restore(&self, core: &mut Core) {
        let Self {
            gpr,
            rip,
            flags,
            system_flags,
            segment_bases,
            mode,
            segments,
            ldtr,
            tr,
            gdtr,
            idtr,
            control,
            debug,
            cpl,
            shadow,
            nmi_blocked,
            halted,
            pdptes,
            fpu,
            msrs,
            fault,
            counters,
            code_stores,
        } = self;
        core.gpr = *gpr;
        core.rip = *rip;
        core.flags = *flags;
        core.system_flags = *system_flags;
        core.segment_bases = *segment_bases;
        core.mode = *mode;
        core.segments = *segments;
        (core.ldtr, core.tr, core.gdtr, core.idtr) = (*ldtr, *tr, *gdtr, *idtr);
        [core.cr0, core.cr2, core.cr3, core.cr4, core.efer, core.xcr0] = *control;
        [core.dr[0], core.dr[1], core.dr[2], core.dr[3], core.dr6, core.dr7] = *debug;
        core.cpl = *cpl;
        core.shadow = *shadow;
        core.nmi_blocked = *nmi_blocked;
        core.halted = *halted;
        core.pdptes = *pdptes;
        core.fpu.clone_from(fpu);
        core.msrs.clone_from(msrs);
        core.fault = *fault;
        core.counters = *counters;
        core.code_stores = *code_stores;
        core.update_rights();
    }

    /// What `other` has instead, a line each; of the flags only those in `flags` count.
    pub(super) fn differences(&self, other: &Self, flags: u64) -> Vec<String> {
        let mut lines = Vec::new();
        let mut line = |name: &str, ours: u64, theirs: u64| {
            if ours != theirs {
                lines.push(format!("{name}: interpreted {ours:#x}, translated {theirs:#x}"));
            }
        };
        for (n, name) in GENERAL.iter().enumerate() {
            line(name, self.gpr[n], other.gpr[n]);
        }
        line("rip", self.rip, other.rip);
        line("status flags", self.flags.bits() & flags, other.flags.bits() & flags);
        line("other flags", self.system_flags & !rflags::RF, other.system_flags & !rflags::RF);
        line("instructions", self.counters.instructions, other.counters.instructions);
        for (n, name) in ["cr0", "cr2", "cr3", "cr4", "efer", "xcr0"].iter().enumerate() {
            line(name, self.control[n], other.control[n]);
        }
        let fpu_differs = self.fpu != other.fpu;
        // Not the pointers to the last x87 instruction and its operand, which are not modelled.
        for at in X87.into_iter().flatten().filter(|_| fpu_differs) {
            line(&format!("byte {at} of the FXSAVE image"), self.fpu.image[at].into(), other.fpu.image[at].into());
        }
        for n in (0..16).filter(|_| fpu_differs) {
            for (name, start) in [("xmm", offset::XMM), ("upper ymm", offset::YMM_HIGH)] {
                let value = |s: &Self, half: usize| {
                    let at = start + n * 16 + half * 8;
                    s.fpu.image[at..at + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
                };
                for half in 0..2 {
                    line(&format!("{name}{n}[{half}]"), value(self, half), value(other, half));
                }
            }
        }
        let mut same = |name: &str, same: bool| {
            if !same {
                lines.push(format!("{name} differ"));
            }
        };
        same("segments", self.segments == other.segments && self.segment_bases == other.segment_bases);
        same(
            "descriptor tables",
            (self.gdtr, self.idtr, self.ldtr, self.tr) == (other.gdtr, other.idtr, other.ldtr, other.tr),
        );
        same("debug registers", self.debug == other.debug);
        same(
            "privilege, mode, shadow, halt or NMI",
            (self.cpl, self.mode, self.shadow, self.halted, self.nmi_blocked)
                == (other.cpl, other.mode, other.shadow, other.halted, other.nmi_blocked),
        );
        same("MSRs", self.msrs == other.msrs && self.pdptes == other.pdptes);
        lines
    }
}
