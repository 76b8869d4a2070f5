//! From a configuration to the machine crates.

use std::io::Write;

use microvm::{AccelChoice, Host, Machine, MachineError, Plain};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config;

/// Builds the machine, with `serial` behind its COM1; `sampling` makes its statistics say where time went.
///
/// # Errors
/// As the machine crates.
pub(crate) fn build(
    machine: config::Machine,
    accel: AccelChoice,
    sampling: bool,
    serial: Box<dyn Write + Send>,
) -> Result<Machine, MachineError> {
    let host = Host { serial };
    if machine.board().vsock.is_some() {
        raise_descriptor_limit();
    }
    match machine {
        config::Machine::Microvm(mut board) => {
            (board.accel, board.sampling) = (accel, sampling);
            Machine::new(board, Box::new(Plain), host)
        }
        config::Machine::NitroEnclave(mut board, enclave) => {
            (board.accel, board.sampling) = (accel, sampling);
            nitro_enclave::machine(board, enclave, host)
        }
    }
}

/// Each connection of the guest's has a descriptor here, and the usual limit of 1024 is for programs that use `select`.
fn raise_descriptor_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::debug!("the limit of open files stays as it is: {error}");
    }
}
