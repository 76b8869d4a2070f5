//! The conformance guests on KVM.

use accel::conformance;

use crate::KvmAccelerator;

/// KVM, or `None` with a printed reason where `/dev/kvm` cannot be opened. A KVM that lacks something fails the test.
fn kvm() -> Option<KvmAccelerator> {
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        println!("skipped: /dev/kvm cannot be opened: {error}");
        return None;
    }
    Some(KvmAccelerator::open().unwrap())
}

#[test]
fn every_conformance_guest_passes() {
    if let Some(kvm) = kvm() {
        conformance::check_all(&kvm);
    }
}
