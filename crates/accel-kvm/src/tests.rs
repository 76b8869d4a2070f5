//! The conformance guests on KVM, with each choice of interrupt controllers.

use std::time::Duration;

use accel::conformance::{self, Deviation};
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

/// What the guests report on a KVM whose local APIC ends each interrupt as it is delivered. The one that could be had, without VMX or SVM beneath, is such a one, for QEMU's guests too. A level-triggered interrupt then comes once more
/// where its wire is still high at its delivery.
const ENDED_AT_DELIVERY: &[Deviation] = &[
    ("an interrupt is in service until its end", &[0x52, 0, 0]),
    ("a level interrupt comes again until its wire is low", &[0x51, 0xe0, 0x51, 0x51, 0xe0, 0x51, 0x51, 0xe0, 0x51]),
    (
        "an IOAPIC's level pin has its remote IRR until the end of interrupt",
        &[0x55, 0xe0, 0x55, 1, 0x55, 0xe0, 0x55, 0, 0],
    ),
];

/// How this KVM is known to deviate, which is printed.
fn deviations(kvm: &KvmAccelerator) -> &'static [Deviation] {
    if conformance::keeps_in_service(kvm).unwrap() {
        return &[];
    }
    println!("this KVM ends interrupts as it delivers them");
    ENDED_AT_DELIVERY
}

#[test]
fn every_conformance_guest_passes() {
    for irqchip in EVERY_IRQCHIP {
        let Some(kvm) = kvm(irqchip) else { return };
        println!("{irqchip:?}");
        conformance::check_all(&kvm, left_out(irqchip), deviations(&kvm));
    }
}

#[test]
fn local_apics_of_ours_never_deviate() {
    let Some(kvm) = kvm(KernelIrqchip::Off) else { return };
    assert!(conformance::keeps_in_service(&kvm).unwrap());
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
fn every_conformance_guest_ends_in_the_same_state_as_on_the_software_cpu() {
    for irqchip in EVERY_IRQCHIP {
        let Some(kvm) = kvm(irqchip) else { return };
        println!("{irqchip:?}");
        let known = deviations(&kvm).iter().map(|(guest, _)| (*guest, "this KVM is known to end it otherwise"));
        let mut without = left_out(irqchip).to_vec();
        without.extend(known.filter(|(guest, _)| !left_out(irqchip).iter().any(|(other, _)| other == guest)));
        conformance::check_equal(&kvm, &SoftAccelerator::default(), &without);
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
