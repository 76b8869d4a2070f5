//! The `eif` command; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    eif_cli::main()
}
