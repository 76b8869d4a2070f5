//! The software x86-64 CPU.
//!
//! It knows no device and starts no thread: the world reaches it through [`platform::Platform`], its siblings through [`smp::CpuGroup`].
//! See ARCHITECTURE.md for the layers: state ([`core`]), decoding ([`decode`], [`block`]), memory ([`mem`], [`mmu`], [`tlb`], [`fetch`], [`ram`]), the instruction
//! families ([`integer`], [`system`], [`simd`]), events ([`deliver`]) and the loop ([`run`]).

pub mod block;
pub mod core;
pub mod cpuid;
pub mod decode;
pub mod deliver;
pub mod fetch;
pub mod flags;
pub mod fpu;
mod integer;
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
mod system;
pub mod tlb;
pub mod translate;

#[cfg(test)]
mod invalidation;
#[cfg(test)]
mod testing;
