//! The transport through its registers: negotiation, a queue's life, interrupts, resets, and drivers that lie.

use super::*;
use crate::testing::{AVAILABLE, BUFFERS, DESCRIPTORS, Driver, INDIRECT, NEXT, RAM, USED, WRITE};

/// Gives each chain back as if its whole writable part was written, and has four bytes of configuration.
#[derive(Default)]
struct Echo {
    queue: Option<VirtQueue>,
    config: [u8; 4],
}

impl VirtioDevice for Echo {
    fn name(&self) -> &str {
        "echo"
    }

    fn device_id(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        1
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8, 4]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in (offset..).zip(data) {
            *byte = self.config.get(i as usize).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (i, byte) in (offset..).zip(data) {
            if let Some(slot) = self.config.get_mut(i as usize) {
                *slot = *byte;
            }
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.queue = activation.queues.into_iter().next();
        Ok(())
    }

    fn notify(&mut self, queue: u16) -> Result<(), DeviceError> {
        let broken = |source| DeviceError::Queue { queue, source };
        let Some(q) = &mut self.queue else { return Ok(()) };
        q.begin();
        while let Some(chain) = q.pop().map_err(broken)? {
            let mut data = q.read(&chain, 64).map_err(broken)?;
            data.resize(chain.writable_len().min(64) as usize, 0xee);
            let written = q.write(&chain, &data).map_err(broken)?;
            q.push(chain, written).map_err(broken)?;
        }
        q.signal().map_err(broken)
    }

    fn reset(&mut self) {
        self.queue = None;
    }
}

fn driver() -> Driver {
    Driver::new(Box::<Echo>::default())
}

fn started() -> Driver {
    let mut driver = driver();
    driver.start();
    driver
}

#[test]
fn identity_registers_read_as_a_modern_device() {
    let mut driver = driver();
    assert_eq!(driver.read(0x00).to_le_bytes(), *b"virt");
    assert_eq!((driver.read(0x04), driver.read(0x08)), (2, 42));
}

#[test]
fn features_are_offered_in_two_words() {
    let mut driver = driver();
    driver.write(0x14, 0);
    assert_eq!(driver.read(0x10), 1 | 1 << 28 | 1 << 29);
    driver.write(0x14, 1);
    assert_eq!(driver.read(0x10), 1);
    driver.write(0x14, 2);
    assert_eq!(driver.read(0x10), 0);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    assert_eq!(driver().negotiate(features::VERSION_1 | 2), 3);
}

#[test]
fn a_legacy_driver_is_refused() {
    assert_eq!(driver().negotiate(1), 3);
}

#[test]
fn features_cannot_change_once_settled() {
    let mut driver = driver();
    assert_eq!(driver.negotiate(features::VERSION_1), 11);
    driver.write(0x24, 0);
    driver.write(0x20, 0xffff_ffff);
    driver.set_queue(DESCRIPTORS, AVAILABLE, USED, 8);
    driver.write(0x70, 15);
    assert_eq!(driver.read(0x70), 15);
}

#[test]
fn driver_ok_before_features_ok_is_not_heard() {
    let mut driver = driver();
    driver.write(0x70, 7);
    assert_eq!(driver.read(0x70), 3);
}

#[test]
fn status_bits_are_only_cleared_by_a_reset() {
    let mut driver = started();
    driver.write(0x70, 1);
    assert_eq!(driver.read(0x70), 15);
    driver.write(0x70, 0);
    assert_eq!(driver.read(0x70), 0);
}

#[test]
fn each_queue_has_its_size_and_others_have_none() {
    let mut driver = driver();
    for (queue, size) in [(0, 8), (1, 4), (2, 0), (u32::MAX, 0)] {
        driver.write(0x30, queue);
        assert_eq!(driver.read(0x34), size);
        driver.write(0x38, 4);
        driver.write(0x80, 0x1000);
        if size == 0 {
            driver.write(0x44, 1);
            assert_eq!(driver.read(0x44), 0);
        }
    }
}

#[test]
fn a_chain_goes_through_the_queue_and_interrupts() {
    let mut driver = started();
    let head = driver.chain(&[b"abc", b"d"], &[2, 8]);
    driver.kick();
    assert_eq!(driver.take_used(), [(head, 10)]);
    assert_eq!(driver.memory_at(head, 2, 2), b"ab");
    assert_eq!(driver.memory_at(head, 3, 8), b"cd\xee\xee\xee\xee\xee\xee");
    assert!(driver.interrupted());
    assert_eq!(driver.read(0x60), 1);
}

#[test]
fn acknowledging_every_bit_lowers_the_wire() {
    let mut driver = started();
    driver.writable(&[4]);
    driver.kick();
    driver.write(0x64, 2);
    assert!(driver.interrupted());
    driver.write(0x64, 1);
    assert!(!driver.interrupted());
    assert_eq!(driver.read(0x60), 0);
}

#[test]
fn an_unacknowledged_interrupt_does_not_rise_again() {
    let mut driver = started();
    for _ in 0..3 {
        driver.writable(&[4]);
        driver.kick();
    }
    assert_eq!(driver.rises(), 1);
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let mut driver = started();
    driver.poke(AVAILABLE, 1u16.to_le_bytes());
    let head = driver.writable(&[4]);
    driver.kick();
    assert_eq!(driver.take_used(), [(head, 4)]);
    assert!(!driver.interrupted());
}

#[test]
fn with_event_indices_the_interrupt_comes_at_the_used_event_and_the_notification_is_asked_for() {
    let mut driver = driver();
    driver.start_with(features::VERSION_1 | features::EVENT_IDX);
    // used_event: interrupt when the third chain (index 2) is used.
    driver.poke(AVAILABLE + 4 + 2 * 8, 2u16.to_le_bytes());
    for rises in [0, 0, 1] {
        driver.writable(&[4]);
        driver.kick();
        assert_eq!(driver.rises(), rises);
    }
    // avail_event: notify when the fourth (index 3) is available.
    assert_eq!(driver.peek_u16(USED + 4 + 8 * 8), 3);
}

#[test]
fn indirect_descriptors_are_followed() {
    let mut driver = driver();
    driver.start_with(features::VERSION_1 | features::INDIRECT_DESC);
    let table = 0x8000;
    driver.descriptor(table, 0, BUFFERS, 3, NEXT, 1);
    driver.descriptor(table, 1, BUFFERS + 0x100, 5, WRITE, 0);
    driver.descriptor(DESCRIPTORS, 0, table, 32, INDIRECT, 0);
    driver.offer(0);
    driver.kick();
    assert_eq!(driver.take_used(), [(0, 5)]);
}

#[test]
fn the_ring_wraps_around_many_times() {
    let mut driver = started();
    for _ in 0..70_000 {
        let head = driver.writable(&[4]);
        driver.kick();
        assert_eq!(driver.take_used(), [(head, 4)]);
    }
}

#[test]
fn what_the_device_writes_reaches_the_code_watch() {
    for address in [BUFFERS, USED + 2, USED + 4] {
        let mut driver = started();
        let before = driver.watch_code(address);
        driver.writable(&[2]);
        driver.kick();
        assert_ne!(driver.watch_code(address), before, "{address:#x}");
    }
}

#[test]
fn notifications_before_driver_ok_are_ignored() {
    let mut driver = driver();
    driver.negotiate(features::VERSION_1);
    driver.set_queue(DESCRIPTORS, AVAILABLE, USED, 8);
    driver.writable(&[4]);
    driver.kick();
    assert_eq!(driver.take_used(), []);
}

#[test]
fn a_notification_for_a_queue_that_is_not_there_is_ignored() {
    let mut driver = started();
    for queue in [2, 0xffff, 0x1_0000, u32::MAX] {
        driver.write(0x50, queue);
    }
    assert!(!driver.needs_reset());
}

#[test]
fn a_queue_that_is_switched_off_consumes_nothing_more() {
    let mut driver = started();
    driver.write(0x30, 0);
    driver.write(0x44, 0);
    assert_eq!(driver.read(0x44), 0);
    driver.writable(&[4]);
    driver.kick();
    assert_eq!(driver.take_used(), []);
    assert!(!driver.needs_reset());
}

#[test]
fn a_reset_lowers_the_wire_and_the_device_starts_again() {
    let mut driver = started();
    driver.writable(&[4]);
    driver.kick();
    assert!(driver.interrupted());
    driver.write(0x70, 0);
    assert!(!driver.interrupted());
    assert_eq!((driver.read(0x60), driver.read(0x44)), (0, 0));
    driver.restart();
    let head = driver.writable(&[4]);
    driver.kick();
    assert_eq!(driver.take_used(), [(head, 4)]);
    assert!(driver.interrupted());
}

#[test]
fn an_interrupt_held_from_before_a_reset_is_dead() {
    let mut driver = started();
    let old = driver.transport().interrupt.clone();
    driver.restart();
    old.used_buffer();
    old.needs_reset();
    assert!(!driver.interrupted() && !driver.needs_reset());
}

#[test]
fn config_space_takes_bytes_and_a_change_bumps_the_generation() {
    let mut driver = driver();
    driver.transport().write(0x101, &[7]).unwrap();
    let mut data = [0xaa; 8];
    driver.transport().read(0x100, &mut data).unwrap();
    assert_eq!(data, [0, 7, 0, 0, 0, 0, 0, 0]);
    let generation = driver.read(0xfc);
    driver.transport().interrupt.config_changed();
    assert_ne!(driver.read(0xfc), generation);
    assert_eq!(driver.read(0x60), 2);
}

#[test]
fn control_registers_take_whole_words_only() {
    let mut driver = driver();
    let mut byte = [0];
    assert_eq!(driver.transport().read(0x70, &mut byte), Err(IoError::Size { offset: 0x70, size: 1 }));
    assert_eq!(driver.transport().write(0x70, &[1; 8]), Err(IoError::Size { offset: 0x70, size: 8 }));
    assert_eq!(driver.transport().read(0x71, &mut [0; 4]), Err(IoError::NoRegister { offset: 0x71 }));
    assert_eq!(driver.transport().write(0x00, &[0; 4]), Err(IoError::ReadOnly { offset: 0 }));
    assert_eq!(driver.transport().read(0x50, &mut [0; 4]), Err(IoError::WriteOnly { offset: 0x50 }));
}

#[test]
fn there_are_no_shared_memory_regions() {
    let mut driver = driver();
    driver.write(0xac, 0);
    assert_eq!((driver.read(0xb0), driver.read(0xb4)), (u32::MAX, u32::MAX));
}

/// Runs a hostile setup of descriptors; the device must end in DEVICE_NEEDS_RESET, say so, and use nothing.
fn breaks(set_up: impl FnOnce(&mut Driver)) {
    let mut driver = driver();
    driver.start_with(features::VERSION_1 | features::INDIRECT_DESC);
    set_up(&mut driver);
    driver.kick();
    assert!(driver.needs_reset());
    assert_eq!(driver.read(0x60), 2);
    assert!(driver.interrupted());
    assert_eq!(driver.take_used(), []);
    driver.kick();
    driver.restart();
    let head = driver.writable(&[4]);
    driver.kick();
    assert_eq!(driver.take_used(), [(head, 4)], "a reset heals the device");
}

#[test]
fn a_chain_that_loops_breaks_the_device() {
    breaks(|d| {
        d.descriptor(DESCRIPTORS, 0, BUFFERS, 4, NEXT | WRITE, 1);
        d.descriptor(DESCRIPTORS, 1, BUFFERS, 4, NEXT | WRITE, 0);
        d.offer(0);
    });
}

#[test]
fn a_next_descriptor_outside_the_table_breaks_the_device() {
    breaks(|d| {
        d.descriptor(DESCRIPTORS, 0, BUFFERS, 4, NEXT | WRITE, 8);
        d.offer(0);
    });
}

#[test]
fn a_head_outside_the_table_breaks_the_device() {
    breaks(|d| d.offer(0xffff));
}

#[test]
fn buffers_outside_ram_break_the_device() {
    for (address, len) in [(RAM, 1), (RAM - 4, 8), (u64::MAX - 3, 8), (0, u32::MAX), (u64::MAX, 1)] {
        for flags in [0, WRITE] {
            breaks(|d| {
                d.descriptor(DESCRIPTORS, 0, address, len, flags, 0);
                d.offer(0);
            });
        }
    }
}

#[test]
fn a_readable_buffer_after_a_writable_one_breaks_the_device() {
    breaks(|d| {
        d.descriptor(DESCRIPTORS, 0, BUFFERS, 4, NEXT | WRITE, 1);
        d.descriptor(DESCRIPTORS, 1, BUFFERS, 4, 0, 0);
        d.offer(0);
    });
}

#[test]
fn bad_indirect_tables_break_the_device() {
    for (table, len) in [(RAM, 16), (0x8000, 15), (0x8000, 0), (u64::MAX - 15, 16), (0x8000, 0xffff_fff0)] {
        breaks(|d| {
            d.descriptor(DESCRIPTORS, 0, table, len, INDIRECT, 0);
            d.offer(0);
        });
    }
}

#[test]
fn an_indirect_table_in_an_indirect_table_breaks_the_device() {
    breaks(|d| {
        d.descriptor(0x8000, 0, 0x8000, 16, INDIRECT, 0);
        d.descriptor(DESCRIPTORS, 0, 0x8000, 16, INDIRECT, 0);
        d.offer(0);
    });
}

#[test]
fn an_endless_indirect_table_breaks_the_device() {
    breaks(|d| {
        // In a table of 65535 entries the first two point at each other.
        d.descriptor(0x2_0000, 0, BUFFERS, 0, NEXT | WRITE, 1);
        d.descriptor(0x2_0000, 1, BUFFERS, 0, NEXT | WRITE, 0);
        d.descriptor(DESCRIPTORS, 0, 0x2_0000, 0xf_fff0, INDIRECT, 0);
        d.offer(0);
    });
}

#[test]
fn an_available_index_that_runs_ahead_breaks_the_device() {
    breaks(|d| d.poke(AVAILABLE + 2, 9u16.to_le_bytes()));
}

#[test]
fn a_queue_that_cannot_be_is_refused_before_the_driver_is_ready() {
    let good = (DESCRIPTORS, AVAILABLE, USED, 8);
    for (descriptors, available, used, size) in [
        (RAM, good.1, good.2, 8),
        (good.0, RAM - 2, good.2, 8),
        (good.0, good.1, RAM - 8, 8),
        (!15, good.1, good.2, 8),
        (good.0, !1, good.2, 8),
        (good.0, good.1, !3, 8),
        (good.0 + 8, good.1, good.2, 8),
        (good.0, good.1 + 1, good.2, 8),
        (good.0, good.1, good.2 + 2, 8),
        (good.0, good.1, good.2, 0),
        (good.0, good.1, good.2, 3),
        (good.0, good.1, good.2, 16),
        (good.0, good.1, good.2, 0x1_0008),
    ] {
        let mut driver = driver();
        driver.negotiate(features::VERSION_1);
        driver.set_queue(descriptors, available, used, size);
        assert_eq!(driver.read(0x44), 0);
        assert!(driver.needs_reset());
        assert!(!driver.interrupted(), "the driver does not listen yet");
        driver.write(0x70, 15);
        driver.kick();
        assert_eq!(driver.read(0x70), 11 | 64);
    }
}

#[test]
fn registers_written_with_noise_never_panic() {
    let mut driver = driver();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..200_000 {
        // xorshift64, Marsaglia 2003.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let offset = ((seed >> 8) % MMIO_SIZE) & !3;
        let value = (seed >> 20) as u32;
        let value = match seed % 4 {
            0 => value & 0xff,
            1 => value & 0xf_fff0,
            2 => [0, 1, 3, 11, 15][value as usize % 5],
            _ => value,
        };
        let _ = driver.transport().write(offset, &value.to_le_bytes());
        let _ = driver.transport().read(offset, &mut [0; 4]);
    }
}
