//! The guest's console on this process's terminal: raw mode, escape keys, and the way back.

mod escape;
mod input;
mod output;
mod recent;
mod socket;
pub(crate) mod terminal;

pub(crate) use input::start_input;
pub(crate) use output::Output;
pub(crate) use recent::Recent;
pub(crate) use socket::follow;
pub(crate) use terminal::{RawMode, is_terminal};
