//! The `vmm` command; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    vmm::main().into()
}
