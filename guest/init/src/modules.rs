//! Kernel modules that the host packed into the initramfs.
//!
//! The host decides the order and decompresses: `/modules/order` lists the file names, one a line, dependencies
//! first. A kernel without modules has no such file and nothing is loaded.

use std::ffi::CStr;
use std::fs::File;

use nix::kmod::{ModuleInitFlags, finit_module};

const DIRECTORY: &str = "/modules";
const NO_PARAMETERS: &CStr = c"";

/// Loads every listed module and returns one `name ok` or `name error` for each.
pub(crate) fn load_all() -> Vec<String> {
    let order = std::fs::read_to_string(format!("{DIRECTORY}/order")).unwrap_or_default();
    order.lines().filter(|name| !name.is_empty()).map(load).collect()
}

fn load(name: &str) -> String {
    let outcome = File::open(format!("{DIRECTORY}/{name}")).map_err(|error| error.to_string()).and_then(|file| {
        finit_module(file, NO_PARAMETERS, ModuleInitFlags::empty()).map_err(|error| error.to_string())
    });
    match outcome {
        Ok(()) => format!("{name} ok"),
        Err(error) => format!("{name} {error}"),
    }
}
