//! The translator: hot blocks of 64-bit code, and of 32-bit user code, as host code.
//!
//! The host is x86-64 as the guest is, so most instructions are emitted as they are: general registers stand in host registers (those of [`PINNED`]), a memory
//! operand is looked up in the TLB first and becomes the host address in a scratch register, and flags stay the host's flags. Whatever has no template
//! ([`classify`]) is a call of the interpreter's handler, and so is every memory operand that misses the TLB: faults, MMIO and watched code are
//! known to the handlers alone.
//!
//! Blocks of one page jump to each other directly; every other jump goes through a table by instruction pointer ([`cache`]). A page whose code has changed loses all
//! its translations at once, so links need no bookkeeping. What has
//! no template is said in [`parse`] and [`vector`].
//!
//! Of 32-bit code, that of user mode with flat segments is translated ([`DecodeMode::FLAT32`](crate::core::DecodeMode)), which on Linux is all there is: on 64-bit kernels,
//! compatibility mode. The host runs it in 64-bit code with addresses of 32 bits; what is encoded otherwise there is written anew ([`parse`]). Deliberately missing:
//! 16-bit code and 32-bit kernels.
//!
//! DEVNOTE: a fault sees the status flags of the last instruction whose flags somebody reads. Flags that are dead in their block are not kept for the
//! frame of an exception between their instruction and the one that overwrites them: no program can use them after its return.

mod arithmetic;
mod cache;
mod classify;
#[cfg(test)]
mod compatibility_tests;
mod emit;
mod flags;
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
mod width;

pub(crate) use cache::NativeBlock;
pub(crate) use cache::Translator;
pub use jumps::Jumps;
pub use state::NativeState;
