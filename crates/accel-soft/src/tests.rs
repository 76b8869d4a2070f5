//! The conformance guests on the software CPU.

use std::time::Duration;

use accel::conformance;

use crate::SoftAccelerator;

#[test]
fn every_conformance_guest_passes() {
    conformance::check_all(&SoftAccelerator, &[]);
}

#[test]
fn a_kick_ends_a_run_soon_whether_the_vcpu_spins_or_sleeps() {
    for asleep in [false, true] {
        let longest = conformance::kick_latency(&SoftAccelerator, asleep, 30).unwrap();
        assert!(longest < Duration::from_secs(2), "asleep {asleep}: {longest:?}");
    }
}

#[test]
fn a_guest_goes_on_where_it_was_on_another_vm() {
    conformance::relay::check([&SoftAccelerator, &SoftAccelerator, &SoftAccelerator]).unwrap();
}
