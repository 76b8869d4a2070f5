//! From a configuration to the machine crates.

use std::io::Write;

use microvm::{AccelChoice, Host, Machine, MachineError, Plain};

use crate::config;

/// Builds the machine, with `serial` behind its COM1.
///
/// # Errors
/// As the machine crates.
pub(crate) fn build(
    machine: config::Machine,
    accel: AccelChoice,
    serial: Box<dyn Write + Send>,
) -> Result<Machine, MachineError> {
    let host = Host { serial };
    match machine {
        config::Machine::Microvm(mut board) => {
            board.accel = accel;
            Machine::new(board, Box::new(Plain), host)
        }
        config::Machine::NitroEnclave(mut board, enclave) => {
            board.accel = accel;
            nitro_enclave::machine(board, enclave, host)
        }
    }
}
