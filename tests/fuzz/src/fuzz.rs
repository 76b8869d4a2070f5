//! The fuzzer: libFuzzer's main function over the target that the environment variable `VMM_FUZZ` names. Arguments are libFuzzer's.

#![no_main]

use std::sync::OnceLock;

use fuzz_targets::{Target, find};

/// The variable that names the target.
const VARIABLE: &str = "VMM_FUZZ";

static TARGET: OnceLock<&'static Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let name = std::env::var(VARIABLE).unwrap_or_default();
        let Some(target) = find(&name) else {
            eprintln!("fuzz: {VARIABLE} names no target: {name:?}");
            std::process::exit(2);
        };
        let _ = TARGET.set(target);
    },
    |input: &[u8]| {
        if let Some(target) = TARGET.get() {
            (target.run)(input);
        }
    }
);
