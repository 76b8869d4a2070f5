//! The translator: hot blocks of 64-bit code as host code.
//!
//! The host is x86-64 as the guest is, so most instructions are emitted as they are: general registers stand in host registers (those of [`PINNED`]), a memory
//! operand is looked up in the TLB first and becomes the host address in a scratch register, and flags stay the host's flags. Whatever has no template
//! ([`classify`]) is a call of the interpreter's handler, and so is every memory operand that misses the TLB: faults, MMIO and watched code are
//! known to the handlers alone.
//!
//! Blocks of one page jump to each other directly; every other jump goes through a table by instruction pointer ([`cache`]). A page whose code has changed loses all
//! its translations at once, so links need no bookkeeping. Deliberately missing: 16- and 32-bit code. What has
//! no template is said in [`parse`] and [`vector`].
//!
//! DEVNOTE: a fault sees the status flags of the last instruction whose flags somebody reads. Flags that are dead in their block are not kept for the
//! frame of an exception between their instruction and the one that overwrites them: no program can use them after its return.

mod arithmetic;
mod cache;
mod classify;
mod emit;
mod flow;
mod generate;
mod gs_base;
mod held;
mod jumps;
mod parse;
mod perf_map;
mod reuse;
#[cfg(test)]
mod reuse_tests;
mod runtime;
mod state;
mod steps;
#[cfg(test)]
mod tests;
mod trace;
#[cfg(test)]
mod trace_tests;
mod vector;
mod vector_state;
#[cfg(test)]
mod vector_tests;

pub(crate) use cache::NativeBlock;
pub(crate) use cache::Translator;
pub use jumps::Jumps;
pub use state::NativeState;
