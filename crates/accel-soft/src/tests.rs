//! The conformance guests on the software CPU.

use accel::conformance;

use crate::SoftAccelerator;

#[test]
fn every_conformance_guest_passes() {
    conformance::check_all(&SoftAccelerator);
}
