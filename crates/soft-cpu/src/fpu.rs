//! The x87, SSE and AVX registers: an XSAVE image in the standard format (SDM vol. 1, 13.4) and the scratch words through which
//! native code talks to the interpreter.
//!
//! The image always holds the registers' values, whatever XSTATE_BV in its header says: which components are in use is worked out
//! when somebody asks ([`FpuState::components_in_use`]).

use x86::XSAVE_SIZE;

/// Offsets in the image (SDM vol. 1, table 10-2, and 13.4).
pub mod offset {
    /// x87 control word, 16 bits.
    pub const FCW: usize = 0;
    /// x87 status word, 16 bits.
    pub const FSW: usize = 2;
    /// Abridged tag word, 8 bits: a set bit is a register in use.
    pub const FTW: usize = 4;
    /// Opcode of the last x87 instruction, 11 bits in 16.
    pub const FOP: usize = 6;
    /// Its instruction pointer, 64 bits.
    pub const FIP: usize = 8;
    /// Its operand's address, 64 bits.
    pub const FDP: usize = 16;
    /// SSE control and status, 32 bits.
    pub const MXCSR: usize = 24;
    /// The bits of MXCSR that exist, 32 bits.
    pub const MXCSR_MASK: usize = 28;
    /// ST(0) to ST(7), or MM0 to MM7: ten bytes in each sixteen.
    pub const ST: usize = 32;
    /// XMM0 to XMM15.
    pub const XMM: usize = 160;
    /// XSTATE_BV, 64 bits.
    pub const XSTATE_BV: usize = 512;
    /// XCOMP_BV, 64 bits.
    pub const XCOMP_BV: usize = 520;
    /// Upper halves of YMM0 to YMM15.
    pub const YMM_HIGH: usize = 576;
}

/// MXCSR after reset: everything masked.
pub const MXCSR_DEFAULT: u32 = 0x1f80;
/// The bits of MXCSR that the guest may set: all but AMD's misaligned-exception mask.
pub const MXCSR_VALID: u32 = 0xffff;
/// x87 control word after FNINIT.
pub const FCW_DEFAULT: u16 = 0x037f;
/// x87 status: exception summary.
pub const FSW_ES: u16 = 1 << 7;
/// x87 status: busy, a copy of [`FSW_ES`].
pub const FSW_B: u16 = 1 << 15;

/// XSAVE component bit: x87.
pub const COMPONENT_X87: u64 = 1 << 0;
/// XSAVE component bit: SSE.
pub const COMPONENT_SSE: u64 = 1 << 1;
/// XSAVE component bit: AVX.
pub const COMPONENT_AVX: u64 = 1 << 2;

/// What native code reads and writes besides the image; see [`crate::simd`].
#[derive(Clone)]
#[repr(C, align(64))]
pub(crate) struct Scratch {
    /// The memory operand.
    pub(crate) memory: [u8; 64],
    /// RAX, RDX and RCX of the native code.
    pub(crate) gpr: [u64; 3],
    /// RFLAGS, in and out.
    pub(crate) flags: u64,
    /// MXCSR to run with.
    pub(crate) mxcsr_run: u32,
    /// MXCSR after the instruction.
    pub(crate) mxcsr_out: u32,
    /// MXCSR of our own code.
    pub(crate) mxcsr_host: u32,
    /// Exception flags that the guest has not masked: nothing is stored if one is raised.
    pub(crate) unmasked: u32,
}

/// The registers.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct FpuState {
    /// The image.
    pub image: [u8; XSAVE_SIZE],
    pub(crate) scratch: Scratch,
}

impl PartialEq for FpuState {
    fn eq(&self, other: &Self) -> bool {
        self.image == other.image
    }
}

impl Eq for FpuState {}

impl std::fmt::Debug for FpuState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FpuState").field("image", &self.image).finish_non_exhaustive()
    }
}

impl Default for FpuState {
    fn default() -> Self {
        let scratch = Scratch {
            memory: [0; 64],
            gpr: [0; 3],
            flags: 0,
            mxcsr_run: MXCSR_DEFAULT,
            mxcsr_out: 0,
            mxcsr_host: MXCSR_DEFAULT,
            unmasked: 0,
        };
        let mut state = Self { image: [0; XSAVE_SIZE], scratch };
        state.init_x87();
        state.set_mxcsr(MXCSR_DEFAULT);
        state
    }
}

impl FpuState {
    /// `N` bytes of the image.
    #[inline(always)]
    pub fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.image[at..at + N]);
        bytes
    }

    #[inline(always)]
    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.image[at..at + N].copy_from_slice(&bytes);
    }

    /// XMM `n`; of `n` the low four bits count.
    #[inline(always)]
    pub fn xmm(&self, n: u8) -> u128 {
        u128::from_le_bytes(self.bytes(offset::XMM + usize::from(n & 15) * 16))
    }

    /// Sets XMM `n` and keeps the upper half of its YMM register, as SSE instructions do.
    #[inline(always)]
    pub fn set_xmm(&mut self, n: u8, value: u128) {
        self.put(offset::XMM + usize::from(n & 15) * 16, value.to_le_bytes());
    }

    /// The upper half of YMM `n`.
    #[inline(always)]
    pub fn ymm_high(&self, n: u8) -> u128 {
        u128::from_le_bytes(self.bytes(offset::YMM_HIGH + usize::from(n & 15) * 16))
    }

    /// Sets the upper half of YMM `n`.
    #[inline(always)]
    pub fn set_ymm_high(&mut self, n: u8, value: u128) {
        self.put(offset::YMM_HIGH + usize::from(n & 15) * 16, value.to_le_bytes());
    }

    /// MXCSR.
    #[inline(always)]
    pub fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.bytes(offset::MXCSR))
    }

    /// Sets MXCSR, of which only valid bits are kept: the host would fault on others.
    #[inline(always)]
    pub fn set_mxcsr(&mut self, value: u32) {
        self.put(offset::MXCSR, (value & MXCSR_VALID).to_le_bytes());
    }

    /// The x87 control word.
    #[inline(always)]
    pub fn fcw(&self) -> u16 {
        u16::from_le_bytes(self.bytes(offset::FCW))
    }

    /// Sets the x87 control word.
    #[inline(always)]
    pub fn set_fcw(&mut self, value: u16) {
        self.put(offset::FCW, value.to_le_bytes());
    }

    /// The x87 status word.
    #[inline(always)]
    pub fn fsw(&self) -> u16 {
        u16::from_le_bytes(self.bytes(offset::FSW))
    }

    /// Sets the x87 status word.
    #[inline(always)]
    pub fn set_fsw(&mut self, value: u16) {
        self.put(offset::FSW, value.to_le_bytes());
    }

    /// A 64-bit field: [`offset::FIP`], [`offset::FDP`].
    pub fn pointer(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    /// Sets a 64-bit field.
    pub fn set_pointer(&mut self, at: usize, value: u64) {
        self.put(at, value.to_le_bytes());
    }

    /// The opcode of the last x87 instruction.
    pub fn fop(&self) -> u16 {
        u16::from_le_bytes(self.bytes(offset::FOP))
    }

    /// Sets it.
    pub fn set_fop(&mut self, value: u16) {
        self.put(offset::FOP, (value & 0x7ff).to_le_bytes());
    }

    /// The ten bytes of ST(`n`), counted from the top of the stack.
    pub fn st(&self, n: usize) -> [u8; 10] {
        self.bytes(offset::ST + (n & 7) * 16)
    }

    /// Sets ST(`n`).
    pub fn set_st(&mut self, n: usize, value: [u8; 10]) {
        self.put(offset::ST + (n & 7) * 16, value);
        self.put(offset::ST + (n & 7) * 16 + 10, [0; 6]);
    }

    /// Makes the exception summary say what flags and masks say.
    pub fn update_x87_summary(&mut self) {
        let fsw = self.fsw() & !(FSW_ES | FSW_B);
        let pending = fsw & 0x3f & !self.fcw() != 0;
        self.set_fsw(if pending { fsw | FSW_ES | FSW_B } else { fsw });
    }

    /// Sets the stack's top, and with it the order of the registers in the image; they stay where they are physically.
    pub fn set_top(&mut self, top: u8) {
        let by = usize::from(top).wrapping_sub(usize::from(self.fsw() >> 11 & 7)) & 7;
        let registers: [[u8; 10]; 8] = std::array::from_fn(|n| self.st(n + by));
        for (n, value) in registers.into_iter().enumerate() {
            self.set_st(n, value);
        }
        self.set_fsw(self.fsw() & !(7 << 11) | u16::from(top & 7) << 11);
    }

    /// What every MMX instruction does to the x87 state: register 0 is the top, and all are in use.
    pub fn enter_mmx(&mut self) {
        self.set_top(0);
        self.image[offset::FTW] = 0xff;
    }

    /// FNINIT: the control words, tags and pointers; the data registers stay.
    pub fn init_x87(&mut self) {
        self.set_top(0);
        self.image[..offset::MXCSR].fill(0);
        self.set_fcw(FCW_DEFAULT);
    }

    /// Puts components into their initial configuration (SDM vol. 1, 13.6); MXCSR is not part of it.
    pub fn init_components(&mut self, components: u64) {
        if components & COMPONENT_X87 != 0 {
            self.init_x87();
            self.image[offset::ST..offset::XMM].fill(0);
        }
        if components & COMPONENT_SSE != 0 {
            self.image[offset::XMM..offset::XMM + 256].fill(0);
        }
        if components & COMPONENT_AVX != 0 {
            self.image[offset::YMM_HIGH..].fill(0);
        }
    }

    /// XINUSE: the components that are not in their initial configuration (MXCSR apart).
    pub fn components_in_use(&self) -> u64 {
        let zero = |range: std::ops::Range<usize>| self.image[range].iter().all(|b| *b == 0);
        let x87_initial = self.fcw() == FCW_DEFAULT
            && zero(offset::FSW..offset::MXCSR)
            && (0..8).all(|n| zero(offset::ST + n * 16..offset::ST + n * 16 + 10));
        (if x87_initial { 0 } else { COMPONENT_X87 })
            | (if zero(offset::XMM..offset::XMM + 256) { 0 } else { COMPONENT_SSE })
            | (if zero(offset::YMM_HIGH..XSAVE_SIZE) { 0 } else { COMPONENT_AVX })
    }

    /// Takes the registers from an XSAVE image in the standard format; what it is too short for stays.
    pub fn load_image(&mut self, image: &[u8]) {
        let len = image.len().min(XSAVE_SIZE);
        self.image[..len].copy_from_slice(&image[..len]);
        self.set_mxcsr(self.mxcsr());
        self.update_x87_summary();
    }

    /// The registers as an XSAVE image in the standard format, all components marked as in use.
    pub fn save_image(&self) -> Vec<u8> {
        let mut image = self.image.to_vec();
        image[offset::MXCSR_MASK..offset::ST].copy_from_slice(&MXCSR_VALID.to_le_bytes());
        image[offset::XSTATE_BV..offset::YMM_HIGH].fill(0);
        image[offset::XSTATE_BV] = (COMPONENT_X87 | COMPONENT_SSE | COMPONENT_AVX) as u8;
        image
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_state_uses_no_component() {
        assert_eq!(FpuState::default().components_in_use(), 0);
    }

    #[test]
    fn the_upper_half_of_a_ymm_register_is_the_avx_component() {
        let mut state = FpuState::default();
        state.set_ymm_high(15, 1 << 127);
        assert_eq!(state.components_in_use(), COMPONENT_AVX);
    }

    #[test]
    fn unmasking_a_raised_exception_sets_the_summary() {
        let mut state = FpuState::default();
        state.set_fsw(1);
        state.set_fcw(FCW_DEFAULT & !1);
        state.update_x87_summary();
        assert_eq!(state.fsw(), FSW_ES | FSW_B | 1);
    }
}
