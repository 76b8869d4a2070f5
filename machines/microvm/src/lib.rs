//! The microvm board: address map, wiring, options.

mod options;

pub use options::{AccelChoice, Decompress, Host, MIB, OnOffAuto, OnReboot, Options};
