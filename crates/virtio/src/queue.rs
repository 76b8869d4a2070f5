//! Split virtqueues (virtio 1.3 section 2.7) as a device uses them: chains in, chains out, every address checked.
//!
//! `virtio-queue` walks the rings. It ends a chain silently where a descriptor lies; here that is an error, so that a device never
//! works on half a request, and every buffer of a chain is known to be RAM before the device sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory as _, Permissions};

use crate::{GuestMemory, Interrupt};

/// The longest chain in descriptors, as in QEMU (`VIRTQUEUE_MAX_SIZE`). An indirect table may be longer than its queue, and a
/// driver that fills a queue with huge tables must not hold a vCPU's thread for seconds.
const MAX_CHAIN: usize = 1024;

/// How many chains one notification may consume. More than any queue holds, yet finite while another vCPU refills the queue.
const MAX_CHAINS_PER_NOTIFICATION: u32 = 1 << 16;

/// How a driver broke the rules of a queue.
#[derive(Debug, Error)]
pub enum QueueError {
    /// A ring is outside RAM or its index runs ahead by more than the queue holds.
    #[error("the rings cannot be used: {0}")]
    Ring(virtio_queue::Error),
    /// A chain has a loop, a descriptor outside its table, or a bad indirect table.
    #[error("descriptor chain {head} is malformed after {descriptors} descriptors")]
    Chain {
        /// The chain's first descriptor.
        head: u16,
        /// How many of it could be read.
        descriptors: usize,
    },
    /// A chain is longer than any driver needs.
    #[error("descriptor chain {head} has more than {MAX_CHAIN} descriptors")]
    TooLong {
        /// The chain's first descriptor.
        head: u16,
    },
    /// A device-readable buffer follows a device-writable one (forbidden by section 2.7.4.2).
    #[error("descriptor chain {head} has a readable buffer after a writable one")]
    Order {
        /// The chain's first descriptor.
        head: u16,
    },
    /// A buffer is not RAM.
    #[error("{len} bytes at guest-physical {address:#x} are not RAM")]
    Memory {
        /// Where the buffer begins.
        address: u64,
        /// Its length in bytes.
        len: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Buffer {
    address: GuestAddress,
    len: u32,
}

impl Buffer {
    fn lost(self) -> QueueError {
        QueueError::Memory { address: self.address.0, len: self.len as usize }
    }
}

/// Whether all of `address .. address + len` is RAM. An empty range is, wherever it points.
fn is_ram(memory: &GuestMemory, address: GuestAddress, len: u32) -> bool {
    len == 0 || memory.check_range(address, len as usize, Permissions::ReadWrite)
}

/// A descriptor chain that the driver made available: readable buffers, then writable ones, all of them RAM.
///
/// Its device gives it back with [`VirtQueue::push`].
#[derive(Debug)]
#[must_use = "a chain that is not pushed back is lost to the driver"]
pub struct Chain {
    head: u16,
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
}

impl Chain {
    fn walk(descriptors: DescriptorChain<&GuestMemory>, memory: &GuestMemory) -> Result<Self, QueueError> {
        let head = descriptors.head_index();
        let mut chain = Self { head, readable: Vec::new(), writable: Vec::new() };
        let mut count = 0;
        let mut complete = false;
        for descriptor in descriptors {
            count += 1;
            if count > MAX_CHAIN {
                return Err(QueueError::TooLong { head });
            }
            let buffer = Buffer { address: descriptor.addr(), len: descriptor.len() };
            if !is_ram(memory, buffer.address, buffer.len) {
                return Err(buffer.lost());
            }
            if descriptor.is_write_only() {
                chain.writable.push(buffer);
            } else if chain.writable.is_empty() {
                chain.readable.push(buffer);
            } else {
                return Err(QueueError::Order { head });
            }
            complete = !descriptor.has_next();
        }
        if complete { Ok(chain) } else { Err(QueueError::Chain { head, descriptors: count }) }
    }

    /// Bytes that the device may read.
    pub fn readable_len(&self) -> u64 {
        self.readable.iter().map(|b| u64::from(b.len)).sum()
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        self.writable.iter().map(|b| u64::from(b.len)).sum()
    }
}

/// One virtqueue of an active device.
pub struct VirtQueue {
    queue: Queue,
    memory: GuestMemory,
    interrupt: Interrupt,
    /// Cleared when the driver writes 0 to QueueReady or resets the device.
    enabled: Arc<AtomicBool>,
    budget: u32,
}

impl VirtQueue {
    pub(crate) fn new(queue: Queue, memory: GuestMemory, interrupt: Interrupt, enabled: Arc<AtomicBool>) -> Self {
        Self { queue, memory, interrupt, enabled, budget: MAX_CHAINS_PER_NOTIFICATION }
    }

    /// How many entries it has.
    pub(crate) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Guest-physical addresses of the descriptor table, the driver's ring and the device's.
    pub(crate) fn ring_addresses(&self) -> [u64; 3] {
        [self.queue.desc_table(), self.queue.avail_ring(), self.queue.used_ring()]
    }

    /// The memory that it is in.
    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Starts serving a notification: what follows may consume a bounded number of chains.
    pub fn begin(&mut self) {
        self.budget = MAX_CHAINS_PER_NOTIFICATION;
    }

    /// Takes the next available chain, `None` when there is none; the driver will then notify about the next one.
    ///
    /// # Errors
    /// [`QueueError`] when the driver broke the rules; the device needs a reset.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        if !self.enabled.load(Ordering::Acquire) || self.budget == 0 {
            return Ok(None);
        }
        loop {
            let descriptors = self.queue.iter(&self.memory).map_err(QueueError::Ring)?.next();
            if let Some(descriptors) = descriptors {
                self.budget -= 1;
                return Chain::walk(descriptors, &self.memory).map(Some);
            }
            // Without event indices the driver always notifies, as we never ask it not to.
            if !self.queue.event_idx_enabled()
                || !self.queue.enable_notification(&self.memory).map_err(QueueError::Ring)?
            {
                return Ok(None);
            }
        }
    }

    /// Reads the chain's readable bytes, at most `limit` of them.
    ///
    /// # Errors
    /// [`QueueError::Memory`] cannot happen for a chain of this queue.
    pub fn read(&self, chain: &Chain, limit: usize) -> Result<Vec<u8>, QueueError> {
        let mut data = Vec::new();
        let len = self.read_into(chain, limit, &mut data)?;
        data.truncate(len);
        Ok(data)
    }

    /// Reads the chain's readable bytes, at most `limit` of them, to the start of `data`, which grows if it must and never shrinks; returns how many
    /// bytes that was. For a device that reads again and again: nothing is cleared first.
    ///
    /// # Errors
    /// As [`VirtQueue::read`].
    pub fn read_into(&self, chain: &Chain, limit: usize, data: &mut Vec<u8>) -> Result<usize, QueueError> {
        let wanted = usize::try_from(chain.readable_len()).unwrap_or(usize::MAX).min(limit);
        if data.len() < wanted {
            data.resize(wanted, 0);
        }
        let mut rest = data.get_mut(..wanted).unwrap_or_default();
        for buffer in &chain.readable {
            let (part, tail) = rest.split_at_mut(rest.len().min(buffer.len as usize));
            self.memory.read_slice(part, buffer.address).map_err(|_| buffer.lost())?;
            rest = tail;
        }
        Ok(wanted)
    }

    /// Writes `data` into the chain's writable bytes, as much as fits; returns how many bytes that was.
    ///
    /// # Errors
    /// [`QueueError::Memory`] cannot happen for a chain of this queue.
    pub fn write(&self, chain: &Chain, data: &[u8]) -> Result<u32, QueueError> {
        let mut rest = data;
        for buffer in &chain.writable {
            let (part, tail) = rest.split_at(rest.len().min(buffer.len as usize));
            self.memory.write_slice(part, buffer.address).map_err(|_| buffer.lost())?;
            rest = tail;
        }
        // A chain holds less than 2^32 bytes: `virtio-queue` ends a longer one, which is then malformed.
        Ok(u32::try_from(data.len() - rest.len()).unwrap_or(u32::MAX))
    }

    /// Gives `chain` back to the driver, with `written` bytes written from its first writable byte on.
    ///
    /// # Errors
    /// [`QueueError::Ring`] when the used ring cannot be written.
    pub fn push(&mut self, chain: Chain, written: u32) -> Result<(), QueueError> {
        if !self.enabled.load(Ordering::Acquire) {
            return Ok(());
        }
        self.queue.add_used(&self.memory, chain.head, written).map_err(QueueError::Ring)
    }

    /// Interrupts the driver if it wants to know about what was pushed since the last call. Once after a batch is enough.
    ///
    /// # Errors
    /// [`QueueError::Ring`] when the available ring cannot be read.
    pub fn signal(&mut self) -> Result<(), QueueError> {
        if !self.enabled.load(Ordering::Acquire) {
            return Ok(());
        }
        let wanted = if self.queue.event_idx_enabled() {
            self.queue.needs_notification(&self.memory).map_err(QueueError::Ring)?
        } else {
            // VIRTQ_AVAIL_F_NO_INTERRUPT (section 2.7.6), which `virtio-queue` does not look at.
            let flags: u16 = self
                .memory
                .read_obj(GuestAddress(self.queue.avail_ring()))
                .map_err(|_| QueueError::Memory { address: self.queue.avail_ring(), len: 2 })?;
            u16::from_le(flags) & 1 == 0
        };
        if wanted {
            self.interrupt.used_buffer();
        }
        Ok(())
    }
}

impl std::fmt::Debug for VirtQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtQueue").field("queue", &self.queue).finish_non_exhaustive()
    }
}

/// A queue's addresses as the driver wrote them, before anyone believes them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RingAddresses {
    pub(crate) descriptors: u64,
    pub(crate) driver: u64,
    pub(crate) device: u64,
}

impl RingAddresses {
    /// A queue of `size` entries at these addresses, if they can be one.
    pub(crate) fn queue(
        self,
        max_size: u16,
        size: u16,
        event_idx: bool,
        memory: &GuestMemory,
    ) -> Result<Queue, QueueError> {
        let build = || {
            let mut queue = Queue::new(max_size)?;
            queue.try_set_size(size)?;
            queue.try_set_desc_table_address(GuestAddress(self.descriptors))?;
            queue.try_set_avail_ring_address(GuestAddress(self.driver))?;
            queue.try_set_used_ring_address(GuestAddress(self.device))?;
            queue.set_event_idx(event_idx);
            queue.set_ready(true);
            Ok(queue)
        };
        let queue = build().map_err(QueueError::Ring)?;
        // Section 2.7: 16 bytes a descriptor; 6 + 2 bytes and 6 + 8 bytes an entry for the two rings.
        let entries = u32::from(size);
        for (address, len) in
            [(self.descriptors, 16 * entries), (self.driver, 6 + 2 * entries), (self.device, 6 + 8 * entries)]
        {
            if GuestAddress(address).checked_add(len.into()).is_none() || !is_ram(memory, GuestAddress(address), len) {
                return Err(QueueError::Memory { address, len: len as usize });
            }
        }
        Ok(queue)
    }
}
