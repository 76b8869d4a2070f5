//! The x87, SSE and AVX registers.

use x86::XSAVE_SIZE;

/// An XSAVE image in the standard format (SDM vol. 1, 13.4): legacy area, header, AVX component.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct FpuState {
    /// The image.
    pub image: [u8; XSAVE_SIZE],
}

impl Default for FpuState {
    fn default() -> Self {
        Self { image: [0; XSAVE_SIZE] }
    }
}
