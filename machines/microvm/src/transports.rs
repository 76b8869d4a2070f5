//! The board's virtio-mmio transports, handed out from the last one down as QEMU does.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use accel::Vm;
use bus::AddressSpacesBuilder;
use event_loop::Interest;
use guest_memory::GuestMemory;
use virtio::{MmioTransport, QUEUE_NOTIFY, VirtioDevice};

use crate::MachineError;
use crate::address_map::{VIRTIO_MMIO, VIRTIO_MMIO_SIZE};
use crate::interrupts::{GsiWiring, TransportPlan};

fn lock(transport: &Mutex<MmioTransport>) -> MutexGuard<'_, MmioTransport> {
    transport.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where one transport is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Its number, from 0.
    pub index: u32,
    /// Guest-physical address of its registers.
    pub address: u32,
    /// Its interrupt.
    pub gsi: u32,
}

impl TransportPlan {
    /// Where the `n`th device goes, or `None` when every transport has one.
    fn slot(&self, n: usize) -> Option<Slot> {
        let index = self.count.checked_sub(1)?.checked_sub(u32::try_from(n).ok()?)?;
        Some(Slot { index, address: VIRTIO_MMIO + index * VIRTIO_MMIO_SIZE, gsi: self.first_gsi + index })
    }
}

/// The transports that have a device.
#[derive(Default)]
pub(crate) struct Transports {
    used: Vec<(Slot, Arc<Mutex<MmioTransport>>)>,
}

impl Transports {
    /// Gives each device a transport and maps it.
    pub(crate) fn new(
        plan: TransportPlan,
        devices: Vec<Box<dyn VirtioDevice>>,
        memory: &GuestMemory,
        wiring: &Arc<GsiWiring>,
        spaces: &mut AddressSpacesBuilder,
    ) -> Result<Self, MachineError> {
        let wanted = devices.len();
        let mut used = Vec::with_capacity(wanted);
        for (n, device) in devices.into_iter().enumerate() {
            let slot = plan.slot(n).ok_or(MachineError::TooManyDevices { wanted, most: plan.count })?;
            let transport = MmioTransport::new(device, memory.clone(), wiring.line(slot.gsi));
            let transport = Arc::new(Mutex::new(transport));
            spaces.map_mmio(slot.address.into(), VIRTIO_MMIO_SIZE.into(), transport.clone())?;
            used.push((slot, transport));
        }
        Ok(Self { used })
    }

    /// Has the event loop serve the queues whose notifications the backend signals by events, so that the vCPU that notifies goes on at once; or the device's own process, where it has one.
    pub(crate) fn notify_by_events(&self, vm: &dyn Vm, events: &event_loop::Handle) -> Result<(), MachineError> {
        for (slot, transport) in &self.used {
            let queues = lock(transport).queue_count();
            for queue in 0..queues {
                let Some(event) = vm.ioeventfd(u64::from(slot.address) + QUEUE_NOTIFY, queue) else { continue };
                let event = Arc::new(event);
                if lock(transport).takes_notifications(queue, &event) {
                    continue;
                }
                let (notified, transport) = (event.clone(), Arc::downgrade(transport));
                events.add_source(event, Interest::READ, move |_| {
                    // Only this callback reads it, so there is something, or nothing is lost.
                    let _ = notified.read();
                    if let Some(transport) = transport.upgrade() {
                        lock(&transport).notify(queue);
                    }
                })?;
            }
        }
        Ok(())
    }

    /// Where the devices are, in the order in which they were handed in.
    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> {
        self.used.iter().map(|(slot, _)| *slot)
    }

    /// What Linux has to be told on its command line, where no table tells it: `virtio_mmio.device=<size>@<address>:<irq>`.
    pub(crate) fn cmdline(&self) -> String {
        self.slots()
            .map(|slot| format!(" virtio_mmio.device={VIRTIO_MMIO_SIZE}@{:#x}:{}", slot.address, slot.gsi))
            .collect()
    }

    pub(crate) fn power_cycle(&self) {
        for (_, transport) in &self.used {
            lock(transport).power_cycle();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transports(acpi: bool, devices: usize) -> Result<Transports, MachineError> {
        let memory = guest_memory::allocate(&[(0, 4096)]).unwrap();
        let devices = (0..devices).map(|_| Box::new(virtio::rng::Rng::new()) as Box<dyn VirtioDevice>).collect();
        let mut spaces = AddressSpacesBuilder::new();
        Transports::new(
            TransportPlan::new(acpi, acpi),
            devices,
            &memory,
            &GsiWiring::new(None, Vec::new()),
            &mut spaces,
        )
    }

    #[test]
    fn without_acpi_the_first_device_is_at_the_last_of_eight_transports() {
        let cmdline = transports(false, 2).unwrap().cmdline();
        assert_eq!(cmdline, " virtio_mmio.device=512@0xfeb00e00:12 virtio_mmio.device=512@0xfeb00c00:11");
    }

    #[test]
    fn with_the_second_ioapic_it_is_at_the_last_of_twenty_four() {
        let slot = transports(true, 1).unwrap().slots().next();
        assert_eq!(slot, Some(Slot { index: 23, address: 0xfeb0_2e00, gsi: 47 }));
    }

    #[test]
    fn more_devices_than_transports_are_refused() {
        assert!(transports(false, 8).is_ok());
        assert!(matches!(transports(false, 9), Err(MachineError::TooManyDevices { wanted: 9, most: 8 })));
    }
}
