//! A driver in the tests' hands: it sets up one queue in guest memory through the transport's registers and runs chains over it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bus::{IrqLine, IrqTarget, MmioDevice};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};

use crate::{GuestMemory, MmioTransport, VirtioDevice, features};

pub(crate) const RAM: u64 = 0x20_0000;
pub(crate) const DESCRIPTORS: u64 = 0x1000;
pub(crate) const AVAILABLE: u64 = 0x2000;
pub(crate) const USED: u64 = 0x3000;
/// Buffer of descriptor 0; each descriptor has the next `BUFFER_SIZE` bytes.
pub(crate) const BUFFERS: u64 = 0x1_0000;
pub(crate) const BUFFER_SIZE: u64 = 0x1_0000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// An interrupt controller's input that remembers its level and how often it rose.
#[derive(Default)]
pub(crate) struct Wire {
    level: AtomicU32,
    rises: AtomicU32,
}

impl IrqTarget for Wire {
    fn set_irq(&self, _: u32, level: bool) {
        if level && self.level.swap(1, Ordering::SeqCst) == 0 {
            self.rises.fetch_add(1, Ordering::SeqCst);
        } else if !level {
            self.level.store(0, Ordering::SeqCst);
        }
    }
}

pub(crate) struct Driver {
    transport: MmioTransport,
    memory: GuestMemory,
    wire: Arc<Wire>,
    pub(crate) size: u16,
    next_descriptor: u16,
    available: u16,
    used: u16,
}

impl Driver {
    pub(crate) fn new(device: Box<dyn VirtioDevice>) -> Self {
        let memory = guest_memory::allocate(&[(0, RAM as usize)]).unwrap();
        let wire = Arc::new(Wire::default());
        let size = device.queue_sizes()[0];
        let transport = MmioTransport::new(device, memory.clone(), IrqLine::new(Arc::clone(&wire) as _, 5));
        Self { transport, memory, wire, size, next_descriptor: 0, available: 0, used: 0 }
    }

    /// Watches one line of code at `address`; the page's generation.
    pub(crate) fn watch_code(&self, address: u64) -> u32 {
        self.memory.iter().next().unwrap().bitmap().pages().watch(address as usize, 1)
    }

    pub(crate) fn transport(&mut self) -> &mut MmioTransport {
        &mut self.transport
    }

    pub(crate) fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes()).unwrap();
    }

    /// Reset, then virtio 1.3 section 3.1.1's initialization up to FEATURES_OK with `features`; the status that the device then shows.
    pub(crate) fn negotiate(&mut self, features: u64) -> u32 {
        self.write(0x70, 0);
        self.write(0x70, 1);
        self.write(0x70, 3);
        for word in 0..2 {
            self.write(0x24, word);
            self.write(0x20, (features >> (32 * word)) as u32);
        }
        self.write(0x70, 11);
        self.read(0x70)
    }

    pub(crate) fn set_queue(&mut self, descriptors: u64, available: u64, used: u64, size: u32) {
        self.write(0x30, 0);
        self.write(0x38, size);
        for (register, address) in [(0x80, descriptors), (0x90, available), (0xa0, used)] {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(0x44, 1);
    }

    /// Initialization with the queue at the usual place.
    pub(crate) fn start_with(&mut self, features: u64) {
        assert_eq!(self.negotiate(features), 11);
        self.memory.write_slice(&[0; 0x3000], GuestAddress(DESCRIPTORS)).unwrap();
        (self.next_descriptor, self.available, self.used) = (0, 0, 0);
        self.set_queue(DESCRIPTORS, AVAILABLE, USED, self.size.into());
        assert_eq!(self.read(0x44), 1);
        self.write(0x70, 15);
        assert_eq!(self.read(0x70), 15);
    }

    pub(crate) fn start(&mut self) {
        self.start_with(features::VERSION_1);
    }

    pub(crate) fn restart(&mut self) {
        self.start();
    }

    pub(crate) fn kick(&mut self) {
        self.write(0x50, 0);
    }

    pub(crate) fn interrupted(&self) -> bool {
        self.wire.level.load(Ordering::SeqCst) != 0
    }

    pub(crate) fn rises(&self) -> u32 {
        self.wire.rises.load(Ordering::SeqCst)
    }

    pub(crate) fn needs_reset(&mut self) -> bool {
        self.read(0x70) & 64 != 0
    }

    pub(crate) fn poke<const N: usize>(&self, address: u64, bytes: [u8; N]) {
        self.memory.write_slice(&bytes, GuestAddress(address)).unwrap();
    }

    pub(crate) fn peek_u16(&self, address: u64) -> u16 {
        u16::from_le(self.memory.read_obj(GuestAddress(address)).unwrap())
    }

    fn peek_u32(&self, address: u64) -> u32 {
        u32::from_le(self.memory.read_obj(GuestAddress(address)).unwrap())
    }

    pub(crate) fn descriptor(&self, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = table + 16 * u64::from(index);
        self.poke(at, address.to_le_bytes());
        self.poke(at + 8, len.to_le_bytes());
        self.poke(at + 12, flags.to_le_bytes());
        self.poke(at + 14, next.to_le_bytes());
    }

    /// Puts `head` on the available ring.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available % self.size);
        self.poke(AVAILABLE + 4 + 2 * slot, head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.poke(AVAILABLE + 2, self.available.to_le_bytes());
    }

    /// Makes a chain of readable buffers with these contents and writable ones of these lengths available; its head.
    pub(crate) fn chain(&mut self, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let head = self.next_descriptor;
        let count = (readable.len() + writable.len()) as u16;
        let lens = readable.iter().map(|r| (r.len() as u32, 0)).chain(writable.iter().map(|w| (*w, WRITE)));
        for (i, (len, flags)) in (0..).zip(lens) {
            let index = (head + i) % self.size;
            let buffer = BUFFERS + BUFFER_SIZE * u64::from(index);
            if let Some(contents) = readable.get(usize::from(i)) {
                self.memory.write_slice(contents, GuestAddress(buffer)).unwrap();
            }
            let more = if i + 1 < count { NEXT } else { 0 };
            self.descriptor(DESCRIPTORS, index, buffer, len, flags | more, (index + 1) % self.size);
        }
        self.next_descriptor = (head + count) % self.size;
        self.offer(head);
        head
    }

    pub(crate) fn readable(&mut self, contents: &[&[u8]]) -> u16 {
        self.chain(contents, &[])
    }

    pub(crate) fn writable(&mut self, lens: &[u32]) -> u16 {
        self.chain(&[], lens)
    }

    /// Uses descriptors from the first on again.
    pub(crate) fn free_all(&mut self) {
        self.next_descriptor = 0;
    }

    /// What came on the used ring since the last call: heads and lengths.
    pub(crate) fn take_used(&mut self) -> Vec<(u16, u32)> {
        let mut taken = Vec::new();
        while self.used != self.peek_u16(USED + 2) {
            let at = USED + 4 + 8 * u64::from(self.used % self.size);
            taken.push((self.peek_u32(at) as u16, self.peek_u32(at + 4)));
            self.used = self.used.wrapping_add(1);
        }
        taken
    }

    /// Bytes of the buffer of the `n`th descriptor from `head`.
    pub(crate) fn memory_at(&self, head: u16, n: u16, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let buffer = BUFFERS + BUFFER_SIZE * u64::from((head + n) % self.size);
        self.memory.read_slice(&mut bytes, GuestAddress(buffer)).unwrap();
        bytes
    }
}
