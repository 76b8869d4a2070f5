//! Events whose signals leave a pin of the IOAPIC as messages without this process: each follows its pin's redirection entry.
//!
//! A signal is a pulse on the pin, of which nothing is left once the message is sent: the chip has no remote IRR for it and needs no end of interrupt. Where the entry is level-triggered, what the
//! chip would do with a wire that stays high is done otherwise: a signal during the interrupt's service waits in the local APIC, which keeps one more of each vector, and one while the pin is masked waits in
//! the event, for whoever drives the wire. A driver that masks a level-triggered pin may have left its device as it was, and expects the interrupt again when it unmasks: so each unmasking is a signal.
//!
//! DEVNOTE: the exact model holds the pin high until the driver has served the device. Only the device could say when, and would have to be asked at each end of interrupt, which is the way through this process that
//! the event avoids. Missing is therefore the interrupt that comes again to a driver which neither serves its device nor masks the pin.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::EventBinding;
use vmm_sys_util::eventfd::EventFd;

use crate::lapic::{Msi, MsiEvent};

/// MSI data: trigger mode level.
const LEVEL: u32 = 1 << 15;

struct BoundEvent {
    id: u64,
    pin: u32,
    event: Arc<EventFd>,
    outlet: Box<dyn MsiEvent>,
    message: Option<Msi>,
}

/// The events of one chip.
#[derive(Default)]
pub(super) struct BoundEvents {
    next: u64,
    all: Vec<BoundEvent>,
}

pub(super) fn lock(bound: &Mutex<BoundEvents>) -> MutexGuard<'_, BoundEvents> {
    bound.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BoundEvents {
    /// Adds an event to `pin`, which makes `message` now; its number.
    pub(super) fn add(
        &mut self,
        pin: u32,
        mut outlet: Box<dyn MsiEvent>,
        event: &Arc<EventFd>,
        message: Option<Msi>,
    ) -> u64 {
        outlet.set_message(message);
        self.next += 1;
        self.all.push(BoundEvent { id: self.next, pin, event: event.clone(), outlet, message });
        self.next
    }

    /// Lets every event send what its pin makes now.
    pub(super) fn update(&mut self, message_of: impl Fn(u32) -> Option<Msi>) {
        for bound in &mut self.all {
            let message = message_of(bound.pin);
            let before = std::mem::replace(&mut bound.message, message);
            if before == message {
                continue;
            }
            bound.outlet.set_message(message);
            if before.is_none() && message.is_some_and(|message| message.data & LEVEL != 0) {
                // A counter that is full is a signal too.
                let _ = bound.event.write(1);
            }
        }
    }
}

/// What ends the binding of event `id` when it is dropped.
pub(super) fn binding(id: u64, bound: &Arc<Mutex<BoundEvents>>) -> EventBinding {
    struct Guard(u64, Arc<Mutex<BoundEvents>>);
    impl Drop for Guard {
        fn drop(&mut self) {
            lock(&self.1).all.retain(|bound| bound.id != self.0);
        }
    }
    EventBinding::new(Guard(id, bound.clone()))
}
