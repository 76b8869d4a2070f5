//! All local APICs of a machine, and the delivery of messages among them (Intel SDM vol. 3, APIC chapter, "Determining IPI Destination" and "Lowest Priority Delivery Mode").

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{DeliveryMode, InterruptMessage, Lapic, LapicConfig};

/// The local APICs, each behind a lock that is never held while another is taken.
#[derive(Debug)]
pub struct LocalApics {
    apics: Vec<Mutex<Lapic>>,
    /// Where the search for the lowest priority starts, so that equals share the load.
    next_lowest: AtomicUsize,
}

impl LocalApics {
    /// A local APIC after power-up for each of these.
    pub fn new(configs: impl IntoIterator<Item = LapicConfig>) -> Self {
        let apics = configs.into_iter().map(|config| Mutex::new(Lapic::new(config))).collect();
        Self { apics, next_lowest: AtomicUsize::new(0) }
    }

    /// Processor `index`'s.
    ///
    /// # Panics
    /// When there is no such processor: a mistake of the caller's.
    pub fn lock(&self, index: usize) -> MutexGuard<'_, Lapic> {
        self.apics[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Delivers a message to every local APIC that it addresses; `sender` is the processor that sent it, if one did. `took` hears of each one that got it, while
    /// it is still locked.
    pub fn deliver(&self, message: InterruptMessage, sender: Option<usize>, mut took: impl FnMut(usize, &Lapic)) {
        if message.delivery == DeliveryMode::LowestPriority {
            if let Some(index) = self.lowest(message, sender) {
                self.accept(index, InterruptMessage { delivery: DeliveryMode::Fixed, ..message }, &mut took);
            }
            return;
        }
        for index in 0..self.apics.len() {
            if self.lock(index).matches_destination(message.destination, sender == Some(index)) {
                self.accept(index, message, &mut took);
            }
        }
    }

    fn accept(&self, index: usize, message: InterruptMessage, took: &mut impl FnMut(usize, &Lapic)) {
        let mut lapic = self.lock(index);
        lapic.accept(message.delivery, message.vector, message.trigger);
        took(index, &lapic);
    }

    /// Who of those that the message addresses has the lowest priority.
    fn lowest(&self, message: InterruptMessage, sender: Option<usize>) -> Option<usize> {
        let count = self.apics.len();
        let start = self.next_lowest.fetch_add(1, Ordering::Relaxed);
        let candidates = (0..count).map(|i| start.wrapping_add(i) % count).filter_map(|index| {
            let lapic = self.lock(index);
            let addressed = lapic.matches_destination(message.destination, sender == Some(index));
            (addressed && lapic.accepts_vectors()).then(|| (lapic.processor_priority(), index))
        });
        candidates.min_by_key(|&(priority, _)| priority).map(|(_, index)| index)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Destination, TriggerMode};
    use super::*;

    /// Three processors whose local APICs are switched on.
    fn three() -> LocalApics {
        let config = |id| LapicConfig { id, bsp: id == 0, x2apic: false, physical_address_bits: 40 };
        let apics = LocalApics::new((0..3).map(config));
        for index in 0..3 {
            assert_eq!(apics.lock(index).mmio_write(0xf0, &0x1ffu32.to_le_bytes(), 0), None);
        }
        apics
    }

    fn takers(apics: &LocalApics, destination: Destination, delivery: DeliveryMode, sender: usize) -> Vec<usize> {
        let mut takers = Vec::new();
        let message = InterruptMessage { destination, delivery, vector: 0x51, trigger: TriggerMode::Edge };
        apics.deliver(message, Some(sender), |index, lapic| {
            assert_eq!(lapic.pending_interrupt(), Some(0x51));
            takers.push(index);
        });
        takers
    }

    #[test]
    fn a_message_reaches_those_that_it_addresses() {
        let fixed = DeliveryMode::Fixed;
        assert_eq!(takers(&three(), Destination::Physical(2), fixed, 0), [2]);
        assert_eq!(takers(&three(), Destination::AllButSelf, fixed, 1), [0, 2]);
        assert_eq!(takers(&three(), Destination::Physical(7), fixed, 0), [0; 0]);
    }

    #[test]
    fn the_lowest_priority_takes_it_and_equals_take_turns() {
        let apics = three();
        let lowest = DeliveryMode::LowestPriority;
        apics.lock(0).set_cr8(4);
        let both: Vec<_> = (0..6).flat_map(|_| takers(&apics, Destination::All, lowest, 0)).collect();
        assert_eq!(both.len(), 6);
        assert!(both.contains(&1) && both.contains(&2) && !both.contains(&0), "{both:?}");
    }
}
