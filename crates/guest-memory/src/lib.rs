//! The guest's RAM: one `vm-memory` type for the whole workspace, with a watch on the pages that hold guest code.
//!
//! The software CPU keeps decoded (later: translated) copies of guest code, so it must hear of every write to the bytes they came
//! from: the guest's own stores, and devices' DMA. `vm-memory` already tells a region's bitmap about each write made through it, for
//! dirty tracking; [`CodePages`] is such a bitmap, so no device can forget to report.
//!
//! DEVNOTE: a DMA wrapper with a callback in every device was the alternative; it costs a rule that each new device must keep.

mod code_pages;
mod ram;

pub use code_pages::{CODE_LINE_SIZE, CodePages, CodeSlice, code_overwrites};
pub use ram::{GuestMemory, GuestRegion, MemoryError, Sharing, allocate, allocate_for, fill};
