//! The conformance guests on KVM, with each choice of interrupt controllers.

use std::time::Duration;

use accel::conformance::{self, Deviation, End};
use accel_soft::SoftAccelerator;

use crate::{KernelIrqchip, KvmAccelerator};

const EVERY_IRQCHIP: [KernelIrqchip; 3] = [KernelIrqchip::Split, KernelIrqchip::On, KernelIrqchip::Off];

/// KVM, or `None` with a printed reason where `/dev/kvm` cannot be opened. A KVM that lacks something fails the test.
fn kvm(irqchip: KernelIrqchip) -> Option<KvmAccelerator> {
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        println!("skipped: /dev/kvm cannot be opened: {error}");
        return None;
    }
    Some(KvmAccelerator::open(irqchip).unwrap())
}

/// A guest that is left out, with the reason.
type LeftOut = (&'static str, &'static str);

/// The guests that ask for what there is not with these interrupt controllers, on any host. With split ones there is everything.
fn left_out(irqchip: KernelIrqchip) -> &'static [LeftOut] {
    const STAYS: &str = "the end of a message's interrupt does not leave the kernel's controllers";
    const NO_X2APIC: &str = "KVM has no x2APIC mode without a local APIC of its own";
    match irqchip {
        KernelIrqchip::Split => &[],
        KernelIrqchip::On => &[
            (
                "the PIC's interrupt",
                "that PIC is the board's and names any vector; the kernel's own has guests of its own",
            ),
            ("a level interrupt's EOI is broadcast", STAYS),
            ("a level interrupt comes again until its wire is low", STAYS),
        ],
        KernelIrqchip::Off => &[
            ("x2APIC self-IPI", NO_X2APIC),
            ("CPUID names the hypervisor and the processor", NO_X2APIC),
            ("APIC timer, TSC deadline", "KVM has no such timer without a local APIC of its own"),
        ],
    }
}

const AT_DELIVERY: &str = "this KVM's local APIC ends an interrupt as it delivers it, for QEMU's guests too";
const USER_MODE: &str =
    "this KVM refuses INT in user mode by itself, with #UD, and leaves SYSCALL at privilege level 3";

/// What a local APIC makes of interrupts that it does not keep in service: a level-triggered one comes once more where its wire is still high at its delivery.
const LOCAL_APIC_DEVIATIONS: &[Deviation] = &[
    Deviation {
        guest: "an interrupt is in service until its end",
        reported: &[0x52, 0, 0],
        end: End::Finished,
        because: AT_DELIVERY,
    },
    Deviation {
        guest: "a level interrupt comes again until its wire is low",
        reported: &[0x51, 0xe0, 0x51, 0x51, 0xe0, 0x51, 0x51, 0xe0, 0x51],
        end: End::Finished,
        because: AT_DELIVERY,
    },
    Deviation {
        guest: "an IOAPIC's level pin has its remote IRR until the end of interrupt",
        reported: &[0x55, 0xe0, 0x55, 1, 0x55, 0xe0, 0x55, 0, 0],
        end: End::Finished,
        because: AT_DELIVERY,
    },
];

const USER_MODE_DEVIATIONS: &[Deviation] = &[
    Deviation {
        guest: "user mode calls by INT and is interrupted by its faults",
        reported: &[],
        end: End::TripleFault,
        because: USER_MODE,
    },
    Deviation { guest: "user mode calls by SYSCALL", reported: &[], end: End::Finished, because: USER_MODE },
];

/// Whether the processor has VMX or SVM. A KVM without it executes every instruction of a kernel in its emulator.
fn has_virtualization() -> bool {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_ascii_whitespace().any(|flag| matches!(flag, "vmx" | "svm"))
}

/// What is known of the one KVM without hardware virtualization that could be tried (`kvm_pvm`, Linux 6.18). Local APICs of ours have no part in it.
fn deviations(irqchip: KernelIrqchip) -> Vec<Deviation> {
    match irqchip {
        _ if has_virtualization() => Vec::new(),
        KernelIrqchip::Off => USER_MODE_DEVIATIONS.to_vec(),
        KernelIrqchip::Split | KernelIrqchip::On => [LOCAL_APIC_DEVIATIONS, USER_MODE_DEVIATIONS].concat(),
    }
}

#[test]
fn every_conformance_guest_passes() {
    for irqchip in EVERY_IRQCHIP {
        let Some(kvm) = kvm(irqchip) else { return };
        println!("{irqchip:?}");
        conformance::check_all(&kvm, left_out(irqchip), &deviations(irqchip));
    }
}

#[test]
fn every_conformance_guest_ends_in_the_same_state_as_on_the_software_cpu() {
    for irqchip in EVERY_IRQCHIP {
        let Some(kvm) = kvm(irqchip) else { return };
        println!("{irqchip:?}");
        conformance::check_equal(&kvm, &SoftAccelerator::default(), left_out(irqchip), &deviations(irqchip));
    }
}

#[test]
fn what_kvm_refuses_reaches_our_local_apics_and_none_of_the_kernels() {
    const GUEST: &conformance::Guest = &conformance::refused::LOCAL_APIC;
    for irqchip in EVERY_IRQCHIP {
        let Some(kvm) = kvm(irqchip) else { return };
        match conformance::run(&kvm, GUEST, Duration::from_secs(60)) {
            // A processor that knows local APICs has it done without KVM.
            Ok(report) => assert!(report.is_right(GUEST), "{irqchip:?}: {report:?}"),
            Err(error) => {
                let error = error.to_string();
                assert_ne!(irqchip, KernelIrqchip::Off, "{error}");
                assert!(
                    error.contains("cannot execute it in KVM's place: it reaches an interrupt controller"),
                    "{error}"
                );
            }
        }
    }
}

#[test]
fn a_kick_ends_a_run_soon_whether_the_vcpu_spins_or_sleeps() {
    for irqchip in EVERY_IRQCHIP {
        let Some(kvm) = kvm(irqchip) else { return };
        for asleep in [false, true] {
            let longest = conformance::kick_latency(&kvm, asleep, 30).unwrap();
            println!("{irqchip:?}, asleep {asleep}: {longest:?} at most");
            assert!(longest < Duration::from_secs(2), "{irqchip:?}, asleep {asleep}: {longest:?}");
        }
    }
}

#[test]
fn a_running_guest_moves_to_the_software_cpu_and_back() {
    for irqchip in EVERY_IRQCHIP {
        let Some(kvm) = kvm(irqchip) else { return };
        conformance::relay::check([&kvm, &SoftAccelerator::default(), &kvm]).unwrap();
        conformance::relay::check([&SoftAccelerator::default(), &kvm, &SoftAccelerator::default()]).unwrap();
    }
}

#[test]
fn a_running_guest_moves_between_the_choices_of_interrupt_controllers() {
    let [Some(split), Some(on), Some(off)] = EVERY_IRQCHIP.map(kvm) else { return };
    conformance::relay::check([&split, &on, &off]).unwrap();
    conformance::relay::check([&off, &split, &on]).unwrap();
}

#[test]
fn an_interrupt_of_the_pic_that_is_being_delivered_moves_with_the_processor() {
    let (Some(split), Some(off)) = (kvm(KernelIrqchip::Split), kvm(KernelIrqchip::Off)) else { return };
    let soft = SoftAccelerator::default();
    for from in [&split, &off] {
        for to in [&soft as &dyn accel::Accelerator, &split, &off] {
            let moved = conformance::relay::check_acknowledged(from, to).unwrap();
            assert_eq!(moved, [Some(0x33); 2], "the moment was missed");
        }
    }
    conformance::relay::check_acknowledged(&soft, &split).unwrap();
}

#[test]
fn the_last_of_300_processors_is_started_and_interrupted() {
    let Some(kvm) = kvm(KernelIrqchip::Split) else { return };
    if accel::Accelerator::max_vcpus(&kvm) < 300 {
        println!("skipped: this KVM has at most {} vCPUs", accel::Accelerator::max_vcpus(&kvm));
        return;
    }
    conformance::many::check(&kvm).unwrap();
}

#[test]
fn a_store_that_has_an_event_signals_it_and_leaves_the_board_alone() {
    for irqchip in EVERY_IRQCHIP {
        let Some(kvm) = kvm(irqchip) else { return };
        assert_eq!(conformance::doorbell(&kvm).unwrap(), Some(2), "{irqchip:?}");
    }
    assert_eq!(conformance::doorbell(&SoftAccelerator::default()).unwrap(), None);
}

#[test]
fn a_signalled_event_interrupts_by_itself_where_the_local_apics_alone_are_the_kernels() {
    for (irqchip, interrupts) in EVERY_IRQCHIP.into_iter().zip([Some(5), None, None]) {
        let Some(kvm) = kvm(irqchip) else { return };
        assert_eq!(conformance::interrupting_event(&kvm).unwrap(), interrupts, "{irqchip:?}");
    }
    assert_eq!(conformance::interrupting_event(&SoftAccelerator::default()).unwrap(), None);
}
