//! How the launcher is linked.

use std::env;
use std::process::Command;

/// The first glibc whose start-up code reads packed relative relocations (DT_RELR), as (major, minor).
const READS_RELR: (u32, u32) = (2, 36);

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is = |variable: &str, wanted: &str| {
        env::var(variable).is_ok_and(|found| found.split(',').any(|word| word == wanted))
    };
    // The program's own addresses, which every start has to adjust, as a bit map instead of 24 bytes each: 390 KiB less to read. A static program brings the code that does it;
    // another one would not start where the C library is older.
    let static_glibc = is("CARGO_CFG_TARGET_FEATURE", "crt-static") && is("CARGO_CFG_TARGET_ENV", "gnu");
    if static_glibc && glibc_version().is_some_and(|version| version >= READS_RELR) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of this machine's glibc, whose archive a static program is linked from.
fn glibc_version() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
