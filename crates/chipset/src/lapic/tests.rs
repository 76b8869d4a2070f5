//! The local APIC, driven through its registers.

use super::*;

const BASE_MSR: u32 = 0x1b;
const DEADLINE_MSR: u32 = 0x6e0;

fn config(id: u32) -> LapicConfig {
    LapicConfig { id, bsp: id == 0, x2apic: true, physical_address_bits: 40 }
}

/// An xAPIC that is enabled by software, with spurious vector 0xff.
fn xapic(id: u32) -> Lapic {
    let mut apic = Lapic::new(config(id));
    write(&mut apic, 0xf0, 0x1ff);
    apic
}

/// An x2APIC that is enabled by software.
fn x2apic(id: u32) -> Lapic {
    let mut apic = Lapic::new(config(id));
    let base = apic.read_msr(BASE_MSR, 0).unwrap();
    apic.write_msr(BASE_MSR, base | 1 << 10, 0).unwrap();
    apic.write_msr(0x80f, 0x1ff, 0).unwrap();
    apic
}

fn write_at(apic: &mut Lapic, offset: u64, value: u32, now: u64) -> Option<LapicAction> {
    apic.mmio_write(offset, &value.to_le_bytes(), now)
}

fn write(apic: &mut Lapic, offset: u64, value: u32) -> Option<LapicAction> {
    write_at(apic, offset, value, 0)
}

fn read_at(apic: &mut Lapic, offset: u64, now: u64) -> u32 {
    let mut data = [0; 4];
    apic.mmio_read(offset, &mut data, now);
    u32::from_le_bytes(data)
}

fn read(apic: &mut Lapic, offset: u64) -> u32 {
    read_at(apic, offset, 0)
}

fn edge(apic: &mut Lapic, vector: u8) -> bool {
    apic.accept(DeliveryMode::Fixed, vector, TriggerMode::Edge)
}

fn take(apic: &mut Lapic) -> u8 {
    let vector = apic.pending_interrupt().unwrap();
    apic.acknowledge(vector);
    vector
}

fn latch_errors(apic: &mut Lapic) -> u32 {
    write(apic, 0x280, 0);
    read(apic, 0x280)
}

#[test]
fn registers_after_reset_are_those_of_the_manual() {
    let mut apic = Lapic::new(config(3));
    let expected = [
        (0x20, 3 << 24),
        (0x30, 0x50014),
        (0x80, 0),
        (0xd0, 0),
        (0xe0, 0xffff_ffff),
        (0xf0, 0xff),
        (0x300, 0),
        (0x320, 0x10000),
        (0x350, 0x10000),
        (0x370, 0x10000),
        (0x390, 0),
        (0x3e0, 0),
    ];
    for (offset, value) in expected {
        assert_eq!(read(&mut apic, offset), value, "{offset:#x}");
    }
    assert_eq!(apic.apic_base(), 0xfee0_0800);
    assert_eq!(Lapic::new(config(0)).apic_base(), 0xfee0_0900);
}

#[test]
fn only_the_bootstrap_processor_has_the_virtual_wire_after_reset() {
    let mut bsp = Lapic::new(config(0));
    assert!(bsp.set_lint(0, true));
    assert!(bsp.extint_pending());
    let mut other = Lapic::new(config(1));
    assert!(!other.set_lint(0, true));
    assert!(!other.extint_pending());
}

#[test]
fn masking_lint0_cuts_the_virtual_wire() {
    let mut apic = xapic(0);
    write(&mut apic, 0x350, 0x700);
    apic.set_lint(0, true);
    assert!(apic.extint_pending());
    write(&mut apic, 0x350, 0x10700);
    assert!(!apic.extint_pending());
}

#[test]
fn a_withdrawn_pic_interrupt_is_not_pending() {
    let mut apic = Lapic::new(config(0));
    apic.set_lint(0, true);
    apic.set_lint(0, false);
    assert!(!apic.extint_pending());
}

#[test]
fn an_extint_message_waits_for_its_acknowledgement() {
    let mut apic = xapic(1);
    assert!(apic.accept(DeliveryMode::ExtInt, 0, TriggerMode::Edge));
    assert!(apic.extint_pending());
    apic.acknowledge_extint();
    assert!(!apic.extint_pending());
}

#[test]
fn the_highest_vector_comes_first_and_nests() {
    let mut apic = xapic(0);
    assert!(edge(&mut apic, 0x31));
    assert_eq!(take(&mut apic), 0x31);
    edge(&mut apic, 0x35);
    assert_eq!(apic.pending_interrupt(), None, "same priority class");
    edge(&mut apic, 0x41);
    assert_eq!(take(&mut apic), 0x41);
    assert_eq!(read(&mut apic, 0xa0), 0x40);
    assert_eq!(write(&mut apic, 0xb0, 0), None);
    assert_eq!(apic.pending_interrupt(), None);
    write(&mut apic, 0xb0, 0);
    assert_eq!(take(&mut apic), 0x35);
}

#[test]
fn an_interrupt_that_is_already_requested_is_not_news() {
    let mut apic = xapic(0);
    assert!(edge(&mut apic, 0x31));
    assert!(!edge(&mut apic, 0x31));
}

#[test]
fn the_task_priority_holds_back_its_class_and_lower() {
    let mut apic = xapic(0);
    edge(&mut apic, 0x5f);
    apic.set_cr8(5);
    assert_eq!((apic.pending_interrupt(), read(&mut apic, 0x80)), (None, 0x50));
    write(&mut apic, 0x80, 0x4f);
    assert_eq!((apic.pending_interrupt(), apic.cr8()), (Some(0x5f), 4));
    assert_eq!(read(&mut apic, 0xa0), 0x4f, "PPR shows the subclass of the TPR");
}

#[test]
fn irr_isr_and_tmr_show_where_an_interrupt_is() {
    let mut apic = xapic(0);
    apic.accept(DeliveryMode::Fixed, 0x62, TriggerMode::Level);
    assert_eq!((read(&mut apic, 0x230), read(&mut apic, 0x1b0)), (4, 4));
    take(&mut apic);
    assert_eq!((read(&mut apic, 0x230), read(&mut apic, 0x130)), (0, 4));
}

#[test]
fn only_a_level_triggered_interrupt_ends_with_a_broadcast() {
    let mut apic = xapic(0);
    apic.accept(DeliveryMode::Fixed, 0x62, TriggerMode::Level);
    take(&mut apic);
    assert_eq!(write(&mut apic, 0xb0, 0), Some(LapicAction::EoiBroadcast(0x62)));
    edge(&mut apic, 0x62);
    take(&mut apic);
    assert_eq!(write(&mut apic, 0xb0, 0), None);
}

#[test]
fn an_eoi_with_nothing_in_service_does_nothing() {
    assert_eq!(write(&mut xapic(0), 0xb0, 0), None);
}

#[test]
fn an_apic_disabled_by_software_takes_no_vectors_but_nmis() {
    let mut apic = xapic(0);
    write(&mut apic, 0xf0, 0xff);
    assert!(!edge(&mut apic, 0x40));
    assert!(apic.accept(DeliveryMode::Nmi, 0, TriggerMode::Edge));
    assert_eq!(apic.take_event(), Some(LapicEvent::Nmi));
}

#[test]
fn disabling_by_software_masks_every_lvt_entry() {
    let mut apic = xapic(0);
    write(&mut apic, 0x320, 0x40);
    write(&mut apic, 0xf0, 0xff);
    assert_eq!(read(&mut apic, 0x320), 0x10040);
    write(&mut apic, 0x320, 0x40);
    assert_eq!(read(&mut apic, 0x320), 0x10040, "and keeps them masked");
}

#[test]
fn illegal_vectors_show_in_the_esr_after_it_is_written() {
    let mut apic = xapic(0);
    edge(&mut apic, 0xf);
    assert_eq!(read(&mut apic, 0x280), 0);
    assert_eq!(latch_errors(&mut apic), 0x40);
    assert_eq!(latch_errors(&mut apic), 0);
    assert_eq!(write(&mut apic, 0x300, 5), None);
    assert_eq!(latch_errors(&mut apic), 0x20);
}

#[test]
fn an_illegal_register_raises_the_error_interrupt() {
    let mut apic = xapic(0);
    write(&mut apic, 0x370, 0xfe);
    assert_eq!(read(&mut apic, 0x3f0), 0);
    assert_eq!(take(&mut apic), 0xfe);
    assert_eq!(latch_errors(&mut apic), 0x80);
}

#[test]
fn an_error_entry_with_an_illegal_vector_raises_nothing() {
    let mut apic = xapic(0);
    write(&mut apic, 0x370, 3);
    edge(&mut apic, 1);
    assert_eq!(apic.pending_interrupt(), None);
    assert_eq!(latch_errors(&mut apic), 0x40);
}

#[test]
fn odd_sizes_and_offsets_do_no_harm() {
    let mut apic = xapic(0x12);
    let mut data = [0xaa; 8];
    apic.mmio_read(0x20, &mut data, 0);
    assert_eq!(data, [0, 0, 0, 0x12, 0, 0, 0, 0]);
    apic.mmio_read(0x23, &mut data[..1], 0);
    assert_eq!(data[0], 0x12);
    apic.mmio_write(0x80, &[0x50], 0);
    apic.mmio_write(0x84, &[0x50; 4], 0);
    apic.mmio_read(0xfffc, &mut data, 0);
    assert_eq!(read(&mut apic, 0x80), 0);
}

#[test]
fn an_ipi_carries_destination_mode_and_vector() {
    let mut apic = xapic(0);
    write(&mut apic, 0x310, 3 << 24);
    assert_eq!(
        write(&mut apic, 0x300, 0x40fd),
        Some(LapicAction::Ipi(InterruptMessage {
            destination: Destination::Physical(3),
            delivery: DeliveryMode::Fixed,
            vector: 0xfd,
            trigger: TriggerMode::Edge,
        }))
    );
    assert_eq!(read(&mut apic, 0x310), 3 << 24);
    assert_eq!(read(&mut apic, 0x300), 0x40fd, "delivery status is idle");
}

#[test]
fn a_destination_of_ff_is_everyone() {
    let mut apic = xapic(0);
    write(&mut apic, 0x310, 0xff << 24);
    let Some(LapicAction::Ipi(message)) = write(&mut apic, 0x300, 0x4840) else { panic!("no IPI") };
    assert_eq!(message.destination, Destination::Logical(BROADCAST));
    assert!(x2apic(77).matches_destination(message.destination, false));
    assert!(xapic(0).matches_destination(message.destination, true));
}

#[test]
fn shorthands_override_the_destination() {
    let mut apic = xapic(0);
    for (shorthand, destination) in [(2 << 18, Destination::All), (3 << 18, Destination::AllButSelf)] {
        let Some(LapicAction::Ipi(message)) = write(&mut apic, 0x300, 0x4040 | shorthand) else { panic!("no IPI") };
        assert_eq!(message.destination, destination);
    }
    assert!(!apic.matches_destination(Destination::AllButSelf, true));
    assert!(apic.matches_destination(Destination::AllButSelf, false));
    assert_eq!(write(&mut apic, 0x300, 0x4040 | 1 << 18), None);
    assert_eq!(apic.pending_interrupt(), Some(0x40), "self is delivered on the spot");
}

#[test]
fn the_start_up_sequence_of_linux_is_init_deassert_sipi() {
    let mut bsp = xapic(0);
    write(&mut bsp, 0x310, 1 << 24);
    let Some(LapicAction::Ipi(init)) = write(&mut bsp, 0x300, 0xc500) else { panic!("no INIT") };
    assert_eq!(init.delivery, DeliveryMode::Init);
    assert_eq!(write(&mut bsp, 0x300, 0x8500), None, "de-assertion");
    let Some(LapicAction::Ipi(sipi)) = write(&mut bsp, 0x300, 0x0699) else { panic!("no SIPI") };
    let mut ap = Lapic::new(config(1));
    assert!(ap.matches_destination(init.destination, false));
    assert!(ap.accept(init.delivery, init.vector, init.trigger));
    assert!(ap.accept(sipi.delivery, sipi.vector, sipi.trigger));
    assert_eq!(ap.take_event(), Some(LapicEvent::Init));
    ap.init();
    assert_eq!(ap.take_event(), Some(LapicEvent::StartUp(0x99)));
    assert_eq!(ap.take_event(), None);
}

#[test]
fn a_start_up_before_init_is_lost() {
    let mut ap = Lapic::new(config(1));
    ap.accept(DeliveryMode::StartUp, 0x10, TriggerMode::Edge);
    ap.accept(DeliveryMode::Init, 0, TriggerMode::Edge);
    assert_eq!(ap.take_event(), Some(LapicEvent::Init));
    assert!(!ap.event_pending());
}

#[test]
fn a_blocked_nmi_stays_pending() {
    let mut apic = xapic(0);
    apic.accept(DeliveryMode::Nmi, 0, TriggerMode::Edge);
    assert_eq!(apic.take_unless_nmi_blocked(true), None);
    assert!(apic.event_pending());
    assert_eq!(apic.take_unless_nmi_blocked(false), Some(LapicEvent::Nmi));
}

#[test]
fn lint1_as_nmi_fires_on_the_rising_edge_only() {
    let mut apic = xapic(0);
    write(&mut apic, 0x360, 0x400);
    assert!(apic.set_lint(1, true));
    assert_eq!(apic.take_event(), Some(LapicEvent::Nmi));
    assert!(!apic.set_lint(1, true));
    assert_eq!(apic.take_event(), None);
}

#[test]
fn a_level_triggered_lint0_asks_again_after_eoi_while_high() {
    let mut apic = xapic(0);
    write(&mut apic, 0x350, 0x8050);
    apic.set_lint(0, true);
    assert_eq!(take(&mut apic), 0x50);
    assert_eq!(read(&mut apic, 0x350), 0xc050, "remote IRR");
    assert_eq!(write(&mut apic, 0xb0, 0), None);
    assert_eq!(take(&mut apic), 0x50);
    apic.set_lint(0, false);
    write(&mut apic, 0xb0, 0);
    assert_eq!((apic.pending_interrupt(), read(&mut apic, 0x350)), (None, 0x8050));
}

#[test]
fn flat_logical_destinations_match_by_bit() {
    let mut apic = xapic(1);
    write(&mut apic, 0xd0, 0x0200_0000);
    for (id, hit) in [(0x02, true), (0x03, true), (0x01, false), (0, false)] {
        assert_eq!(apic.matches_destination(Destination::Logical(id), false), hit, "{id:#x}");
    }
}

#[test]
fn cluster_logical_destinations_match_cluster_and_bit() {
    let mut apic = xapic(1);
    write(&mut apic, 0xe0, 0);
    assert_eq!(read(&mut apic, 0xe0), 0x0fff_ffff);
    write(&mut apic, 0xd0, 0x3200_0000);
    for (id, hit) in [(0x32, true), (0x36, true), (0x31, false), (0x22, false)] {
        assert_eq!(apic.matches_destination(Destination::Logical(id), false), hit, "{id:#x}");
    }
}

#[test]
fn x2apic_logical_ids_derive_from_the_apic_id() {
    let mut apic = x2apic(0x123);
    assert_eq!(apic.read_msr(0x80d, 0).unwrap(), 0x12_0008);
    assert_eq!(apic.read_msr(0x802, 0).unwrap(), 0x123);
    for (id, hit) in [(0x12_0008, true), (0x12_ffff, true), (0x12_0004, false), (0x11_0008, false)] {
        assert_eq!(apic.matches_destination(Destination::Logical(id), false), hit, "{id:#x}");
    }
    assert!(apic.matches_destination(Destination::Physical(0x123), false));
    assert!(!apic.matches_destination(Destination::Physical(0x23), false));
}

#[test]
fn the_x2apic_icr_is_one_write_with_a_32_bit_destination() {
    let mut apic = x2apic(0);
    let action = apic.write_msr(0x830, 0x0001_0002_0000_08f1, 0).unwrap();
    let Some(LapicAction::Ipi(message)) = action else { panic!("no IPI") };
    assert_eq!((message.destination, message.vector), (Destination::Logical(0x1_0002), 0xf1));
    assert_eq!(apic.read_msr(0x830, 0).unwrap(), 0x0001_0002_0000_08f1);
}

#[test]
fn the_x2apic_self_ipi_register_interrupts_oneself() {
    let mut apic = x2apic(0);
    assert_eq!(apic.write_msr(0x83f, 0x77, 0), Ok(None));
    assert_eq!(apic.pending_interrupt(), Some(0x77));
}

#[test]
fn x2apic_registers_that_do_not_exist_fault() {
    let mut apic = x2apic(0);
    for msr in [0x800, 0x809, 0x80b, 0x80c, 0x80e, 0x831, 0x83f, 0x840, 0x8ff] {
        assert!(apic.read_msr(msr, 0).is_err(), "read {msr:#x}");
    }
    for msr in [0x800, 0x802, 0x803, 0x80a, 0x80d, 0x80e, 0x810, 0x820, 0x831, 0x839, 0x8ff] {
        assert!(apic.write_msr(msr, 0, 0).is_err(), "write {msr:#x}");
    }
}

#[test]
fn x2apic_reserved_bits_fault() {
    let mut apic = x2apic(0);
    let bad =
        [(0x808, 0x100), (0x80b, 1), (0x80f, 0x1000), (0x828, 1), (0x830, 1 << 20), (0x832, 1 << 13), (0x838, 1 << 32)];
    for (msr, value) in bad {
        assert_eq!(apic.write_msr(msr, value, 0), Err(LapicFault { msr }), "{msr:#x}");
    }
}

#[test]
fn x2apic_msrs_fault_in_xapic_mode() {
    let mut apic = xapic(0);
    assert!(apic.read_msr(0x802, 0).is_err());
    assert!(apic.write_msr(0x80b, 0, 0).is_err());
}

#[test]
fn the_modes_change_only_along_the_manuals_arrows() {
    const BASE: u64 = 0xfee0_0000;
    const EN: u64 = 1 << 11;
    const X2: u64 = EN | 1 << 10;
    let mut apic = Lapic::new(config(1));
    assert!(apic.set_apic_base(BASE | 1 << 10).is_err(), "EXTD without EN");
    assert!(apic.set_apic_base(BASE | EN | 1).is_err(), "reserved bit");
    assert!(apic.set_apic_base(1 << 40 | EN).is_err(), "beyond the physical addresses");
    apic.set_apic_base(BASE | X2).unwrap();
    assert_eq!(apic.mmio_base(), None);
    assert!(apic.set_apic_base(BASE | EN).is_err(), "x2APIC to xAPIC");
    apic.set_apic_base(BASE).unwrap();
    assert!(!apic.enabled());
    assert!(apic.set_apic_base(BASE | X2).is_err(), "disabled to x2APIC");
    apic.set_apic_base(0xd000_0000 | EN).unwrap();
    assert_eq!(apic.mmio_base(), Some(0xd000_0000));
}

#[test]
fn x2apic_mode_cannot_be_entered_where_cpuid_does_not_offer_it() {
    let mut apic = Lapic::new(LapicConfig { x2apic: false, ..config(0) });
    assert!(apic.set_apic_base(0xfee0_0000 | 3 << 10).is_err());
}

#[test]
fn a_disabled_apic_hears_nothing_and_forgets_its_state() {
    let mut apic = xapic(1);
    edge(&mut apic, 0x40);
    apic.set_apic_base(0xfee0_0000).unwrap();
    assert!(!apic.matches_destination(Destination::All, false));
    assert!(!edge(&mut apic, 0x41));
    apic.set_apic_base(0xfee0_0800).unwrap();
    assert_eq!((apic.pending_interrupt(), read(&mut apic, 0xf0)), (None, 0xff));
}

#[test]
fn init_keeps_the_mode_the_base_and_the_id() {
    let mut apic = x2apic(5);
    edge(&mut apic, 0x40);
    apic.init();
    assert!(apic.x2apic_mode());
    assert_eq!(apic.read_msr(0x80d, 0).unwrap(), 1 << 5);
    assert_eq!((apic.pending_interrupt(), apic.read_msr(0x80f, 0).unwrap()), (None, 0xff));
}

#[test]
fn a_one_shot_fires_once_when_its_count_ends() {
    let mut apic = xapic(0);
    write(&mut apic, 0x320, 0x40);
    write(&mut apic, 0x3e0, 0x3); // divide by 16
    write_at(&mut apic, 0x380, 100, 1000);
    assert_eq!(apic.next_deadline(), Some(TimerDeadline::Ns(2600)));
    assert_eq!(read_at(&mut apic, 0x390, 1000), 100);
    assert_eq!(read_at(&mut apic, 0x390, 1800), 50);
    assert!(!apic.advance(2599, 0));
    assert!(apic.advance(2600, 0));
    assert_eq!(take(&mut apic), 0x40);
    assert_eq!((apic.next_deadline(), read_at(&mut apic, 0x390, 9999)), (None, 0));
}

#[test]
fn a_periodic_timer_goes_on_and_merges_missed_periods() {
    let mut apic = xapic(0);
    write(&mut apic, 0x320, 0x2_0040);
    write(&mut apic, 0x3e0, 0xb); // divide by 1
    write(&mut apic, 0x380, 1000);
    assert!(apic.advance(1000, 0));
    take(&mut apic);
    write(&mut apic, 0xb0, 0);
    assert_eq!(apic.next_deadline(), Some(TimerDeadline::Ns(2000)));
    assert!(apic.advance(5500, 0));
    assert_eq!(apic.next_deadline(), Some(TimerDeadline::Ns(6000)));
    assert_eq!(read_at(&mut apic, 0x390, 5600), 400);
}

#[test]
fn the_divisors_are_those_of_the_manual() {
    for (code, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
        let mut apic = xapic(0);
        write(&mut apic, 0x320, 0x40);
        write(&mut apic, 0x3e0, code);
        write(&mut apic, 0x380, 10);
        assert_eq!(apic.next_deadline(), Some(TimerDeadline::Ns(10 * divisor)), "{code:#x}");
    }
}

#[test]
fn a_new_divisor_takes_over_the_running_count() {
    let mut apic = xapic(0);
    write(&mut apic, 0x320, 0x40);
    write(&mut apic, 0x3e0, 0xb);
    write(&mut apic, 0x380, 1000);
    write_at(&mut apic, 0x3e0, 0, 600);
    assert_eq!(read_at(&mut apic, 0x390, 600), 400);
    assert_eq!(apic.next_deadline(), Some(TimerDeadline::Ns(1400)));
}

#[test]
fn an_initial_count_of_zero_stops_the_timer() {
    let mut apic = xapic(0);
    write(&mut apic, 0x320, 0x2_0040);
    write(&mut apic, 0x380, 1000);
    write(&mut apic, 0x380, 0);
    assert_eq!(apic.next_deadline(), None);
}

#[test]
fn a_count_that_ends_while_masked_raises_nothing_later() {
    let mut apic = xapic(0);
    write(&mut apic, 0x320, 0x1_0040);
    write(&mut apic, 0x380, 100);
    assert_eq!(apic.next_deadline(), None);
    assert_eq!(read_at(&mut apic, 0x390, 100), 50);
    write_at(&mut apic, 0x320, 0x40, 5000);
    assert_eq!((apic.next_deadline(), apic.pending_interrupt()), (None, None));
}

#[test]
fn a_tsc_deadline_fires_once_and_disarms_itself() {
    let mut apic = xapic(0);
    write(&mut apic, 0x320, 0x4_0040);
    apic.write_msr(DEADLINE_MSR, 5000, 0).unwrap();
    assert_eq!(apic.next_deadline(), Some(TimerDeadline::Tsc(5000)));
    assert_eq!(apic.read_msr(DEADLINE_MSR, 0).unwrap(), 5000);
    assert!(!apic.advance(u64::MAX, 4999));
    assert!(apic.advance(0, 5000));
    assert_eq!(take(&mut apic), 0x40);
    assert_eq!((apic.next_deadline(), apic.tsc_deadline()), (None, 0));
}

#[test]
fn counts_and_deadlines_belong_to_their_own_modes() {
    let mut apic = xapic(0);
    write(&mut apic, 0x320, 0x40);
    apic.write_msr(DEADLINE_MSR, 5000, 0).unwrap();
    assert_eq!(apic.tsc_deadline(), 0);
    write(&mut apic, 0x380, 10);
    write(&mut apic, 0x320, 0x4_0040);
    assert_eq!(apic.next_deadline(), None, "a change of mode disarms");
    write(&mut apic, 0x380, 10);
    assert_eq!((apic.next_deadline(), read(&mut apic, 0x380)), (None, 0));
}

#[test]
fn extreme_counts_and_times_do_not_overflow() {
    let mut apic = xapic(0);
    write(&mut apic, 0x320, 0x2_0040);
    write(&mut apic, 0x3e0, 0xa);
    write_at(&mut apic, 0x380, u32::MAX, u64::MAX - 5);
    read_at(&mut apic, 0x390, u64::MAX);
    apic.advance(u64::MAX, u64::MAX);
    write_at(&mut apic, 0x3e0, 0xb, u64::MAX);
    read_at(&mut apic, 0x390, 0);
}

#[test]
fn a_saved_state_comes_back_whole() {
    let mut apic = xapic(0);
    edge(&mut apic, 0x40);
    let saved = apic.save();
    apic.reset();
    assert_eq!(apic.pending_interrupt(), None);
    apic.restore(saved.clone());
    assert_eq!((apic.pending_interrupt(), apic.save()), (Some(0x40), saved));
}

#[test]
fn msis_decode_as_the_manual_says() {
    let message = InterruptMessage::from_msi(0xfee0_3004, 0x0141).unwrap();
    assert_eq!(
        message,
        InterruptMessage {
            destination: Destination::Logical(3),
            delivery: DeliveryMode::LowestPriority,
            vector: 0x41,
            trigger: TriggerMode::Edge,
        }
    );
    let broadcast = InterruptMessage::from_msi(0xfeef_f000, 0xc041).unwrap();
    assert_eq!((broadcast.destination, broadcast.trigger), (Destination::Physical(BROADCAST), TriggerMode::Level));
    assert_eq!(InterruptMessage::from_msi(0xfee0_0000, 0x8041), None, "level de-assertion");
    assert_eq!(InterruptMessage::from_msi(0xfee0_0000, 0x0341), None, "reserved delivery mode");
}

#[test]
fn a_page_goes_on_in_another_apic_with_its_timer_and_its_interrupts() {
    let mut first = xapic(1);
    write(&mut first, 0x3e0, 0xb);
    write(&mut first, 0x320, 0x2_0040);
    write_at(&mut first, 0x380, 1000, 0);
    edge(&mut first, 0x51);
    edge(&mut first, 0x71);
    assert_eq!(take(&mut first), 0x71);
    let page = first.page(300);
    let mut second = xapic(1);
    second.load_page(&page, 0, 50_000);
    assert_eq!(second.page(50_000), page);
    assert_eq!(second.next_deadline(), Some(TimerDeadline::Ns(50_700)));
    assert_eq!(second.pending_interrupt(), None, "0x71 is still in service");
    second.eoi();
    assert_eq!(second.pending_interrupt(), Some(0x51));
}

#[test]
fn a_page_of_an_x2apic_keeps_its_identity_and_its_deadline() {
    let mut first = x2apic(0x123);
    first.write_msr(0x832, 0x4_0050, 0).unwrap();
    first.write_msr(DEADLINE_MSR, 777, 0).unwrap();
    let mut second = x2apic(0x123);
    second.load_page(&first.page(0), first.tsc_deadline(), 0);
    assert_eq!(second.save(), first.save());
    assert_eq!((second.page(0)[2], second.next_deadline()), (0x123, Some(TimerDeadline::Tsc(777))));
}

#[test]
fn a_page_of_garbage_is_masked_to_what_the_registers_hold() {
    let mut apic = xapic(0);
    apic.load_page(&[u32::MAX; 64], u64::MAX, u64::MAX);
    assert_eq!((read(&mut apic, 0xf0), read(&mut apic, 0x320)), (0x3ff, 0x7_00ff));
    assert_eq!(read(&mut apic, 0x20), 0);
}
