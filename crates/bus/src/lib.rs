//! The board's nervous system: port and MMIO address spaces, the traits a device implements, interrupt
//! wires, the clock, timers, and power requests.
//!
//! A device sees none of the accelerator, an address, or an interrupt number: it has registers (offsets from its
//! own base), a wire ([`IrqLine`]) and a clock ([`Clock`]). Only machine crates know where things are.
//!
//! Lock order, for everything on the board: a device's own lock, then an interrupt controller's, then a vCPU's
//! mailbox. Nothing calls upward while it holds one.

mod clock;
mod device;
mod irq;
mod power;
mod space;
mod timer;

pub use clock::{Clock, ManualClock, MonotonicClock};
pub use device::{IoError, MmioDevice, PortDevice};
pub use irq::{EventBinding, IrqLine, IrqTarget};
pub use power::{PowerControl, PowerRequest};
pub use space::{AddressSpaces, AddressSpacesBuilder, OverlapError};
pub use timer::{TimedDevice, Timer, TimerTarget};
