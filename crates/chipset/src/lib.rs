//! The PC's chips. Each is a pure state machine: time is handed in, and what to do next is returned as data or driven on a wire. Thin glue connects
//! it to the bus.
//!
//! Nothing here knows an address: a machine crate maps each device where its board has it.

#![forbid(unsafe_code)]

pub mod debug;
pub mod ged;
pub mod ioapic;
mod isa;
pub mod lapic;
pub mod pic;
pub mod pit;
pub mod reset;
pub mod rtc;
pub mod uart;
