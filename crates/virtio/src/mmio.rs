//! The virtio-mmio register block, layout version 2 (virtio 1.3 section 4.2.2), and the device status state machine (sections 2.1
//! and 3.1).
//!
//! Control registers take aligned 32-bit accesses only, as the specification has drivers do; configuration space takes 1, 2, 4
//! and 8 bytes. Features cannot change after FEATURES_OK, and queues cannot be set up after DRIVER_OK.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bus::{IoError, IrqLine, MmioDevice};
use tracing::{debug, warn};
use vmm_sys_util::eventfd::EventFd;

use crate::device::features;
use crate::queue::RingAddresses;
use crate::{Activation, DeviceError, GuestMemory, Interrupt, QueueError, VirtQueue, VirtioDevice};

/// Size of the register block in bytes: 0x100 of control registers and 0x100 of configuration space.
pub const MMIO_SIZE: u64 = 0x200;

/// Offset of QueueNotify, whose value is the queue's number: a backend may signal a store to it by an event instead of a call.
pub const QUEUE_NOTIFY: u64 = reg::QUEUE_NOTIFY;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// VendorID is for the device's maker to choose; drivers only print it. Ours reads "vmm".
const VENDOR: u32 = u32::from_le_bytes(*b"vmm\0");

/// Control registers, virtio 1.3 section 4.2.2, table 4.1.
mod reg {
    pub(super) const MAGIC_VALUE: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE_ID: u64 = 0x008;
    pub(super) const VENDOR_ID: u64 = 0x00c;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(super) const QUEUE_SEL: u64 = 0x030;
    pub(super) const QUEUE_SIZE_MAX: u64 = 0x034;
    pub(super) const QUEUE_SIZE: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_STATUS: u64 = 0x060;
    pub(super) const INTERRUPT_ACK: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESC_LOW: u64 = 0x080;
    pub(super) const QUEUE_DESC_HIGH: u64 = 0x084;
    pub(super) const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub(super) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub(super) const SHM_SEL: u64 = 0x0ac;
    pub(super) const SHM_LEN_LOW: u64 = 0x0b0;
    pub(super) const SHM_LEN_HIGH: u64 = 0x0b4;
    pub(super) const SHM_BASE_LOW: u64 = 0x0b8;
    pub(super) const SHM_BASE_HIGH: u64 = 0x0bc;
    pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
    pub(super) const CONFIG: u64 = 0x100;
}

/// Device status bits, virtio 1.3 section 2.1.
mod status {
    pub(super) const ACKNOWLEDGE: u32 = 1;
    pub(super) const DRIVER: u32 = 2;
    pub(super) const DRIVER_OK: u32 = 4;
    pub(super) const FEATURES_OK: u32 = 8;
    pub(super) const DEVICE_NEEDS_RESET: u32 = 64;
    pub(super) const FAILED: u32 = 128;
}

/// Broken rules that are logged for each device before it goes quiet.
const LOGGED_FAILURES: u32 = 16;

#[derive(Debug)]
struct QueueRegisters {
    max_size: u16,
    size: u32,
    addresses: RingAddresses,
    ready: bool,
    /// Shared with the active [`VirtQueue`]; replaced at each reset, so that a queue of an earlier life stays off.
    enabled: Arc<AtomicBool>,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        let (size, addresses, ready) = (max_size.into(), RingAddresses::default(), false);
        Self { max_size, size, addresses, ready, enabled: Arc::default() }
    }

    fn queue(&self, event_idx: bool, memory: &GuestMemory) -> Result<virtio_queue::Queue, QueueError> {
        let size = u16::try_from(self.size).map_err(|_| QueueError::Ring(virtio_queue::Error::InvalidSize))?;
        self.addresses.queue(self.max_size, size, event_idx, memory)
    }

    fn disable(&mut self) {
        self.ready = false;
        self.enabled.store(false, Ordering::Release);
    }
}

/// A virtio device on the bus.
pub struct MmioTransport {
    name: String,
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    interrupt: Interrupt,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<QueueRegisters>,
    active: bool,
    failures: u32,
}

impl MmioTransport {
    /// A transport for `device`, whose queues are in `memory`, and which interrupts on `line` (level-triggered, active high).
    pub fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory, line: IrqLine) -> Self {
        Self {
            name: format!("virtio-{}", device.name()),
            queues: device.queue_sizes().iter().copied().map(QueueRegisters::new).collect(),
            device,
            memory,
            interrupt: Interrupt::new(line),
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            active: false,
            failures: 0,
        }
    }

    /// Resets the device and every register, as the driver does by writing a status of 0.
    pub fn reset(&mut self) {
        // Destructured, so that a new register has to be considered here.
        let Self {
            name: _,
            device,
            memory: _,
            interrupt,
            status,
            device_features_sel,
            driver_features_sel,
            driver_features,
            queue_sel,
            queues,
            active,
            failures: _,
        } = self;
        for queue in queues.iter_mut() {
            queue.disable();
            *queue = QueueRegisters::new(queue.max_size);
        }
        device.reset();
        *interrupt = interrupt.retire();
        *status = 0;
        *device_features_sel = 0;
        *driver_features_sel = 0;
        *driver_features = 0;
        *queue_sel = 0;
        *active = false;
    }

    /// Puts everything into the state after power-on, for a reset of the whole machine.
    pub fn power_cycle(&mut self) {
        self.reset();
        self.device.power_cycle();
    }

    /// Number of queues.
    pub fn queue_count(&self) -> u32 {
        self.queues.len() as u32
    }

    /// Notifications of queue `index` signal `event` from now on; whether the device takes them by itself, or [`MmioTransport::notify`] is to be called for them.
    pub fn takes_notifications(&mut self, index: u32, event: &Arc<EventFd>) -> bool {
        u16::try_from(index).is_ok_and(|index| self.device.takes_notifications(index, event))
    }

    fn offered_features(&self) -> u64 {
        self.device.features() | self.device.transport_features()
    }

    fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    /// The driver (or the host) made it impossible to go on: DEVICE_NEEDS_RESET.
    fn fail(&mut self, error: &DeviceError) {
        if self.failures < LOGGED_FAILURES {
            self.failures += 1;
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            warn!(device = self.name, "needs a reset: {error}{cause}");
        }
        if self.has(status::DRIVER_OK) {
            self.interrupt.needs_reset();
        } else {
            // Section 2.1.2: the driver is only interrupted once it said that it is ready.
            self.interrupt.needs_reset_silently();
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        // Section 2.1.1: a driver must not clear a bit but by a reset; one that tries is not heard.
        let set = value & !self.status;
        self.status |= set & (status::ACKNOWLEDGE | status::DRIVER | status::FAILED);
        if set & status::FEATURES_OK != 0 {
            let refused = self.driver_features & !self.offered_features();
            // Without VERSION_1 this is a legacy driver, which expects other registers (section 4.2.4) and another byte order.
            if refused == 0 && self.driver_features & features::VERSION_1 != 0 {
                self.status |= status::FEATURES_OK;
            } else {
                debug!(device = self.name, features = format_args!("{:#x}", self.driver_features), "features refused");
            }
        }
        if set & status::DRIVER_OK != 0 && self.has(status::FEATURES_OK) && !self.interrupt.is_broken() {
            self.status |= status::DRIVER_OK;
            if let Err(error) = self.activate() {
                self.fail(&error);
            }
        }
    }

    fn activate(&mut self) -> Result<(), DeviceError> {
        let event_idx = self.driver_features & features::EVENT_IDX != 0;
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, registers) in (0..).zip(&self.queues) {
            let queue = if registers.ready {
                let queue = registers
                    .queue(event_idx, &self.memory)
                    .map_err(|source| DeviceError::Queue { queue: index, source })?;
                registers.enabled.store(true, Ordering::Release);
                queue
            } else {
                // A queue that is not enabled never reaches its rings, so it needs none.
                virtio_queue::Queue::default()
            };
            let enabled = Arc::clone(&registers.enabled);
            queues.push(VirtQueue::new(queue, self.memory.clone(), self.interrupt.clone(), enabled));
        }
        let interrupt = self.interrupt.clone();
        self.device.activate(Activation { features: self.driver_features, queues, interrupt })?;
        self.active = true;
        debug!(device = self.name, features = format_args!("{:#x}", self.driver_features), "driver ready");
        Ok(())
    }

    /// The driver made chains available on queue `index`: what a write to [`QUEUE_NOTIFY`] does. Ignored unless the device is active.
    pub fn notify(&mut self, index: u32) {
        if !self.active || self.interrupt.is_broken() {
            return;
        }
        let Some(index) = u16::try_from(index).ok().filter(|i| usize::from(*i) < self.queues.len()) else { return };
        if let Err(error) = self.device.notify(index) {
            self.fail(&error);
        }
    }

    fn write_queue_ready(&mut self, value: u32) {
        let configurable = !self.has(status::DRIVER_OK);
        let memory = &self.memory;
        let Some((index, queue)) = (0..).zip(&mut self.queues).find(|(i, _)| u32::from(*i) == self.queue_sel) else {
            return;
        };
        if value & 1 == 0 {
            queue.disable();
        } else if configurable {
            match queue.queue(false, memory) {
                Ok(_) => queue.ready = true,
                Err(source) => self.fail(&DeviceError::Queue { queue: index, source }),
            }
        }
    }

    /// Changes a register of the selected queue, if there is one and it is not in use.
    fn with_selected_queue(&mut self, change: impl FnOnce(&mut QueueRegisters)) {
        let configurable = !self.has(status::DRIVER_OK);
        let selected = usize::try_from(self.queue_sel).ok().and_then(|i| self.queues.get_mut(i));
        if let Some(queue) = selected.filter(|q| configurable && !q.ready) {
            change(queue);
        }
    }

    fn selected_queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    fn read_register(&self, offset: u64) -> Result<u32, IoError> {
        Ok(match offset {
            reg::MAGIC_VALUE => MAGIC,
            reg::VERSION => VERSION,
            reg::DEVICE_ID => self.device.device_id(),
            reg::VENDOR_ID => VENDOR,
            reg::DEVICE_FEATURES => word(self.offered_features(), self.device_features_sel),
            reg::QUEUE_SIZE_MAX => self.selected_queue().map_or(0, |q| q.max_size.into()),
            reg::QUEUE_READY => self.selected_queue().map_or(0, |q| q.ready.into()),
            reg::INTERRUPT_STATUS => self.interrupt.pending(),
            reg::STATUS => self.status | if self.interrupt.is_broken() { status::DEVICE_NEEDS_RESET } else { 0 },
            // Section 4.2.2: a region that does not exist has a length of all ones.
            reg::SHM_LEN_LOW | reg::SHM_LEN_HIGH | reg::SHM_BASE_LOW | reg::SHM_BASE_HIGH => u32::MAX,
            reg::CONFIG_GENERATION => self.interrupt.config_generation(),
            reg::DEVICE_FEATURES_SEL
            | reg::DRIVER_FEATURES
            | reg::DRIVER_FEATURES_SEL
            | reg::QUEUE_SEL
            | reg::QUEUE_SIZE
            | reg::QUEUE_NOTIFY
            | reg::INTERRUPT_ACK
            | reg::QUEUE_DESC_LOW..=reg::QUEUE_DEVICE_HIGH
            | reg::SHM_SEL => return Err(IoError::WriteOnly { offset }),
            _ => return Err(IoError::NoRegister { offset }),
        })
    }

    fn write_register(&mut self, offset: u64, value: u32) -> Result<(), IoError> {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES if !self.has(status::FEATURES_OK) => {
                set_word(&mut self.driver_features, self.driver_features_sel, value);
            }
            // Section 2.2.1: features are settled once the device said FEATURES_OK.
            reg::DRIVER_FEATURES => {}
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::QUEUE_SEL => self.queue_sel = value,
            reg::QUEUE_SIZE => self.with_selected_queue(|q| q.size = value),
            reg::QUEUE_READY => self.write_queue_ready(value),
            reg::QUEUE_NOTIFY => self.notify(value),
            reg::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            reg::STATUS => self.write_status(value),
            reg::QUEUE_DESC_LOW => self.with_selected_queue(|q| set_word(&mut q.addresses.descriptors, 0, value)),
            reg::QUEUE_DESC_HIGH => self.with_selected_queue(|q| set_word(&mut q.addresses.descriptors, 1, value)),
            reg::QUEUE_DRIVER_LOW => self.with_selected_queue(|q| set_word(&mut q.addresses.driver, 0, value)),
            reg::QUEUE_DRIVER_HIGH => self.with_selected_queue(|q| set_word(&mut q.addresses.driver, 1, value)),
            reg::QUEUE_DEVICE_LOW => self.with_selected_queue(|q| set_word(&mut q.addresses.device, 0, value)),
            reg::QUEUE_DEVICE_HIGH => self.with_selected_queue(|q| set_word(&mut q.addresses.device, 1, value)),
            reg::SHM_SEL => {}
            reg::MAGIC_VALUE
            | reg::VERSION
            | reg::DEVICE_ID
            | reg::VENDOR_ID
            | reg::DEVICE_FEATURES
            | reg::QUEUE_SIZE_MAX
            | reg::INTERRUPT_STATUS
            | reg::CONFIG_GENERATION => return Err(IoError::ReadOnly { offset }),
            _ => return Err(IoError::NoRegister { offset }),
        }
        Ok(())
    }
}

impl MmioDevice for MmioTransport {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), IoError> {
        if offset >= reg::CONFIG {
            self.device.read_config(offset - reg::CONFIG, data);
            return Ok(());
        }
        let size = data.len();
        let data: &mut [u8; 4] = data.try_into().map_err(|_| IoError::Size { offset, size })?;
        *data = self.read_register(offset)?.to_le_bytes();
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), IoError> {
        if offset >= reg::CONFIG {
            self.device.write_config(offset - reg::CONFIG, data);
            return Ok(());
        }
        let value = <[u8; 4]>::try_from(data).map_err(|_| IoError::Size { offset, size: data.len() })?;
        self.write_register(offset, u32::from_le_bytes(value))
    }
}

/// 32-bit word `index` of a 64-bit register; there is nothing beyond the second.
fn word(register: u64, index: u32) -> u32 {
    match index {
        0 => register as u32,
        1 => (register >> 32) as u32,
        _ => 0,
    }
}

fn set_word(register: &mut u64, index: u32, value: u32) {
    match index {
        0 => *register = (*register & !0xffff_ffff) | u64::from(value),
        1 => *register = (*register & 0xffff_ffff) | (u64::from(value) << 32),
        _ => {}
    }
}

#[cfg(test)]
#[path = "mmio_tests.rs"]
mod tests;
