//! The conformance guests on the software CPU.

use std::time::Duration;

use accel::conformance;

use crate::{Debugging, SoftAccelerator, TranslatorMode};

/// Everything is interpreted.
const INTERPRETED: SoftAccelerator =
    SoftAccelerator { translator: TranslatorMode::Off, debugging: PLAIN, sampling: false };
/// Every block is translated when it is first executed.
const TRANSLATED: SoftAccelerator =
    SoftAccelerator { translator: TranslatorMode::On { threshold: 1, precise: false }, ..INTERPRETED };

const PLAIN: Debugging = Debugging {
    lockstep: false,
    slow_paths: false,
    short_blocks: false,
    flushes: false,
    perf_map: false,
    code_cache: None,
    count_accesses: false,
};

#[test]
fn every_conformance_guest_passes_interpreted() {
    conformance::check_all(&INTERPRETED, &[], &[]);
}

#[test]
fn every_conformance_guest_passes_with_every_block_translated() {
    conformance::check_all(&TRANSLATED, &[], &[]);
}

#[test]
fn every_conformance_guest_passes_under_stress() {
    for debugging in [
        Debugging { slow_paths: true, ..PLAIN },
        Debugging { short_blocks: true, ..PLAIN },
        Debugging { flushes: true, ..PLAIN },
        Debugging { slow_paths: true, short_blocks: true, flushes: true, ..PLAIN },
    ] {
        conformance::check_all(&SoftAccelerator { debugging, ..TRANSLATED }, &[], &[]);
    }
}

#[test]
fn a_kick_ends_a_run_soon_whether_the_vcpu_spins_or_sleeps() {
    for accelerator in [INTERPRETED, TRANSLATED] {
        for asleep in [false, true] {
            let longest = conformance::kick_latency(&accelerator, asleep, 30).unwrap();
            assert!(longest < Duration::from_secs(2), "asleep {asleep}: {longest:?}");
        }
    }
}

#[test]
fn a_guest_goes_on_where_it_was_on_another_vm() {
    conformance::relay::check([&INTERPRETED, &TRANSLATED, &INTERPRETED]).unwrap();
    conformance::relay::check([&TRANSLATED, &INTERPRETED, &TRANSLATED]).unwrap();
}
