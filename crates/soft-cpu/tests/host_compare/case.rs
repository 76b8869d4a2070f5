//! What goes into one comparison and what comes out of it, in a form that the process under test can share.

use iced_x86::{Instruction, OpKind, Register};
use x86::XSAVE_SIZE;

/// First byte of the code area, two pages; what lies before and behind it is not mapped.
pub(crate) const CODE: u64 = 0x1001_0000;
/// Size of the code area.
pub(crate) const CODE_SIZE: usize = 0x2000;
/// First byte of the data area: two pages that can be written, and one that can only be read behind them.
pub(crate) const DATA: u64 = 0x1004_0000;
/// Size of the data area's part that can be written.
pub(crate) const DATA_SIZE: usize = 0x2000;
/// First byte of the page that can only be read.
pub(crate) const READ_ONLY: u64 = DATA + DATA_SIZE as u64;
/// First byte of the stack area, two pages.
pub(crate) const STACK: u64 = 0x1008_0000;
/// Size of the stack area.
pub(crate) const STACK_SIZE: usize = 0x2000;
/// Bytes of memory that an instruction can change: data, then stack.
pub(crate) const MEMORY_SIZE: usize = DATA_SIZE + STACK_SIZE;
/// The base of FS in the child.
pub(crate) const FS_BASE: u64 = DATA + 0x1800;
/// The base of GS in the child. Both lie in the data area, so that small displacements reach it.
pub(crate) const GS_BASE: u64 = DATA + 0x1000;
/// What fills the code area around the instruction: INT3.
pub(crate) const FILLER: u8 = 0xcc;
/// Selectors that Linux gives user code.
pub(crate) const CS64: u16 = 0x33;
/// The code segment of 32-bit processes.
pub(crate) const CS32: u16 = 0x23;
/// SS, and DS and ES too.
pub(crate) const SS: u16 = 0x2b;
/// Longest instruction, in bytes.
pub(crate) const MAX_LEN: usize = 15;
/// Most bytes of code in one case.
pub(crate) const MAX_CODE: usize = 80;

/// The memory areas' contents before an instruction.
#[derive(Clone)]
#[repr(C)]
pub(crate) struct Memory {
    /// Data, then stack.
    pub(crate) writable: [u8; MEMORY_SIZE],
    /// The page that can only be read.
    pub(crate) read_only: [u8; 4096],
}

/// The registers that are set and compared.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Registers {
    /// General registers by encoding.
    pub(crate) gpr: [u64; 16],
    /// Instruction pointer.
    pub(crate) rip: u64,
    /// RFLAGS.
    pub(crate) rflags: u64,
    /// x87, SSE and AVX in the standard XSAVE format.
    pub(crate) fpu: [u8; XSAVE_SIZE],
}

/// One instruction and what it starts from.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Case {
    /// The bytes of the instruction, or instructions.
    pub(crate) bytes: [u8; MAX_CODE],
    /// How many of them count.
    pub(crate) len: u8,
    /// It is a run of instructions, of which only the end is looked at and not what kind of exception made it.
    pub(crate) sequence: bool,
    /// Runs in a 32-bit code segment.
    pub(crate) compatibility: bool,
    /// Registers before; RIP is where the instruction lies.
    pub(crate) registers: Registers,
    /// A word written to memory first: address (0 for none) and value.
    pub(crate) patch: (u64, u64),
}

/// How an instruction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Trap {
    /// Vector of the exception; [`Trap::NONE`] if there was none.
    pub(crate) vector: u32,
    /// Error code.
    pub(crate) error: u32,
    /// The address of a page fault.
    pub(crate) address: u64,
}

impl Trap {
    /// The vector of an instruction that completed.
    pub(crate) const COMPLETED: u32 = 0xff;
    /// The vector of a sequence that did not come to an exception.
    pub(crate) const NO_END: u32 = 0xfe;
    /// The instruction completed.
    pub(crate) const NONE: Self = Self { vector: Self::COMPLETED, error: 0, address: 0 };
}

/// What an instruction did.
#[derive(Clone)]
#[repr(C)]
pub(crate) struct Effect {
    /// How it ended.
    pub(crate) trap: Trap,
    /// Registers after.
    pub(crate) registers: Registers,
    /// Memory after; meaningful only if it has changed.
    pub(crate) memory: [u8; MEMORY_SIZE],
    /// Whether memory has changed.
    pub(crate) memory_changed: bool,
}

impl Case {
    /// Code that starts with these registers.
    ///
    /// # Panics
    /// Panics if it is longer than [`MAX_CODE`].
    pub(crate) fn new(code: &[u8], bitness: u32, registers: Registers) -> Self {
        let mut bytes = [0; MAX_CODE];
        bytes[..code.len()].copy_from_slice(code);
        Self { bytes, len: code.len() as u8, sequence: false, compatibility: bitness == 32, registers, patch: (0, 0) }
    }

    /// The bytes of the code area that the instruction occupies, as an offset and the bytes that fit.
    pub(crate) fn code(&self) -> (usize, &[u8]) {
        let at = (self.registers.rip - CODE) as usize;
        let len = usize::from(self.len).min(CODE_SIZE - at);
        (at, &self.bytes[..len])
    }
}

impl Registers {
    /// The linear address of the first memory operand of `instruction`; 0 if there is none.
    pub(crate) fn address(&self, instruction: &Instruction) -> u64 {
        let value = |register: Register| match register {
            Register::FS => FS_BASE,
            Register::GS => GS_BASE,
            r if r.is_gpr64() => self.gpr[r.number()],
            r if r.is_gpr() => self.gpr[r.full_register().number()] & 0xffff_ffff,
            _ => 0,
        };
        let memory = (0..instruction.op_count()).find(|n| instruction.op_kind(*n) == OpKind::Memory);
        memory.and_then(|n| instruction.virtual_address(n, 0, |register, _, _| Some(value(register)))).unwrap_or(0)
    }
}

impl Memory {
    /// Offset in [`Memory::writable`] of the address `linear`, if `len` bytes from there lie in it.
    pub(crate) fn offset_of(linear: u64, len: usize) -> Option<usize> {
        let within = |base: u64, size: usize| {
            let at = usize::try_from(linear.checked_sub(base)?).ok()?;
            (at.checked_add(len)? <= size).then_some(at)
        };
        within(DATA, DATA_SIZE).or_else(|| within(STACK, STACK_SIZE).map(|at| at + DATA_SIZE))
    }
}
