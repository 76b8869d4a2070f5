//! Bits of RFLAGS (SDM vol. 1, 3.4.3).

/// Carry.
pub const CF: u64 = 1 << 0;
/// Bit 1, which always reads as one.
pub const RESERVED_ONE: u64 = 1 << 1;
/// Parity of the low byte.
pub const PF: u64 = 1 << 2;
/// Auxiliary carry out of bit 3.
pub const AF: u64 = 1 << 4;
/// Zero.
pub const ZF: u64 = 1 << 6;
/// Sign.
pub const SF: u64 = 1 << 7;
/// Trap: single step.
pub const TF: u64 = 1 << 8;
/// Interrupts enabled.
pub const IF: u64 = 1 << 9;
/// String direction: down.
pub const DF: u64 = 1 << 10;
/// Overflow.
pub const OF: u64 = 1 << 11;
/// I/O privilege level, two bits.
pub const IOPL: u64 = 3 << 12;
/// Nested task.
pub const NT: u64 = 1 << 14;
/// Resume.
pub const RF: u64 = 1 << 16;
/// Virtual-8086 mode.
pub const VM: u64 = 1 << 17;
/// Alignment check, or SMAP override.
pub const AC: u64 = 1 << 18;
/// Virtual interrupt.
pub const VIF: u64 = 1 << 19;
/// Virtual interrupt pending.
pub const VIP: u64 = 1 << 20;
/// CPUID can be used when this bit can be changed.
pub const ID: u64 = 1 << 21;

/// The six status flags that arithmetic writes.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
