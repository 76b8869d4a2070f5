//! Facts of the x86-64 architecture that the whole workspace shares: register bits, MSR numbers, exception vectors, descriptors,
//! page-table bits, CPUID tables, and the plain-data [`CpuState`] that every processor backend loads and saves.
//!
//! Sources, cited as SDM and APM throughout: Intel 64 and IA-32 Architectures Software Developer's Manual (order number 325462), AMD64 Architecture
//! Programmer's Manual (publication 40332).

#![forbid(unsafe_code)]

pub mod control;
pub mod cpuid;
pub mod exception;
pub mod msr;
pub mod paging;
pub mod rflags;
pub mod segment;
mod state;

pub use control::{cr0, cr4, dr6, dr7, efer};
pub use segment::{DescriptorTable, Segment};
pub use state::{Activity, CpuState, InterruptShadow, LocalApicState, XSAVE_SIZE, gpr};
