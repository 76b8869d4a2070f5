//! KVM's routing table, where the IOAPICs are the board's: by it KVM learns whose end-of-interrupt it must report, and what an irqfd sends.
//!
//! KVM reports the end of an interrupt only for level-triggered messages in its routing table. Our IOAPIC is not known here, but each of its
//! level-triggered messages passes [`accel::Vm::signal_msi`]: what is not in the table yet is put there before the message is sent. So the table
//! follows the guest's redirection entries without anybody watching them.
//!
//! Of the table's interrupt numbers KVM looks for ends only among the first, as many as it was told that our IOAPICs have pins ([`LEVEL_ROUTES`]). Irqfds have those behind: nobody waits for their ends,
//! and an exit for each would be for nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::VmFd;
use tracing::warn;

/// Level-triggered messages that are remembered: more than two IOAPICs have pins.
pub(crate) const LEVEL_ROUTES: usize = 64;

/// A message's address and data.
pub(crate) type Message = (u64, u32);

/// What is in the table.
#[derive(Default)]
struct Table {
    /// Level-triggered messages whose ends are reported, the least recently sent first.
    level: VecDeque<Message>,
    /// What irqfds send, by their interrupt numbers.
    irqfds: BTreeMap<u32, Message>,
}

impl Table {
    fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        let irqfds = self.irqfds.iter().map(|(&gsi, &message)| (gsi, message));
        (0..).zip(self.level.iter().copied()).chain(irqfds).map(|(gsi, message)| msi_route(gsi, message)).collect()
    }

    fn write(&self, fd: &VmFd) -> bool {
        let result = KvmIrqRouting::from_entries(&self.entries()).map(|routing| fd.set_gsi_routing(&routing));
        let taken = matches!(result, Ok(Ok(())));
        if !taken {
            warn!("KVM refuses the interrupt routes: {result:?}");
        }
        taken
    }
}

/// The routing table of one VM.
#[derive(Default)]
pub(crate) struct Routes(Mutex<Table>);

impl Routes {
    /// Makes KVM report the end of this level-triggered message's interrupt.
    pub(crate) fn add_level(&self, fd: &VmFd, message: Message) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = table.level.iter().position(|m| *m == message).and_then(|at| table.level.remove(at));
        table.level.push_back(message);
        if known.is_some() {
            return;
        }
        if table.level.len() > LEVEL_ROUTES {
            table.level.pop_front();
        }
        if !table.write(fd) {
            warn!("a level-triggered interrupt may arrive only once");
        }
    }

    /// Gives `message` the first number that no irqfd has; `None` if KVM refuses.
    pub(crate) fn add_irqfd(&self, fd: &VmFd, message: Message) -> Option<u32> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gsi = (LEVEL_ROUTES as u32..).find(|gsi| !table.irqfds.contains_key(gsi))?;
        table.irqfds.insert(gsi, message);
        if table.write(fd) {
            Some(gsi)
        } else {
            table.irqfds.remove(&gsi);
            None
        }
    }

    /// The irqfd of number `gsi` sends this from now on; whether KVM agrees.
    pub(crate) fn change_irqfd(&self, fd: &VmFd, gsi: u32, message: Message) -> bool {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.irqfds.insert(gsi, message);
        table.write(fd)
    }

    /// No irqfd has the number `gsi` any more. The table in the kernel may keep it until it is next written.
    pub(crate) fn remove_irqfd(&self, gsi: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).irqfds.remove(&gsi);
    }
}

/// A message's address in KVM's two halves: bits 14 to 8 of the destination, which a guest that knows of them puts into bits 11 to 5, belong into the upper one
/// (Linux Documentation/virt/kvm/api.rst, KVM_CAP_X2APIC_API; Documentation/virt/kvm/x86/cpuid.rst, KVM_FEATURE_MSI_EXT_DEST_ID).
pub(crate) fn address_halves(address: u64) -> (u32, u32) {
    let extended = address as u32 >> 5 & 0x7f;
    (address as u32 & !(0x7f << 5), (address >> 32) as u32 | extended << 8)
}

fn msi_route(gsi: u32, (address, data): Message) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    (entry.u.msi.address_lo, entry.u.msi.address_hi) = address_halves(address);
    entry.u.msi.data = data;
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upper_bits_of_a_long_destination_are_where_kvm_has_them() {
        assert_eq!(address_halves(0xfee0_1004), (0xfee0_1004, 0));
        // APIC ID 0x12c: 0x2c in bits 19-12, 1 in bits 11-5.
        assert_eq!(address_halves(0xfee2_c020), (0xfee2_c000, 0x100));
    }

    #[test]
    fn irqfds_lie_behind_the_messages_whose_ends_are_reported() {
        let mut table = Table::default();
        table.irqfds.insert(LEVEL_ROUTES as u32, (0xfee0_0000, 0x41));
        table.level.push_back((0xfee0_0000, 0xc051));
        let numbers: Vec<_> = table.entries().iter().map(|entry| entry.gsi).collect();
        assert_eq!(numbers, [0, 64]);
    }
}
