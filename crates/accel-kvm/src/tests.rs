//! The conformance guests on KVM.

use std::time::Duration;

use accel::conformance;
use accel_soft::SoftAccelerator;

use crate::KvmAccelerator;

/// KVM, or `None` with a printed reason where `/dev/kvm` cannot be opened. A KVM that lacks something fails the test.
fn kvm() -> Option<KvmAccelerator> {
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        println!("skipped: /dev/kvm cannot be opened: {error}");
        return None;
    }
    Some(KvmAccelerator::open().unwrap())
}

/// The guests that a KVM without VMX or SVM beneath cannot run, each with the reason: it emulates every instruction in the kernel, whose emulator lacks some.
fn not_emulated() -> &'static [(&'static str, &'static str)] {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    if flags.split_ascii_whitespace().any(|flag| matches!(flag, "vmx" | "svm")) {
        return &[];
    }
    &[
        ("breakpoint", "the kernel's emulator has no INT3 in 64-bit mode"),
        (
            "a level interrupt comes again until its wire is low",
            "such a KVM was seen to report the end of a level-triggered interrupt at its delivery, before the guest's EOI, so that it comes once too often",
        ),
        (
            "an IOAPIC's level pin has its remote IRR until the end of interrupt",
            "for the same reason the remote IRR is gone before the handler looks at it",
        ),
    ]
}

#[test]
fn every_conformance_guest_passes() {
    if let Some(kvm) = kvm() {
        conformance::check_all(&kvm, not_emulated());
    }
}

#[test]
fn every_conformance_guest_ends_in_the_same_state_as_on_the_software_cpu() {
    if let Some(kvm) = kvm() {
        conformance::check_equal(&kvm, &SoftAccelerator::default(), not_emulated());
    }
}

#[test]
fn a_kick_ends_a_run_soon_whether_the_vcpu_spins_or_sleeps() {
    let Some(kvm) = kvm() else { return };
    for asleep in [false, true] {
        let longest = conformance::kick_latency(&kvm, asleep, 30).unwrap();
        println!("asleep {asleep}: {longest:?} at most");
        assert!(longest < Duration::from_secs(2), "asleep {asleep}: {longest:?}");
    }
}

#[test]
fn a_running_guest_moves_to_the_software_cpu_and_back() {
    let Some(kvm) = kvm() else { return };
    conformance::relay::check([&kvm, &SoftAccelerator::default(), &kvm]).unwrap();
    conformance::relay::check([&SoftAccelerator::default(), &kvm, &SoftAccelerator::default()]).unwrap();
}
