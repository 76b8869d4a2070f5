//! The whole architectural state of one vCPU as plain data: what a backend loads before it runs and saves when it stops.

use crate::control::{cr0, dr6, dr7};
use crate::{DescriptorTable, Segment, msr, rflags};

/// Indices of the general-purpose registers in [`CpuState::gprs`], by their encoding.
pub mod gpr {
    /// RAX.
    pub const RAX: usize = 0;
    /// RCX.
    pub const RCX: usize = 1;
    /// RDX.
    pub const RDX: usize = 2;
    /// RBX.
    pub const RBX: usize = 3;
    /// RSP.
    pub const RSP: usize = 4;
    /// RBP.
    pub const RBP: usize = 5;
    /// RSI.
    pub const RSI: usize = 6;
    /// RDI.
    pub const RDI: usize = 7;
}

/// What a vCPU does between runs (the multiprocessor state of the boot protocol in SDM vol. 3, 9.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activity {
    /// Executes instructions.
    #[default]
    Running,
    /// Waits in HLT for an interrupt.
    Halted,
    /// An application processor after reset or INIT: waits for a start-up IPI.
    WaitForSipi,
    /// Stopped by a triple fault: only a reset helps.
    Shutdown,
}

/// Which instruction still holds interrupts off for one more instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InterruptShadow {
    /// None.
    #[default]
    None,
    /// STI.
    Sti,
    /// MOV SS or POP SS: debug traps and NMIs wait too.
    MovSs,
}

/// A local APIC with its timer, as plain data. Events that it holds for the processor (NMI, INIT, a start-up IPI) are none of its registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalApicState {
    /// The register page (SDM vol. 3, table 12-1): register `n` is at offset `n * 16`. In x2APIC mode the ID and the logical ID have all their bits, and the
    /// interrupt command's upper half is where the xAPIC has it.
    pub registers: [u32; 64],
    /// IA32_TSC_DEADLINE; 0 while it is not armed.
    pub tsc_deadline: u64,
}

/// One vCPU, as plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gprs: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// ES.
    pub es: Segment,
    /// CS.
    pub cs: Segment,
    /// SS.
    pub ss: Segment,
    /// DS.
    pub ds: Segment,
    /// FS.
    pub fs: Segment,
    /// GS.
    pub gs: Segment,
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table.
    pub idtr: DescriptorTable,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// Task priority (CR8), four bits.
    pub cr8: u64,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// XCR0.
    pub xcr0: u64,
    /// x87, SSE and AVX state: an XSAVE image in the standard format of `xcr0`'s components (SDM vol. 1, 13.4), 832 bytes.
    pub xsave: Vec<u8>,
    /// Other MSRs, `(number, value)`, sorted by number: those that the backend implements.
    pub msrs: Vec<(u32, u64)>,
    /// Time stamp counter.
    pub tsc: u64,
    /// Running, halted, waiting, shut down.
    pub activity: Activity,
    /// Interrupts held off by the instruction just executed.
    pub interrupt_shadow: InterruptShadow,
    /// An NMI is being handled: others wait for IRET.
    pub nmi_blocked: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// An interrupt of the PIC's that the processor has acknowledged and not begun to handle: it comes before the next instruction. One of the local APIC's
    /// has no place here: it is put back there, as requested and not in service.
    pub acknowledged_interrupt: Option<u8>,
    /// The local APIC; `None` leaves the one that is there as it is.
    pub local_apic: Option<Box<LocalApicState>>,
}

/// Size of [`CpuState::xsave`]: legacy area 512, header 64, AVX 256 bytes.
pub const XSAVE_SIZE: usize = 832;

impl CpuState {
    /// The state after power-on or RESET (SDM vol. 3, table 10-1): real mode, CS:IP = f000:fff0 with base 0xffff0000.
    ///
    /// `bootstrap` marks the bootstrap processor; the others wait for a start-up IPI.
    pub fn reset(bootstrap: bool) -> Self {
        let mut cs = Segment::real_mode(0xf000);
        cs.base = 0xffff_0000;
        cs.attributes |= Segment::CODE;
        let data = Segment::real_mode(0);
        let mut xsave = vec![0; XSAVE_SIZE];
        xsave[0..2].copy_from_slice(&0x0040u16.to_le_bytes()); // FCW after reset
        xsave[24..28].copy_from_slice(&0x1f80u32.to_le_bytes()); // MXCSR
        let system = |kind| Segment { limit: 0xffff, attributes: Segment::PRESENT | kind, ..Segment::default() };
        Self {
            gprs: [0; 16],
            rip: 0xfff0,
            rflags: rflags::RESERVED_ONE,
            es: data,
            cs,
            ss: data,
            ds: data,
            fs: data,
            gs: data,
            ldtr: system(Segment::TYPE_LDT),
            tr: system(Segment::TYPE_TSS_BUSY),
            gdtr: DescriptorTable { base: 0, limit: 0xffff },
            idtr: DescriptorTable { base: 0, limit: 0xffff },
            cr0: cr0::ET | cr0::NW | cr0::CD,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            dr: [0; 4],
            dr6: dr6::RESET,
            dr7: dr7::RESET,
            efer: 0,
            apic_base: 0xfee0_0000 | msr::apic_base::ENABLE | if bootstrap { msr::apic_base::BSP } else { 0 },
            xcr0: 1,
            xsave,
            msrs: Vec::new(),
            tsc: 0,
            activity: if bootstrap { Activity::Running } else { Activity::WaitForSipi },
            interrupt_shadow: InterruptShadow::None,
            nmi_blocked: false,
            nmi_pending: false,
            acknowledged_interrupt: None,
            local_apic: None,
        }
    }
}
