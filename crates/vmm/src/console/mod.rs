//! The guest's console on this process's terminal: raw mode, escape keys, and the way back.

mod escape;
mod input;
mod output;
pub(crate) mod terminal;

pub(crate) use input::start_input;
pub(crate) use output::open_output;
pub(crate) use terminal::{RawMode, is_terminal};
