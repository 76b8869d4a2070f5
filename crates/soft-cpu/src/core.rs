//! The CPU's state as the interpreter works on it, and the facts derived from it that decide how code is decoded.

use x86::{CpuState, DescriptorTable, InterruptShadow, Segment, cr0, cr4, efer, rflags};

use crate::fetch::FetchTlb;
use crate::flags::LazyFlags;
use crate::fpu::FpuState;
use crate::layer::LayerCell;
use crate::lockstep::StoreLog;
use crate::mem::CODE_STORE_COUNTERS;
use crate::platform::Platform;
use crate::ram::Ram;
use crate::smp::{CpuLink, attention};
use crate::statistics::Counters;
use crate::tlb::{Rights, Tlb};
use crate::translate::{Jumps, NativeState};

/// Segment registers by their encoding in an instruction, and two for [`Core::segment_bases`].
pub mod seg {
    /// ES.
    pub const ES: usize = 0;
    /// CS.
    pub const CS: usize = 1;
    /// SS.
    pub const SS: usize = 2;
    /// DS.
    pub const DS: usize = 3;
    /// FS.
    pub const FS: usize = 4;
    /// GS.
    pub const GS: usize = 5;
    /// No segment: base zero, no checks.
    pub const FLAT: usize = 6;
    /// The same for an operand whose base is RSP or RBP: in 64-bit code an address that is not canonical raises #SS there.
    pub const FLAT_STACK: usize = 7;
}

/// Index into [`Core::gpr`] of a register that is always zero, for a missing base or index.
pub const GPR_ZERO: u8 = 16;

/// Index into [`Core::gpr`] of the linear page that the running 64-bit code lies on. What code says relative to its own place is decoded relative to its page, so
/// that decoded code serves wherever the page is mapped.
pub const GPR_PAGE: u8 = 17;

/// Why an instruction did not complete. The details of an exception are in [`Core::fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// An exception: RIP goes back to the instruction, then it is delivered.
    Exception,
    /// The instruction is to be executed again from its start, after a look at what is pending (a REP that ran long).
    Again,
    /// The CPU is shut down by a triple fault.
    Shutdown,
}

/// What an instruction returns.
pub type Outcome<T = ()> = Result<T, Stop>;

/// An exception on its way to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fault {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code; pushed only for the vectors that have one.
    pub error_code: u32,
    /// The linear address, for #PF.
    pub address: u64,
}

/// How code is to be decoded and what it may use: part of a cached block's key, so that the checks cost nothing at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct DecodeMode(pub u32);

impl DecodeMode {
    /// 32-bit code segment. Neither this nor [`Self::CODE64`]: 16-bit.
    pub const CODE32: u32 = 1 << 0;
    /// 64-bit code segment.
    pub const CODE64: u32 = 1 << 1;
    /// CPL 3.
    pub const USER: u32 = 1 << 2;
    /// SS.B: 32-bit stack pointer (outside 64-bit code).
    pub const STACK32: u32 = 1 << 3;
    /// Real mode or virtual-8086 mode: selectors are paragraphs.
    pub const REAL: u32 = 1 << 4;
    /// x87 and MMX instructions run (CR0.EM and TS clear).
    pub const X87: u32 = 1 << 5;
    /// SSE instructions run (CR4.OSFXSR set, CR0.EM and TS clear).
    pub const SSE: u32 = 1 << 6;
    /// AVX instructions run (also CR4.OSXSAVE and XCR0's SSE and AVX bits).
    pub const AVX: u32 = 1 << 7;
    /// CR0.TS is set: what would run otherwise raises #NM rather than #UD.
    pub const TASK_SWITCHED: u32 = 1 << 8;
    /// Long mode is active (64-bit or compatibility).
    pub const LONG: u32 = 1 << 9;
    /// 32-bit user code in flat segments: CS, SS, DS and ES begin at zero, end at 4 GiB and allow what such segments do. So it is on Linux.
    pub const FLAT32: u32 = 1 << 10;
    /// With [`Self::FLAT32`]: FS ends at 4 GiB above its base and can be read and written.
    pub const OPEN_FS: u32 = 1 << 11;
    /// With [`Self::FLAT32`]: likewise GS.
    pub const OPEN_GS: u32 = 1 << 12;

    /// Whether all of `bits` are set.
    #[inline(always)]
    pub const fn has(self, bits: u32) -> bool {
        self.0 & bits == bits
    }

    /// 16, 32 or 64.
    pub const fn bitness(self) -> u32 {
        if self.has(Self::CODE64) {
            64
        } else if self.has(Self::CODE32) {
            32
        } else {
            16
        }
    }

    /// 64-bit code, or 32-bit code as [`Self::FLAT32`] says: the instruction pointer is a linear address. Such code is decoded relative to its page and may be
    /// translated.
    #[inline(always)]
    pub const fn is_flat(self) -> bool {
        self.0 & (Self::CODE64 | Self::FLAT32) != 0
    }

    /// The bits of an instruction pointer that count.
    pub const fn ip_mask(self) -> u64 {
        if self.has(Self::CODE64) {
            u64::MAX
        } else if self.has(Self::CODE32) {
            0xffff_ffff
        } else {
            0xffff
        }
    }
}

/// One CPU. The fields up to `block_end` are what every instruction touches.
#[repr(C)]
pub struct Core {
    /// General registers by encoding; [`GPR_ZERO`] is always zero, [`GPR_PAGE`] the page of the code, the rest unused (a power of two keeps bounds checks away).
    pub gpr: [u64; 32],
    /// While a block runs: the address after the block, or where its last instruction has jumped. Between blocks: the next instruction.
    pub rip: u64,
    /// CF, PF, AF, ZF, SF, OF.
    pub flags: LazyFlags,
    /// The other bits of RFLAGS, bit 1 included.
    pub system_flags: u64,
    /// Bases by [`seg`] number; [`seg::FLAT`] is zero. In 64-bit code only FS and GS are used.
    pub segment_bases: [u64; 8],
    /// Whose rights data accesses have now.
    pub rights: Rights,
    /// Instructions of the running block to execute; set to zero to leave it after the current one.
    pub block_end: usize,
    /// What generated code keeps here.
    pub(crate) native: NativeState,
    /// Translations for data; generated code looks into them.
    pub tlb: Tlb,

    /// How code is decoded now; see [`Core::update_mode`].
    pub mode: DecodeMode,
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [Segment; 6],
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table register.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table register.
    pub idtr: DescriptorTable,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// XCR0.
    pub xcr0: u64,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// Current privilege level.
    pub cpl: u8,
    /// Interrupts held off for one instruction.
    pub shadow: InterruptShadow,
    /// An NMI is being handled.
    pub nmi_blocked: bool,
    /// The vector of an external interrupt that was acknowledged elsewhere and is to be delivered first of all.
    pub acknowledged_interrupt: Option<u8>,
    /// HLT was executed.
    pub halted: bool,
    /// The guest-physical page of each PDPTE, loaded with CR3 in PAE paging outside long mode.
    pub pdptes: [u64; 4],
    /// x87, SSE and AVX registers.
    pub fpu: Box<FpuState>,
    /// MSRs that the core holds itself.
    pub msrs: crate::msr::Msrs,
    /// The exception behind [`Stop::Exception`].
    pub fault: Fault,
    /// Guest RAM.
    pub ram: Ram,
    /// The world.
    pub platform: Box<dyn Platform>,
    /// This CPU's mailbox and its siblings'.
    pub link: CpuLink,
    /// Counts for `--stats`.
    pub counters: Counters,
    /// What it is at.
    pub layer: LayerCell,
    /// Guest-physical page numbers, and how many stores found code there.
    pub code_stores: [(u64, u32); CODE_STORE_COUNTERS],
    /// Translations for instructions.
    pub fetch: FetchTlb,
    /// Generated code by instruction pointer.
    pub(crate) jumps: Jumps,
    /// Some translation has been forgotten since this was last cleared: INVLPG and the like, or a change of how paging works.
    pub forgot_translations: bool,
    /// What is stored, in lockstep.
    pub(crate) stores: Option<Box<StoreLog>>,
}

impl Core {
    /// A CPU after RESET over `ram`.
    pub fn new(ram: Ram, platform: Box<dyn Platform>, link: CpuLink) -> Box<Self> {
        let mut core = Box::new(Self {
            gpr: [0; 32],
            rip: 0,
            flags: LazyFlags::default(),
            system_flags: rflags::RESERVED_ONE,
            segment_bases: [0; 8],
            rights: Rights::Supervisor,
            block_end: 0,
            tlb: Tlb::new(),
            native: NativeState::default(),
            mode: DecodeMode::default(),
            segments: [Segment::default(); 6],
            ldtr: Segment::default(),
            tr: Segment::default(),
            gdtr: DescriptorTable::default(),
            idtr: DescriptorTable::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            dr: [0; 4],
            dr6: 0,
            dr7: 0,
            cpl: 0,
            shadow: InterruptShadow::None,
            nmi_blocked: false,
            acknowledged_interrupt: None,
            halted: false,
            pdptes: [0; 4],
            fpu: Box::default(),
            msrs: crate::msr::Msrs::default(),
            fault: Fault::default(),
            ram,
            platform,
            link,
            counters: Counters::default(),
            layer: LayerCell::default(),
            code_stores: [(u64::MAX, 0); CODE_STORE_COUNTERS],
            fetch: FetchTlb::default(),
            jumps: Jumps::default(),
            forgot_translations: false,
            stores: None,
        });
        core.load_state(&CpuState::reset(true));
        core
    }

    /// RFLAGS.
    pub fn rflags(&self) -> u64 {
        self.system_flags | self.flags.bits()
    }

    /// Sets all of RFLAGS that exists; the caller has applied the rules of privilege.
    pub fn set_rflags(&mut self, value: u64) {
        const SYSTEM: u64 = rflags::TF
            | rflags::IF
            | rflags::DF
            | rflags::IOPL
            | rflags::NT
            | rflags::RF
            | rflags::VM
            | rflags::AC
            | rflags::VIF
            | rflags::VIP
            | rflags::ID;
        self.flags = LazyFlags::from_bits(value);
        self.system_flags = (value & SYSTEM) | rflags::RESERVED_ONE;
        self.update_rights();
    }

    /// Recomputes [`Core::rights`]; after CPL, RFLAGS.AC or CR4.SMAP have changed.
    pub fn update_rights(&mut self) {
        self.rights = if self.cpl == 3 {
            Rights::User
        } else if self.system_flags & rflags::AC != 0 {
            Rights::SupervisorAc
        } else {
            Rights::Supervisor
        };
        self.native.set_tables(&self.tlb, self.rights);
    }

    /// Whether RFLAGS.VM is set.
    #[inline]
    pub fn is_v86(&self) -> bool {
        self.system_flags & rflags::VM != 0
    }

    /// Whether long mode is active.
    #[inline]
    pub fn is_long(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// Recomputes everything derived from CR0, CR4, EFER, XCR0, CPL and the segment registers. Call it after any of them has changed.
    pub fn update_mode(&mut self) {
        let cs = &self.segments[seg::CS];
        let mut mode = 0;
        if self.is_long() {
            mode |= DecodeMode::LONG;
        }
        if self.is_long() && cs.has(Segment::L) {
            mode |= DecodeMode::CODE64;
        } else if cs.has(Segment::DB) {
            mode |= DecodeMode::CODE32;
        }
        if self.cpl == 3 {
            mode |= DecodeMode::USER;
        }
        // In 64-bit code SS.B means nothing, and must not make two blocks of one piece of code.
        if mode & DecodeMode::CODE64 == 0 && self.segments[seg::SS].has(Segment::DB) {
            mode |= DecodeMode::STACK32;
        }
        if self.cr0 & cr0::PE == 0 || self.is_v86() {
            mode |= DecodeMode::REAL;
        }
        mode |= self.flat_segments(mode);
        if self.cr0 & cr0::TS != 0 {
            mode |= DecodeMode::TASK_SWITCHED;
        }
        if self.cr0 & (cr0::EM | cr0::TS) == 0 {
            mode |= DecodeMode::X87;
            if self.cr4 & cr4::OSFXSR != 0 {
                mode |= DecodeMode::SSE;
                if self.cr4 & cr4::OSXSAVE != 0 && self.xcr0 & 6 == 6 {
                    mode |= DecodeMode::AVX;
                }
            }
        }
        self.mode = DecodeMode(mode);
        for (base, segment) in self.segment_bases.iter_mut().zip(&self.segments) {
            *base = segment.base;
        }
        self.segment_bases[seg::FLAT] = 0;
        self.segment_bases[seg::FLAT_STACK] = 0;
        self.update_rights();
    }

    /// Recomputes what CS, SS and CPL decide, for transfers that change nothing else (SYSCALL, IRET, events): the hot part of [`Self::update_mode`].
    #[inline]
    pub fn update_code_mode(&mut self) {
        const KEPT: u32 = DecodeMode::LONG
            | DecodeMode::REAL
            | DecodeMode::X87
            | DecodeMode::SSE
            | DecodeMode::AVX
            | DecodeMode::TASK_SWITCHED;
        let (cs, ss) = (&self.segments[seg::CS], &self.segments[seg::SS]);
        let mut mode = self.mode.0 & KEPT;
        if mode & DecodeMode::LONG != 0 && cs.has(Segment::L) {
            mode |= DecodeMode::CODE64;
        } else {
            if cs.has(Segment::DB) {
                mode |= DecodeMode::CODE32;
            }
            if ss.has(Segment::DB) {
                mode |= DecodeMode::STACK32;
            }
        }
        let (code, stack) = (cs.base, ss.base);
        if self.cpl == 3 {
            mode |= DecodeMode::USER;
        }
        mode |= self.flat_segments(mode);
        self.mode = DecodeMode(mode);
        self.segment_bases[seg::CS] = code;
        self.segment_bases[seg::SS] = stack;
        self.update_rights();
    }

    /// [`DecodeMode::FLAT32`] and its companions, if code of `mode` runs so.
    #[inline(always)]
    fn flat_segments(&self, mode: u32) -> u32 {
        const WIDE: u32 = DecodeMode::CODE32 | DecodeMode::STACK32 | DecodeMode::USER;
        if mode & (WIDE | DecodeMode::CODE64 | DecodeMode::REAL) == WIDE { self.flat_user_segments() } else { 0 }
    }

    #[inline(never)]
    fn flat_user_segments(&self) -> u32 {
        let [es, cs, ss, ds, fs, gs] = &self.segments;
        let flat = |segment: &Segment| segment.base == 0 && segment.is_open();
        if cs.base != 0 || cs.limit != u32::MAX || ![es, ss, ds].into_iter().all(flat) {
            return 0;
        }
        let open = |segment: &Segment, bit: u32| if segment.is_open() { bit } else { 0 };
        DecodeMode::FLAT32 | open(fs, DecodeMode::OPEN_FS) | open(gs, DecodeMode::OPEN_GS)
    }

    /// Raises an exception without an error code.
    #[cold]
    pub fn raise<T>(&mut self, vector: u8) -> Outcome<T> {
        self.fault = Fault { vector, error_code: 0, address: 0 };
        Err(Stop::Exception)
    }

    /// Raises an exception with an error code.
    #[cold]
    pub fn raise_with<T>(&mut self, vector: u8, error_code: u32) -> Outcome<T> {
        self.fault = Fault { vector, error_code, address: 0 };
        Err(Stop::Exception)
    }

    /// Leaves the running block after the current instruction, because what follows may have to be decoded or checked anew.
    #[inline]
    pub fn end_block(&mut self) {
        self.block_end = 0;
    }

    /// Whether something waits for this CPU: an interrupt, a kick, a request from a sibling.
    #[inline(always)]
    pub fn has_attention(&self) -> bool {
        self.link.attention() != attention::NONE
    }
}
