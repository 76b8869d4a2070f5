//! The software x86-64 CPU.
//!
//! It knows no device and starts no thread: the world reaches it through [`platform::Platform`], its siblings through [`smp::CpuGroup`].
//! See ARCHITECTURE.md for the layers: state ([`core`]), decoding ([`decode`], [`block`]), memory ([`mem`], [`mmu`], [`tlb`], [`fetch`], [`ram`]), the instruction
//! families ([`integer`], [`system`], [`simd`]), events ([`deliver`]) and the loop ([`run`]).

// Where a build has no translator is decided here and nowhere else: its place is taken by a module of the same names.
#![cfg_attr(
    not(feature = "translator"),
    expect(
        dead_code,
        unused_imports,
        reason = "lockstep, the TLB and the code arena have parts that only the translator uses"
    )
)]

pub mod block;
pub mod core;
pub mod cpuid;
pub mod decode;
pub mod deliver;
pub mod fetch;
pub mod flags;
pub mod fpu;
mod integer;
pub mod layer;
mod lockstep;
pub mod mem;
pub mod mmu;
pub mod msr;
pub mod op;
pub mod platform;
pub mod ram;
pub mod run;
pub mod simd;
pub mod smp;
mod state;
pub mod statistics;
mod system;
pub mod tlb;
#[cfg(feature = "translator")]
pub mod translate;
#[cfg(not(feature = "translator"))]
#[path = "no_translator.rs"]
pub mod translate;

pub use system::CR4_OFFERED;

#[cfg(test)]
mod invalidation;
#[cfg(test)]
mod testing;
